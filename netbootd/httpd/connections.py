"""Keeps connections from being held for nothing: slow senders, slow readers, idle ones, and too many of them.

aiohttp ends a connection that is kept alive without use, but has no time-out before the first whole request (the "slow
loris"), none for a peer that takes no bytes, and no bound on their number. Here a `_Guarded` protocol stands before
aiohttp's own on each connection; requests tell when they begin and end, and one timer looks at all connections.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from dataclasses import dataclass
from typing import cast

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds and numbers.

    `header` is for a whole request to arrive, also the first; `stalled` for a peer that takes no bytes. At `total`
    connections (half of this process's descriptors at most), or at `per_address` of one peer, the one that has been
    idle for longest makes room.
    """

    header: float = 20.0
    stalled: float = 60.0
    total: int = 2048
    per_address: int = 512
    sweep: float = 1.0


class ConnectionGuard:
    """All connections of one server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._total = limits.total
        self._open: dict[asyncio.BaseTransport, _Guarded] = {}
        self._by_address: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.accepted = 0
        self.refused = 0
        self.timed_out = 0

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin to look after connections, on the running loop."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._total = min(self._limits.total, max(16, descriptors // 2))
        self._sweep()

    def stop(self) -> None:
        """Look after nothing any more; connections stay as they are."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def protocol(self, inner: asyncio.Protocol) -> asyncio.Protocol:
        """What stands between a new connection and `inner`, aiohttp's handler of it."""
        return _Guarded(self, inner)

    def begin(self, transport: asyncio.BaseTransport | None) -> None:
        """A whole request has arrived: time is the handler's now."""
        if transport is not None and (guarded := self._open.get(transport)):
            guarded.waiting_since = None

    def end(self, transport: asyncio.BaseTransport | None) -> None:
        """The answer has been given: the next request may take its time."""
        if transport is not None and (guarded := self._open.pop(transport, None)):
            guarded.waiting_since = guarded.loop.time()
            self._open[transport] = guarded  # behind all that have waited for longer

    def admit(self, guarded: _Guarded) -> bool:
        """Whether a new connection is served; others may have to go for it."""
        if self._by_address.get(guarded.peer, 0) >= self._limits.per_address:
            self._evict(guarded.peer)
        if len(self._open) >= self._total:
            self._evict("")
        if self._by_address.get(guarded.peer, 0) >= self._limits.per_address or len(self._open) >= self._total:
            self.refused += 1
            return False
        self.accepted += 1
        self._open[guarded.transport] = guarded
        self._by_address[guarded.peer] = self._by_address.get(guarded.peer, 0) + 1
        return True

    def forget(self, guarded: _Guarded) -> None:
        """A connection has ended."""
        if self._open.pop(guarded.transport, None) is None:
            return
        left = self._by_address[guarded.peer] - 1
        if left:
            self._by_address[guarded.peer] = left
        else:
            del self._by_address[guarded.peer]

    def tune(self, sock: socket.socket) -> None:
        """Let the kernel end a connection whose peer takes nothing (tcp(7), also for a window that stays shut)."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.stalled * 1000))

    def _evict(self, peer: str) -> None:
        """End the connection that has been waiting for a request for longest, of `peer` or of anybody."""
        for guarded in self._open.values():
            if guarded.waiting_since is not None and peer in ("", guarded.peer):
                guarded.transport.abort()
                self.forget(guarded)
                return

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for guarded in list(self._open.values()):
            if guarded.waiting_since is not None and now - guarded.waiting_since > self._limits.header:
                self.timed_out += 1
                _log.debug("HTTP: %s sent no whole request in %.0f s", guarded.peer, self._limits.header)
                guarded.transport.abort()
        self._timer = loop.call_later(self._limits.sweep, self._sweep)


class _Guarded(asyncio.Protocol):
    """One connection: hands everything on to `inner`, once it has been admitted."""

    def __init__(self, guard: ConnectionGuard, inner: asyncio.Protocol) -> None:
        self._guard = guard
        self._inner = inner
        self._admitted = False
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.peer = ""
        self.waiting_since: float | None = self.loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]).partition("%")[0].removeprefix("::ffff:") if name else ""
        if not self._guard.admit(self):
            self.transport.abort()
            return
        self._admitted = True
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._guard.tune(sock)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._admitted:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._admitted else None

    def pause_writing(self) -> None:
        if self._admitted:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._admitted:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._admitted:
            self._guard.forget(self)
            self._inner.connection_lost(exc)
