"""The attributes of a tree, kept in a file beside it: what goes in comes out, and what is damaged is told so."""

import hashlib
import os
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbootd.errors import FormatError
from netbootd.formats import treeattributes
from netbootd.formats.treeattributes import Attributes, TreeAttributes

TYPES = (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
HEADER = 56
U32 = st.integers(0, 0xFFFFFFFF)
NAMES = st.binary(min_size=1, max_size=255).map(lambda raw: os.fsdecode(raw))
XATTRS = st.dictionaries(NAMES, st.binary(max_size=100), max_size=3).map(lambda found: tuple(sorted(found.items())))
ATTRIBUTES = st.builds(
    lambda kind, mode, *rest: Attributes(kind | mode, *rest),
    st.sampled_from(TYPES),
    st.integers(0, 0o7777),
    *(U32,) * 4,
    XATTRS,
)
PING = Attributes(stat.S_IFREG | 0o755, 0, 0, xattrs=(("security.capability", bytes(range(20))),))
SHADOW = Attributes(stat.S_IFREG | 0o640, 0, 42)
NULL = Attributes(stat.S_IFCHR | 0o666, 0, 0, 1, 3)
SUDO = Attributes(stat.S_IFREG | 0o4755)


def made():
    tree = TreeAttributes()
    for path, attributes in {b"bin/ping": PING, b"etc/shadow": SHADOW, b"dev/null": NULL}.items():
        tree.set(path, attributes)
    return tree


@given(st.dictionaries(st.binary(max_size=40), ATTRIBUTES, max_size=20))
def test_what_goes_in_comes_out(entries):
    tree = TreeAttributes()
    for path, attributes in entries.items():
        tree.set(path, attributes)
    again = TreeAttributes.parse(tree.encode())
    assert len(again) == len(entries)
    assert {path: again.get(path) for path in entries} == entries
    assert again.encode() == tree.encode()


def test_the_bytes_are_as_documented():
    """Written down by hand from the module's description of the format."""
    tree = TreeAttributes()
    tree.set(b"x", Attributes(0o100644, 1, 2, 3, 4, (("user.a", b"value"),)))
    sets = struct.pack("<6I", 0o100644, 1, 2, 3, 4, 1) + struct.pack("<HI", 6, 5) + b"user.avalue"
    rest = hashlib.blake2b(b"x", digest_size=16).digest() + struct.pack("<I", 0) + sets
    head = b"nbattrs1" + struct.pack("<IIQ", 1, 1, len(sets)) + hashlib.sha256(rest).digest()
    assert tree.encode() == head + rest


def test_the_same_tree_gives_the_same_bytes_whatever_came_in_between():
    plain = made()
    busy = TreeAttributes()
    busy.set(b"gone", SUDO)
    busy.set(b"etc/shadow", SUDO)
    for path, attributes in ((b"dev/null", NULL), (b"etc/shadow", SHADOW), (b"bin/ping", PING)):
        busy.set(path, attributes)
    busy.remove(b"gone")
    busy.remove(b"never there")
    assert busy.encode() == plain.encode()
    assert busy.get(b"gone") is None


def test_a_second_name_keeps_what_it_has_when_the_first_changes():
    tree = made()
    tree.link(b"bin/ping6", b"bin/ping")
    tree.set(b"bin/ping", SUDO)
    tree = TreeAttributes.parse(tree.encode())
    assert (tree.get(b"bin/ping6"), tree.get(b"bin/ping")) == (PING, SUDO)


def test_names_share_their_sets():
    tree = TreeAttributes()
    for number in range(60_000):
        tree.set(b"usr/share/doc/%d" % number, (PING, SHADOW, NULL, SUDO)[number % 4])
    data = tree.encode()
    assert len(data) < 60_000 * 20 + 1000
    assert TreeAttributes.parse(data).get(b"usr/share/doc/59999") == SUDO


# ---------------------------------------------------------------- damaged, or made to hurt


def signed(rest, names, sets, size, magic=b"nbattrs1"):
    """A file whose digest is right, whatever is in it."""
    return magic + struct.pack("<IIQ", names, sets, size) + hashlib.sha256(rest).digest() + rest


@pytest.mark.parametrize("length", [0, 7, 8, HEADER - 1, HEADER, HEADER + 1, -1])
def test_one_that_ends_early_is_refused(length):
    data = made().encode()
    with pytest.raises(FormatError, match="attributes of a tree") as caught:
        TreeAttributes.parse(data[:length])
    assert caught.value.exit_status == 7 and "--unprivileged" in caught.value.hint


def test_no_bit_can_change_unnoticed():
    data = made().encode()
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(FormatError):
            TreeAttributes.parse(bytes(broken))


def test_bytes_behind_it_are_refused():
    with pytest.raises(FormatError):
        TreeAttributes.parse(made().encode() + b"\0")


ONE = hashlib.blake2b(b"x", digest_size=16).digest()
PLAIN = struct.pack("<6I", 0o100644, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("names", "sets", "why"),
    [
        ([(ONE, 1)], [PLAIN], "not there"),
        ([(ONE, 0), (ONE, 0)], [PLAIN], "in order"),
        ([(b"\2" * 16, 0), (b"\1" * 16, 0)], [PLAIN], "in order"),
        ([(ONE, 0)], [struct.pack("<6I", 0o644, 0, 0, 0, 0, 0)], "mode"),
        ([(ONE, 0)], [struct.pack("<6I", 0o4100644, 0, 0, 0, 0, 0)], "mode"),
        ([(ONE, 0)], [struct.pack("<6I", 0o100644, 0, 0, 0, 0, 1)], "end early"),
        ([(ONE, 0)], [struct.pack("<6I", 0o100644, 0, 0, 0, 0, 0xFFFFFFFF) + struct.pack("<HI", 1, 0)], "longer"),
        ([(ONE, 0)], [struct.pack("<6I", 0o100644, 0, 0, 0, 0, 1) + struct.pack("<HI", 9, 9) + b"short"], "longer"),
        ([(ONE, 0)], [struct.pack("<6I", 0o100644, 0, 0, 0, 0, 1) + struct.pack("<HI", 0, 0)], "longer"),
        ([(ONE, 0)], [PLAIN + b"more"], "follow"),
        ([], [PLAIN], "sets"),
    ],
)
def test_nonsense_under_a_right_digest_is_refused(names, sets, why):
    body = b"".join(sets)
    rest = b"".join(digest + struct.pack("<I", number) for digest, number in names) + body
    with pytest.raises(FormatError, match=why):
        TreeAttributes.parse(signed(rest, len(names), len(sets), len(body)))


@pytest.mark.parametrize(("names", "sets", "size"), [(0xFFFFFFFF, 1, 24), (1, 1, 1 << 62), (1, 0xFFFFFFFF, 24)])
def test_large_numbers_alone_take_no_memory(names, sets, size):
    with pytest.raises(FormatError, match="speaks of"):
        TreeAttributes.parse(signed(ONE + bytes(4) + PLAIN, names, sets, size))


@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_arbitrary_bytes_are_read_or_refused(rest, names, sets):
    size = max(0, len(rest) - names * 20)
    try:
        TreeAttributes.parse(signed(rest, names, sets, size))
    except FormatError:
        pass


def test_a_hostile_image_can_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(treeattributes, "MAX_SETS", 1 << 20)
    tree = TreeAttributes()
    with pytest.raises(FormatError, match="more than 1 MiB"):
        for number in range(1000):
            value = os.urandom(4096)
            tree.set(b"%d" % number, Attributes(stat.S_IFREG, xattrs=(("user.x", value),)))
    monkeypatch.setattr(treeattributes, "MAX_NAMES", 100)
    tree = TreeAttributes()
    with pytest.raises(FormatError, match="more than 100 names"):
        for number in range(1000):
            tree.set(b"%d" % number, SHADOW)
    with pytest.raises(FormatError, match="larger than Linux"):
        Attributes(stat.S_IFREG, xattrs=(("user.x", bytes(65537)),)).encode()
