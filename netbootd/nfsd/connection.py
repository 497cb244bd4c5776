"""One client's TCP connection: records in, answers out, at the client's own pace.

Sockets are driven by hand (add_reader, sendmsg, sendfile), so that file data goes from the page cache to the socket
without passing through Python, and a client that doesn't read is not read from: what one connection can make us hold
is bounded by the constants below.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from netbootd.nfsd.exports import LiveTrees
from netbootd.nfsd.files import OpenFile, OpenFiles, fetch, status_of
from netbootd.nfsd.rpc import LAST_FRAGMENT, Answer, Caller, Dispatcher, RecordError, Records
from netbootd.nfsd.v3 import MAX_READ, MAX_WRITE, NFS3ERR_JUKEBOX, FileData, Retry, Work
from netbootd.nfsd.workers import Workers
from netbootd.nfsd.xdr import padding, u32

_log = logging.getLogger(__name__)

RECORD_LIMIT = MAX_WRITE + 4096
"""The longest call that is taken: a WRITE of the size that FSINFO allows."""

_RECEIVE = 64 << 10
_BATCH = 32  # calls answered before others get their turn
_BATCH_SECONDS = 0.002  # the same, for calls that take long
_MAX_QUEUED = 64  # answers that wait to be sent
_MAX_QUEUED_BYTES = 512 << 10  # bytes in memory, or on their way there (what the page cache holds isn't counted)
_MAX_DEFERRED = 8  # calls that wait for a thread
_SENDFILE_FROM = 32 << 10  # shorter reads are cheaper copied
_TURN = MAX_READ + (64 << 10)  # bytes sent before others get their turn: a READ's answer, some 0.3 ms
_PROBED_SECONDS = 0.25  # how long it is believed that something is in the page cache
_MSG_MORE = socket.MSG_MORE


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    connections: int = 0
    calls: int = 0
    bytes_sent: int = 0
    refused: int = 0
    broken: int = 0


@dataclass(slots=True)
class Shared:
    """What the connections of one server have in common."""

    loop: asyncio.AbstractEventLoop
    trees: LiveTrees
    files: OpenFiles
    workers: Workers
    closed: Callable[[Connection], None]
    counters: Counters = field(default_factory=Counters)
    buffer: bytearray = field(default_factory=lambda: bytearray(_RECEIVE))


@dataclass(slots=True)
class _Segment:
    """A stretch of a file that is still to be sent, and when it was known to be in the page cache (monotonic)."""

    file: OpenFile
    offset: int
    count: int
    probed: float


class Connection:
    """Serves one accepted socket until the peer, a fault or `close` ends it."""

    def __init__(
        self, shared: Shared, sock: socket.socket, peer: tuple[str, int], local: str, dispatcher: Dispatcher
    ) -> None:
        self._shared = shared
        self._loop = shared.loop
        self._socket = sock
        self._fd = sock.fileno()
        self.address, self._port = peer
        self._local = local
        self._dispatcher = dispatcher
        self._records = Records(RECORD_LIMIT)
        self._calls: deque[bytes] = deque()
        self._out: deque[bytes | memoryview | _Segment] = deque()
        self._out_bytes = 0
        self._deferred = 0
        self._deferred_bytes = 0  # what these will bring into memory
        self._warming = False  # what is to be sent next is being read into the page cache
        self._reading = False
        self._writing = False
        self._scheduled = False
        self._ending = False  # no more calls are taken; closes when all answers are out
        self._closed = False
        self.active = time.monotonic()
        self._record_since = 0.0
        self._want(read=True, write=False)

    # ------------------------------------------------------------------ state

    @property
    def busy(self) -> bool:
        """Whether an answer is owed."""
        return bool(self._out or self._calls or self._deferred)

    def overdue(self, now: float, idle: float, stalled: float) -> str:
        """Why this connection should be ended, empty where it shouldn't: idle, stalled while sending, half a record."""
        if self._out and not self._warming:
            return "the client takes no answers" if now - self.active > stalled else ""
        if self._reading and self._record_since and now - self._record_since > stalled:
            return "half a record, then silence"
        if not self.busy and now - self.active > idle:
            return "idle"
        return ""

    def finish(self) -> None:
        """Take no more calls, send what is owed, then close."""
        self._ending = True
        self._step()

    def close(self) -> None:
        """End at once. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._want(read=False, write=False)
        self._socket.close()
        self._calls.clear()
        self._out.clear()
        self._shared.closed(self)

    # ------------------------------------------------------------------ receiving

    def _readable(self) -> None:
        buffer = self._shared.buffer
        try:
            count = self._socket.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            _log.debug("connection of %s ended: %s", self.address, error)
            self.close()
            return
        if not count:
            self._ending = True
            self._step()
            return
        self.active = time.monotonic()
        try:
            self._calls.extend(self._records.feed(memoryview(buffer)[:count]))
        except RecordError as error:
            _log.info("connection of %s ended: %s", self.address, error)
            self._shared.counters.broken += 1
            self.close()
            return
        if not self._records.unfinished:
            self._record_since = 0.0
        elif not self._record_since or self._calls:
            self._record_since = self.active
        self._step()

    def _full(self) -> bool:
        return (
            self._deferred >= _MAX_DEFERRED
            or len(self._out) >= _MAX_QUEUED
            or self._out_bytes + self._deferred_bytes >= _MAX_QUEUED_BYTES
        )

    def _step(self) -> None:
        """Answer some calls, send what can be sent, and decide what to wait for."""
        if self._closed:
            return
        ends = time.monotonic() + _BATCH_SECONDS
        for _ in range(_BATCH):
            if not self._calls or self._full():
                break
            self._answer(self._calls.popleft(), self.active)
            if time.monotonic() > ends:
                break
        if not self._flush():
            return
        if self._ending and not self.busy:
            self.close()
            return
        full = self._full()
        self._want(read=not self._ending and not self._calls and not full, write=bool(self._out) and not self._warming)
        if self._calls and not full and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._scheduled = False
        self._step()

    def _want(self, *, read: bool, write: bool) -> None:
        if read != self._reading:
            self._reading = read
            if read:
                if self._record_since:  # while we didn't listen, the peer had nothing to hurry for
                    self._record_since = time.monotonic()
                self._loop.add_reader(self._fd, self._readable)
            else:
                self._loop.remove_reader(self._fd)
        if write != self._writing:
            self._writing = write
            if write:
                self._loop.add_writer(self._fd, self._step)
            else:
                self._loop.remove_writer(self._fd)

    # ------------------------------------------------------------------ answering

    def _answer(self, call: bytes, received: float) -> None:
        self._shared.counters.calls += 1
        caller = Caller(self.address, self._local, received, port=self._port)
        reply = self._dispatcher.answer(call, caller)
        if reply is None:
            return
        body: Answer = reply.body
        if isinstance(body, bytes):
            self._put(reply.head, body)
        elif isinstance(body, FileData):
            self._read(reply.head, body)
        elif isinstance(body, Retry):
            self._deferred += 1
            self._shared.trees.when_ready(body.fsid, lambda: self._again(call, received))
        elif isinstance(body, Work):
            self._deferred += 1
            head = reply.head
            self._shared.workers.run(body.function, lambda result: self._worked(head, result))

    def _again(self, call: bytes, received: float) -> None:
        self._deferred -= 1
        if not self._closed:
            self._answer(call, received)
            self._step()

    def _worked(self, head: bytes, result: bytes | OSError) -> None:
        self._deferred -= 1
        self._put(head, u32(NFS3ERR_JUKEBOX) + u32(0) if isinstance(result, OSError) else result)
        self._step()

    def _put(self, *parts: bytes) -> None:
        data = b"".join(parts)
        self._queue(u32(LAST_FRAGMENT | len(data)) + data)

    def _queue(self, data: bytes | memoryview) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def _read(self, head: bytes, wanted: FileData) -> None:
        """Answer with data that the page cache has; a thread reads what it hasn't.

        Much of it is only brought into the page cache and sent from there, so that a client that takes its answers
        slowly costs no memory; where the file system can't tell what is cached, the data passes through ours.
        """
        offset, count = wanted.offset, wanted.count
        file = self._shared.files.get(wanted.tree, wanted.number)
        if file is not None and file.tells:
            if count < _SENDFILE_FROM:
                data = file.read_cached(offset, count)
                if data is not None:
                    self._put(head, wanted.head, data, padding(count))
                    return
            elif file.cached(offset, count):
                self._put_data(head, wanted, file)
                return
        self._deferred += 1
        held = 0 if file is not None and file.tells and count >= _SENDFILE_FROM else count
        self._deferred_bytes += held
        self._shared.workers.run(
            lambda: fetch(wanted.tree, wanted.number, file, offset, count, warm_from=_SENDFILE_FROM),
            lambda result: self._fetched(head, wanted, held, result),
        )

    def _fetched(
        self, head: bytes, wanted: FileData, held: int, result: tuple[OpenFile, bytes | None] | OSError
    ) -> None:
        self._deferred -= 1
        self._deferred_bytes -= held
        if isinstance(result, OSError):
            _log.warning(
                "%s could not be read for %s: %s",
                os.fsdecode(b"/".join((wanted.tree.path, *wanted.tree.names_to(wanted.number)))),
                self.address,
                result.strerror or result,
            )
            self._put(head, u32(status_of(result)) + wanted.tree.post_op(wanted.number))
        else:
            file, data = result
            self._shared.files.keep(wanted.tree, wanted.number, file)
            self._put_data(head, wanted, file if data is None else data)
        self._step()

    def _put_data(self, head: bytes, wanted: FileData, data: bytes | OpenFile) -> None:
        """Queue the answer to a READ: the data, or the file from which it is to be sent."""
        tail = padding(wanted.count)
        length = len(head) + len(wanted.head) + wanted.count + len(tail)
        self._queue(u32(LAST_FRAGMENT | length) + head + wanted.head)
        if isinstance(data, OpenFile):
            self._out.append(_Segment(data, wanted.offset, wanted.count, time.monotonic()))
        else:
            self._queue(data)
        if tail:
            self._queue(tail)

    # ------------------------------------------------------------------ sending

    def _flush(self) -> bool:
        """Send what the peer takes now; False where that ended the connection."""
        out = self._out
        turn = _TURN
        try:
            while out and turn > 0 and not self._warming:
                first = out[0]
                if isinstance(first, _Segment):
                    sent = self._send_file(first, turn)
                    if not sent:
                        break
                    if not first.count:
                        out.popleft()
                else:
                    sent = self._send_memory()
                turn -= sent
                self.active = time.monotonic()
                self._shared.counters.bytes_sent += sent
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            _log.debug("connection of %s ended while sending: %s", self.address, error)
            self.close()
        return not self._closed

    def _send_file(self, segment: _Segment, turn: int) -> int:
        """Send the next bytes of a file, at most `turn`; 0 where that has to wait, or has ended the connection."""
        count = min(segment.count, turn)
        if time.monotonic() - segment.probed > _PROBED_SECONDS and not segment.file.cached(segment.offset, count):
            # It was there when the answer was begun: the client has been slow, and the memory was needed.
            self._warming = True
            self._deferred += 1
            file, offset = segment.file, segment.offset
            self._shared.workers.run(lambda: file.warm(offset, count), lambda result: self._warmed(segment, result))
            return 0
        sent = os.sendfile(self._fd, segment.file.fd, segment.offset, count)
        if not sent:
            _log.warning("a file that was being sent to %s has become shorter", self.address)
            self.close()
        segment.offset += sent
        segment.count -= sent
        return sent

    def _warmed(self, segment: _Segment, result: OSError | None) -> None:
        self._deferred -= 1
        self._warming = False
        if isinstance(result, OSError):  # the answer has begun: there is no other way left to tell of it
            _log.warning("a file that was being sent to %s can't be read: %s", self.address, result)
            self.close()
            return
        segment.probed = self.active = time.monotonic()
        self._step()

    def _send_memory(self) -> int:
        """Send the answers at the front that lie in memory, up to a segment of a file; gives the bytes sent."""
        out = self._out
        parts: list[bytes | memoryview] = []
        flags = 0
        for item in out:
            if isinstance(item, _Segment):
                flags = _MSG_MORE
                break
            parts.append(item)
            if len(parts) == 16:
                break
        total = sent = self._socket.sendmsg(parts, (), flags) if len(parts) > 1 else self._socket.send(parts[0], flags)
        while sent:
            first = out.popleft()
            assert not isinstance(first, _Segment)
            if sent < len(first):
                out.appendleft(memoryview(first)[sent:])
                self._out_bytes -= sent
                break
            sent -= len(first)
            self._out_bytes -= len(first)
        return total
