"""Where requests arrive: the listening sockets, who sent a datagram, and which address of ours was asked."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from netbootd.errors import HostError

SockAddr = tuple[Any, ...]

_IP_PKTINFO = 8  # linux/in.h; the socket module has it only where glibc's headers did
_PKTINFO4 = struct.Struct("=I4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_RECEIVE_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asked, as the kernel has it, and which address of ours was asked (empty: unknown, or not our own alone).

    `address` and `local` are IP literals without a zone; an IPv4 peer of an IPv6 socket is shown as IPv4.
    """

    sockaddr: SockAddr
    address: str
    local: str
    interface: int = 0
    to_all: bool = False
    """Whether it was sent to a broadcast or multicast address."""

    @property
    def key(self) -> tuple[SockAddr, str]:
        """Tells transfers apart."""
        return self.sockaddr, self.local


class Listener:
    """A socket at which requests arrive."""

    __slots__ = ("_any_address", "address", "sock", "wants_source")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.address: str = _plain(sock.getsockname()[0])
        self._any_address = self.address in ("0.0.0.0", "::")  # noqa: S104
        if self._any_address:
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        _enlarge_buffer(sock)

    @property
    def name(self) -> str:
        """``ADDR:PORT``, an IPv6 address in brackets."""
        address, port = self.sock.getsockname()[:2]
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    def receive_into(self, buffer: bytearray) -> tuple[int, Peer]:
        """The next datagram: its length in `buffer`, and who sent it.

        :raises OSError: BlockingIOError where there is none
        """
        if not self._any_address:
            size, sockaddr = self.sock.recvfrom_into(buffer)
            return size, Peer(sockaddr, _plain(sockaddr[0]), self.address, sockaddr[3] if len(sockaddr) > 3 else 0)
        size, ancillary, _, sockaddr = self.sock.recvmsg_into([buffer], 64)
        local, interface, to_all = _destination(ancillary)
        return size, Peer(sockaddr, _plain(sockaddr[0]), local, interface, to_all)

    def source_of(self, peer: Peer) -> list[tuple[int, int, bytes]]:
        """The ancillary data that makes an answer leave from the address that was asked."""
        if not self._any_address or not peer.local:
            return []
        if self.sock.family == socket.AF_INET:
            return [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, socket.inet_aton(peer.local), bytes(4)))]
        local = peer.local if ":" in peer.local else f"::ffff:{peer.local}"
        interface = peer.interface if peer.local.startswith("fe80:") else 0
        packed = _PKTINFO6.pack(socket.inet_pton(socket.AF_INET6, local), interface)
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed)]

    def reply(self, packet: bytes, peer: Peer) -> None:
        """Send one datagram from the listening port; it may get lost."""
        try:
            ancillary = self.source_of(peer)
            if ancillary:
                self.sock.sendmsg([packet], ancillary, 0, peer.sockaddr)
            else:
                self.sock.sendto(packet, peer.sockaddr)
        except OSError:
            pass


def _plain(address: str) -> str:
    """An IP literal without a zone, IPv4 as IPv4."""
    address = address.partition("%")[0]
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def _destination(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, int, bool]:
    """The address of ours that a datagram was sent to, the interface, and whether it was sent to a whole group."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _PKTINFO4.size:
            interface, local, destination = _PKTINFO4.unpack_from(data)
            return socket.inet_ntoa(local), interface, local != destination
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _PKTINFO6.size:
            packed, interface = _PKTINFO6.unpack_from(data)
            if packed[0] == 0xFF:
                return "", interface, True
            return _plain(socket.inet_ntop(socket.AF_INET6, packed)), interface, False
    return "", 0, False


def _enlarge_buffer(sock: socket.socket) -> None:
    """Room for a whole rack that asks at once."""
    for option in (getattr(socket, "SO_RCVBUFFORCE", 33), socket.SO_RCVBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, _RECEIVE_BUFFER)
        except OSError:
            continue
        return


def listen(address: str, port: int) -> Listener:
    """Open a listening socket. IPv6 sockets hear IPv6 only.

    :raises HostError: the port is taken or forbidden, or the address is not this host's
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    where = f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        host, _, zone = address.partition("%")
        sock.bind((host, port, 0, socket.if_nametoindex(zone)) if zone else (address, port))
        return Listener(sock)
    except OSError as error:
        if sock is not None:
            sock.close()
        match error.errno:
            case errno.EADDRINUSE:
                hint = f"Another server has UDP port {port} (ss -lunp tells which): stop it, or use --tftp-port."
            case errno.EACCES | errno.EPERM:
                hint = f"UDP port {port} needs root or CAP_NET_BIND_SERVICE: grant it, or use --tftp-port."
            case _:
                hint = "Check --bind and the address, or use --tftp-port."
        raise HostError(f"TFTP can't listen at {where}: {os.strerror(error.errno or 0)}", hint=hint) from error


def adopt(sock: socket.socket) -> Listener:
    """Listen at a bound socket that was handed to us.

    :raises HostError: it is no UDP socket
    """
    try:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_DGRAM:
            return Listener(sock)
        reason = "it is not UDP over IPv4 or IPv6"
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    raise HostError(
        f"TFTP can't use the socket that it was handed (descriptor {sock.fileno()}): {reason}",
        hint="In the socket unit named tftp use ListenDatagram=.",
    )
