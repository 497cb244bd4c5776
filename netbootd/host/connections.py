"""Established TCP connections of this host, asked of the kernel by netlink (pyroute2; sock_diag(7), inet_diag)."""

from __future__ import annotations

import ipaddress
import socket

from pyroute2 import DiagSocket
from pyroute2.netlink.exceptions import NetlinkError

from netbootd.errors import HostError

_ESTABLISHED = 1 << 1  # include/net/tcp_states.h: TCP_ESTABLISHED, as a bit


def peers_of(port: int) -> set[str]:
    """The addresses that have a connection to a TCP port of ours; takes no rights. Not to be asked on an event loop.

    :raises HostError: the kernel doesn't tell
    """
    found = set()
    try:
        with DiagSocket() as diag:
            diag.bind()
            for family in (socket.AF_INET, socket.AF_INET6):
                for message in diag.get_sock_stats(family=family, states=_ESTABLISHED):
                    if message["idiag_sport"] == port:
                        found.add(_plain(str(message["idiag_dst"])))
    except (OSError, NetlinkError) as error:
        raise HostError(f"Asking the kernel for the connections to port {port}: {error}.") from error
    return found


def _plain(text: str) -> str:
    """An address in the form that everything else here has: IPv4 in IPv6 as IPv4."""
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
