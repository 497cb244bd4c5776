"""The lines of the kernel's export caches, what is exported, and how the caches' questions are answered."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbootd.errors import HostError
from netbootd.model.export import Export
from netbootd.nfsd.kernel import caches, upcalls
from netbootd.nfsd.kernel.book import ExportBook, uuid_of
from netbootd.nfsd.kernel.caches import ADDRESSES, EXPORTS, HANDLES, Flag, Grant
from netbootd.nfsd.kernel.upcalls import Upcalls, grant_for_handle

NOW = 1_800_000_000
YEAR = 365 * 86400


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upcalls.time, "time", lambda: NOW + 0.5)


class Live:
    """Generations that come and go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.exports: list[Export] = []

    def add(self, generation: str) -> bytes:
        root = self._folder / "images" / "noble" / generation / "root"
        root.mkdir(parents=True)
        self.exports.append(Export(os.fsencode(root), generation.encode()[:8].ljust(8), "noble", generation))
        return os.fsencode(root)


@pytest.fixture
def live(tmp_path: Path) -> Live:
    return Live(tmp_path)


def rpc(folder: Path) -> Path:
    for name in (ADDRESSES, EXPORTS, HANDLES):
        (folder / name).mkdir(parents=True)
        (folder / name / "channel").write_bytes(b"")
        (folder / name / "flush").write_bytes(b"")
    return folder


def answering(live: Live, tmp_path: Path) -> Upcalls:
    book = ExportBook(lambda: live.exports)
    book.refresh()
    return Upcalls(book, lambda address: address.startswith("192.0.2."), rpc(tmp_path / "rpc"))


# ---------------------------------------------------------------- words


def test_words_as_the_kernel_writes_them() -> None:
    assert caches.split(b"netbootd /srv/a\\040b\\134c 7 \\x00ff\n") == [b"netbootd", b"/srv/a b\\c", b"7", b"\x00\xff"]
    with pytest.raises(ValueError, match="hex"):
        caches.split(b"\\xzz\n")


@given(st.binary(min_size=1).filter(lambda word: b"\0" not in word))
def test_every_word_comes_back(word: bytes) -> None:
    line = caches.quote(word)
    assert not set(line) & set(b" \n\t")
    assert caches.split(line + b"\n") == [word]


def test_lines() -> None:
    """As nfs-utils writes them: fs/nfsd/export.c and net/sunrpc/svcauth_unix.c read these words in this order."""
    grant = Grant(b"/srv/a b", Flag.READONLY | Flag.INSECURE_PORT, bytes(range(16)), 99)
    assert caches.address_line(b"192.0.2.5", NOW, b"netbootd") == b"nfsd 192.0.2.5 1800000000 netbootd\n"
    assert caches.address_line(b"192.0.2.5", NOW, None) == b"nfsd 192.0.2.5 1800000000\n"
    assert caches.export_line(b"d", b"/srv/a b", NOW, grant) == (
        b"d /srv/a\\040b 1800000000 3 65534 65534 0 uuid \\x000102030405060708090a0b0c0d0e0f\n"
    )
    assert caches.export_line(b"d", b"/x", NOW, None) == b"d /x 1800000000\n"
    assert caches.handle_line(b"d", 1, bytes(4), NOW, b"/") == b"d 1 \\x00000000 1800000000 /\n"
    assert caches.handle_line(b"d", 1, bytes(4), NOW, None) == b"d 1 \\x00000000 1800000000\n"


# ---------------------------------------------------------------- the book


def test_identities_follow_from_the_generation_alone(live: Live) -> None:
    path = live.add("0123456789abcdef")
    first, again = ExportBook(lambda: live.exports), ExportBook(lambda: live.exports)
    assert first.refresh() and again.refresh()
    assert first.at(path) == again.at(path)
    other = Export(path, b"another.", "noble", "fedcba9876543210")
    assert uuid_of(live.exports[0]) != uuid_of(other)
    assert len(uuid_of(other)) == 16


def test_a_change_is_noticed_once(live: Live) -> None:
    book = ExportBook(lambda: live.exports)
    assert not book.refresh()
    path = live.add("0123456789abcdef")
    assert book.refresh()
    assert not book.refresh()
    os.rename(path, path + b"-moved")
    assert book.refresh()
    assert book.at(path) is None and book.of("noble", "0123456789abcdef") is None


def test_nfs4_sees_nothing_but_the_way(live: Live) -> None:
    path = live.add("0123456789abcdef")
    book = ExportBook(lambda: live.exports)
    book.refresh()
    root, top = book.at(path), book.at(b"/")
    assert root is not None and top is not None
    assert not root.flags & (Flag.V4ROOT | Flag.ROOTSQUASH) and root.flags & Flag.READONLY
    assert top.flags & Flag.FSID and not top.uuid
    for way in (b"/", path.rpartition(b"/")[0]):
        grant = book.at(way)
        assert grant is not None
        assert grant.flags & Flag.V4ROOT and grant.flags & Flag.READONLY and grant.flags & Flag.ROOTSQUASH
    assert book.at(path + b"/etc") is None and book.at(b"/etc") is None


