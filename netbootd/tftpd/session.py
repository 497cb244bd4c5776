"""One request being served: its transfer, its channel, and what is told about it at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from netbootd.boot.contract import observed
from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.model.identity import Evidence
from netbootd.model.node import Node
from netbootd.model.resource import BootPath, Resource
from netbootd.tftpd import advice
from netbootd.tftpd.channel import Channel, ConnectedChannel, CutShort, Gone
from netbootd.tftpd.listener import Peer
from netbootd.tftpd.packets import Request
from netbootd.tftpd.source import Contents, reason
from netbootd.tftpd.transfer import Datagrams, Ending, Transfer

_FULL_WAIT = 0.002  # seconds until a socket that was full is tried again
_FULL_TRIES = 2000
_RESTART_AFTER = 1.0  # seconds of silence after which the same request again means that the client began anew

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, by whom, and what it turned out to be."""

    peer: Peer
    request: Request
    node: Node
    evidence: Evidence
    path: BootPath
    resource: Resource


class Session:
    """Moves datagrams between a channel and a transfer, and tells `finished` when the transfer is over.

    None of its methods raises.
    """

    __slots__ = (
        "_finished",
        "_left",
        "_tries",
        "asked",
        "asked_again",
        "channel",
        "contents",
        "due",
        "started",
        "transfer",
        "warning",
    )

    def __init__(
        self,
        asked: Asked,
        transfer: Transfer,
        contents: Contents,
        channel: Channel,
        now: float,
        finished: Callable[[Session, float], None],
    ) -> None:
        self.asked, self.transfer, self.contents, self.channel = asked, transfer, contents, channel
        self.started = now
        self.due = float("inf")
        """When the server's timer will look at it, kept by the server."""
        self.asked_again = False
        """Whether the client asked for something else while our first answer was still open."""
        self.warning = advice.too_many_blocks(asked.path, contents.size, transfer.blksize)
        self._left: Datagrams = []
        self._tries = 0
        self._finished = finished

    @property
    def over(self) -> bool:
        """Whether the transfer has ended."""
        return self.transfer.ended is not None

    def start(self, now: float) -> None:
        """Send the first answer."""
        self._guarded(self.transfer.begin, now)

    def readable(self, buffer: bytearray, now: float) -> None:
        """A datagram waits in the session's own socket; `buffer` is room for it, free to use again on return."""
        channel = self.channel
        assert isinstance(channel, ConnectedChannel)
        try:
            size = channel.sock.recv_into(buffer)
        except OSError as error:
            self.unreadable(error, now)
            return
        self.datagram(buffer, size, now)

    def unreadable(self, error: OSError, now: float) -> None:
        """The session's own socket gave no datagram; what isn't the client's end is the timer's matter."""
        if isinstance(error, ConnectionRefusedError):
            self.transfer.vanished()
            self._finished(self, now)

    def catch_up(self, buffer: bytearray, now: float) -> None:
        """Take in what waits in the session's own socket: a client that has its file may ask anew from the same port,
        and its request must not overtake its last ACK.
        """
        if isinstance(self.channel, ConnectedChannel):
            self.readable(buffer, now)

    def datagram(self, packet: bytearray, size: int, now: float) -> None:
        """The client sent the first `size` octets of `packet`."""
        transfer = self.transfer
        try:
            out = transfer.receive(packet, size, now)
            if out is not None:
                self._left = self.channel.send(out)
                if self._left:
                    self._wait(now)
        except Exception as error:
            self._broken(error, now)
        if transfer.ended is not None:
            self._finished(self, now)

    def unsent(self, data: memoryview | None, error: Exception, now: float) -> None:
        """`Transfer.follow` raised this, or sending what it returned did."""

        def left(_: float) -> None:
            if data is None or not isinstance(error, OSError):
                raise error
            self._left = ConnectedChannel.unsent([data, b""], error)

        self._guarded(left, now)
        if self._left and not self.over:
            self._wait(now)

    def expired(self, now: float) -> None:
        """The transfer's deadline has passed."""
        if not self._left:
            self._guarded(self.transfer.expire, now)
            return
        self._tries += 1
        left, self._left = self._left, []
        if self._tries > _FULL_TRIES:
            self.fail("our network doesn't take datagrams", now)
            return
        self._guarded(lambda _: left, now)
        if not self._left:
            self._tries = 0
            self.transfer.deadline = now + (self.transfer.timeout or self.transfer.round_trip.wait)

    def fail(self, message: str, now: float) -> None:
        """End it with an ERROR; nothing if it is over."""
        if not self.over:
            self._guarded(lambda _: self.transfer.fail(message), now)

    def drop(self, message: str, now: float) -> None:
        """End it without a word to the client; nothing if it is over."""
        if not self.over:
            self.transfer.ended = Ending.STOPPED
            self.transfer.message = message
            self._finished(self, now)

    def repeats(self, request: Request, now: float) -> bool:
        """Whether `request` from the session's own client is only its request once more."""
        if request != self.asked.request:
            return False
        return not self.transfer.answered or now - self.transfer.silent_since < _RESTART_AFTER

    def event(self, now: float, generation: str) -> BootEvent:
        """What is to be told of the ended transfer."""
        outcome, asked, transfer = self.outcome(), self.asked, self.transfer
        return observed(
            asked.node,
            asked.evidence,
            asked.path,
            outcome,
            stage=asked.resource.stage if outcome is Outcome.OK else Stage.FIRMWARE,
            generation=generation,
            size=transfer.sent_octets,
            seconds=now - self.started,
            detail="; ".join(self._details(outcome, now)),
        )

    def outcome(self) -> Outcome:
        """How the ended transfer counts."""
        match self.transfer.ended:
            case Ending.SENT:
                return Outcome.OK
            case Ending.PROBED:
                return Outcome.PROBE
            case Ending.FAILED:
                return Outcome.FAILED
            case Ending.VANISHED | Ending.SILENT if not self.transfer.answered and self.asked_again:
                return Outcome.PROBE  # its ERROR went to a port that we don't know of
            case _:
                return Outcome.ABORTED

    def _details(self, outcome: Outcome, now: float) -> list[str]:
        transfer, found = self.transfer, []
        if transfer.message and outcome is not Outcome.PROBE:
            found.append(transfer.message)
        if outcome is Outcome.ABORTED:
            if transfer.ended is Ending.SILENT:
                found.append("the client stopped answering" if transfer.answered else "the client never answered")
            elif transfer.ended is Ending.VANISHED:
                found.append("the client closed its port")
            found.append(f"{transfer.sent_octets} of {transfer.size} bytes sent")
        if transfer.resent:
            found.append(f"{transfer.resent} datagrams sent again")
        if self.warning:
            found.append(self.warning)
        if slow := self.too_slow(now):
            found.append(slow)
        return found

    def too_slow(self, now: float) -> str:
        """The advice to give at the end of a transfer that a Pi would not have waited for, else empty."""
        if self.outcome() not in (Outcome.OK, Outcome.ABORTED):
            return ""
        transfer = self.transfer
        return advice.too_slow(self.asked.path, transfer.size, transfer.sent_octets, now - self.started)

    def _guarded(self, step: Callable[[float], Datagrams | None], now: float) -> None:
        try:
            out = step(now)
            if out:
                self._left = self.channel.send(out)
                if self._left:
                    self._wait(now)
        except Exception as error:
            self._broken(error, now)
        if self.transfer.ended is not None:
            self._finished(self, now)

    def _wait(self, now: float) -> None:
        self.transfer.deadline = now + _FULL_WAIT

    def _broken(self, error: Exception, now: float) -> None:
        """Sending failed for a reason that doesn't pass: tell the client, if it is still there."""
        if isinstance(error, Gone):
            self.transfer.vanished()
            return
        message = "the file was cut short while it was being sent"
        if not isinstance(error, CutShort | EOFError):
            message = "reading the file failed"
            log.warning("Sending %s failed: %s", self.asked.path, reason(error), extra=self._fields())
            log.debug("Where it failed", exc_info=error)
        out = self.transfer.fail(message)
        if out:
            try:
                self.channel.send(out)
            except (Gone, CutShort):
                pass

    def release(self) -> None:
        """Free sockets and file."""
        self.channel.close()
        self.transfer.release()
        self.contents.close()
        self._left = []

    def warn(self, text: str) -> None:
        """Log advice about this transfer."""
        log.warning("%s: %s", self.asked.node.name or self.asked.peer.address, text, extra=self._fields())

    def _fields(self) -> dict[str, dict[str, object]]:
        node = self.asked.node
        return {
            "fields": {
                "NODE": node.name,
                "SERIAL": node.serial,
                "PEER": self.asked.peer.address,
                "PATH": self.asked.path,
                "BYTES": self.contents.size,
            }
        }
