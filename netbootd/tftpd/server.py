"""The TFTP server: requests in, sessions out, on one asyncio loop and without a task or thread per transfer.

RFC 1350 and 1123 (whom to answer, from which address), RFC 2347 (errors of requests). What a node gets for a path is
`netbootd.boot`'s matter; how a file is sent `netbootd.tftpd.transfer`'s. Left out: write requests (ERROR 2), multicast
(RFC 2090).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import time
from collections import OrderedDict
from functools import partial
from typing import Any

from netbootd.boot.contract import BootFiles, EventSink, observed, parse_request
from netbootd.errors import BusyError, HostError, NotFoundError
from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.model.identity import Evidence
from netbootd.model.node import Node
from netbootd.model.resource import BootPath
from netbootd.tftpd import packets
from netbootd.tftpd.channel import Channel, ConnectedChannel, DataPorts, SharedChannel
from netbootd.tftpd.limits import Guard, TokenBucket
from netbootd.tftpd.listener import Listener, Peer, adopt, listen
from netbootd.tftpd.options import negotiate
from netbootd.tftpd.packets import ErrorCode, Opcode, PacketError, Request
from netbootd.tftpd.poller import Poller, ReadyCallback
from netbootd.tftpd.session import Asked, Session
from netbootd.tftpd.settings import TftpSettings
from netbootd.tftpd.source import Contents, Opener, reason, refusal
from netbootd.tftpd.stats import TftpStats
from netbootd.tftpd.timers import Timers
from netbootd.tftpd.timing import RoundTrip
from netbootd.tftpd.transfer import Transfer

_BATCH = 64  # requests that are served before transfers get their turn
_REMEMBERED_CLIENTS = 1024
_SHOWN_PATH = 200
_ADVICE = 0.5, 20.0  # lines of advice in the log: a second, and at once (a whole rack meets the same file)
_SPARE_DESCRIPTORS = 512

_REQUESTS = frozenset((Opcode.RRQ, Opcode.WRQ))
_COUNTED = {
    Outcome.OK: "transfers",
    Outcome.MISS: "misses",
    Outcome.PROBE: "probes",
    Outcome.ABORTED: "aborted",
    Outcome.FAILED: "errors",
}

log = logging.getLogger(__name__)

__all__ = ["TftpServer", "TftpSettings"]


class TftpServer:
    """Serves boot files by TFTP.

    :param files: says who asks and what it gets
    :param record: is given one `BootEvent` for each request that has ended
    """

    def __init__(self, files: BootFiles, record: EventSink, settings: TftpSettings | None = None) -> None:
        self._files = files
        self._record = record
        self._settings = settings or TftpSettings()
        self._listeners: list[Listener] = []
        self._ports = DataPorts(self._settings.data_ports, self._hear)
        self._opener = Opener()
        self._guard = Guard(self._settings, time.monotonic())
        self._advice = TokenBucket(*_ADVICE, time.monotonic())
        self._sessions: dict[tuple[Any, str], Session] = {}
        self._of_client: dict[str, dict[Session, None]] = {}
        self._round_trips: OrderedDict[str, RoundTrip] = OrderedDict()
        self._buffer = bytearray(packets.MAX_REQUEST + 1)
        self._poller: Poller | None = None
        self._timers: Timers | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.stats = TftpStats()

    @property
    def addresses(self) -> list[str]:
        """Where it listens, ``ADDR:PORT`` each, IPv6 addresses in brackets."""
        return [listener.name for listener in self._listeners]

    async def start(self) -> None:
        """Open all sockets and serve.

        :raises HostError: a port is taken or forbidden, or an address is not this host's; nothing stays open then
        """
        loop = asyncio.get_running_loop()
        try:
            if self._settings.sockets:
                self._listeners += [adopt(sock) for sock in self._settings.sockets]
            else:
                self._listen()
        except BaseException:
            for sock in (*self._settings.sockets, *(listener.sock for listener in self._listeners)):
                sock.close()
            self._listeners.clear()
            raise
        _make_room(2 * self._settings.max_transfers + _SPARE_DESCRIPTORS)
        self._poller = Poller(loop)
        self._timers = Timers(loop, self._poller.run)
        for listener in self._listeners:
            self._poller.add(listener.sock.fileno(), self._requests_of(listener))
        log.debug("TFTP at %s", ", ".join(self.addresses))

    def _listen(self) -> None:
        for address, port in self._settings.bind:
            try:
                self._listeners.append(listen(address, port))
            except HostError as error:
                reasons = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if address != "::" or not self._listeners or getattr(error.__cause__, "errno", 0) not in reasons:
                    raise
                log.info("This host has no IPv6: TFTP listens at %s only", ", ".join(self.addresses))

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, let open transfers finish for up to `drain_seconds`, then end what is left."""
        self._draining = True
        try:
            if self._sessions and drain_seconds > 0:
                await asyncio.wait_for(self._idle.wait(), drain_seconds)
        except TimeoutError:
            log.warning("Ending %d TFTP transfers that are still open", len(self._sessions))
        finally:
            self.abort()

    def abort(self) -> None:
        """End everything at once; a `stop` under way returns. May be called twice."""
        self._draining = True
        now = time.monotonic()
        for session in list(self._sessions.values()):
            session.fail("server is shutting down", now)
        if self._timers is not None:
            self._timers.close()
            self._timers = None
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        for listener in self._listeners:
            listener.sock.close()
        self._listeners.clear()
        self._ports.close()
        self._idle.set()

    # Requests

    def _requests_of(self, listener: Listener) -> Any:
        buffer = self._buffer

        def ready(now: float) -> None:
            for _ in range(_BATCH):
                try:
                    size, peer = listener.receive_into(buffer)
                except OSError:
                    return  # nothing more, or a report about something that we sent
                try:
                    self._datagram(listener, size, peer, now)
                except Exception:
                    # Nothing that a datagram does may end the server; what gets here is our own fault.
                    log.exception("A TFTP request from %s failed", peer.address)

        return ready

    def _datagram(self, listener: Listener, size: int, peer: Peer, now: float) -> None:
        buffer = self._buffer
        opcode = buffer[0] << 8 | buffer[1] if size >= 2 else 0
        if opcode not in _REQUESTS:
            session = self._sessions.get(peer.key)
            if session is not None and (self._settings.single_port or opcode == Opcode.ERROR):
                # Single-port mode; or firmware that sends its abort to the port it asked.
                session.datagram(buffer, size, now)
                self._watch(session)
                return
        if peer.to_all or not self._guard.allowed(peer.address):
            self.stats.add("refused")  # RFC 1123 section 4.2.3.5: broadcast requests are ignored silently
            return
        if not self._guard.admit(peer.address, now):
            self.stats.add("limited")
            return
        if opcode not in _REQUESTS:
            self.stats.add("malformed" if opcode not in tuple(Opcode) else "strangers")
            if opcode in (Opcode.DATA, Opcode.ACK, Opcode.OACK):
                listener.reply(packets.encode_error(ErrorCode.UNKNOWN_TRANSFER_ID, "unknown transfer"), peer)
            return
        try:
            request = packets.parse_request(bytes(buffer[:size]))
        except PacketError as error:
            self.stats.add("malformed")
            listener.reply(packets.encode_error(ErrorCode.ILLEGAL_OPERATION, str(error)), peer)
            return
        if request.opcode is Opcode.WRQ:
            self.stats.add("errors")
            listener.reply(packets.encode_error(ErrorCode.ACCESS_VIOLATION, "this server is read-only"), peer)
            return
        self._read_request(listener, request, peer, now)

    def _read_request(self, listener: Listener, request: Request, peer: Peer, now: float) -> None:
        old = self._sessions.get(peer.key)
        if old is not None:
            old.catch_up(self._buffer, now)
        if old is not None and not old.over:
            if old.repeats(request, now):
                return
            old.drop("the client asked anew from the same port", now)
        self.stats.add("requests")
        for other in self._of_client.get(peer.address, ()):
            if not other.transfer.answered:
                other.asked_again = True
        try:
            evidence, path = parse_request(request.filename.decode(), "tftp", peer.address, peer.local)
        except ValueError:
            self._refuse_path(listener, request, peer)
            return
        node: Node | None = None
        try:
            node = self._files.identify(evidence)
            found = self._files.resolve(node, path, peer.local)
            if self._draining:
                raise BusyError("the server is shutting down")
            session = self._open(listener, Asked(peer, request, node, evidence, path, found), now)
        except Exception as error:
            code, message = refusal(error)
            listener.reply(packets.encode_error(code, message), peer)
            node = node or Node("", "", "", serial=evidence.serial, mac=evidence.mac, address=peer.address)
            outcome = Outcome.MISS if isinstance(error, NotFoundError | FileNotFoundError) else Outcome.FAILED
            if outcome is Outcome.FAILED:
                log.debug("%s can't have %s", node.name or peer.address, path, exc_info=error)
            self._tell(self._event(node, evidence, path, outcome, reason(error)))
            return
        if session.warning and self._advice.take(now):
            session.warn(session.warning)
        session.start(now)
        self._watch(session)

    def _refuse_path(self, listener: Listener, request: Request, peer: Peer) -> None:
        text = "not a path of a boot file"
        listener.reply(packets.encode_error(ErrorCode.ACCESS_VIOLATION, text), peer)
        evidence, node = Evidence("tftp", peer.address, peer.local), Node("", "", "", address=peer.address)
        self._tell(self._event(node, evidence, BootPath(_shown(request.filename)), Outcome.FAILED, text))

    def _open(self, listener: Listener, asked: Asked, now: float) -> Session:
        """Make the session of a request that can be served, and watch its sockets."""
        settings, options, peer = self._settings, asked.request.options, asked.peer
        assert self._poller is not None
        self._make_way(peer)
        contents: Contents | None = None
        channel: Channel = SharedChannel(listener, peer) if settings.single_port else self._ports.open(peer)
        try:
            agree = partial(
                negotiate,
                options,
                max_blksize=settings.max_blksize or channel.mtu_blksize(),
                max_windowsize=settings.max_windowsize,
            )
            window = agree(0)
            contents = self._opener.open(asked.resource, asked.request.mode, window.blksize * window.windowsize)
            agreement = agree(contents.size)
            known = self._round_trips.get(peer.address)
            transfer = Transfer(
                contents.payload,
                contents.size,
                agreement,
                known.continued() if known else RoundTrip(),
                contents.intact,
                contents.frames(agreement.blksize) if agreement.windowsize == 1 else None,
            )
            session = Session(asked, transfer, contents, channel, now, self._finished)
            if isinstance(channel, ConnectedChannel):
                self._poller.add(channel.sock.fileno(), self._reader_of(session, channel.sock))
                if channel.strangers is not None:
                    self._hear(channel.strangers)
        except BaseException:
            if contents is not None:
                contents.close()
            channel.close()
            raise
        self._sessions[peer.key] = session
        self._of_client.setdefault(peer.address, {})[session] = None
        self.stats.open += 1
        self._idle.clear()
        return session

    def _make_way(self, peer: Peer) -> None:
        """Keep within the caps. A transfer whose client never answered gives way to a new one, oldest first.

        :raises BusyError: all that count are alive
        """
        mine = self._of_client.get(peer.address, {})
        if len(mine) >= self._settings.max_transfers_per_client:
            self._evict(mine, "this client has too many open transfers")
        if len(self._sessions) >= self._settings.max_transfers:
            self._evict(self._sessions.values(), "too many open transfers")

    def _evict(self, sessions: Any, message: str) -> None:
        for session in sessions:
            if not session.transfer.answered:
                session.drop("never answered, and gave way to another request", time.monotonic())
                return
        self.stats.add("limited")
        raise BusyError(message)

    # Sessions

    def _reader_of(self, session: Session, sock: socket.socket) -> ReadyCallback:
        """What is called for each ACK: the hot path of `Session.readable`."""
        receive, transfer, watch, buffer = sock.recv_into, session.transfer, self._watch, self._buffer
        datagram, follow, send = session.datagram, transfer.follow, sock.send

        def ready(now: float) -> None:
            try:
                size = receive(buffer)
            except OSError as error:
                session.unreadable(error, now)
                return
            data = None
            try:
                data = follow(buffer, size, now)
                if data is None:
                    datagram(buffer, size, now)
                else:
                    send(data)
            except Exception as error:
                session.unsent(data, error, now)
            if transfer.deadline < session.due:
                watch(session)

        return ready

    def _watch(self, session: Session) -> None:
        if self._timers is not None and not session.over and session.transfer.deadline < session.due:
            self._timers.schedule(session)

    def _hear(self, sock: socket.socket) -> None:
        """Answer whatever comes to a transfer's port from elsewhere; the transfer goes on (RFC 1350 section 4)."""
        assert self._poller is not None

        def ready(now: float) -> None:
            try:
                data, sender = sock.recvfrom(4)
                self.stats.add("strangers")
                address = sender[0].partition("%")[0]
                if (
                    packets.opcode_of(data) in (Opcode.DATA, Opcode.ACK, Opcode.OACK)
                    and self._guard.allowed(address)
                    and self._guard.admit(address, now)
                ):
                    sock.sendto(packets.encode_error(ErrorCode.UNKNOWN_TRANSFER_ID, "unknown transfer"), sender)
            except OSError:
                pass

        self._poller.add(sock.fileno(), ready)

    def _finished(self, session: Session, now: float) -> None:
        """A session's transfer is over: free everything, and tell."""
        asked, transfer = session.asked, session.transfer
        if self._sessions.get(asked.peer.key) is not session:
            return
        del self._sessions[asked.peer.key]
        mine = self._of_client[asked.peer.address]
        del mine[session]
        if not mine:
            del self._of_client[asked.peer.address]
        channel = session.channel
        if self._poller is not None and isinstance(channel, ConnectedChannel):
            self._poller.remove(channel.sock.fileno())
            if channel.strangers is not None:
                self._poller.remove(channel.strangers.fileno())
        session.release()
        if transfer.round_trip.measured:
            self._round_trips[asked.peer.address] = transfer.round_trip
            self._round_trips.move_to_end(asked.peer.address)
            if len(self._round_trips) > _REMEMBERED_CLIENTS:
                self._round_trips.popitem(last=False)
        self.stats.open -= 1
        self.stats.add("bytes", transfer.sent_octets)
        if transfer.resent:
            self.stats.add("retransmits", transfer.resent)
        try:
            generation = self._files.generation_of(asked.node)
        except Exception as error:
            log.warning("The generation of %s is not known: %s", asked.node.name, reason(error))
            generation = ""
        self._tell(session.event(now, generation))
        if (slow := session.too_slow(now)) and self._advice.take(now):
            session.warn(slow)
        if not self._sessions:
            self._idle.set()

    # Events

    def _event(self, node: Node, evidence: Evidence, path: str, outcome: Outcome, detail: str) -> BootEvent:
        """The event of a request that never became a transfer."""
        generation = ""
        if node.image:
            try:
                generation = self._files.generation_of(node)
            except Exception as error:
                log.debug("The generation of %s is not known: %s", node.name, reason(error))
        return observed(node, evidence, path, outcome, stage=Stage.FIRMWARE, generation=generation, detail=detail)

    def _tell(self, event: BootEvent) -> None:
        self.stats.add(_COUNTED[event.outcome])
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "TFTP %s: %s for %s%s",
                event.outcome.value,
                event.path,
                event.node or event.address,
                f" ({event.detail})" if event.detail else "",
                extra={"fields": _fields(event)},
            )
        try:
            self._record(event)
        except Exception:
            log.exception("An event of %s could not be recorded", event.node or event.address)


def _fields(event: BootEvent) -> dict[str, object]:
    return {
        "NODE": event.node,
        "SERIAL": event.serial,
        "PEER": event.address,
        "PATH": event.path,
        "BYTES": event.bytes,
        "DURATION_MS": round(event.seconds * 1000),
        "GENERATION": event.generation,
        "OUTCOME": event.outcome.value,
    }


def _shown(name: bytes) -> str:
    """A file name that is no path, for people."""
    return name[:_SHOWN_PATH].decode("ascii", "backslashreplace").encode("unicode_escape").decode("ascii")


def _make_room(descriptors: int) -> None:
    """Raise the soft limit of open files as far as the hard one allows: each transfer has two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
