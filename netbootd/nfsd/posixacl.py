"""POSIX ACLs as Linux keeps them in the extended attributes ``system.posix_acl_access`` and ``…_default``.

The layout is that of the kernel's include/uapi/linux/posix_acl_xattr.h: a little-endian version 2, then tag, perm and
id of each entry. Reading only.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

_ENTRY = struct.Struct("<HHI")
_VERSION = struct.pack("<I", 2)


class Tag(enum.IntEnum):
    """Whom an entry speaks of."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


class AclEntry(NamedTuple):
    """One line of an ACL; `id` is 0 where the tag needs none, `perm` is rwx (0 to 7)."""

    tag: Tag
    id: int
    perm: int


Acl = tuple[AclEntry, ...]


def parse(value: bytes) -> Acl:
    """The entries of an extended attribute's value, sorted by tag and id.

    :raises ValueError: the value is not an ACL of version 2
    """
    if value[:4] != _VERSION or (len(value) - 4) % _ENTRY.size:
        raise ValueError("not a POSIX ACL of version 2")
    entries = []
    for tag, perm, number in _ENTRY.iter_unpack(value[4:]):
        kind = Tag(tag)
        entries.append(AclEntry(kind, number if kind in (Tag.USER, Tag.GROUP) else 0, perm & 7))
    return tuple(sorted(entries))
