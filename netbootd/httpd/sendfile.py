"""File to socket by the kernel (sendfile(2)), a turn at a time.

asyncio's own loop.sendfile registers with the selector anew for each piece: on one core that costs a third of the
throughput. Here a duplicate of the connection's descriptor is watched from the first piece to the last, in an epoll
descriptor of our own: asyncio spends more on a ready descriptor than this does. The kernel lists ready connections in
turn, so that few of them for each pass of the event loop are fair among each other, and to the loop's other servers.
"""

from __future__ import annotations

import asyncio
import os
import select

TURN = 4 << 20
"""Bytes that one connection gets before others have their turn: as much as a socket's buffer takes by default, less
than a millisecond of work."""

_AT_ONCE = 4
"""Connections that have their turn before the event loop's other descriptors: a miss over TFTP waits for so many."""


class FileSender:
    """Sends files over the connections of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._under_way: dict[int, _Sending] = {}
        self._loop.add_reader(self._epoll.fileno(), self._run)

    async def send(self, transport: asyncio.Transport, fd: int, offset: int, count: int) -> int:
        """Send `count` bytes of the file `fd` from `offset` on over a connection; returns how many there were.

        Fewer mean that the file has become shorter. Nothing else may write to the connection meanwhile.

        :raises OSError: the connection was lost
        """
        if transport.get_write_buffer_size():  # the head has not left yet: asyncio knows how to wait for that
            with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
                return await self._loop.sendfile(transport, file, offset, count)
        sending = _Sending(transport, fd, offset, count, self._loop.create_future())
        self._under_way[sending.socket] = sending
        self._epoll.register(sending.socket, select.EPOLLOUT)
        try:
            return await sending.done
        finally:
            self._forget(sending)
            os.close(sending.socket)

    def close(self) -> None:
        """Send nothing any more: what is under way fails as if its connection were lost."""
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        for sending in list(self._under_way.values()):
            sending.fail(ConnectionResetError("the server has stopped"))
        self._under_way.clear()
        self._epoll.close()

    def _run(self) -> None:
        for fd, _ in self._epoll.poll(0, _AT_ONCE):
            sending = self._under_way.get(fd)
            if sending is not None:
                sending.turn()
                if sending.done.done():
                    self._forget(sending)  # now, or it would be ready until its handler runs

    def _forget(self, sending: _Sending) -> None:
        if self._under_way.pop(sending.socket, None) is not None:
            self._epoll.unregister(sending.socket)


class _Sending:
    """One file on its way. It owns `socket`, a duplicate that stays the connection's when the transport is closed."""

    __slots__ = ("_file", "_left", "_offset", "_sent", "_transport", "done", "socket")

    def __init__(
        self, transport: asyncio.Transport, fd: int, offset: int, count: int, done: asyncio.Future[int]
    ) -> None:
        self._transport = transport
        self._file = fd
        self._offset = offset
        self._left = count
        self._sent = 0
        self.socket = os.dup(transport.get_extra_info("socket").fileno())
        self.done = done

    def turn(self) -> None:
        """The connection takes bytes (or has failed): give it some."""
        if self._transport.is_closing():
            self.fail(ConnectionResetError("the connection was lost"))
            return
        try:
            sent = os.sendfile(self.socket, self._file, self._offset, min(self._left, TURN))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(error)
            return
        self._offset += sent
        self._sent += sent
        self._left -= sent
        if (not sent or not self._left) and not self.done.done():
            self.done.set_result(self._sent)

    def fail(self, error: OSError) -> None:
        """End it."""
        if not self.done.done():
            self.done.set_exception(error)
