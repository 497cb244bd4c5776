"""One file on its way to one client: the state machine of a read transfer, without sockets and with the time given.

RFC 1350 (lock-step, ERROR ends everything, no Sorcerer's Apprentice: a second ACK of a block never draws a second
DATA), RFC 2347 (the OACK stands for block 0), RFC 2349 (an agreed timeout replaces our own), RFC 7440 (windows: an ACK
inside the window resumes after it). Block numbers roll over to 0. Left out: writing.

What is to be sent comes back as a flat list ``[header, payload, header, payload, ...]``, one pair a datagram; None
means that there is nothing to send. After each call `ended` tells whether the transfer is over, and how.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Protocol

from netbootd.tftpd.frames import Frames
from netbootd.tftpd.options import Agreement
from netbootd.tftpd.packets import ErrorCode, Opcode, decode_error, encode_error, encode_oack, header
from netbootd.tftpd.timing import RoundTrip

Buffer = bytes | bytearray | memoryview
Datagrams = list[Buffer]

SILENT_RETRIES, SILENT_SECONDS = 3, 10.0
"""Retransmissions, and seconds after the second sending, for a client that never answered: a forged request must not
make us send more than a few small packets."""

OPEN_RETRIES, OPEN_PATIENCE, OPEN_SECONDS = 6, 15.0, 30.0
"""For a client that has answered before: at least so many retransmissions and so many seconds, since on a quick way the
first ones are over before a client such as atftp, which answers only one repeated block, repeats itself after 5 s; at
most what a Pi gives a whole file.
"""

MAX_BACK_OFF = 8.0
"""Longest wait between two retransmissions, in seconds: atftp's 5 s count from the last packet that it got."""

MAX_PLAIN_BLOCKS = 65535
"""What firmware can count that doesn't roll its block number over (a Pi's before 2025-09-23)."""

_WORD = struct.Struct("!I")
_ACK = int(Opcode.ACK) << 16
_SPREAD = 0.01  # seconds by which two answers may differ in their round trips
_PROBE_CODES = (0, 8)  # a Pi ends a probe with code 0, PC firmware with 8


class Payload(Protocol):
    """The bytes of a file, sliced by position; slices are asked for front to back, at most a window repeatedly."""

    def __getitem__(self, part: slice, /) -> Buffer:
        """The octets `part.start` to `part.stop`, fewer at the end of the file."""


class Ending(enum.Enum):
    """How a transfer came to its end."""

    SENT = "sent"  # every block was acknowledged
    PROBED = "probed"  # the client had what it wanted from our first answer
    STOPPED = "stopped"  # the client sent an ERROR
    VANISHED = "vanished"  # the client's port is closed
    SILENT = "silent"  # no answer to any retransmission
    FAILED = "failed"  # we could not go on


