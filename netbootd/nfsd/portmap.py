"""The port mapper, program 100000: version 2 (RFC 1833, section 3) and rpcbind versions 3 and 4 (section 2).

A kernel or an initramfs that mounts an NFSv3 root asks here for the ports of NFS and MOUNT, over UDP or TCP. It tells
of our own programs only: SET and UNSET are answered with FALSE, and no call is passed on (CALLIT and its kin are left
out, they exist to be abused).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from netbootd.nfsd.rpc import Answer, Caller, Program, null
from netbootd.nfsd.xdr import FALSE, TRUE, Reader, opaque, u32

PORTMAP_PROGRAM = 100000
IPPROTO_TCP = 6
IPPROTO_UDP = 17
_PROTOCOLS = {IPPROTO_TCP: b"tcp", IPPROTO_UDP: b"udp"}
_MAX_STRING = 1024
_OWNER = b"superuser"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One registered service; `protocol` is the IP protocol's number."""

    program: int
    version: int
    protocol: int
    port: int


class PortMapper:
    """The procedures over a fixed table."""

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        self._mappings = tuple(mappings)

    def program(self) -> Program:
        """The RPC program that answers from it."""
        refuse = self._refuse
        version2 = {0: null, 1: refuse, 2: refuse, 3: self._getport, 4: self._dump}
        version3 = {0: null, 1: refuse, 2: refuse, 3: self._getaddr, 4: self._dump_addresses}
        return Program(PORTMAP_PROGRAM, {2: version2, 3: version3, 4: {**version3, 9: self._getversaddr}})

    def _refuse(self, args: Reader, caller: Caller) -> Answer:
        return FALSE

    def _getport(self, args: Reader, caller: Caller) -> Answer:
        program, version, protocol, _ = args.u32(), args.u32(), args.u32(), args.u32()
        return u32(self._port(program, version, protocol))

    def _port(self, program: int, version: int, protocol: int, *, exact: bool = False) -> int:
        """The port of a service, 0 for none. Unless it has to be `exact`, another version of a known program gives its
        port, too: the program itself then says which versions it has (RFC 1833, sections 2.2.1 and 3.2)."""
        found = 0
        for mapping in self._mappings:
            if mapping.program == program and mapping.protocol == protocol:
                if mapping.version == version:
                    return mapping.port
                found = mapping.port
        return 0 if exact else found

    def _dump(self, args: Reader, caller: Caller) -> Answer:
        lines = [
            TRUE + u32(mapping.program) + u32(mapping.version) + u32(mapping.protocol) + u32(mapping.port)
            for mapping in self._mappings
        ]
        return b"".join(lines) + FALSE

    def _getaddr(self, args: Reader, caller: Caller) -> Answer:
        return self._address(args, caller, exact=False)

    def _getversaddr(self, args: Reader, caller: Caller) -> Answer:
        return self._address(args, caller, exact=True)

    def _address(self, args: Reader, caller: Caller, *, exact: bool) -> bytes:
        program, version = args.u32(), args.u32()
        netid, _, _ = args.opaque(_MAX_STRING), args.opaque(_MAX_STRING), args.opaque(_MAX_STRING)
        protocol = {b"tcp": IPPROTO_TCP, b"tcp6": IPPROTO_TCP, b"udp": IPPROTO_UDP, b"udp6": IPPROTO_UDP}.get(
            netid,
            IPPROTO_UDP if caller.datagram else IPPROTO_TCP,
        )
        port = self._port(program, version, protocol, exact=exact)
        return opaque(universal_address(caller.local, port) if port else b"")

    def _dump_addresses(self, args: Reader, caller: Caller) -> Answer:
        suffix = b"6" if ":" in caller.local else b""
        lines = [
            TRUE
            + u32(mapping.program)
            + u32(mapping.version)
            + opaque(_PROTOCOLS[mapping.protocol] + suffix)
            + opaque(universal_address(caller.local, mapping.port))
            + opaque(_OWNER)
            for mapping in self._mappings
        ]
        return b"".join(lines) + FALSE


def universal_address(address: str, port: int) -> bytes:
    """An address and port as rpcbind writes them (RFC 5665, section 5.2.3): ``192.0.2.1.8.1`` for port 2049."""
    return f"{ipaddress.ip_address(address)}.{port >> 8}.{port & 255}".encode()
