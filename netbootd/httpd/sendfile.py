"""File to socket by the kernel (sendfile(2)), a turn at a time.

asyncio's own loop.sendfile registers with the selector anew for each piece: on one core that costs a third of the
throughput. Here a duplicate of the connection's descriptor is watched from the first piece to the last.
"""

from __future__ import annotations

import asyncio
import os

TURN = 2 << 20
"""Bytes that one connection gets before others have their turn; less than a millisecond of work."""


async def send_file(transport: asyncio.Transport, fd: int, offset: int, count: int) -> int:
    """Send `count` bytes of the file `fd` from `offset` on over a connection; returns how many there were.

    Fewer mean that the file has become shorter. Nothing else may write to the connection meanwhile.

    :raises OSError: the connection was lost
    """
    loop = asyncio.get_running_loop()
    if transport.get_write_buffer_size():  # the head has not left yet: asyncio knows how to wait for that
        with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
            return await loop.sendfile(transport, file, offset, count)
    turns = _Turns(loop, transport, fd, offset, count)
    try:
        return await turns.done
    finally:
        turns.close()


class _Turns:
    """One file on its way."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, fd: int, offset: int, count: int
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._file = fd
        self._offset = offset
        self._left = count
        self._sent = 0
        self._socket = os.dup(transport.get_extra_info("socket").fileno())
        self.done: asyncio.Future[int] = loop.create_future()
        loop.add_writer(self._socket, self._turn)

    def _turn(self) -> None:
        if self.done.done():
            return
        if self._transport.is_closing():
            self.done.set_exception(ConnectionResetError("the connection was lost"))
            return
        try:
            sent = os.sendfile(self._socket, self._file, self._offset, min(self._left, TURN))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.done.set_exception(error)
            return
        self._offset += sent
        self._sent += sent
        self._left -= sent
        if not sent or not self._left:
            self.done.set_result(self._sent)

    def close(self) -> None:
        """Watch no more."""
        self._loop.remove_writer(self._socket)
        os.close(self._socket)
