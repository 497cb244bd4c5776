"""Where each block group keeps its inodes (Linux: fs/ext4/super.c, descriptor_loc and ext4_group_desc_csum)."""

from __future__ import annotations

import struct
import uuid
from typing import Protocol

from netbootd.formats.ext4.checksum import crc16, crc32c, stored
from netbootd.formats.ext4.faults import damaged
from netbootd.formats.ext4.superblock import (
    COMPAT_SPARSE_SUPER2,
    INCOMPAT_META_BG,
    RO_COMPAT_GDT_CSUM,
    RO_COMPAT_SPARSE_SUPER,
    Superblock,
)


class _Reader(Protocol):
    def read(self, offset: int, length: int) -> bytes: ...


class Groups:
    """The group descriptors, read and checked when asked for."""

    __slots__ = ("_reader", "_superblock", "_tables")

    def __init__(self, reader: _Reader, superblock: Superblock) -> None:
        self._reader = reader
        self._superblock = superblock
        self._tables: dict[int, int] = {}

    def inode_table(self, group: int) -> int:
        """The first block of the inode table of `group`.

        :raises FormatError: the descriptor does not match its checksum, or points outside the file system
        """
        table = self._tables.get(group)
        if table is None:
            table = self._tables[group] = self._load(group)
        return table

    def _load(self, group: int) -> int:
        sb = self._superblock
        per_block = sb.block_size // sb.desc_size
        block, index = divmod(group, per_block)
        offset = self._descriptor_block(block) * sb.block_size + index * sb.desc_size
        raw = self._reader.read(offset, sb.desc_size)
        self._check(group, raw)
        (table,) = struct.unpack_from("<I", raw, 8)
        if sb.desc_size >= 64:
            table |= struct.unpack_from("<I", raw, 40)[0] << 32
        length = -(-sb.inodes_per_group * sb.inode_size // sb.block_size)
        if table <= sb.first_data_block or table + length > sb.blocks_count:
            raise damaged(f"group {group} has its inodes at block {table}, outside the file system")
        return int(table)

    def _descriptor_block(self, index: int) -> int:
        """The block that holds the index-th block of descriptors."""
        sb = self._superblock
        home = 1 if sb.block_size == 1024 else 0  # the block of the superblock
        if not sb.incompat & INCOMPAT_META_BG or index < sb.first_meta_bg:
            return home + 1 + index
        group = index * (sb.block_size // sb.desc_size)
        skip = 1 if self._has_superblock(group) else 0
        if group == 0 and sb.block_size == 1024 and sb.first_data_block == 0:
            skip += 1
        return sb.first_data_block + group * sb.blocks_per_group + skip

    def _has_superblock(self, group: int) -> bool:
        sb = self._superblock
        if group == 0:
            return True
        if sb.compat & COMPAT_SPARSE_SUPER2:
            return group in sb.backup_groups
        if group <= 1 or not sb.ro_compat & RO_COMPAT_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def _check(self, group: int, raw: bytes) -> None:
        sb = self._superblock
        (given,) = struct.unpack_from("<H", raw, 30)
        if sb.metadata_csum:
            value = crc32c(sb.seed, struct.pack("<I", group) + raw[:30] + b"\0\0" + raw[32:])
            right = stored(value) & 0xFFFF
        elif sb.ro_compat & RO_COMPAT_GDT_CSUM:
            right = crc16(0xFFFF, uuid.UUID(sb.uuid).bytes + struct.pack("<I", group) + raw[:30] + raw[32:])
        else:
            return
        if given != right:
            raise damaged(f"the descriptor of group {group} does not match its checksum")


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1
