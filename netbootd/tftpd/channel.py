"""The channel that one transfer sends through: a socket of its own, or the listening one.

By default a transfer has a port of its own (its TID, RFC 1350 section 4), bound to the address that the client asked
(RFC 1123 section 4.2.3.2) and connected, so that the kernel drops what strangers send and reports a client that is
gone. A second, unconnected socket on the same port hears the strangers; the server answers them with ERROR 5. In
single-port mode everything goes through the listening socket. Windows are sent with UDP_SEGMENT (udp(7), Linux 4.18)
where the kernel can.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from netbootd.errors import BusyError
from netbootd.tftpd.listener import Listener, Peer, SockAddr
from netbootd.tftpd.packets import MAX_REQUEST
from netbootd.tftpd.transfer import Datagrams

_IP_MTU, _IPV6_MTU = 14, 24
_UDP_SEGMENT = 103  # linux/udp.h
_MAX_SEGMENTS = 64
_MAX_BURST = 65487  # what one UDP datagram over IPv6 can carry, and less than over IPv4
_GSO_UNFIT = {errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT}
_HEADERS4, _HEADERS6 = 20 + 8 + 4, 40 + 8 + 4  # IP, UDP, DATA

DEFAULT_MAX_BLKSIZE = 1468
"""Where the way's MTU can't be learnt: Ethernet's."""


class Gone(Exception):  # noqa: N818 - a report, not a fault
    """The client's host says that nobody listens at its port."""


class CutShort(Exception):  # noqa: N818
    """The file that is being sent has lost its end."""


class Channel(Protocol):
    """One transfer's way to its client."""

    def send(self, datagrams: Datagrams) -> Datagrams:
        """Send ``[header, payload, …]``; what the socket can't take now is returned.

        :raises Gone: the client's port is closed
        :raises CutShort: the payload is mapped, and its file has been cut short
        """

    def mtu_blksize(self) -> int:
        """The largest block that goes to this client without fragments."""

    def close(self) -> None:
        """Free the sockets that are this transfer's own."""