class Transfer:
    """The state of one transfer. Times are seconds of one monotonic clock.

    :param size: octets of `payload`
    :param intact: asked once, before the last block leaves: is the file still what it was when it was opened?
    :param frames: the same file as packets, where windows are of one block
    """

    __slots__ = (
        "_awaited",
        "_doubtful",
        "_doubtful_took",
        "_doubtful_until",
        "_frames",
        "_intact",
        "_oack",
        "_payload",
        "acked",
        "agreement",
        "blksize",
        "blocks",
        "deadline",
        "ended",
        "last",
        "message",
        "postponed",
        "resent",
        "retries",
        "round_trip",
        "sent_at",
        "silent_since",
        "size",
        "timeout",
        "windowsize",
    )

    def __init__(
        self,
        payload: Payload,
        size: int,
        agreement: Agreement,
        round_trip: RoundTrip,
        intact: Callable[[], bool] = lambda: True,
        frames: Frames | None = None,
    ) -> None:
        self._payload = payload
        self._frames = frames
        self.size = size
        self.agreement = agreement
        self.blksize = agreement.blksize
        self.windowsize = agreement.windowsize
        self.timeout = agreement.timeout
        self.round_trip = round_trip
        self._intact = intact
        self.blocks = size // self.blksize + 1
        """Number of the last block, which is always a short one."""
        self._oack = encode_oack(agreement.accepted) if agreement.accepted else b""
        self.acked = -1 if self._oack else 0
        """The last block that is known to have arrived; the OACK is block 0."""
        self.last = self.acked
        """The last block that was sent."""
        self._awaited = -1
        self.retries = 0
        self.resent = 0
        """Datagrams that were sent again."""
        self.sent_at = self.silent_since = self.deadline = 0.0
        self.postponed = False
        self._doubtful = -2
        self._doubtful_took = self._doubtful_until = 0.0
        self.ended: Ending | None = None
        self.message = ""
        """What the other side or we said at the end, for people."""

    @property
    def answered(self) -> bool:
        """Whether the client has shown that it exists (and isn't the victim of a forged request)."""
        return self.acked > 0 or (self.acked == 0 and bool(self._oack))

    @property
    def sent_octets(self) -> int:
        """Octets of the file that are known to have arrived."""
        return min(max(self.acked, 0) * self.blksize, self.size)

    def begin(self, now: float) -> Datagrams | None:
        """The first answer: the OACK, or the first block where no option was accepted."""
        if self._oack:
            self.last, self._awaited = 0, _ACK
            self._sent(now)
            return [self._oack, b""]
        return self._send(1, now)

    def receive(self, packet: bytearray | bytes, size: int, now: float) -> Datagrams | None:
        """Take in the first `size` octets of `packet`, which came from the client."""
        if size < 4 or self.ended is not None:
            return None
        (word,) = _WORD.unpack_from(packet)
        if word != self._awaited:
            return self._unexpected(packet, size, word, now)
        # All that was sent has arrived.
        acked = self.acked = self.last
        if self.retries:
            self._settle(now)
        else:
            self._measure(now)
        block = acked + 1
        if block > self.blocks:
            self.ended = Ending.SENT
            return None
        return self._send(block, now)

    def follow(self, packet: bytearray | bytes, size: int, now: float) -> memoryview | None:
        """The hot path: a Pi has acknowledged a block of a large file. The next DATA packet, in one piece.

        It does what `receive` would, in half the time, and only that: None means that nothing has changed, and that
        `receive` is to take the packet in.

        :raises EOFError: the file has become shorter
        :raises OSError: it can't be read
        """
        frames, block = self._frames, self.last + 1
        if (
            frames is None
            or size < 4
            or _WORD.unpack_from(packet)[0] != self._awaited
            or self.retries
            or block >= self.blocks
        ):
            return None
        data = frames.packet(block)
        self._measure(now)
        self.acked, self.last, self._awaited = self.last, block, _ACK | block & 0xFFFF
        self.sent_at = self.silent_since = now
        self.deadline = now + (self.timeout or self.round_trip.wait)
        self.postponed = False
        return data

    def _measure(self, now: float) -> None:
        """Take in a round trip, where it tells something new or as every eighth."""
        elapsed, smoothed = now - self.sent_at, self.round_trip.smoothed
        if not self.last & 7 or elapsed > 2 * smoothed or 2 * elapsed < smoothed:
            self.round_trip.sample(elapsed)

    def expire(self, now: float) -> Datagrams | None:
        """The `deadline` has passed without an answer: send again, or give up."""
        if self.ended is not None:
            return None
        answered = self.answered
        silent = now - self.silent_since
        if (
            (self.retries >= OPEN_RETRIES and silent >= OPEN_PATIENCE)
            or (self.retries >= SILENT_RETRIES and not answered)
            or (self.retries >= 1 and not answered and silent >= SILENT_SECONDS)
            or (self.retries >= 2 and silent >= OPEN_SECONDS)
        ):
            self.ended = Ending.SILENT
            return None
        retries = self.retries + 1
        since = self.silent_since
        if self.last == 0:
            self._sent(now)
            out: Datagrams | None = [self._oack, b""]
        else:
            out = self._send(self.acked + 1, now)
        self.retries, self.silent_since = retries, since
        self.resent += max(self.last - self.acked, 1)
        self.deadline = now + (self.timeout or min(self.round_trip.wait * 2**retries, MAX_BACK_OFF))
        return out

    def postpone(self, now: float, seconds: float) -> bool:
        """We ourselves were held up, so the silence proves nothing: wait once more. False if that was done before."""
        if self.postponed:
            return False
        self.postponed = True
        self.deadline = now + seconds
        return True

    def vanished(self) -> None:
        """The client's host reported that nobody listens at its port any more."""
        if self.ended is None:
            # Whoever has the last block and closes its port at once has its file; only the last ACK got lost.
            self.ended = Ending.SENT if self.last == self.blocks and self.acked >= 0 else Ending.VANISHED
            if self.ended is Ending.SENT:
                self.acked = self.blocks
                self.message = "the last acknowledgement was lost"

    def fail(self, message: str, code: ErrorCode = ErrorCode.UNDEFINED) -> Datagrams | None:
        """End it from our side, with the ERROR to send."""
        if self.ended is not None:
            return None
        self.ended, self.message = Ending.FAILED, message
        return [encode_error(code, message), b""]

    def _unexpected(self, packet: bytearray | bytes, size: int, word: int, now: float) -> Datagrams | None:
        """Anything but the ACK of the last block that was sent."""
        opcode = word >> 16
        if opcode == Opcode.ERROR:
            code, self.message = decode_error(bytes(packet[:size]))
            asked = any(name.lower() == "tsize" for name in self.agreement.accepted)
            self.ended = Ending.PROBED if asked and self.acked <= 0 and code in _PROBE_CODES else Ending.STOPPED
            return None
        if opcode != Opcode.ACK:
            return None
        block = self.last - (self.last - word & 0xFFFF)
        if block < self.acked or self.last == 0:
            return None
        if block > self.acked:  # inside the window: what follows it was lost
            self.resent += self.last - block
            self.acked = block
            return self._send(block + 1, now)
        if block == self._doubtful and now <= self._doubtful_until:
            # Both sendings of the block before were acknowledged: the second was not needed after all, and the first
            # answer was that to the first sending, so its time is a sample (the idea of Eifel, RFC 3522).
            self._doubtful = -2
            self.round_trip.spurious()
            self.round_trip.spurious()
            if self._doubtful_took:
                self.round_trip.sample(self._doubtful_took)
            if not self.retries and not self.timeout:
                self.deadline = max(self.deadline, self.sent_at + self.round_trip.wait)
        return None

    def release(self) -> None:
        """Let go of the file, once the transfer is over."""
        self._payload = b""
        self._frames = None

    def _send(self, first: int, now: float) -> Datagrams | None:
        """The window that begins with block `first`."""
        blksize, payload = self.blksize, self._payload
        last = first + self.windowsize - 1
        if last >= self.blocks:
            last = self.blocks
            if self.last < last and not self._intact():
                return self.fail("the file was changed while it was being sent")
        at = (first - 1) * blksize
        if self._frames is not None:
            out: Datagrams = [self._frames.packet(first), b""]
        elif first == last:
            out = [header(first), payload[at : at + blksize]]
        else:
            out = []
            for block in range(first, last + 1):
                out.append(header(block))
                out.append(payload[at : at + blksize])
                at += blksize
        self.last, self._awaited = last, _ACK | last & 0xFFFF
        self._sent(now)
        return out

    def _sent(self, now: float) -> None:
        self.sent_at = self.silent_since = now
        self.deadline = now + (self.timeout or self.round_trip.wait)
        self.retries = 0
        self.postponed = False

    def _settle(self, now: float) -> None:
        """The client answered after a retransmission. It was needed, unless the client answers the other sending, too.

        How soon the answer came says nothing: round trips of a busy client differ by more than a factor of two. Two
        answers are as far apart as the two sendings were; what comes later is a client that repeats itself because it
        misses the next block.
        """
        self.round_trip.lost()
        self.round_trip.unsure()
        self._doubtful = self.last
        self._doubtful_until = now + 1.25 * (self.sent_at - self.silent_since) + _SPREAD
        self._doubtful_took = now - self.silent_since if self.retries == 1 else 0.0
