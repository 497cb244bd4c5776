"""ext4's extended attributes: in the inode, in a block, and large values in inodes of their own (ea_inode).

Linux: fs/ext4/xattr.c and xattr.h. What the kernel doesn't list is left out: attributes of unknown name spaces, the
inline content (system.data), and those that Linux refuses to set on such a file (user.* on links and devices, ACLs on
links).
"""

from __future__ import annotations

import logging
import os
import struct
from typing import TYPE_CHECKING

from netbootd.formats.ext4 import acl
from netbootd.formats.ext4.checksum import crc32c, stored
from netbootd.formats.ext4.faults import damaged

if TYPE_CHECKING:
    from netbootd.formats.ext4.claims import BlockClaims
    from netbootd.formats.ext4.filesystem import Ext4
    from netbootd.formats.ext4.inode import Inode

logger = logging.getLogger(__name__)

_MAGIC = 0xEA020000
_INODE_MAGIC = struct.pack("<I", _MAGIC)
_ENTRY = struct.Struct("<BBHIII")
_BLOCK_HEADER = struct.Struct("<IIIII")
_MAX_VALUE = 65536  # XATTR_SIZE_MAX: what setxattr(2) takes
_MAX_NAME = 255
_FLAG_EA_INODE = 0x200000

_ACCESS = "system.posix_acl_access"
_DEFAULT = "system.posix_acl_default"
_PREFIXES = {1: b"user.", 2: _ACCESS.encode(), 3: _DEFAULT.encode(), 4: b"trusted.", 6: b"security.", 10: b"gnu."}
_SYSTEM = 7


def xattrs(fs: Ext4, inode: Inode, raw: bytes, claims: BlockClaims | None) -> dict[str, bytes]:
    """All attributes of an inode, `raw` being the inode itself. See `Inode.xattrs`."""
    out: dict[str, bytes] = {}
    begin = 128 + inode.extra_size
    if raw[begin : begin + 4] == _INODE_MAGIC and inode.extra_size:
        area = raw[begin + 4 :]
        _collect(fs, inode, area, 0, 0, out)
    if inode.file_acl:
        block = _block(fs, inode)
        if claims is not None:
            claims.share(inode.file_acl, _BLOCK_HEADER.unpack_from(block)[1], inode.number)
        _collect(fs, inode, block, 32, 32, out)
    return out


def inline_rest(raw: bytes, extra_size: int, number: int) -> bytes:
    """The value of system.data in an inode; empty without one."""
    begin = 128 + extra_size
    if not extra_size or raw[begin : begin + 4] != _INODE_MAGIC:
        return b""
    area = raw[begin + 4 :]
    for index, name, offset, _, size in _entries(area, 0, number):
        if index == _SYSTEM and name == b"data":
            return area[offset : offset + size]
    return b""


def _entries(area: bytes, at: int, number: int) -> list[tuple[int, bytes, int, int, int]]:
    """(name space, name, value's offset, value's inode, value's size) of a row of entries that begins at `at`."""
    out = []
    while True:
        if at + 4 > len(area):
            raise damaged(f"the attributes of inode {number} have no end")
        if area[at : at + 4] == b"\0\0\0\0":
            break
        if at + 16 > len(area):
            raise damaged(f"the attributes of inode {number} have no end")
        length, index, offset, inode, size, _ = _ENTRY.unpack_from(area, at)
        name = area[at + 16 : at + 16 + length]
        at += 16 + (length + 3 & ~3)
        if at > len(area) or b"\0" in name:
            raise damaged(f"inode {number} has an attribute with a broken name")
        out.append((index, name, offset, inode, size))
    for _, name, offset, inode, size in out:
        if size and not inode and (offset < at or offset + size > len(area)):
            raise damaged(f"inode {number} has an attribute {name!r} whose value lies outside")
    return out


def _collect(fs: Ext4, inode: Inode, area: bytes, start: int, minimum: int, out: dict[str, bytes]) -> None:
    """Add the attributes of one area to `out`; offsets of values count from the area's first byte."""
    for index, short, offset, value_inode, size in _entries(area, start, inode.number):
        prefix = _PREFIXES.get(index)
        if prefix is None:
            continue
        if bool(short) == (index in (2, 3)) or len(prefix) + len(short) > _MAX_NAME:
            raise damaged(f"inode {inode.number} has an attribute with the impossible name {prefix + short!r}")
        name = os.fsdecode(prefix + short)
        if name in out:
            raise damaged(f"inode {inode.number} has the attribute {name!r} twice")
        if size > _MAX_VALUE:
            raise damaged(f"inode {inode.number} has an attribute {name!r} of {size} bytes; Linux takes {_MAX_VALUE}")
        value: bytes | None = (
            _large_value(fs, inode, value_inode, size) if value_inode else area[offset : offset + size]
        )
        if index in (2, 3):
            value = acl.from_disk(value or b"", inode.number)
        if value is None:
            continue
        if _settable(name, inode):
            out[name] = value
        else:
            logger.warning(
                "The attribute %s of a %s (inode %d) is left out: Linux has none there", name, inode.kind, inode.number
            )


def _settable(name: str, inode: Inode) -> bool:
    """Whether Linux lets root set the attribute on such a file (xattr_permission, set_posix_acl)."""
    if name.startswith("user."):
        return inode.kind in ("file", "dir")
    if name == _ACCESS:
        return inode.kind != "link"
    if name == _DEFAULT:
        return inode.kind == "dir"
    return True


def _block(fs: Ext4, inode: Inode) -> bytes:
    """The attribute block of an inode, its checksum verified."""
    number = inode.file_acl
    sb = fs.superblock
    if not sb.first_data_block < number < sb.blocks_count:
        raise damaged(f"inode {inode.number} has its attributes in block {number}, outside the file system")
    block = fs.block(number)
    magic, _, blocks, _, checksum = _BLOCK_HEADER.unpack_from(block)
    if magic != _MAGIC or blocks != 1:
        raise damaged(f"block {number}, the attributes of inode {inode.number}, is something else")
    if sb.metadata_csum:
        value = crc32c(sb.seed, struct.pack("<Q", number) + block[:16] + b"\0\0\0\0" + block[20:])
        if stored(value) != checksum:
            raise damaged(f"block {number}, the attributes of inode {inode.number}, does not match its checksum")
    return block


def _large_value(fs: Ext4, inode: Inode, number: int, size: int) -> bytes:
    """The value of an attribute that has an inode of its own, verified by the hash that stands in its access time."""
    holder = fs.inode(number)
    if not holder.flags & _FLAG_EA_INODE or holder.kind != "file" or holder.size != size:
        raise damaged(f"inode {inode.number} has an attribute in inode {number}, which holds none of {size} bytes")
    value = holder.read()
    word = holder.atime_ns // 1_000_000_000 & 0xFFFFFFFF
    of_lustre = holder.mtime_ns // 1_000_000_000 & 0xFFFFFFFF == inode.number and holder.generation == inode.generation
    if stored(crc32c(fs.superblock.seed, value)) != word and not of_lustre:
        raise damaged(f"inode {inode.number} has an attribute in inode {number}, which does not match its hash")
    return value
