"""ext4's directories: linear, hashed (read block by block, as the hash tree is laid over a linear directory), inline.

Linux: fs/ext4/dir.c, namei.c (checksums), inline.c. The hash tree itself is not used, only its checksums are verified.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from netbootd.formats.ext4.checksum import crc32c, stored
from netbootd.formats.ext4.faults import damaged, unsupported
from netbootd.formats.ext4.superblock import INCOMPAT_FILETYPE

if TYPE_CHECKING:
    from netbootd.formats.ext4.claims import BlockClaims
    from netbootd.formats.ext4.filesystem import Ext4
    from netbootd.formats.ext4.inode import Inode

_HEAD = struct.Struct("<IHBB")
_TAIL = struct.Struct("<IHBBI")
_TAIL_TYPE = 0xDE

MAX_NAMES = 2_000_000


class DirEntry(NamedTuple):
    """One name; `inode` is its inode's number."""

    name: bytes
    inode: int


def entries(fs: Ext4, inode: Inode, claims: BlockClaims | None, parent: int) -> Iterator[DirEntry]:
    """The names in a directory. See `Inode.entries`."""
    if inode.kind != "dir":
        raise damaged(f"inode {inode.number} is read as a directory, but is a {inode.kind}")
    reader = _Names(fs, inode, parent)
    if inode.inline is not None:
        # Four bytes name the parent, and there is no entry for "." and ".."; the rest lies in an attribute.
        reader.dots(inode.number, int.from_bytes(inode.area[:4], "little"))
        yield from reader.names(inode.area[4 : max(4, inode.size)])
        rest = inode.size - len(inode.area)
        if rest > 0:
            area = inode.inline_rest()
            if len(area) < rest:
                raise damaged(f"the directory in inode {inode.number} has {inode.size} bytes in itself, but no room")
            yield from reader.names(area[:rest])
        return
    block_size = fs.superblock.block_size
    if not inode.size or inode.size % block_size:
        raise damaged(f"the directory in inode {inode.number} has {inode.size} bytes, not whole blocks")
    first = True
    for offset, length, disk in inode.extents(claims):
        if disk is None:
            raise damaged(f"the directory in inode {inode.number} has a hole at {offset}")
        for at in range(disk, disk + length, block_size):
            block = fs.read(at, block_size)
            if fs.superblock.metadata_csum:
                _check_block(inode, block, at // block_size)
            if first:
                block = reader.leading_dots(block)
                first = False
            yield from reader.names(block)


class _Names:
    """Decodes the entries of one directory and refuses those that no directory can have."""

    __slots__ = ("_filetype", "_inodes", "_number", "_parent", "_seen", "_special")

    def __init__(self, fs: Ext4, inode: Inode, parent: int) -> None:
        sb = fs.superblock
        self._number = inode.number
        self._parent = parent
        self._inodes = sb.inodes_count
        self._special = sb.first_ino
        self._filetype = bool(sb.incompat & INCOMPAT_FILETYPE)
        # Hashes, keyed anew in each process: the names themselves, of millions of files, take four times the room.
        self._seen: set[int] = set()

    def dots(self, itself: int, parent: int) -> None:
        """Check where ``.`` and ``..`` lead: a directory with two parents, or above itself, contradicts one of them."""
        if itself != self._number or (self._parent and parent != self._parent):
            raise damaged(
                f"the directory in inode {self._number} is linked from {self._parent}, but its .. is {parent}"
            )

    def leading_dots(self, block: bytes) -> bytes:
        """Check the first two entries of a directory's first block and return what follows them."""
        first_inode, first_length, size, _ = _HEAD.unpack_from(block)
        if size == 1 and block[8:9] == b"." and first_length >= 12 and first_length + 12 <= len(block):
            second_inode, second_length, size, _ = _HEAD.unpack_from(block, first_length)
            if size == 2 and block[first_length + 8 : first_length + 10] == b".." and first_length == 12:
                self.dots(first_inode, second_inode)
                second_length = _record_length(second_length)
                if second_length < 12 or second_length & 3 or first_length + second_length > len(block):
                    raise damaged(f"the directory in inode {self._number} has a broken entry")
                return block[first_length + second_length :]
        raise damaged(f"the directory in inode {self._number} does not begin with . and ..")

    def names(self, area: bytes) -> Iterator[DirEntry]:
        """The entries in use of a row of entries that fills `area`."""
        at, end, seen = 0, len(area), self._seen
        while at < end:
            if end - at < 8:
                raise damaged(f"the directory in inode {self._number} has a broken entry")
            inode, length, size, kind = _HEAD.unpack_from(area, at)
            length = _record_length(length)
            if length < 8 + size or length < 12 or length & 3 or at + length > end:
                raise damaged(f"the directory in inode {self._number} has a broken entry")
            if inode:
                name = area[at + 8 : at + 8 + size]
                if not size or b"/" in name or b"\0" in name or name in (b".", b".."):
                    raise damaged(f"the directory in inode {self._number} has the impossible name {name!r}")
                key = hash(name)
                if key in seen:
                    raise damaged(f"the directory in inode {self._number} has the name {name!r} twice")
                if inode > self._inodes or inode < self._special:
                    raise damaged(f"the name {name!r} in inode {self._number} leads to the unusable inode {inode}")
                if kind and not self._filetype:
                    raise damaged(f"the directory in inode {self._number} has a name of {size | kind << 8} bytes")
                seen.add(key)
                if len(seen) > MAX_NAMES:
                    raise unsupported(
                        f"the directory in inode {self._number} has more than {MAX_NAMES} names",
                        "No image of an operating system has so many.",
                    )
                yield DirEntry(name, inode)
            at += length


def _record_length(raw: int) -> int:
    """The length of an entry: 64 KiB, a whole block of that size, don't fit in 16 bits and are written 65535 or 0."""
    return 65536 if raw in (0, 65535) else raw


def _check_block(inode: Inode, block: bytes, number: int) -> None:
    """Verify the checksum of a directory block: behind the entries, or behind the hash tree's pointers.

    A leaf that the kernel turned into the tree's root keeps the mark of a leaf at its end, with the root's checksum
    where the leaf's was: the mark alone does not tell which it is.
    """
    zero, length, size, kind, checksum = _TAIL.unpack_from(block, len(block) - 12)
    if zero == 0 and length == 12 and size == 0 and kind == _TAIL_TYPE:
        if stored(crc32c(inode.seed, block[:-12])) == checksum:
            return
        if not _pointers_at(block):
            raise damaged(f"block {number} of the directory in inode {inode.number} does not match its checksum")
    right, checksum = _hash_tree_checksum(inode, block, number)
    if right != checksum:
        raise damaged(f"block {number} of the directory in inode {inode.number} does not match its checksum")


def _pointers_at(block: bytes) -> int:
    """Where the pointers of a block of a hash tree begin; 0 for one that is none."""
    length = _record_length(_HEAD.unpack_from(block)[1])
    if length == len(block):
        return 8  # a node: one unused entry over the whole block
    if length == 12 and _record_length(_HEAD.unpack_from(block, 12)[1]) == len(block) - 12 and block[29] == 8:
        return 32  # the root: ".", ".." over the rest, and the tree's 8 bytes of information
    return 0


def _hash_tree_checksum(inode: Inode, block: bytes, number: int) -> tuple[int, int]:
    """What the checksum of a block of a hash tree should be, and what it is."""
    at = _pointers_at(block)
    if not at:
        raise damaged(f"block {number} of the directory in inode {inode.number} has no checksum")
    limit, count = struct.unpack_from("<HH", block, at)
    tail = at + limit * 8
    if count > limit or tail + 8 > len(block):
        raise damaged(f"block {number} of the directory in inode {inode.number} has a broken hash tree")
    value = crc32c(inode.seed, block[: at + count * 8] + block[tail : tail + 4] + b"\0\0\0\0")
    return stored(value), int.from_bytes(block[tail + 4 : tail + 8], "little")
