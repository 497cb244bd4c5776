"""The reader of initramfs files against GNU cpio and the compressors themselves, and what is no initramfs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbootd.errors import FormatError
from netbootd.formats import cpio, initramfs
from netbootd.formats.cpio import Member
from tests.support import little_trees as trees


def look(data, keep=lambda name, size: True):
    return initramfs.look(io.BytesIO(data).read, keep)


@pytest.fixture
def plain(tmp_path):
    """An archive by GNU cpio, with folders, links and files."""
    files = {
        "init": "#!/bin/sh\n",
        "lib": "-> usr/lib",
        "usr/lib/one": b"\1\2\3",
        "usr/lib/two": "-> /usr/lib/one",
        "empty": "",
    }
    return gzip.decompress(trees.initramfs(tmp_path / "tree", files))


def _zstd(data):
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


PACKERS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": _zstd,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_every_compression(plain, packer):
    contents = look(PACKERS[packer](plain))
    assert contents.unread == ""
    assert sorted(contents.members) == ["empty", "init", "lib", "usr", "usr/lib", "usr/lib/one", "usr/lib/two"]
    assert contents.get("lib/two").data == b"\1\2\3"
    assert contents.text("init") == "#!/bin/sh\n"
    assert contents.resolve("lib/two") == "usr/lib/one"
    assert contents.below("lib") == ["usr/lib/one", "usr/lib/two"]
    assert stat.S_ISDIR(contents.members["usr/lib"].mode)


@pytest.mark.parametrize("second", PACKERS)
@pytest.mark.parametrize("first", PACKERS)
def test_archives_one_behind_the_other(plain, first, second):
    later = cpio.write([Member("init", 0o100755, b"later"), Member("new", 0o100644, b"n")])
    data = PACKERS[first](plain)
    contents = look(data + bytes(-len(data) % 4) + bytes(512) + PACKERS[second](later) + bytes(100))
    assert contents.unread == ""
    assert contents.text("init") == "later"
    assert contents.text("new") == "n"
    assert contents.get("usr/lib/one").data == b"\1\2\3"


def test_what_is_written_is_an_archive_for_gnu_cpio(tmp_path):
    members = [
        Member("usr", 0o040755),
        Member("usr/lib", 0o040750),
        Member("usr/lib/script", 0o100755, b"#!/bin/sh\n"),
        Member("usr/lib/odd", 0o100600, bytes(range(7))),
        Member("link", 0o120777, b"usr/lib"),
    ]
    archive = cpio.write(members)
    assert len(archive) % 512 == 0
    out = trees.unpack(archive, tmp_path / "out")
    assert (out / "usr/lib/script").read_bytes() == b"#!/bin/sh\n"
    assert (out / "link/odd").read_bytes() == bytes(range(7))
    assert stat.S_IMODE((out / "usr/lib").stat().st_mode) == 0o750
    assert os.readlink(out / "link") == "usr/lib"
    contents = look(archive)
    assert [(m.name, m.mode, m.data or b"") for m in contents.members.values()] == [
        (m.name, m.mode, m.data) for m in members
    ]


def test_only_what_is_wanted_is_kept(plain):
    contents = look(plain, lambda name, size: name == "init" and size < 100)
    assert contents.text("init") == "#!/bin/sh\n"
    assert contents.members["usr/lib/one"].data is None
    assert contents.members["usr/lib/one"].size == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x02\x21\x4c\x18rest", "compressed by lz4"),
        (b"\x89LZO\0\r\n\x1a\n", "compressed by lzo"),
        (b"not an archive", "not compressed in a known way"),
        (b"070701", "broken or cut short"),
        (b"070701" + b"g" * 104, "not hexadecimal"),
        (b"070701" + b"0" * 104, "a name of 0 bytes"),
        (b"070701" + b"f" * 104, "a name of 4294967295 bytes"),
        (gzip.compress(b"070701" + b"0" * 1000)[:-20], "cut short"),
        (b"\x1f\x8b" + bytes(100), "broken"),
        (gzip.compress(gzip.compress(gzip.compress(b""))), "not compressed in a known way"),
    ],
)
def test_what_can_not_be_read_is_named(plain, data, message):
    contents = look(plain + data)
    assert message in contents.unread
    assert "init" in contents.members
    assert look(data).unread == contents.unread


def test_cut_short_at_every_place(plain):
    end = plain.index(b"TRAILER!!!")
    for size in range(1, end, 7):
        contents = look(plain[:size])
        assert contents.unread or size % 4 == 0
        assert len(contents.members) <= 7


def test_a_bomb(monkeypatch):
    monkeypatch.setattr(initramfs, "_SIZE_LIMIT", 8 << 20)
    header = b"070701" + b"%08x" * 13 % (1, 0o100644, 0, 0, 1, 0, 1 << 30, 0, 0, 0, 0, 2, 0) + b"x\0"
    packed = gzip.compress(header + bytes(16 << 20))
    with pytest.raises(FormatError, match="more than 8 MiB"):
        look(packed)


def test_too_many_files(monkeypatch):
    monkeypatch.setattr(initramfs, "_MEMBER_LIMIT", 100)
    with pytest.raises(FormatError, match="more than 100 files"):
        look(cpio.write(Member(f"f{number}", 0o100644) for number in range(200)))


def test_links_that_go_round():
    contents = look(
        cpio.write([Member("a", 0o120777, b"b/x"), Member("b", 0o120777, b"a/x"), Member("c", 0o120777, b"c")])
    )
    for path in ("a", "b/c", "c", "../..", ""):
        assert contents.get(path) is None or path == "c"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_rubbish_in_the_middle(rubbish, at):
    good = cpio.write([Member("a", 0o100644, b"data"), Member("b", 0o120777, b"a")])
    contents = look(good[:at] + rubbish + good[at:])
    assert len(contents.members) < 10
    contents.resolve("a/b/../c")
