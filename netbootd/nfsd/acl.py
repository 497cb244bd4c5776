"""NFSACL version 3: POSIX ACLs beside NFSv3, RPC program 100227 on the NFS port; nothing asks the port mapper for it.

There is no RFC: the reference is the kernel's fs/nfsd/nfs3acl.c and fs/nfs_common/nfsacl.c. A Linux client that puts
overlayfs on an NFSv3 root decides by these answers who may read a file; without them nobody but root can. Read-only:
SETACL gives NFS3ERR_ROFS.
"""

from __future__ import annotations

import struct

from netbootd.nfsd import posixacl
from netbootd.nfsd.attributes import Facts
from netbootd.nfsd.posixacl import Acl, AclEntry, Tag
from netbootd.nfsd.rpc import Answer, Caller, Program, null
from netbootd.nfsd.v3 import NFS3ERR_INVAL, NFS3ERR_IO, NFS3ERR_ROFS, NfsError, Trees, object_of, procedure
from netbootd.nfsd.xdr import FALSE, Reader, XdrError, u32

NFSACL_PROGRAM = 100227
NFSACL_V3 = 3

_ACL, _ACL_COUNT, _DEFAULT, _DEFAULT_COUNT = 1, 2, 4, 8
_KNOWN = _ACL | _ACL_COUNT | _DEFAULT | _DEFAULT_COUNT
_IN_DEFAULT_LIST = 0x1000
_MAX_ENTRIES = 1024
_WIRE_ENTRY = struct.Struct(">3I")
_MINIMAL = 3  # USER_OBJ, GROUP_OBJ and OTHER: what mode bits say, too


class NfsAclV3:
    """The procedures over some trees."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    def program(self) -> Program:
        """The RPC program that answers with them."""
        return Program(
            NFSACL_PROGRAM,
            {NFSACL_V3: {0: null, 1: procedure(self._getacl, FALSE), 2: procedure(self._setacl, FALSE)}},
        )

    def _getacl(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        mask = args.u32()
        here = tree.post_op(number)
        if mask & ~_KNOWN:
            raise NfsError(NFS3ERR_INVAL, here)
        facts = tree.facts(number)
        access, default = tree.acls(number) or (b"", b"")
        try:
            access_list = with_mask(posixacl.parse(access) if access else from_mode(facts.mode))
            default_list = with_mask(posixacl.parse(default)) if default else ()
        except ValueError:
            raise NfsError(NFS3ERR_IO, here) from None
        return (
            u32(0)
            + here
            + u32(mask)
            + encode(access_list, facts, bool(mask & (_ACL | _ACL_COUNT)), bool(mask & _ACL), 0)
            + encode(
                default_list, facts, bool(mask & (_DEFAULT | _DEFAULT_COUNT)), bool(mask & _DEFAULT), _IN_DEFAULT_LIST
            )
        )

    def _setacl(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        args.u32()
        for _ in ("access", "default"):
            args.u32()
            length = args.u32()
            if length > _MAX_ENTRIES:
                raise XdrError(f"an ACL of {length} entries")
            args.fixed(length * _WIRE_ENTRY.size)
        return u32(NFS3ERR_ROFS) + tree.post_op(number)


def from_mode(mode: int) -> Acl:
    """The ACL that says the same as some mode bits."""
    return (
        AclEntry(Tag.USER_OBJ, 0, mode >> 6 & 7),
        AclEntry(Tag.GROUP_OBJ, 0, mode >> 3 & 7),
        AclEntry(Tag.OTHER, 0, mode & 7),
    )


def with_mask(acl: Acl) -> Acl:
    """The ACL as it goes over the wire: at least four entries; a missing mask is made of the group's bits."""
    if len(acl) != _MINIMAL:
        return acl
    group = next((entry.perm for entry in acl if entry.tag == Tag.GROUP_OBJ), 0)
    return tuple(sorted((*acl, AclEntry(Tag.MASK, 0, group))))


def encode(acl: Acl, facts: Facts, counted: bool, listed: bool, flag: int) -> bytes:
    """One list of an answer: the number of entries, if asked, and the entries, if asked.

    :param flag: is or-ed to every type (the default list's mark)
    """
    owners = {Tag.USER_OBJ: facts.uid, Tag.GROUP_OBJ: facts.gid}
    entries = [_WIRE_ENTRY.pack(tag | flag, owners.get(tag, number), perm) for tag, number, perm in acl]
    if not listed:
        return u32(len(acl) if counted else 0) + u32(0)
    return u32(len(acl)) + u32(len(entries)) + b"".join(entries)
