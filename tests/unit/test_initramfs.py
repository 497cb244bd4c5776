"""The reader of initramfs files against GNU cpio and the compressors themselves, and what is no initramfs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
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


def _by(*program):
    return lambda data: subprocess.run(program, input=data, capture_output=True, check=True).stdout


def _lzop_block(block, size):
    """What lzop would write, with a block of our own."""
    head = _by("lzop", "-c")(b"")[:-4]
    return head + struct.pack(">III", size, len(block), 0) + block + bytes(4)


PACKERS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": _by("zstd", "-q", "-c"),
    "lz4": _by("lz4", "-l", "-q", "-c"),
    "lz4 twice": lambda data: _by("lz4", "-l", "-q", "-c")(data[:1000]) + _by("lz4", "-l", "-9", "-c")(data[1000:]),
    "lzo": _by("lzop", "-c"),
    "lzo best": _by("lzop", "-9", "-c"),
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
        (b"\x02\x21\x4c\x18rest", "broken (a block of "),
        (b"\x02\x21\x4c\x18\x05\0\0\0\x0fabcd", "broken (Decompression failed"),
        (b"\x02\x21\x4c\x18\x05\0\0\0abc", "cut short"),
        (b"\x89LZO\0\r\n\x1a\n", "cut short"),
        (b"\x89LZO\0\r" + bytes(100), "broken (no lzop header)"),
        (_by("lzop", "-c")(b"x" * 1000)[:-6], "cut short"),
        (_lzop_block(b"\x13ab\x40\xff", 100), "points outside of itself"),
        (_lzop_block(b"\x12a", 100), "is cut short"),
        (_lzop_block(b"\x12a\x11\0\0", 100), "of 1 bytes instead of 100"),
        (_lzop_block(b"a" * 10, 1 << 20), "a block of 10 bytes for 1048576"),
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
    assert contents.unread.count("Reading an initramfs") == 1
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


@pytest.mark.parametrize("pack", [lambda part: part, gzip.compress], ids=["side by side", "in one another"])
def test_parts_that_are_a_bomb_together(monkeypatch, pack):
    monkeypatch.setattr(initramfs, "_SIZE_LIMIT", 8 << 20)
    part = gzip.compress(bytes(3 << 20))
    assert look(pack(part * 2)).unread == ""
    with pytest.raises(FormatError, match="more than 8 MiB"):
        look(pack(part * 3))


def test_the_same_name_again_and_again_is_counted(monkeypatch):
    monkeypatch.setattr(initramfs, "_MEMBER_LIMIT", 100)
    with pytest.raises(FormatError, match="more than 100 files"):
        look(cpio.write(Member("f", 0o100644) for number in range(200)))


@pytest.mark.parametrize(
    "member", [Member("l", 0o120777, b"t" * 4000), Member("n" * 4000, 0o100644), Member("f", 0o100644, b"d" * 4000)]
)
def test_names_links_and_content_are_bounded(monkeypatch, member):
    monkeypatch.setattr(initramfs, "_KEPT_LIMIT", 1 << 20)
    assert look(cpio.write([member] * 260)).unread == ""
    with pytest.raises(FormatError, match="more than 1 MiB"):
        look(cpio.write([member] * 270))


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


@pytest.mark.parametrize("packer", ["lz4", "lzo", "lzo best"])
def test_blocks_of_every_kind(packer):
    source = random.Random(5)
    words = [source.randbytes(source.choice((1, 2, 3, 7, 40))) for _ in range(300)]
    text = b"".join(source.choice(words) for _ in range(60_000))
    data = source.randbytes(70_000) + text + bytes(300_000) + text[:50_000] + source.randbytes(9_000_000) + text
    contents = look(PACKERS[packer](cpio.write([Member("a", 0o100644, data)])))
    assert contents.unread == ""
    assert contents.members["a"].data == data


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["lz4", "lzo"]), st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_broken_blocks_are_refused_or_read(packer, at, rubbish):
    good = _PACKED[packer]
    contents = look(good[:at] + rubbish + good[at + len(rubbish) :])
    assert contents.unread or contents.members


_PACKED = {
    packer: PACKERS[packer](cpio.write([Member("a", 0o100644, b"some data " * 20 + bytes(range(256)) * 2)]))
    for packer in ("lz4", "lzo")
}


@pytest.mark.parametrize("field", range(13))
@pytest.mark.parametrize("number", [b"-0000001", b"-8000000", b"+0000001", b" 0000001", b"0_000001", b"0x000001"])
def test_a_header_has_digits_only(field, number):
    archive = bytearray(cpio.write([Member("init", 0o100755, b"#!"), Member("later", 0o100644, b"")]))
    archive[6 + 8 * field : 14 + 8 * field] = number
    contents = look(bytes(archive))
    assert "not hexadecimal" in contents.unread
    assert not contents.members
