"""Listening sockets, with an error that names what is in the way and the option that moves it."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket

from netbootd.errors import HostError


def listen_tcp(address: str, port: int, *, what: str, option: str) -> socket.socket:
    """A listening, non-blocking TCP socket on `address` (``::`` takes IPv6 only, so that ``0.0.0.0`` may stand by it).

    :param what: the service, for the message (``HTTP``)
    :param option: the option that moves the port (``--http-port``)
    :raises HostError: the port is taken, needs privileges, or the address isn't ours
    """
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise bind_error(error, address, port, what=f"{what} (TCP)", option=option) from error
    return listener


def pace_by_loss(listener: socket.socket) -> str:
    """Have the connections of a TCP listener controlled by loss where the host's default is BBR; tells what they have.

    BBR is made for long ways. It paces each connection by a timer of its own, which on a quick way costs about half of
    the throughput and a third of the CPU time (docs/benchmarks.md). Any other choice of the host is kept.
    CUBIC is taken where this process may have it, else Reno, which is always there (tcp(7), TCP_CONGESTION).
    """
    chosen = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).partition(b"\0")[0].decode()
    if not chosen.startswith("bbr"):
        return chosen
    for name in ("cubic", "reno"):
        try:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            continue
        return name
    return chosen


def bind_error(error: OSError, address: str, port: int, *, what: str, option: str) -> HostError:
    """What to tell the operator when a port can't be had."""
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if error.errno == errno.EADDRINUSE:
        return HostError(
            f"Opening {what} on {where}: another program has that port.",
            hint=f"Stop it (ss -lntup shows which it is), or choose another port with {option}.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return HostError(
            f"Opening {what} on {where}: ports below 1024 need root (or CAP_NET_BIND_SERVICE).",
            hint=f"Run it as root, or choose another port with {option}.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return HostError(f"Opening {what} on {where}: this host has no such address.", hint="Correct --bind.")
    return HostError(f"Opening {what} on {where}: {error.strerror or error}.", hint=f"{option} chooses another port.")


def allow_many_descriptors(wanted: int = 16384) -> None:
    """Raise this process's limit of open descriptors; a usual one of 1,024 is less than a rack that boots at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
