"""The trees behind the exports: indexed in a thread when first asked for, dropped when they are gone or idle."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from netbootd.model.export import Export
from netbootd.nfsd.mount import ExportTable
from netbootd.nfsd.tree import Tree, scan
from netbootd.nfsd.v3 import NFS3ERR_IO, NFS3ERR_STALE, NfsError, NotReady
from netbootd.nfsd.workers import Workers

_log = logging.getLogger(__name__)

_TRUSTED_SECONDS = 1.0
_FAILURE_SECONDS = 5.0


@dataclass(slots=True)
class _Live:
    tree: Tree
    checked: float
    used: float


@dataclass(slots=True)
class _Failure:
    status: int
    until: float


@dataclass(slots=True)
class _Waiting:
    callbacks: list[Callable[[], None]] = field(default_factory=list)


class LiveTrees:
    """The indexed trees of an export table, by fsid. Belongs to the event loop's thread, but for the scans.

    :param on_drop: told of every tree that is no longer served
    """

    def __init__(self, table: ExportTable, workers: Workers, on_drop: Callable[[Tree], None]) -> None:
        self._table = table
        self._workers = workers
        self._on_drop = on_drop
        self._live: dict[bytes, _Live] = {}
        self._waiting: dict[bytes, _Waiting] = {}
        self._failures: dict[bytes, _Failure] = {}

    def by_fsid(self, fsid: bytes) -> Tree:
        """See `netbootd.nfsd.v3.Trees`; the table is asked again once a second."""
        now = time.monotonic()
        live = self._live.get(fsid)
        if live is not None and now - live.checked < _TRUSTED_SECONDS:
            live.used = now
            return live.tree
        export = self._table.by_fsid(fsid)
        if export is None:
            self._drop(fsid)
            raise NfsError(NFS3ERR_STALE)
        if live is not None:
            live.checked = live.used = now
            return live.tree
        failure = self._failures.get(fsid)
        if failure is not None and now < failure.until:
            raise NfsError(failure.status)
        self._begin(export)
        raise NotReady(fsid)

    def when_ready(self, fsid: bytes, callback: Callable[[], None]) -> None:
        """Call back (soon, or when the scan has ended, well or not)."""
        waiting = self._waiting.get(fsid)
        if waiting is None:
            callback()
        else:
            waiting.callbacks.append(callback)

    def _begin(self, export: Export) -> None:
        if export.fsid in self._waiting:
            return
        self._waiting[export.fsid] = _Waiting()
        started = time.monotonic()
        self._workers.run(
            lambda: scan(export.path, export.fsid, export.attributes),
            lambda result: self._scanned(export, result, started),
        )

    def _scanned(self, export: Export, result: Tree | OSError, started: float) -> None:
        waiting = self._waiting.pop(export.fsid)
        now = time.monotonic()
        if isinstance(result, OSError):
            _log.error("the tree %s can't be served over NFS: %s", os.fsdecode(export.path), result.strerror or result)
            status = NFS3ERR_STALE if isinstance(result, FileNotFoundError) else NFS3ERR_IO
            self._failures[export.fsid] = _Failure(status, now + _FAILURE_SECONDS)
        else:
            _log.info("indexed %s: %d entries in %.1f s", os.fsdecode(export.path), len(result), now - started)
            self._failures.pop(export.fsid, None)
            self._live[export.fsid] = _Live(result, now, now)
        for callback in waiting.callbacks:
            callback()

    def sweep(self, idle_seconds: float) -> None:
        """Drop what nobody has used for a while, and what isn't exported any more."""
        now = time.monotonic()
        for fsid, live in list(self._live.items()):
            if now - live.used > idle_seconds or self._table.by_fsid(fsid) is None:
                self._drop(fsid)
        for fsid, failure in list(self._failures.items()):
            if now >= failure.until:
                del self._failures[fsid]

    def _drop(self, fsid: bytes) -> None:
        live = self._live.pop(fsid, None)
        if live is not None:
            self._on_drop(live.tree)

    def clear(self) -> None:
        """Drop all."""
        for fsid in list(self._live):
            self._drop(fsid)
