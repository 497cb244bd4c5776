"""ext4's inodes: attributes, times, device numbers, and where the content lies (Linux: fs/ext4/ext4.h and inode.c).

File flags of chattr, project ids and the version counter are left out: no network file system shows them.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from netbootd.formats.ext4 import directory, extents, xattr
from netbootd.formats.ext4.checksum import crc32c, stored
from netbootd.formats.ext4.claims import BlockClaims
from netbootd.formats.ext4.faults import damaged, unsupported
from netbootd.formats.ext4.superblock import INCOMPAT_64BIT, INCOMPAT_EA_INODE, INCOMPAT_LARGEDIR

if TYPE_CHECKING:
    from netbootd.formats.ext4.filesystem import Ext4

FLAG_INDEX = 0x1000
FLAG_ENCRYPT = 0x800
FLAG_EXTENTS = 0x80000
FLAG_EA_INODE = 0x200000
FLAG_INLINE_DATA = 0x10000000

READ_LIMIT = 64 << 20

_BASE = struct.Struct("<HHIiiiIHHII4x60sIII4xHHHHH2x")
_EXTRA = struct.Struct("<HH")
_PLACES = {"ctime": (12, 132), "mtime": (16, 136), "atime": (8, 140), "crtime": (144, 148)}


class Kind(StrEnum):
    """What an inode is."""

    DIR = "dir"
    FILE = "file"
    LINK = "link"
    CHAR = "char"
    BLOCK = "block"
    FIFO = "fifo"
    SOCK = "sock"


_KINDS = {
    stat.S_IFDIR: Kind.DIR,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.LINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCK,
}


class Inode:
    """One inode, its checksum verified.

    `mode` holds the permission bits only (0 to 0o7777), `uid` and `gid` have 32 bits, `size` is in bytes. Times are
    nanoseconds since 1970, negative before.
    """

    __slots__ = (
        "_fs",
        "_raw",
        "area",
        "blocks512",
        "extra_size",
        "file_acl",
        "flags",
        "generation",
        "gid",
        "kind",
        "mode",
        "mtime_ns",
        "nlink",
        "number",
        "seed",
        "size",
        "uid",
    )

    def __init__(self, fs: Ext4, number: int, raw: bytes) -> None:
        """Decode `raw`, the whole inode as it lies in the table.

        :raises FormatError: its checksum is wrong, it is not in use, or its fields contradict each other
        """
        self._fs = fs
        self._raw = raw
        self.number = number
        sb = fs.superblock
        (
            mode,
            uid,
            size,
            _atime,
            _ctime,
            mtime,
            _dtime,
            gid,
            self.nlink,
            blocks,
            self.flags,
            self.area,
            self.generation,
            acl,
            size_hi,
            blocks_hi,
            acl_hi,
            uid_hi,
            gid_hi,
            checksum,
        ) = _BASE.unpack_from(raw)
        self.extra_size = 0
        checksum_hi = 0
        if len(raw) > 128:
            self.extra_size, checksum_hi = _EXTRA.unpack_from(raw, 128)
            if self.extra_size > len(raw) - 128 or self.extra_size & 3:
                raise damaged(f"inode {number} has {self.extra_size} extra bytes in {len(raw)}")
        if sb.metadata_csum:
            self.seed = crc32c(sb.seed, struct.pack("<II", number, self.generation))
            self._check(raw, checksum, checksum_hi)
        else:
            self.seed = 0
        try:
            self.kind = _KINDS[mode & 0o170000]
        except KeyError:
            raise damaged(f"inode {number} has the unknown type 0o{mode:06o}") from None
        if self.nlink == 0:
            raise damaged(f"inode {number} has a name but is deleted")
        self.mode = mode & 0o7777
        self.uid = uid | uid_hi << 16
        self.gid = gid | gid_hi << 16
        wide = self.kind is Kind.FILE or sb.incompat & INCOMPAT_LARGEDIR
        self.size: int = size | size_hi << 32 if wide else size
        self.blocks512: int = blocks | blocks_hi << 32
        self.file_acl: int = acl | (acl_hi << 32 if sb.incompat & INCOMPAT_64BIT else 0)
        self.mtime_ns: int = self._nanoseconds(mtime, 136)

    def __repr__(self) -> str:
        return f"<ext4 inode {self.number}: {self.kind} {self.size} bytes>"

    def _check(self, raw: bytes, low: int, high: int) -> None:
        if self.extra_size >= 4:
            value = crc32c(self.seed, raw[:124] + b"\0\0" + raw[126:130] + b"\0\0" + raw[132:])
            right = stored(value) == low | high << 16
        else:
            value = crc32c(self.seed, raw[:124] + b"\0\0" + raw[126:])
            right = stored(value) & 0xFFFF == low
        if not right:
            raise damaged(f"inode {self.number} does not match its checksum")

    def _nanoseconds(self, seconds: int, extra_at: int) -> int:
        """The time of a signed 32-bit second and, where the inode has it, its word with 2 more bits and nanoseconds."""
        if extra_at + 4 > 128 + self.extra_size:
            return seconds * 1_000_000_000
        extra = int.from_bytes(self._raw[extra_at : extra_at + 4], "little")
        return (seconds + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)

    def _time(self, name: str) -> int:
        place, extra_at = _PLACES[name]
        (seconds,) = struct.unpack_from("<i", self._raw, place)
        return self._nanoseconds(seconds, extra_at)

    @property
    def atime_ns(self) -> int:
        """When it was last read."""
        return self._time("atime")

    @property
    def ctime_ns(self) -> int:
        """When it was last changed in any way."""
        return self._time("ctime")

    @property
    def crtime_ns(self) -> int | None:
        """When it was made; None where the inode has no room for that."""
        return self._time("crtime") if self.extra_size >= 20 else None

    @property
    def rdev(self) -> int:
        """The number of a device node, as in `os.major` and `os.minor`; 0 for anything else."""
        if self.kind is not Kind.CHAR and self.kind is not Kind.BLOCK:
            return 0
        old, new = struct.unpack_from("<II", self.area)
        if old:
            return os.makedev(old >> 8 & 0xFF, old & 0xFF)
        return os.makedev(new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00)

    @property
    def inline(self) -> bytes | None:
        """The content, if it lies in the inode itself (inline_data); None if it lies in blocks.

        It may be shorter than the size: the rest is a hole, as Linux reads it (mke2fs writes large holes so).
        """
        if not self.flags & FLAG_INLINE_DATA:
            return None
        area: bytes = self.area
        if self.size <= len(area):
            return area[: self.size]
        return area + self.inline_rest()[: self.size - len(area)]

    def inline_rest(self) -> bytes:
        """What lies in the inode's attribute system.data: inline content behind the first 60 bytes.

        :raises FormatError: the attributes are damaged
        """
        return xattr.inline_rest(self._raw, self.extra_size, self.number)

    def extents(self, claims: BlockClaims | None = None) -> list[extents.Extent]:
        """Where the content lies, in order and without gaps, clipped to the size; empty for inline content.

        :param claims: takes note of all blocks, those of the tree itself too
        :raises FormatError: the tree is damaged, loops, or leaves the file system
        """
        self._refuse_encrypted()
        if self.flags & FLAG_INLINE_DATA:
            return []
        return extents.extents(self._fs, self, claims)

    def entries(self, claims: BlockClaims | None = None, *, parent: int = 0) -> Iterator[directory.DirEntry]:
        """The names in this directory but ``.`` and ``..``, in the order of its blocks.

        :param claims: see `extents`
        :param parent: the inode that ``..`` must name, 0 if it is not known
        :raises FormatError: not a directory, or a damaged one; a name that is repeated or could leave the directory
        """
        self._refuse_encrypted()
        return directory.entries(self._fs, self, claims, parent)

    def xattrs(self, claims: BlockClaims | None = None) -> dict[str, bytes]:
        """The extended attributes as Linux shows them to root: full names, ACLs in the form of getxattr(2).

        :raises FormatError: they are damaged
        """
        if not self.file_acl and 132 + self.extra_size > len(self._raw):
            return {}
        return xattr.xattrs(self._fs, self, self._raw, claims)

    def target(self, claims: BlockClaims | None = None) -> bytes:
        """Where a symbolic link points.

        :param claims: see `extents`
        :raises FormatError: not a link, or one that Linux could not follow: empty, longer than a block, with a NUL
        """
        if self.kind is not Kind.LINK:
            raise damaged(f"inode {self.number} is read as a symbolic link, but is a {self.kind}")
        if not 0 < self.size < min(self._fs.superblock.block_size, 4096):
            raise damaged(f"the symbolic link in inode {self.number} has {self.size} bytes")
        self._refuse_encrypted()
        text = self.area[: self.size] if self._is_fast_link() else self.read(claims=claims)
        if b"\0" in text:
            raise damaged(f"the symbolic link in inode {self.number} has a NUL in it")
        return text

    def _is_fast_link(self) -> bool:
        """Whether the target lies where other inodes have their block numbers (ext4_inode_is_fast_symlink)."""
        if self.flags & (FLAG_INLINE_DATA | FLAG_EXTENTS) or self.size >= len(self.area):
            return False
        sb = self._fs.superblock
        if sb.incompat & INCOMPAT_EA_INODE:
            return True
        return self.blocks512 <= (sb.block_size // 512 if self.file_acl else 0)

    def read(self, offset: int = 0, length: int | None = None, claims: BlockClaims | None = None) -> bytes:
        """The content from `offset` on, at most `length` bytes, holes as zeros; no more than READ_LIMIT bytes.

        :param claims: see `extents`
        :raises FormatError: it is damaged, or more than READ_LIMIT
        """
        end = self.size if length is None else min(self.size, offset + length)
        if end <= offset:
            return b""
        if end - offset > READ_LIMIT:
            raise unsupported(
                f"inode {self.number} has {end - offset} bytes where a small file was expected",
                f"Up to {READ_LIMIT} bytes are read at once.",
            )
        content = self.inline
        if content is not None:
            return content[offset:end].ljust(end - offset, b"\0")
        parts = []
        for at, size, disk in self.extents(claims):
            first, last = max(at, offset), min(at + size, end)
            if first < last:
                if disk is None:
                    parts.append(bytes(last - first))
                else:
                    parts.append(self._fs.read(disk + first - at, last - first))
        return b"".join(parts)

    def _refuse_encrypted(self) -> None:
        if self.flags & FLAG_ENCRYPT:
            raise unsupported(
                f"inode {self.number} is encrypted (fscrypt)", "Images with encrypted files can't be used."
            )
