"""ext4's superblock: geometry, features, identity (Linux: fs/ext4/ext4.h, struct ext4_super_block).

Everything that the rest of the reader divides by or multiplies with is checked here, as strictly as the kernel does at
mount. The backup superblocks are not consulted: an image whose first one is damaged is fetched again.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from construct import Bytes, Int8ul, Int16ul, Int32ul, Padding, Struct

from netbootd.formats.ext4.checksum import crc32c, stored
from netbootd.formats.ext4.faults import damaged, unsupported

OFFSET = 1024
SIZE = 1024
MAGIC = 0xEF53

COMPAT_HAS_JOURNAL = 0x4
COMPAT_SPARSE_SUPER2 = 0x200

INCOMPAT_FILETYPE = 0x2
INCOMPAT_RECOVER = 0x4
INCOMPAT_META_BG = 0x10
INCOMPAT_64BIT = 0x80
INCOMPAT_EA_INODE = 0x400
INCOMPAT_CSUM_SEED = 0x2000
INCOMPAT_LARGEDIR = 0x4000

RO_COMPAT_SPARSE_SUPER = 0x1
RO_COMPAT_GDT_CSUM = 0x10
RO_COMPAT_METADATA_CSUM = 0x400
RO_COMPAT_SHARED_BLOCKS = 0x4000

_INCOMPAT_NAMES = {
    0x1: "compression",
    INCOMPAT_FILETYPE: "filetype",
    INCOMPAT_RECOVER: "needs_recovery",
    0x8: "journal_dev",
    INCOMPAT_META_BG: "meta_bg",
    0x40: "extent",
    INCOMPAT_64BIT: "64bit",
    0x100: "mmp",
    0x200: "flex_bg",
    INCOMPAT_EA_INODE: "ea_inode",
    0x1000: "dirdata",
    INCOMPAT_CSUM_SEED: "metadata_csum_seed",
    INCOMPAT_LARGEDIR: "large_dir",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}
# Of these a reader needs to know nothing, or knows it: encrypted inodes are refused one by one.
_READABLE = sum(_INCOMPAT_NAMES) & ~(0x1 | 0x8 | 0x1000)

# Bounds of this reader: a Pi's image has a thousandth of it, and the tables kept by block and by inode stay small.
MAX_BLOCKS = 1 << 28
MAX_INODES = 1 << 28

_STRUCT = Struct(
    "inodes_count" / Int32ul,
    "blocks_count" / Int32ul,
    Padding(4),
    "free_blocks" / Int32ul,
    Padding(4),
    "first_data_block" / Int32ul,
    "log_block_size" / Int32ul,
    Padding(4),
    "blocks_per_group" / Int32ul,
    Padding(4),
    "inodes_per_group" / Int32ul,
    Padding(12),
    "magic" / Int16ul,
    Padding(18),
    "rev_level" / Int32ul,
    Padding(4),
    "first_ino" / Int32ul,
    "inode_size" / Int16ul,
    Padding(2),
    "compat" / Int32ul,
    "incompat" / Int32ul,
    "ro_compat" / Int32ul,
    "uuid" / Bytes(16),
    "label" / Bytes(16),
    Padding(88),
    "journal_inum" / Int32ul,
    Padding(26),
    "desc_size" / Int16ul,
    Padding(4),
    "first_meta_bg" / Int32ul,
    Padding(72),
    "blocks_count_hi" / Int32ul,
    Padding(4),
    "free_blocks_hi" / Int32ul,
    Padding(25),
    "checksum_type" / Int8ul,
    Padding(214),
    "backup_bgs" / Int32ul[2],
    Padding(28),
    "checksum_seed" / Int32ul,
    Padding(392),
    "checksum" / Int32ul,
).compile()


@dataclass(frozen=True, slots=True)
class Superblock:
    """The checked values of a superblock; sizes in bytes, `seed` the library value that metadata checksums begin with.

    `used_blocks` is what the image says, and no more than that.
    `label` may hold bytes that are not UTF-8 (surrogate escapes); `uuid` is in its usual lower-case form.
    """

    block_size: int
    blocks_count: int
    used_blocks: int
    first_data_block: int
    blocks_per_group: int
    inodes_count: int
    inodes_per_group: int
    inode_size: int
    first_ino: int
    group_count: int
    desc_size: int
    compat: int
    incompat: int
    ro_compat: int
    uuid: str
    label: str
    journal_inum: int
    first_meta_bg: int
    backup_groups: tuple[int, int]
    seed: int

    @property
    def metadata_csum(self) -> bool:
        """Whether all metadata carries a crc32c."""
        return bool(self.ro_compat & RO_COMPAT_METADATA_CSUM)


def parse_superblock(data: bytes, partition_size: int) -> Superblock:
    """The superblock in the 1,024 bytes `data` of a partition of `partition_size` bytes.

    :raises FormatError: it isn't one, is damaged, needs a feature that this reader lacks, or claims more blocks than
        the partition has
    """
    raw: Any = _STRUCT.parse(data)
    if raw.magic != MAGIC:
        raise unsupported("it has no ext4 superblock", "The partition holds another kind of file system.")
    if raw.rev_level > 1:
        raise unsupported(f"revision {raw.rev_level} is unknown", "Revisions 0 and 1 can be read.")
    old = raw.rev_level == 0
    compat, incompat, ro_compat = (0, 0, 0) if old else (raw.compat, raw.incompat, raw.ro_compat)
    _check_checksum(data, raw, ro_compat)
    _check_features(incompat)
    if raw.log_block_size > 6:
        raise damaged(f"a block size of 2^{10 + raw.log_block_size} bytes; ext4 has 1 KiB to 64 KiB")
    block_size = 1024 << raw.log_block_size
    wide = bool(incompat & INCOMPAT_64BIT)
    blocks = raw.blocks_count | (raw.blocks_count_hi << 32 if wide else 0)
    inode_size = 128 if old else raw.inode_size
    desc_size = raw.desc_size if wide else 32
    if inode_size < 128 or inode_size > block_size or inode_size & (inode_size - 1):
        raise damaged(f"an inode size of {inode_size} bytes")
    if desc_size < (64 if wide else 32) or desc_size > 1024 or desc_size & (desc_size - 1):
        raise damaged(f"a group descriptor size of {desc_size} bytes")
    if raw.first_data_block > 1 or (block_size > 1024 and raw.first_data_block):
        raise damaged(f"data begins at block {raw.first_data_block}")
    if blocks <= raw.first_data_block or blocks * block_size > partition_size:
        raise damaged(f"{blocks} blocks of {block_size} bytes in a partition of {partition_size} bytes")
    if raw.blocks_per_group < 8:
        raise damaged(f"groups of {raw.blocks_per_group} blocks")
    if not 1 <= raw.inodes_per_group <= block_size * 8:
        raise damaged(f"groups of {raw.inodes_per_group} inodes")
    groups = -(-(blocks - raw.first_data_block) // raw.blocks_per_group)
    if raw.inodes_count != groups * raw.inodes_per_group:
        raise damaged(f"{raw.inodes_count} inodes in {groups} groups of {raw.inodes_per_group}")
    if blocks > MAX_BLOCKS or raw.inodes_count > MAX_INODES:
        raise unsupported(
            f"{blocks} blocks and {raw.inodes_count} inodes",
            f"Up to {MAX_BLOCKS} blocks and {MAX_INODES} inodes can be read.",
        )
    if raw.inodes_count * inode_size > blocks * block_size:
        raise damaged(f"{raw.inodes_count} inodes of {inode_size} bytes don't fit in {blocks} blocks")
    seed = stored(raw.checksum_seed) if incompat & INCOMPAT_CSUM_SEED else crc32c(0, raw.uuid)
    return Superblock(
        block_size=block_size,
        blocks_count=blocks,
        used_blocks=max(0, blocks - (raw.free_blocks | (raw.free_blocks_hi << 32 if wide else 0))),
        first_data_block=raw.first_data_block,
        blocks_per_group=raw.blocks_per_group,
        inodes_count=raw.inodes_count,
        inodes_per_group=raw.inodes_per_group,
        inode_size=inode_size,
        first_ino=11 if old else raw.first_ino,
        group_count=groups,
        desc_size=desc_size,
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        uuid=str(uuid.UUID(bytes=raw.uuid)),
        label=raw.label.partition(b"\0")[0].decode(errors="surrogateescape"),
        journal_inum=raw.journal_inum,
        first_meta_bg=raw.first_meta_bg,
        backup_groups=tuple(raw.backup_bgs),
        seed=seed,
    )


def _check_checksum(data: bytes, raw: Any, ro_compat: int) -> None:
    if not ro_compat & RO_COMPAT_METADATA_CSUM:
        return
    if raw.checksum_type != 1:
        raise unsupported(f"metadata checksums of kind {raw.checksum_type}", "Kind 1, crc32c, can be read.")
    if stored(crc32c(0, data[:1020])) != raw.checksum:
        raise damaged("the superblock does not match its checksum")


def _check_features(incompat: int) -> None:
    unknown = incompat & ~_READABLE
    if unknown:
        names = [_INCOMPAT_NAMES.get(1 << bit, f"FEATURE_I{bit}") for bit in range(32) if unknown & 1 << bit]
        raise unsupported(
            f"it uses features that can't be read: {', '.join(names)}",
            "Make the image without these features, or report which publisher uses them.",
        )
