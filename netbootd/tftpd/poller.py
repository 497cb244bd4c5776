"""Many short-lived sockets on one asyncio loop: an epoll descriptor of our own that the loop watches.

asyncio spends more on a ready descriptor (selector key, handle, context) than the kernel does on the datagram. Here the
loop wakes once for all descriptors that are ready. Works with any event loop that has `add_reader`.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable

ReadyCallback = Callable[[float], None]
"""Called with the monotonic time when its descriptor can be read (or has failed). Must not raise."""

_BATCH = 256
_ROUNDS = 8  # as long as more is ready; then the other servers of the loop have their turn


class Poller:
    """Calls back for each registered descriptor that is ready, from the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._readers: dict[int, ReadyCallback] = {}
        loop.add_reader(self._fd, self.run)

    def add(self, fd: int, callback: ReadyCallback) -> None:
        """Watch `fd` for datagrams."""
        self._readers[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def run(self) -> None:
        """Serve what is ready now."""
        readers, poll, clock = self._readers, self._epoll.poll, time.monotonic
        for _ in range(_ROUNDS):
            ready = poll(0, _BATCH)
            if not ready:
                return
            now = clock()
            for fd, _ in ready:
                callback = readers.get(fd)
                if callback is not None:
                    callback(now)
            if len(ready) == 1:
                return  # one client in lock-step: its answer isn't here yet

    def close(self) -> None:
        """Forget all descriptors; they stay open."""
        self._loop.remove_reader(self._fd)
        self._readers.clear()
        self._epoll.close()
