"""Registering with the rpcbind of this host, where one answers on port 111 already.

rpcbind takes registrations from root over its Unix socket (RPCBPROC_SET, RFC 1833 section 2.2.1); older port mappers
take PMAPPROC_SET over loopback from a privileged port. Both are tried, in this order. Blocking, with a short timeout:
for a thread.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from netbootd.errors import HostError
from netbootd.nfsd.portmap import IPPROTO_TCP, IPPROTO_UDP, PORTMAP_PROGRAM, Mapping
from netbootd.nfsd.rpc import AUTH_NONE, SUCCESS, RecordError, Records, record
from netbootd.nfsd.xdr import Reader, XdrError, opaque, u32

RPCBIND_SOCKETS = (Path("/run/rpcbind.sock"), Path("/var/run/rpcbind.sock"))

_TIMEOUT = 3.0
_REPLY_LIMIT = 64 << 10
_NULL, _SET, _UNSET, _GETPORT = 0, 1, 2, 3
_NETIDS = {(socket.AF_INET, IPPROTO_TCP): b"tcp", (socket.AF_INET, IPPROTO_UDP): b"udp"}
_NETIDS |= {(socket.AF_INET6, IPPROTO_TCP): b"tcp6", (socket.AF_INET6, IPPROTO_UDP): b"udp6"}


class Refused(Exception):  # noqa: N818 - becomes a HostError that names the option
    """rpcbind answered, and said no."""


def answers(port: int, addresses: Iterable[str]) -> bool:
    """Whether a port mapper answers on `port` of one of the local addresses."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(_TIMEOUT)
                sock.connect((address, port))
                _call(sock, 2, _NULL, b"")
                return True
        except (OSError, RecordError, XdrError):
            continue
    return False


def port_of(program: int, version: int, port: int) -> int:
    """The TCP port of a program of this host, as the port mapper on `port` tells.

    :raises HostError: it knows of none, or does not answer
    """
    try:
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as sock:
            found = _call(sock, 2, _GETPORT, u32(program) + u32(version) + u32(IPPROTO_TCP) + u32(0)).u32()
    except (OSError, Refused, RecordError, XdrError) as error:
        raise HostError(f"Asking rpcbind on port {port} for program {program}: {error}.") from error
    if not found:
        raise HostError(f"rpcbind on port {port} knows of no program {program} version {version} over TCP.")
    return found


def register(mappings: Sequence[Mapping], families: Sequence[int], port: int) -> None:
    """Tell rpcbind of our services, replacing what it knew of the same programs and versions.

    :raises Refused: it doesn't take them
    :raises OSError: it can't be reached
    """
    unregister(mappings, families, port)
    with _connect(port) as sock:
        for mapping in mappings:
            if sock.family != socket.AF_UNIX:
                args = u32(mapping.program) + u32(mapping.version) + u32(mapping.protocol) + u32(mapping.port)
                _expect(_call(sock, 2, _SET, args), mapping)
                continue
            for family in families:
                _expect(_call(sock, 4, _SET, _rpcb(mapping, family)), mapping)


def unregister(mappings: Sequence[Mapping], families: Sequence[int], port: int) -> None:
    """Take our services out again. What isn't registered, or isn't ours, is left as it is.

    :raises OSError: rpcbind can't be reached
    """
    with _connect(port) as sock:
        for mapping in mappings:
            if sock.family != socket.AF_UNIX:
                _call(sock, 2, _UNSET, u32(mapping.program) + u32(mapping.version) + u32(0) * 2)
                continue
            for family in families:
                _call(sock, 4, _UNSET, _rpcb(mapping, family))


def _rpcb(mapping: Mapping, family: int) -> bytes:
    wildcard = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - rpcbind puts the asked address there
    address = f"{wildcard}.{mapping.port >> 8}.{mapping.port & 255}".encode()
    netid = _NETIDS[socket.AddressFamily(family), mapping.protocol]
    owner = b"superuser" if os.geteuid() == 0 else str(os.geteuid()).encode()
    return u32(mapping.program) + u32(mapping.version) + opaque(netid) + opaque(address) + opaque(owner)


def _expect(results: Reader, mapping: Mapping) -> None:
    if results.u32() != 1:
        raise Refused(f"program {mapping.program} version {mapping.version}")


def _connect(port: int) -> socket.socket:
    for path in RPCBIND_SOCKETS:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_TIMEOUT)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
        else:
            return sock
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(_TIMEOUT)
    try:
        for privileged in range(1023, 600, -1):
            try:
                sock.bind(("127.0.0.1", privileged))
            except PermissionError:
                break
            except OSError:
                continue
            else:
                break
        sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


def _call(sock: socket.socket, version: int, procedure: int, args: bytes) -> Reader:
    """One call over a stream; gives the results.

    :raises OSError: no answer
    :raises Refused: any other status than success
    """
    xid = os.urandom(4)
    head = xid + u32(0) + u32(2) + u32(PORTMAP_PROGRAM) + u32(version) + u32(procedure)
    sock.sendall(record(head, (u32(AUTH_NONE) + u32(0)) * 2, args))
    records = Records(_REPLY_LIMIT)
    while True:
        data = sock.recv(4096)
        if not data:
            raise ConnectionError("the port mapper closed the connection")
        for reply in records.feed(data):
            if reply[:4] == xid:
                if reply[4 : 4 + len(SUCCESS)] != SUCCESS:
                    raise Refused("it answered with an error")
                return Reader(reply, 4 + len(SUCCESS))
