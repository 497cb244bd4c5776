"""The MOUNT protocol version 3 (RFC 1813, appendix I), program 100005: which folders there are, and their first handle.

The list of mounts that DUMP tells is a courtesy, as the RFC has it: bounded, in memory, forgotten at a restart.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from netbootd.model.export import Export
from netbootd.nfsd.attributes import NF3DIR
from netbootd.nfsd.rpc import AUTH_NONE, AUTH_SYS, Answer, Caller, Program, null
from netbootd.nfsd.tree import ROOT
from netbootd.nfsd.v3 import NfsError, NotReady, Retry, Trees, handle_of
from netbootd.nfsd.xdr import FALSE, TRUE, Reader, opaque, u32

MOUNT_PROGRAM = 100005
MOUNT_V3 = 3

MNT3ERR_NOENT = 2
MNT3ERR_IO = 5
MNT3ERR_ACCES = 13
MNT3ERR_NOTDIR = 20
_MAX_PATH = 1024
_MOUNTS_KEPT = 4096

OnMount = Callable[[str, Export, float], None]
"""Told of every successful MNT: the client's address, what it mounted, the seconds it took."""


class ExportTable(Protocol):
    """What is exported at this moment. Called on the event loop; must not block."""

    def find(self, path: bytes) -> Export | None:
        """The export that a client names by `path`: absolute, without ``//``, ``.`` parts or a slash at its end."""

    def by_fsid(self, fsid: bytes) -> Export | None:
        """The export with this identity, None once it is gone."""

    def all(self) -> Sequence[Export]:
        """All of them."""


class MountV3:
    """The procedures over some exports."""

    def __init__(self, exports: ExportTable, trees: Trees, on_mount: OnMount) -> None:
        self._exports = exports
        self._trees = trees
        self._on_mount = on_mount
        self._mounts: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def program(self) -> Program:
        """The RPC program that answers with them."""
        procedures = {0: null, 1: self._mnt, 2: self._dump, 3: self._umnt, 4: self._umntall, 5: self._export}
        return Program(MOUNT_PROGRAM, {MOUNT_V3: procedures})

    def _mnt(self, args: Reader, caller: Caller) -> Answer:
        path = normalised(args.opaque(_MAX_PATH))
        if path is None:
            return u32(MNT3ERR_NOENT)
        export, below = self._find(path)
        if export is None:
            return u32(MNT3ERR_NOENT)
        return self._open(export, path, below, caller)

    def _open(self, export: Export, path: bytes, below: list[bytes], caller: Caller) -> Answer:
        """The answer for an export, or for a folder in it at the names `below`."""
        try:
            tree = self._trees.by_fsid(export.fsid)
        except NotReady as pending:
            return Retry(pending.fsid)
        except NfsError:
            return u32(MNT3ERR_IO)
        number = ROOT
        for name in below:
            inner = tree.lookup(number, name) if tree.facts(number).type == NF3DIR else None
            if inner is None:
                return u32(MNT3ERR_NOENT)
            number = inner
        if tree.facts(number).type != NF3DIR:
            return u32(MNT3ERR_NOTDIR)
        self._mounted(export, path, caller.address, time.monotonic() - caller.received)
        return u32(0) + opaque(handle_of(tree, number)) + u32(2) + u32(AUTH_SYS) + u32(AUTH_NONE)

    def _mounted(self, export: Export, path: bytes, address: str, seconds: float) -> None:
        self._mounts[address, path] = None
        while len(self._mounts) > _MOUNTS_KEPT:
            self._mounts.popitem(last=False)
        self._on_mount(address, export, seconds)

    def _find(self, path: bytes) -> tuple[Export | None, list[bytes]]:
        """The export that holds `path`, and the names from its root to there: a folder inside may be mounted, too."""
        below: list[bytes] = []
        while True:
            export = self._exports.find(path)
            if export is not None or path == b"/":
                return export, below[::-1]
            path, _, name = path.rpartition(b"/")
            path = path or b"/"
            below.append(name)

    def _dump(self, args: Reader, caller: Caller) -> Answer:
        mounts = [TRUE + opaque(address.encode()) + opaque(path) for address, path in self._mounts]
        return b"".join(mounts) + FALSE

    def _umnt(self, args: Reader, caller: Caller) -> Answer:
        path = normalised(args.opaque(_MAX_PATH))
        if path is not None:
            self._mounts.pop((caller.address, path), None)
        return b""

    def _umntall(self, args: Reader, caller: Caller) -> Answer:
        for mount in [mount for mount in self._mounts if mount[0] == caller.address]:
            del self._mounts[mount]
        return b""

    def _export(self, args: Reader, caller: Caller) -> Answer:
        exports = [TRUE + opaque(export.path) + FALSE for export in self._exports.all()]  # no groups: everybody
        return b"".join(exports) + FALSE


def normalised(path: bytes) -> bytes | None:
    """An absolute path without empty and ``.`` parts; None where it is relative, climbs with ``..`` or has a NUL."""
    if not path.startswith(b"/") or b"\0" in path:
        return None
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        return None
    return b"/" + b"/".join(parts)
