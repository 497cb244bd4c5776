"""What an operator can set about the TFTP server, with defaults that serve a rack of Pis."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class TftpSettings:
    """Settings of a `TftpServer`.

    :param bind: (address, port) pairs to listen at, IPv4 or IPv6 literals; port 0 is any free one
    :param single_port: send everything from the port that was asked, for firewalls; else a port a transfer
    :param data_ports: first and last port that transfers may use, both included; None for any
    :param max_blksize: octets; None: what fits the MTU on the way to the client
    :param max_windowsize: blocks
    :param allow: networks that may ask, or a function that decides for an address; None for everyone
    :param max_transfers: open transfers in all
    :param max_transfers_per_client: open transfers of one address (a rack behind NAT is one address)
    :param requests_per_second: of one address, steadily; twice as many in one go
    :param total_requests_per_second: of all together, likewise
    :param sockets: bound UDP sockets to listen at in place of `bind` (systemd's); the server owns and closes them
    """

    bind: tuple[tuple[str, int], ...] = (("0.0.0.0", 69), ("::", 69))  # noqa: S104 - a netboot server is for its LAN
    single_port: bool = False
    data_ports: tuple[int, int] | None = None
    max_blksize: int | None = None
    max_windowsize: int = 64
    allow: tuple[Network, ...] | Callable[[str], bool] | None = None
    max_transfers: int = 1024
    max_transfers_per_client: int = 256
    requests_per_second: float = 4000.0
    total_requests_per_second: float = 20000.0
    sockets: tuple[socket.socket, ...] = ()
