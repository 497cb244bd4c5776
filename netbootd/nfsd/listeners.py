"""Opening the server's sockets: all or none, and a failure that names the port and the option that moves it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from netbootd.errors import HostError

_BACKLOG = 128
_TRIES = 16


def open_tcp(addresses: Sequence[str], port: int, option: str) -> list[socket.socket]:
    """Listening sockets on one port of all the addresses; port 0 is any that is free on all of them.

    :raises HostError: it can't be had; `option` is what moves it
    """
    return _open(addresses, port, (socket.SOCK_STREAM,), option)


def open_tcp_and_udp(addresses: Sequence[str], port: int, option: str) -> list[socket.socket]:
    """Like `open_tcp`, with a UDP socket beside each listening one."""
    return _open(addresses, port, (socket.SOCK_STREAM, socket.SOCK_DGRAM), option)


def _open(addresses: Sequence[str], port: int, kinds: Sequence[int], option: str) -> list[socket.socket]:
    for attempt in range(_TRIES):
        sockets: list[socket.socket] = []
        chosen = port
        address = ""
        try:
            for address in addresses:
                for kind in kinds:
                    sockets.append(_bound(address, chosen, kind, dual=len(addresses) == 1))
                    chosen = sockets[0].getsockname()[1]
            return sockets
        except OSError as error:
            for sock in sockets:
                sock.close()
            # Another socket may hold the port that the first address was given: take a new one.
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < _TRIES:
                continue
            raise _failure(address, chosen, option, error) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def _failure(address: str, port: int, option: str, error: OSError) -> HostError:
    hint = f"Stop what uses it, or choose another port with {option}."
    if error.errno == errno.EACCES:
        hint = f"Ports below 1024 need root or CAP_NET_BIND_SERVICE; or choose another port with {option}."
    elif error.errno == errno.EADDRNOTAVAIL:
        hint = "Choose an address of this host with --bind."
    where = f"[{address}]" if ":" in address else address
    reason = os.strerror(error.errno) if error.errno else str(error)
    return HostError(f"NFS: listening on {where} port {port}: {reason}", hint=hint)


def _bound(address: str, port: int, kind: int, dual: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual and address == "::" else 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def plain(address: str) -> str:
    """An IP address without zone, an IPv4 one that came over an IPv6 socket as IPv4."""
    address = address.partition("%")[0]
    return address[7:] if address.startswith("::ffff:") and "." in address else address
