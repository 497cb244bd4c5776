"""NFSv3, NFSACL, MOUNT and the port mapper over a little tree, as a connection has them: bytes in, answers out."""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from netbootd.model.export import Export
from netbootd.nfsd import acl, mount, portmap, v3
from netbootd.nfsd.acl import NfsAclV3
from netbootd.nfsd.mount import MountV3
from netbootd.nfsd.portmap import PortMapper
from netbootd.nfsd.rpc import SYSTEM_ERR, Caller, Dispatcher, RecordError, Records
from netbootd.nfsd.tree import ROOT, Tree, scan
from netbootd.nfsd.v3 import NFS3ERR_STALE, NfsError, NfsV3, Work, handle_of
from tests.support.nfs_wire import call_record, marked, opaque, u32, u64

_FSID = b"fuzzfsid"
_LIMIT = 1 << 20


class _One:
    """One export, and its tree."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._export = Export(tree.path, _FSID, "image", "0" * 16)

    def find(self, path: bytes) -> Export | None:
        return self._export if path == self._export.path else None

    def by_fsid(self, fsid: bytes) -> Export | None:
        return self._export if fsid == _FSID else None

    def all(self) -> Sequence[Export]:
        return [self._export]


class _Trees:
    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def by_fsid(self, fsid: bytes) -> Tree:
        if fsid != _FSID:
            raise NfsError(NFS3ERR_STALE)
        return self._tree


@functools.cache
def _tree() -> Tree:
    folder = tempfile.TemporaryDirectory(prefix="netbootd-fuzz-tree-")
    atexit.register(folder.cleanup)
    root = Path(folder.name)
    (root / "etc").mkdir()
    for number in range(30):
        (root / "etc" / f"file-{number}").write_bytes(b"x" * number)
    (root / "link").symlink_to("etc/file-1")
    return scan(bytes(root), _FSID)


@functools.cache
def _dispatcher() -> Dispatcher:
    tree = _tree()
    trees = _Trees(tree)
    mappings = [portmap.Mapping(v3.NFS_PROGRAM, 3, portmap.IPPROTO_TCP, 2049)]
    programs = (NfsV3(trees), NfsAclV3(trees), MountV3(_One(tree), trees, lambda *_: None), PortMapper(mappings))
    return Dispatcher([each.program() for each in programs])


def answer_calls(data: bytes) -> None:
    """Take a stream apart into calls, in pieces, and answer each of them. A failure of ours is an AssertionError."""
    dispatcher, records = _dispatcher(), Records(_LIMIT)
    logging.getLogger("netbootd.nfsd.rpc").disabled = True  # it is told by the assertion
    try:
        for first, end in itertools.pairwise((0, len(data) // 3, len(data) // 2, len(data))):
            for call in records.feed(data[first:end]):
                reply = dispatcher.answer(call, Caller("192.0.2.1", "192.0.2.2.8.1", time.monotonic()))
                if reply is None:
                    continue
                assert not reply.head.endswith(SYSTEM_ERR), f"a procedure failed for {call.hex()}"
                if isinstance(reply.body, Work):
                    assert isinstance(reply.body.function(), bytes)
    except RecordError:
        pass


def calls(folder: Path) -> list[bytes]:
    """A call of every procedure that takes arguments, and all of them in one stream."""
    tree = _tree()
    top, etc = handle_of(tree, ROOT), handle_of(tree, tree.lookup(ROOT, b"etc") or 0)
    link = handle_of(tree, tree.lookup(ROOT, b"link") or 0)
    file = handle_of(tree, tree.lookup(tree.lookup(ROOT, b"etc") or 0, b"file-9") or 0)
    nfs = {
        1: opaque(top),
        2: opaque(file) + bytes(28),
        3: opaque(etc) + opaque(b"file-3"),
        4: opaque(file) + u32(0x3F),
        5: opaque(link),
        6: opaque(file) + u64(3) + u32(4096),
        7: opaque(file) + u64(0) + u32(4, 2) + opaque(b"data"),
        8: opaque(etc) + opaque(b"new") + u32(0) + bytes(24),
        9: opaque(etc) + opaque(b"new") + bytes(24),
        10: opaque(etc) + opaque(b"new") + bytes(24) + opaque(b"target"),
        11: opaque(etc) + opaque(b"new") + u32(7) + bytes(24),
        12: opaque(etc) + opaque(b"file-3"),
        14: opaque(etc) + opaque(b"file-3") + opaque(top) + opaque(b"new"),
        15: opaque(file) + opaque(etc) + opaque(b"new"),
        16: opaque(etc) + u64(0) + bytes(8) + u32(4096),
        17: opaque(etc) + u64(0) + bytes(8) + u32(1024, 4096),
        18: opaque(top),
        19: opaque(top),
        20: opaque(file),
        21: opaque(file) + u64(0) + u32(0),
    }
    made = [call_record(v3.NFS_PROGRAM, 3, number, args, xid=number) for number, args in nfs.items()]
    made += [call_record(mount.MOUNT_PROGRAM, 3, number, opaque(tree.path), xid=number) for number in (1, 2, 3, 4, 5)]
    made += [call_record(acl.NFSACL_PROGRAM, 3, number, opaque(top) + u32(0xF), xid=number) for number in (1, 2)]
    made.append(call_record(portmap.PORTMAP_PROGRAM, 2, 3, u32(v3.NFS_PROGRAM, 3, 6, 0), xid=1))
    universal = u32(v3.NFS_PROGRAM, 3) + opaque(b"tcp") + opaque(b"192.0.2.2.0.111") + opaque(b"")
    made += [call_record(portmap.PORTMAP_PROGRAM, 4, number, universal, xid=number) for number in (3, 4, 9)]
    return [*(marked(call) for call in made), b"".join(marked(call) for call in made)]
