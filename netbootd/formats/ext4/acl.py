"""POSIX ACLs: from the short form that ext4 keeps on disk to the form of getxattr(2) and setxattr(2).

Linux: fs/ext4/acl.c (ext4_acl_from_disk), include/uapi/linux/posix_acl_xattr.h; POSIX.1e draft 17 for the rules.
"""

from __future__ import annotations

import struct

from netbootd.formats.ext4.faults import damaged

_DISK_VERSION = 1
_XATTR_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_REQUIRED = (_USER_OBJ, _GROUP_OBJ, _OTHER)


def from_disk(value: bytes, inode: int) -> bytes | None:
    """The attribute's value for an ACL as it lies on disk; None for one that says no more than the mode does.

    Linux never stores such an ACL: setting it sets the mode.

    :raises FormatError: it is not an ACL that Linux would take
    """
    entries = []
    at = 4
    if len(value) < 4 or value[:4] != struct.pack("<I", _DISK_VERSION):
        raise damaged(f"inode {inode} has an ACL of unknown form")
    while at < len(value):
        if at + 4 > len(value):
            raise damaged(f"inode {inode} has an ACL that ends early")
        tag, permissions = struct.unpack_from("<HH", value, at)
        at += 4
        ident = _NO_ID
        if tag in (_USER, _GROUP):
            if at + 4 > len(value):
                raise damaged(f"inode {inode} has an ACL that ends early")
            (ident,) = struct.unpack_from("<I", value, at)
            at += 4
        entries.append((tag, permissions, ident))
    _check(entries, inode)
    if len(entries) == len(_REQUIRED):
        return None
    return struct.pack("<I", _XATTR_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _check(entries: list[tuple[int, int, int]], inode: int) -> None:
    """As posix_acl_valid: in order, each of the three basic entries once, a mask where it is needed."""
    tags = [tag for tag, _, _ in entries]
    sound = (
        tags == sorted(tags)
        and all(tags.count(tag) == 1 for tag in _REQUIRED)
        and tags.count(_MASK) <= 1
        and (_MASK in tags or not (_USER in tags or _GROUP in tags))
        and all(tag in (*_REQUIRED, _USER, _GROUP, _MASK) and perm <= 7 for tag, perm, _ in entries)
        and all(ident != _NO_ID for tag, _, ident in entries if tag in (_USER, _GROUP))
    )
    if not sound:
        raise damaged(f"inode {inode} has an ACL that breaks the rules of POSIX.1e")
