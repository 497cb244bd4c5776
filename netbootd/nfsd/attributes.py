"""fattr3 (RFC 1813, section 2.6) made from `os.stat_result`, and who may do what with it.

Attributes are kept encoded, with the TRUE of a post_op_attr before them: most answers carry just that. Permission is
decided like the Linux kernel does it, from mode bits and POSIX ACLs, for the ids of an AUTH_SYS credential; uid 0 is
not squashed.
"""

from __future__ import annotations

import os
import stat
import struct

from netbootd.formats.treeattributes import Attributes
from netbootd.nfsd.posixacl import Acl, Tag
from netbootd.nfsd.rpc import Credential

SIZE = 88
"""Bytes of an encoded post_op_attr that holds attributes."""

_POST_OP = struct.Struct(">6I2Q2I2Q6I")
_FACTS = struct.Struct(">4x5IQ")
_WCC = struct.Struct(">Q4I")
FILEID_AT = 56
"""Where the 8 bytes of the fileid lie in a post_op_attr."""

_SIZE_AT, _MTIME_AT = 24, 72

NF3REG, NF3DIR, NF3BLK, NF3CHR, NF3LNK, NF3SOCK, NF3FIFO = 1, 2, 3, 4, 5, 6, 7
_TYPES = {
    stat.S_IFREG: NF3REG,
    stat.S_IFDIR: NF3DIR,
    stat.S_IFBLK: NF3BLK,
    stat.S_IFCHR: NF3CHR,
    stat.S_IFLNK: NF3LNK,
    stat.S_IFSOCK: NF3SOCK,
    stat.S_IFIFO: NF3FIFO,
}

READ, WRITE, EXECUTE = 4, 2, 1
_MAX_SECONDS = 0xFFFFFFFF


def on_disk(status: os.stat_result) -> Attributes:
    """What an entry has by itself: type, mode, owner and device number."""
    return Attributes(status.st_mode, status.st_uid, status.st_gid, os.major(status.st_rdev), os.minor(status.st_rdev))


def encode(status: os.stat_result, its: Attributes, fsid: int) -> bytes:
    """The post_op_attr of an entry. Times before 1970 and after 2106 don't fit nfstime3: the nearest that does.

    :param its: `on_disk`, or what a record says of the entry
    """
    return _POST_OP.pack(
        1,
        _TYPES.get(its.type, NF3REG),
        stat.S_IMODE(its.mode),
        min(status.st_nlink, 0xFFFFFFFF),
        its.uid,
        its.gid,
        status.st_size,
        status.st_blocks * 512,
        its.major,
        its.minor,
        fsid,
        status.st_ino,
        *_time(status.st_atime_ns),
        *_time(status.st_mtime_ns),
        *_time(status.st_ctime_ns),
    )


def _time(nanoseconds: int) -> tuple[int, int]:
    if nanoseconds < 0:
        return 0, 0
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return (seconds, rest) if seconds <= _MAX_SECONDS else (_MAX_SECONDS, 999_999_999)


class Facts:
    """The decoded part of an entry's attributes that decisions need."""

    __slots__ = ("gid", "links", "mode", "size", "type", "uid")

    type: int
    mode: int
    links: int
    uid: int
    gid: int
    size: int

    def __init__(self, block: bytes | bytearray, offset: int) -> None:
        self.type, self.mode, self.links, self.uid, self.gid, self.size = _FACTS.unpack_from(block, offset)


def identity(post_op: bytes) -> bytes:
    """The attributes that change whenever a file is replaced or written: type, size, inode, mtime, ctime."""
    return post_op[4:8] + post_op[_SIZE_AT : _SIZE_AT + 8] + post_op[FILEID_AT : FILEID_AT + 8] + post_op[_MTIME_AT:]


def mtime(post_op: bytes) -> bytes:
    """The 8 bytes of the modification time."""
    return post_op[_MTIME_AT : _MTIME_AT + 8]


def wcc_data(post_op: bytes) -> bytes:
    """wcc_data of an entry that nobody changed: size, mtime and ctime before, and the attributes after."""
    return b"\0\0\0\1" + post_op[_SIZE_AT : _SIZE_AT + 8] + post_op[_MTIME_AT:SIZE] + post_op


def granted(facts: Facts, acl: Acl | None, credential: Credential) -> int:
    """What the caller may do: a sum of READ, WRITE and EXECUTE.

    :param acl: the entry's access ACL, None where the mode bits say all
    """
    mode = facts.mode
    if credential.uid == 0:
        executable = facts.type == NF3DIR or mode & 0o111
        return READ | WRITE | (EXECUTE if executable else 0)
    if credential.uid == facts.uid:
        return mode >> 6 & 7
    if acl is not None:
        return _granted_by_acl(facts, acl, credential)
    if credential.in_group(facts.gid):
        return mode >> 3 & 7
    return mode & 7


def _granted_by_acl(facts: Facts, acl: Acl, credential: Credential) -> int:
    """POSIX 1003.1e draft 17, section 23.1.5, for a caller that isn't the owner.

    Several groups may match; Linux asks for each permission set whether one of them grants it whole, so the union is
    what some request of a single permission would get.
    """
    mask = next((entry.perm for entry in acl if entry.tag == Tag.MASK), 7)
    other = next((entry.perm for entry in acl if entry.tag == Tag.OTHER), 0)
    for entry in acl:
        if entry.tag == Tag.USER and entry.id == credential.uid:
            return entry.perm & mask
    found = False
    union = 0
    for entry in acl:
        group = facts.gid if entry.tag == Tag.GROUP_OBJ else entry.id
        if entry.tag in (Tag.GROUP_OBJ, Tag.GROUP) and credential.in_group(group):
            found = True
            union |= entry.perm
    return union & mask if found else other