class ConnectedChannel:
    """A connected socket of the transfer's own, and (where it isn't shared) the one that hears strangers."""

    __slots__ = ("_segment", "sock", "strangers")

    def __init__(self, sock: socket.socket, strangers: socket.socket | None) -> None:
        self.sock, self.strangers = sock, strangers
        self._segment = 0

    def send(self, datagrams: Datagrams) -> Datagrams:
        """See `Channel`."""
        if len(datagrams) == 2:
            try:
                self.sock.sendmsg(datagrams)
            except OSError as error:
                return self.unsent(datagrams, error)
            return []
        return self._burst(datagrams)

    @staticmethod
    def unsent(datagrams: Datagrams, error: OSError) -> Datagrams:
        """What `send` returns or raises when sending a single datagram failed like that."""
        return datagrams if _must_wait(error) else []

    def _burst(self, datagrams: Datagrams) -> Datagrams:
        size = len(datagrams[0]) + len(datagrams[1])
        if size != self._segment and self._segment >= 0:
            self._segment = size if _set_segment(self.sock, size) else -1
        segments = min(_MAX_SEGMENTS, _MAX_BURST // size) if self._segment > 0 else 1
        return _send_all(datagrams, segments, self.sock.sendmsg, self._no_segments)

    def _no_segments(self) -> None:
        self._segment = -1
        _set_segment(self.sock, 0)

    def mtu_blksize(self) -> int:
        """See `Channel`."""
        return _mtu_blksize(self.sock)

    def close(self) -> None:
        """See `Channel`."""
        self.sock.close()
        if self.strangers is not None:
            self.strangers.close()


class SharedChannel:
    """A transfer through the listening socket (single-port mode)."""

    __slots__ = ("_ancillary", "_listener", "_peer", "_segments")

    def __init__(self, listener: Listener, peer: Peer) -> None:
        self._listener, self._peer = listener, peer
        self._ancillary = listener.source_of(peer)
        self._segments = True

    def send(self, datagrams: Datagrams) -> Datagrams:
        """See `Channel`."""
        size = len(datagrams[0]) + len(datagrams[1])
        segments = min(_MAX_SEGMENTS, _MAX_BURST // size) if self._segments and len(datagrams) > 2 else 1
        return _send_all(datagrams, segments, self._sendmsg, self._no_segments)

    def _sendmsg(self, buffers: Datagrams) -> None:
        ancillary = self._ancillary
        if len(buffers) > 2:
            size = len(buffers[0]) + len(buffers[1])
            ancillary = [*ancillary, (socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", size))]
        self._listener.sock.sendmsg(buffers, ancillary, 0, self._peer.sockaddr)

    def _no_segments(self) -> None:
        self._segments = False

    def mtu_blksize(self) -> int:
        """See `Channel`."""
        with _data_socket(self._peer) as probe:
            probe.connect(_address_for(probe, self._peer))
            return _mtu_blksize(probe)

    def close(self) -> None:
        """See `Channel`."""


def _send_all(datagrams: Datagrams, segments: int, sendmsg: Any, no_segments: Any) -> Datagrams:
    """Send pairs of buffers, `segments` pairs a call; the rest where the socket is full."""
    at, step = 0, 2 * max(segments, 1)
    while at < len(datagrams):
        try:
            sendmsg(datagrams[at : at + step])
        except OSError as error:
            if step > 2 and error.errno in _GSO_UNFIT:
                no_segments()  # the device can't, or the way's MTU is smaller: one by one, with fragments if need be
                step = 2
                continue
            if _must_wait(error):
                return datagrams[at:]
        at += step
    return []


def _must_wait(error: OSError) -> bool:
    """Whether a datagram has to wait; False: it is lost like any datagram may be, and its timer knows what to do."""
    if isinstance(error, BlockingIOError):
        return True
    if isinstance(error, ConnectionRefusedError):
        raise Gone from None
    if error.errno == errno.EFAULT:
        raise CutShort from None
    return False


def _set_segment(sock: socket.socket, size: int) -> bool:
    try:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, size)
    except OSError:
        return False
    return True


def _mtu_blksize(sock: socket.socket) -> int:
    try:
        if sock.family == socket.AF_INET:
            return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) - _HEADERS4
        return sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU) - _HEADERS6
    except OSError:
        return DEFAULT_MAX_BLKSIZE


def _data_socket(peer: Peer) -> socket.socket:
    family = socket.AF_INET6 if ":" in peer.address else socket.AF_INET
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _address_for(sock: socket.socket, peer: Peer) -> SockAddr:
    """The peer's address for a socket of its true family (it may have come in as ::ffff:a.b.c.d)."""
    if sock.family == socket.AF_INET:
        return peer.address, peer.sockaddr[1]
    return peer.sockaddr


def _bind_address(sock: socket.socket, peer: Peer, port: int) -> SockAddr:
    if sock.family == socket.AF_INET:
        return peer.local, port
    return peer.local, port, 0, peer.interface if peer.local.startswith("fe80:") else 0


class DataPorts:
    """Opens the sockets of transfers, at any free port or within a range.

    Ports of a range are shared: any number of transfers fits, since the kernel tells connected sockets apart by their
    clients. Each port's socket for strangers then stays open.

    :param span: first and last port
    :param hear: is given each socket for strangers that stays open
    """

    def __init__(self, span: tuple[int, int] | None, hear: Callable[[socket.socket], None]) -> None:
        self._span = span
        self._on_hear = hear
        self._strangers: dict[tuple[str, int], socket.socket] = {}
        self._next: Iterator[int] = iter(())
        if span is not None:
            ports = list(range(span[0], span[1] + 1))
            secrets.SystemRandom().shuffle(ports)
            self._next = itertools.cycle(ports)

    def open(self, peer: Peer) -> ConnectedChannel:
        """A channel to `peer` from the address it asked.

        :raises BusyError: no descriptor or no port is left
        :raises OSError: the client can't be reached
        """
        try:
            return self._open_own(peer) if self._span is None else self._open_shared(peer)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRINUSE):
                raise BusyError(f"no socket for another transfer: {error.strerror}") from error
            raise

    def close(self) -> None:
        """Close what outlives transfers."""
        for sock in self._strangers.values():
            sock.close()
        self._strangers.clear()

    @staticmethod
    def _open_own(peer: Peer) -> ConnectedChannel:
        sock = _data_socket(peer)
        strangers = None
        try:
            # Only after the port was chosen may it be shared, or the kernel could choose that of another transfer.
            sock.bind(_bind_address(sock, peer, 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            strangers = _data_socket(peer)
            strangers.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            strangers.bind(sock.getsockname())
            sock.connect(_address_for(sock, peer))
        except BaseException:
            sock.close()
            if strangers is not None:
                strangers.close()
            raise
        return ConnectedChannel(sock, strangers)

    def _open_shared(self, peer: Peer) -> ConnectedChannel:
        assert self._span is not None
        sock = None
        last: OSError = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        for port in itertools.islice(self._next, self._span[1] - self._span[0] + 1):
            sock = _data_socket(peer)
            try:
                address = _bind_address(sock, peer, port)
                if (peer.local, port) not in self._strangers:
                    strangers = self._strangers[peer.local, port] = self._hear(peer, address)
                    self._on_hear(strangers)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
                sock.connect(_address_for(sock, peer))
                _drain(sock)  # what a stranger sent between bind and connect
                return ConnectedChannel(sock, None)
            except OSError as error:
                sock.close()
                last = error
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    break
        raise last

    @staticmethod
    def _hear(peer: Peer, address: SockAddr) -> socket.socket:
        strangers = _data_socket(peer)
        try:
            strangers.bind(address)  # fails where another program has the port
            strangers.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except BaseException:
            strangers.close()
            raise
        return strangers


def _drain(sock: socket.socket) -> None:
    try:
        while True:
            sock.recv(MAX_REQUEST)
    except OSError:
        return
