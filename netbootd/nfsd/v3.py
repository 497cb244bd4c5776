"""NFS version 3 (RFC 1813), program 100003, for read-only exports: every procedure, without sockets.

What reads is answered from a tree's index; READ names the bytes of a file that the server then fetches, FSSTAT asks the
file system later. What would modify is answered with NFS3ERR_ROFS and the wcc_data of the objects it names. Permission
is that of the caller's credential, without squashing root: LOOKUP needs execute on the folder, READDIR read, READ read
(or, as Linux' server has it, execute or ownership). Left out: NLM locking, which a read-only root does without.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from netbootd.nfsd import attributes, handles, posixacl
from netbootd.nfsd.attributes import EXECUTE, NF3DIR, NF3REG, Facts
from netbootd.nfsd.rpc import Answer, Caller, Credential, Later, Procedure, Program, null
from netbootd.nfsd.tree import Tree
from netbootd.nfsd.xdr import FALSE, TRUE, Reader, opaque, padding, u32, u64

NFS_PROGRAM = 100003
NFS_V3 = 3

NFS3_OK = 0
NFS3ERR_NOENT = 2
NFS3ERR_IO = 5
NFS3ERR_ACCES = 13
NFS3ERR_NOTDIR = 20
NFS3ERR_ISDIR = 21
NFS3ERR_INVAL = 22
NFS3ERR_ROFS = 30
NFS3ERR_NAMETOOLONG = 63
NFS3ERR_STALE = 70
NFS3ERR_BADHANDLE = 10001
NFS3ERR_BAD_COOKIE = 10003
NFS3ERR_TOOSMALL = 10005
NFS3ERR_JUKEBOX = 10008

MAX_HANDLE = 64
MAX_NAME = 255
MAX_PATH = 4096
MAX_READ = 1 << 20
"""rtmax and rtpref: the largest READ that Linux sends; smaller ones only cost more calls."""
MAX_WRITE = 32 << 10
"""wtmax: nothing is ever written, but a client needs a number, and a record of this size must be taken."""
MAX_FOLDER_REPLY = 64 << 10
"""The largest READDIR or READDIRPLUS result that is made, whatever the client has room for."""

_OK = u32(NFS3_OK)
_NO_ATTRIBUTES = FALSE
_NO_WCC = FALSE * 2
_ACCESS_READ, _ACCESS_LOOKUP, _ACCESS_EXECUTE = 0x01, 0x02, 0x20
_FIRST_CHILD_COOKIE = 3  # 1 and 2 stand behind "." and ".."
_ENTRY_HEAD = struct.Struct(">I8sI")
_COOKIE = struct.Struct(">Q")
_PLUS = struct.Struct(f">Q{attributes.SIZE}s20sIQ")  # cookie, post_op_attr, post_op_fh3
_FSINFO = struct.Struct(">7IQ3I")
_FSF_LINK, _FSF_SYMLINK, _FSF_HOMOGENEOUS = 0x01, 0x02, 0x08
_PATHCONF = struct.Struct(">6I")
_LINK_MAX = 65000  # ext4's


class NfsError(Exception):
    """An expected failure of a procedure: its status, and what follows the status where the default won't do."""

    def __init__(self, status: int, tail: bytes | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.tail = tail


class Trees(Protocol):
    """The live exports' trees."""

    def by_fsid(self, fsid: bytes) -> Tree:
        """The indexed tree of an export.

        :raises NfsError: NFS3ERR_STALE, there is no such export (any more)
        :raises NotReady: its index is being made
        """


class NotReady(Exception):  # noqa: N818 - not an error: the same call is to be tried again later
    """The tree that a call speaks of is still being indexed; `fsid` tells which."""

    def __init__(self, fsid: bytes) -> None:
        super().__init__(fsid)
        self.fsid = fsid


@dataclass(slots=True)
class Retry(Later):
    """The call is to be answered anew once the index of `fsid` is there."""

    fsid: bytes


@dataclass(slots=True)
class FileData(Later):
    """`count` bytes of a file from `offset` on are to follow `head` (which ends with their number), then padding."""

    tree: Tree
    number: int
    offset: int
    count: int
    head: bytes


@dataclass(slots=True)
class Work(Later):
    """The answer is what `function` returns; it may wait for a disk, so it belongs into a thread."""

    function: Callable[[], bytes]


def object_of(trees: Trees, args: Reader) -> tuple[Tree, int]:
    """The tree and entry behind the file handle that comes next in the arguments.

    :raises NfsError: NFS3ERR_BADHANDLE or NFS3ERR_STALE
    :raises XdrError: no handle comes next
    """
    handle = args.opaque(MAX_HANDLE)
    fsid = handles.fsid_of(handle)
    if fsid is None:
        raise NfsError(NFS3ERR_BADHANDLE)
    tree = trees.by_fsid(fsid)
    number = tree.find(*handles.entry_of(handle))
    if number is None:
        raise NfsError(NFS3ERR_STALE)
    return tree, number


def handle_of(tree: Tree, number: int) -> bytes:
    """The file handle of an entry."""
    return handles.make(tree.fsid, number, tree.key(number))


def permission(tree: Tree, number: int, facts: Facts, credential: Credential) -> int:
    """What the caller may do with an entry: a sum of READ, WRITE, EXECUTE of `attributes`."""
    stored = tree.acls(number)
    acl = None
    if stored is not None and stored[0]:
        try:
            acl = posixacl.parse(stored[0])
        except ValueError:
            return 0
    return attributes.granted(facts, acl, credential)


def procedure(function: Callable[[Reader, Caller], Answer], tail: bytes) -> Procedure:
    """Turn what a procedure raises into its answer: `tail` follows the status where the error brings no other."""

    def call(args: Reader, caller: Caller) -> Answer:
        try:
            return function(args, caller)
        except NfsError as error:
            return u32(error.status) + (tail if error.tail is None else error.tail)
        except NotReady as pending:
            return Retry(pending.fsid)

    return call


class NfsV3:
    """The procedures over some trees."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    def program(self) -> Program:
        """The RPC program that answers with them."""
        plain, wcc = _NO_ATTRIBUTES, _NO_WCC
        table: Mapping[int, tuple[Callable[[Reader, Caller], Answer], bytes]] = {
            1: (self._getattr, b""),
            2: (self._setattr, wcc),
            3: (self._lookup, plain),
            4: (self._access, plain),
            5: (self._readlink, plain),
            6: (self._read, plain),
            7: (self._write, wcc),
            8: (self._create, wcc),
            9: (self._mkdir, wcc),
            10: (self._symlink, wcc),
            11: (self._mknod, wcc),
            12: (self._remove, wcc),
            13: (self._remove, wcc),  # RMDIR has the same arguments
            14: (self._rename, wcc + wcc),
            15: (self._link, plain + wcc),
            16: (self._readdir, plain),
            17: (self._readdirplus, plain),
            18: (self._fsstat, plain),
            19: (self._fsinfo, plain),
            20: (self._pathconf, plain),
            21: (self._commit, wcc),
        }
        procedures = {number: procedure(function, tail) for number, (function, tail) in table.items()}
        return Program(NFS_PROGRAM, {NFS_V3: {0: null, **procedures}})

    # ------------------------------------------------------------------ reading

    def _getattr(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        return _OK + tree.post_op(number)[4:]

    def _lookup(self, args: Reader, caller: Caller) -> Answer:
        tree, folder = object_of(self._trees, args)
        name = args.opaque(MAX_PATH)
        here = tree.post_op(folder)
        facts = tree.facts(folder)
        if facts.type != NF3DIR:
            raise NfsError(NFS3ERR_NOTDIR, here)
        if not permission(tree, folder, facts, caller.credential) & EXECUTE or tree.unreadable(folder):
            raise NfsError(NFS3ERR_ACCES, here)
        if not name:
            raise NfsError(NFS3ERR_ACCES, here)  # RFC 1813, section 3.2
        if len(name) > MAX_NAME:
            raise NfsError(NFS3ERR_NAMETOOLONG, here)
        if name == b".":
            found: int | None = folder
        elif name == b"..":
            found = tree.parent(folder)
        else:
            found = tree.lookup(folder, name)
        if found is None:
            raise NfsError(NFS3ERR_NOENT, here)
        return _OK + opaque(handle_of(tree, found)) + tree.post_op(found) + here

    def _access(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        wanted = args.u32()
        facts = tree.facts(number)
        rights = permission(tree, number, facts, caller.credential)
        allowed = _ACCESS_READ if rights & attributes.READ else 0
        if rights & EXECUTE:
            allowed |= _ACCESS_LOOKUP if facts.type == NF3DIR else _ACCESS_EXECUTE
        return _OK + tree.post_op(number) + u32(wanted & allowed)

    def _readlink(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        target = tree.symlink(number)
        if target is None:
            raise NfsError(NFS3ERR_INVAL, tree.post_op(number))
        return _OK + tree.post_op(number) + opaque(target)

    def _read(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        offset, count = args.u64(), args.u32()
        facts = tree.facts(number)
        here = tree.post_op(number)
        if facts.type != NF3REG:
            raise NfsError(NFS3ERR_ISDIR if facts.type == NF3DIR else NFS3ERR_INVAL, here)
        credential = caller.credential
        # The owner may always read, as a process that made its file read-only while it was open; and who may execute
        # a program has to be able to load it: Linux' nfsd_permission does the same.
        if credential.uid != facts.uid and not permission(tree, number, facts, credential) & (
            attributes.READ | EXECUTE
        ):
            raise NfsError(NFS3ERR_ACCES, here)
        size = facts.size
        count = max(0, min(count, MAX_READ, size - offset))
        head = _OK + here + u32(count) + (TRUE if offset + count >= size else FALSE) + u32(count)
        return FileData(tree, number, offset, count, head) if count else head

    def _readdir(self, args: Reader, caller: Caller) -> Answer:
        tree, folder = object_of(self._trees, args)
        cookie, verifier, room = args.u64(), args.fixed(8), args.u32()
        start, here, ours = self._enter(tree, folder, cookie, verifier, caller)
        parts = [_OK, here, ours]
        room = min(room, MAX_FOLDER_REPLY) - (4 + len(here) + 8 + 8)  # status (counted to be safe) to eof
        for name, _, its in _entries(tree, folder, start):
            entry = _entry(name, its) + _COOKIE.pack(start + 1)
            room -= len(entry)
            if room < 0:
                break
            parts.append(entry)
            start += 1
        return _listed(tree, folder, parts, start, here)

    def _readdirplus(self, args: Reader, caller: Caller) -> Answer:
        tree, folder = object_of(self._trees, args)
        cookie, verifier = args.u64(), args.fixed(8)
        names_room, room = args.u32(), args.u32()
        start, here, ours = self._enter(tree, folder, cookie, verifier, caller)
        asked = (folder, start, names_room, room)
        kept = tree.listings.get(asked)
        if kept is not None:
            return kept
        parts = [_OK, here, ours]
        room = min(room, MAX_FOLDER_REPLY) - (4 + len(here) + 8 + 8)
        handle_head = TRUE + u32(handles.SIZE) + handles.TAG + tree.fsid
        key_of = tree.key
        for name, number, its in _entries(tree, folder, start):
            start += 1
            entry = _entry(name, its)
            names_room -= len(entry) + _COOKIE.size
            entry += _PLUS.pack(start, its, handle_head, number, key_of(number))
            room -= len(entry)
            if room < 0 or (names_room < 0 and len(parts) > 3):
                start -= 1
                break
            parts.append(entry)
        return tree.listings.keep(asked, _listed(tree, folder, parts, start, here))

    def _enter(self, tree: Tree, folder: int, cookie: int, verifier: bytes, caller: Caller) -> tuple[int, bytes, bytes]:
        """Check a listing's arguments. Gives the position to go on from, the folder's attributes, its verifier.

        The verifier is the folder's mtime: it stays through a restart, and a listing that was begun before the tree
        was changed underneath is not continued at a wrong place.
        """
        here = tree.post_op(folder)
        facts = tree.facts(folder)
        if facts.type != NF3DIR:
            raise NfsError(NFS3ERR_NOTDIR, here)
        if not permission(tree, folder, facts, caller.credential) & attributes.READ or tree.unreadable(folder):
            raise NfsError(NFS3ERR_ACCES, here)
        ours = attributes.mtime(here)
        if cookie and verifier != ours and any(verifier):
            raise NfsError(NFS3ERR_BAD_COOKIE, here)
        if cookie > len(tree.children(folder)) + _FIRST_CHILD_COOKIE - 1:
            raise NfsError(NFS3ERR_BAD_COOKIE, here)
        return cookie, here, ours

    def _fsstat(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        here = tree.post_op(number)

        def ask() -> bytes:
            try:
                status = os.fstatvfs(tree.root_fd)
            except OSError:
                return u32(NFS3ERR_IO) + here
            unit = status.f_frsize
            space = u64(status.f_blocks * unit) + u64(status.f_bfree * unit) + u64(status.f_bavail * unit)
            return _OK + here + space + u64(status.f_files) + u64(status.f_ffree) + u64(status.f_favail) + u32(0)

        return Work(ask)

    def _fsinfo(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        limits = _FSINFO.pack(
            MAX_READ,
            MAX_READ,
            4096,
            MAX_WRITE,
            MAX_WRITE,
            4096,
            MAX_FOLDER_REPLY,
            (1 << 63) - 1,
            0,
            1,  # times are kept to the nanosecond
            _FSF_LINK | _FSF_SYMLINK | _FSF_HOMOGENEOUS,
        )
        return _OK + tree.post_op(number) + limits

    def _pathconf(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        # linkmax, name_max, no_trunc, chown_restricted, case_insensitive, case_preserving
        return _OK + tree.post_op(number) + _PATHCONF.pack(_LINK_MAX, MAX_NAME, 1, 1, 0, 1)

    # ------------------------------------------------------------------ modifying: never

    def _setattr(self, args: Reader, caller: Caller) -> Answer:
        wcc = self._wcc(args)
        _sattr3(args)
        if args.boolean():
            args.fixed(8)
        return u32(NFS3ERR_ROFS) + wcc

    def _write(self, args: Reader, caller: Caller) -> Answer:
        wcc = self._wcc(args)
        args.fixed(16)  # offset, count, stable
        args.opaque(len(args.data))
        return u32(NFS3ERR_ROFS) + wcc

    def _create(self, args: Reader, caller: Caller) -> Answer:
        wcc = self._wcc(args)
        args.opaque(MAX_PATH)
        exclusive = 2
        if args.u32() == exclusive:
            args.fixed(8)
        else:
            _sattr3(args)
        return u32(NFS3ERR_ROFS) + wcc

    def _mkdir(self, args: Reader, caller: Caller) -> Answer:
        wcc = self._wcc(args)
        args.opaque(MAX_PATH)
        _sattr3(args)
        return u32(NFS3ERR_ROFS) + wcc

    def _symlink(self, args: Reader, caller: Caller) -> Answer:
        wcc = self._wcc(args)
        args.opaque(MAX_PATH)
        _sattr3(args)
        args.opaque(MAX_PATH)
        return u32(NFS3ERR_ROFS) + wcc

    def _mknod(self, args: Reader, caller: Caller) -> Answer:
        wcc = self._wcc(args)
        args.opaque(MAX_PATH)
        kind = args.u32()
        if kind in (attributes.NF3CHR, attributes.NF3BLK):
            _sattr3(args)
            args.fixed(8)
        elif kind in (attributes.NF3SOCK, attributes.NF3FIFO):
            _sattr3(args)
        return u32(NFS3ERR_ROFS) + wcc

    def _remove(self, args: Reader, caller: Caller) -> Answer:
        wcc = self._wcc(args)
        args.opaque(MAX_PATH)
        return u32(NFS3ERR_ROFS) + wcc

    def _rename(self, args: Reader, caller: Caller) -> Answer:
        source = self._wcc(args)
        args.opaque(MAX_PATH)
        target = self._wcc(args)
        args.opaque(MAX_PATH)
        return u32(NFS3ERR_ROFS) + source + target

    def _link(self, args: Reader, caller: Caller) -> Answer:
        tree, number = object_of(self._trees, args)
        folder = self._wcc(args)
        args.opaque(MAX_PATH)
        return u32(NFS3ERR_ROFS) + tree.post_op(number) + folder

    def _commit(self, args: Reader, caller: Caller) -> Answer:
        wcc = self._wcc(args)
        args.fixed(12)  # offset, count
        return u32(NFS3ERR_ROFS) + wcc

    def _wcc(self, args: Reader) -> bytes:
        tree, number = object_of(self._trees, args)
        return attributes.wcc_data(tree.post_op(number))


def _entries(tree: Tree, folder: int, position: int) -> Iterator[tuple[bytes | bytearray, int, bytes | bytearray]]:
    """Names, numbers and attributes from a position of a listing on: ``.``, ``..``, then the folder's own entries."""
    parent = tree.parent(folder)
    dots = ((b".", folder, tree.post_op(folder)), (b"..", parent, tree.post_op(parent)))
    return chain(dots[position:], tree.listing(tree.children(folder)[max(0, position - len(dots)) :]))


def _entry(name: bytes | bytearray, its: bytes | bytearray) -> bytes:
    """The head of an entry3 or entryplus3: that there is one, its fileid, its name."""
    length = len(name)
    return _ENTRY_HEAD.pack(1, its[attributes.FILEID_AT : attributes.FILEID_AT + 8], length) + name + padding(length)


def _listed(tree: Tree, folder: int, parts: list[bytes], end: int, here: bytes) -> bytes:
    """A listing's answer, of what comes before the entries and the entries up to the position `end`.

    :raises NfsError: NFS3ERR_TOOSMALL, there are more, but not one of them fits
    """
    eof = end >= len(tree.children(folder)) + _FIRST_CHILD_COOKIE - 1
    if len(parts) == 3 and not eof:
        raise NfsError(NFS3ERR_TOOSMALL, here)
    parts.append(FALSE + (TRUE if eof else FALSE))
    return b"".join(parts)


def _sattr3(args: Reader) -> None:
    """Walk over a sattr3, to tell a well-formed call from garbage."""
    for size in (4, 4, 4, 8):  # mode, uid, gid, size
        if args.boolean():
            args.fixed(size)
    for _ in ("atime", "mtime"):
        set_to_client_time = 2
        how = args.u32()
        if how == set_to_client_time:
            args.fixed(8)
