"""Where content will lie, told from an ext4 file system's inode tables while the rest of it is still on its way.

A forecast, no more: inodes are taken as they are, without a look at their checksums, at the bitmaps or at each other,
and only files whose extents stand in the inode itself (inline extents, fs/ext4/ext4_extents.h) are told of. Who acts on
it has to ask `Ext4` afterwards what is true.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from netbootd.formats.ext4.superblock import (
    INCOMPAT_META_BG,
    INCOMPAT_RECOVER,
    RO_COMPAT_SHARED_BLOCKS,
    Superblock,
)

_INODE = struct.Struct("<HxxI12xI2xH4xI4x60s4x4xI")  # mode, size, dtime, links, flags, block area, upper size
_MAGIC = 0xF30A
_EXTENTS = 0x80000
_NOT_DATA = 0x800 | 0x200000 | 0x10000000  # encrypted, an attribute's value, inline
_HEADER = struct.Struct("<HHHH")
_LEAF = struct.Struct("<IHHI")
_UNWRITTEN = 32768
_IN_INODE = 4  # extents that the area of an inode has room for


class Stretch(NamedTuple):
    """`length` bytes at `start` of the partition that are said to be those at `offset` of the file `inode`."""

    start: int
    length: int
    inode: int
    offset: int


class InodeTable(NamedTuple):
    """`length` bytes at `start` of the partition with the inodes from number `first` on."""

    start: int
    length: int
    first: int


def can_be_told(superblock: Superblock) -> bool:
    """Whether inode tables tell where content is: not so before a replay of the journal, nor where blocks are shared.

    Descriptors that are spread over the file system (meta_bg) come too late to be of use.
    """
    return not (
        superblock.incompat & (INCOMPAT_RECOVER | INCOMPAT_META_BG) or superblock.ro_compat & RO_COMPAT_SHARED_BLOCKS
    )


def descriptors(superblock: Superblock) -> tuple[int, int]:
    """Where the group descriptors lie: (offset, length) in bytes of the partition."""
    block = 2 if superblock.block_size == 1024 else 1
    return block * superblock.block_size, superblock.group_count * superblock.desc_size


def inode_tables(superblock: Superblock, raw: bytes) -> list[InodeTable]:
    """The inode tables of all groups.

    :param raw: the group descriptors
    """
    found = []
    size = superblock.block_size
    length = superblock.inodes_per_group * superblock.inode_size
    for group in range(superblock.group_count):
        at = group * superblock.desc_size
        block = int.from_bytes(raw[at + 8 : at + 12], "little")
        if superblock.desc_size >= 64:
            block |= int.from_bytes(raw[at + 40 : at + 44], "little") << 32
        if superblock.first_data_block < block < superblock.blocks_count:
            found.append(InodeTable(block * size, length, group * superblock.inodes_per_group + 1))
    return found


def stretches(superblock: Superblock, table: InodeTable, raw: bytes) -> Iterator[Stretch]:
    """What the files of one inode table hold, in the order of their inodes; no two stretches are for the same bytes.

    :param raw: the table
    """
    block_size, total = superblock.block_size, superblock.blocks_count
    for number, at in enumerate(range(0, len(raw) - 127, superblock.inode_size), table.first):
        if raw[at + 1] & 0xF0 != stat.S_IFREG >> 8:
            continue
        _, size, deleted, links, flags, area, size_high = _INODE.unpack_from(raw, at)
        if deleted or not links or not flags & _EXTENTS or flags & _NOT_DATA or number < superblock.first_ino:
            continue
        size |= size_high << 32
        magic, count, _, depth = _HEADER.unpack_from(area)
        if magic != _MAGIC or depth or count > _IN_INODE:
            continue
        behind = 0  # what has been told of the file's content
        for place in range(12, 12 + 12 * count, 12):
            logical, blocks, high, low = _LEAF.unpack_from(area, place)
            block = low | high << 32
            offset = logical * block_size
            length = min(blocks * block_size, size - offset)
            if offset < behind:
                break  # two blocks in one place: the file couldn't have both
            if blocks <= _UNWRITTEN and length > 0 and superblock.first_data_block < block <= total - blocks:
                behind = offset + length
                yield Stretch(block * block_size, length, number, offset)
