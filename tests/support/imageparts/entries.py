"""What a root file system of a test image is made of: names, and the values of their attributes."""

import dataclasses
import struct


@dataclasses.dataclass
class Entry:
    """One name in the root file system (path without leading slash)."""

    path: bytes
    kind: str  # dir file link hard char block fifo sock
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0  # files: total size (a hole at the end counts)
    data: object = None  # bytes, or [(offset, bytes), ...], or a host path (str)
    target: bytes = b""  # link, hard
    rdev: tuple = (0, 0)
    xattrs: dict = dataclasses.field(default_factory=dict)
    prealloc: tuple = ()  # (first block, last block): unwritten extents
    atime_ns: int = None
    crtime_ns: int = None


def posix_acl(entries):
    """The value of a system.posix_acl_* xattr: [(tag, perm, id), ...]."""
    out = struct.pack("<I", 2)
    for tag, perm, ident in entries:
        out += struct.pack("<HHI", tag, perm, ident)
    return out


def file_capability(bits, effective=True):
    """The value of security.capability, revision 2."""
    return struct.pack("<IIIII", 0x02000000 | (1 if effective else 0), bits & 0xFFFFFFFF, 0, bits >> 32, 0)


def sort_entries(entries):
    """Parents before children, hard links after everything; duplicates: the last wins."""
    unique = {e.path: e for e in entries}
    return sorted(unique.values(), key=lambda e: (e.kind == "hard", e.path.split(b"/")))