def test_ports_that_calls_may_come_from(live: Live) -> None:
    """As exports(5) has it: without ``secure`` from any, with it from those below 1024 alone, for every export."""
    path = live.add("0123456789abcdef")
    for secure in (False, True):
        book = ExportBook(lambda: live.exports, secure=secure)
        book.refresh()
        for place in (b"/", path.rpartition(b"/")[0], path):
            grant = book.at(place)
            assert grant is not None
            assert bool(grant.flags & Flag.INSECURE_PORT) is not secure


def test_a_root_that_is_a_link_is_exported_where_it_leads(live: Live, tmp_path: Path) -> None:
    real = live.add("0123456789abcdef")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    through = real.replace(os.fsencode(tmp_path / "images"), os.fsencode(tmp_path / "link"))
    book = ExportBook(lambda: [Export(through, b"12345678", "noble", "0123456789abcdef")])
    book.refresh()
    grant = book.of("noble", "0123456789abcdef")
    assert grant is not None and grant.path == real


# ---------------------------------------------------------------- answers


def test_who_belongs_to_us(live: Live, tmp_path: Path) -> None:
    kernel = answering(live, tmp_path)
    assert kernel.answer(ADDRESSES, b"nfsd 192.0.2.5\n") == b"nfsd 192.0.2.5 %d netbootd\n" % (NOW + YEAR)
    assert kernel.answer(ADDRESSES, b"nfsd 198.51.100.5\n") == b"nfsd 198.51.100.5 %d\n" % (NOW + 60)
    assert kernel.answer(ADDRESSES, b"nfsd 2001:db8::1\n") == b"nfsd 2001:db8::1 %d\n" % (NOW + 60)


def test_what_they_may_use(live: Live, tmp_path: Path) -> None:
    path = live.add("0123456789abcdef")
    kernel = answering(live, tmp_path)
    said = kernel.answer(EXPORTS, b"netbootd " + path + b"\n")
    assert said == b"netbootd %b %d 3075 65534 65534 0 uuid \\x%b\n" % (
        path,
        NOW + YEAR,
        uuid_of(live.exports[0]).hex().encode(),
    )
    for other in (b"/etc", path + b"/etc", b"/srv"):
        assert kernel.answer(EXPORTS, b"netbootd " + other + b"\n") == b"netbootd %b %d\n" % (other, NOW + 60)
    assert kernel.answer(EXPORTS, b"others " + path + b"\n") == b"others %b %d\n" % (path, NOW + 60)


def test_a_generation_published_just_now_is_found(live: Live, tmp_path: Path) -> None:
    kernel = answering(live, tmp_path)
    path = live.add("0123456789abcdef")
    said = kernel.answer(EXPORTS, b"netbootd " + path + b"\n")
    assert said is not None and b" uuid " in said


def test_whose_a_handle_is(live: Live, tmp_path: Path) -> None:
    path = live.add("0123456789abcdef")
    kernel = answering(live, tmp_path)
    identity, inode = uuid_of(live.exports[0]), os.stat(path).st_ino.to_bytes(8, sys.byteorder)
    for kind, fsid in ((6, identity), (7, inode + identity)):
        question = b"netbootd %d \\x%b\n" % (kind, fsid.hex().encode())
        assert kernel.answer(HANDLES, question) == question[:-1] + b" %d %b\n" % (NOW + YEAR, path)
    assert kernel.answer(HANDLES, b"netbootd 1 \\x00000000\n") == b"netbootd 1 \\x00000000 %d /\n" % (NOW + YEAR)
    forged = [(7, bytes(8) + identity), (6, identity[::-1]), (1, b"\1\0\0\0"), (5, identity[:8]), (0, bytes(8))]
    for kind, fsid in forged:
        question = b"netbootd %d \\x%b\n" % (kind, fsid.hex().encode())
        assert kernel.answer(HANDLES, question) == question[:-1] + b" %d\n" % (NOW + 60)


def test_a_question_that_is_not_understood_has_no_answer(live: Live, tmp_path: Path) -> None:
    kernel = answering(live, tmp_path)
    for cache in (ADDRESSES, EXPORTS, HANDLES):
        for line in (b"\n", b"x\n", b"nfsd not-an-address\n", b"d z \\x00\n", b"d 1 \\xzz\n"):
            if cache == EXPORTS and len(line.split()) > 1:
                continue
            assert kernel.answer(cache, line) is None


def test_a_handle_is_given_after_the_kernel_knows_the_export(live: Live, tmp_path: Path) -> None:
    path = live.add("0123456789abcdef")
    book = ExportBook(lambda: live.exports)
    book.refresh()
    told: list[tuple[str, bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upcalls, "tell", lambda cache, line, rpc: told.append((cache, line)))
        grant_for_handle(book, path + b"/usr/lib")
        assert [line.split()[1] for cache, line in told if cache == EXPORTS] == [
            path + b"/usr/lib",
            path + b"/usr",
            path,
        ]
        assert [len(line.split()) for cache, line in told if cache == EXPORTS] == [3, 3, 9]
        with pytest.raises(HostError):
            grant_for_handle(book, b"/etc")


def test_a_kernel_without_the_caches_is_told(live: Live, tmp_path: Path) -> None:
    book = ExportBook(lambda: live.exports)
    with pytest.raises(HostError, match="channel"):
        Upcalls(book, lambda address: True, tmp_path / "nothing").start()
