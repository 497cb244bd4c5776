"""This host's addresses, routes and neighbours, asked of the kernel by netlink (pyroute2; rtnetlink(7))."""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netbootd.errors import HostError
from netbootd.model.identity import MacAddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SCOPE_GLOBAL = 0  # linux/rtnetlink.h: RT_SCOPE_UNIVERSE
_NEIGHBOUR_TRUSTED = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # linux/neighbour.h: REACHABLE STALE DELAY PROBE PERMANENT
_KNOWN_SECONDS, _UNKNOWN_SECONDS = 5.0, 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """One address of this host: `network` is the subnet that it puts us on."""

    address: str
    network: Network
    interface: str
    is_global: bool


def local_addresses() -> list[LocalAddress]:
    """Every IPv4 and IPv6 address of this host's interfaces, loopback's too."""
    with IPRoute() as route:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in route.get_links()}
        found = []
        for message in route.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            interface = ipaddress.ip_interface(f"{text}/{message['prefixlen']}")
            is_global = message["scope"] == _SCOPE_GLOBAL and not interface.ip.is_loopback
            name = str(names.get(message["index"], ""))
            found.append(LocalAddress(str(interface.ip), interface.network, name, is_global))
        return found


def default_route_address() -> str | None:
    """The IPv4 address that this host uses towards its default route, None without one."""
    with IPRoute() as route:
        routes = [r for r in route.get_default_routes(family=socket.AF_INET) if r.get_attr("RTA_OIF")]
        if not routes:
            return None
        best = min(routes, key=lambda r: r.get_attr("RTA_PRIORITY") or 0)
        preferred = best.get_attr("RTA_PREFSRC")
        if preferred:
            return str(preferred)
        for message in route.get_addr(family=socket.AF_INET, index=best.get_attr("RTA_OIF")):
            if message["scope"] == _SCOPE_GLOBAL:
                return str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
    return None


def interface_name(interface: str) -> str:
    """The name of the interface that is meant by its name or its MAC address; a MAC that is nobody's comes back itself.

    The card of a virtual machine is known by the MAC that it was given: its name differs by hypervisor.
    """
    try:
        mac = MacAddress.parse(interface)
    except ValueError:
        return interface
    with IPRoute() as route:
        for link in route.get_links():
            if str(link.get_attr("IFLA_ADDRESS") or "").lower() == mac.text:
                return str(link.get_attr("IFLA_IFNAME"))
    return interface


def interface_address(interface: str) -> str:
    """The first global IPv4 address of an interface, which is named or meant by its MAC address.

    :raises HostError: there is no such interface, or it has none
    """
    name = interface_name(interface)
    for local in local_addresses():
        if local.interface == name and local.network.version == 4 and local.is_global:
            return local.address
    raise HostError(
        f"The interface {interface} has no IPv4 address (or isn't there).",
        hint="Give it one, or name the address with --advertise or [server] address.",
    )


def address_to_advertise(explicit: str, configured: str, interface: str, binds: Iterable[str]) -> str:
    """The address that is written down for nodes.

    In order: `explicit` (--advertise), `configured` ([server] address), `interface` ([server] interface), the first
    concrete one of `binds`, the default route's, the only global one.

    :raises HostError: none of them leads to one address
    """
    concrete = next((bind for bind in binds if not ipaddress.ip_address(bind).is_unspecified), "")
    if explicit or configured:
        return explicit or configured
    if interface:
        return interface_address(interface)
    chosen = concrete or default_route_address()
    if chosen:
        return chosen
    candidates = [local.address for local in local_addresses() if local.is_global and local.network.version == 4]
    if len(candidates) == 1:
        return candidates[0]
    have = ", ".join(candidates) if candidates else "none"
    raise HostError(
        f"No address to tell the nodes: there is no default route, and of global IPv4 addresses there are: {have}.",
        hint="Name one with --advertise ADDR or [server] address.",
    )


class AllowedPeers:
    """Who may ask: the configured networks, else whoever is on one of this host's own subnets (where an interface is
    given: on that one's, or this host itself).

    Own subnets are read again when an unknown peer asks, at most every few seconds, so that an address that comes late
    counts. May be asked on a running event loop (see `Neighbours`).
    """

    def __init__(self, networks: Iterable[Network] | None, interface: str = "") -> None:
        self._configured = None if networks is None else tuple(networks)
        self._interface = interface
        self._own: tuple[Network, ...] = ()
        self._read_at = -math.inf
        self._verdicts: dict[str, bool] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="subnets")

    def __call__(self, address: str) -> bool:
        """Whether the peer at `address` (without a zone; IPv4-mapped IPv6 as IPv4) may ask."""
        verdict = self._verdicts.get(address)
        if verdict:
            return True
        if self._configured is None and time.monotonic() - self._read_at > _UNKNOWN_SECONDS * 10:
            self._read_at = time.monotonic()
            try:
                self._own = self._worker.submit(_own_networks, self._interface).result(timeout=1)
                self._verdicts.clear()
            except (OSError, TimeoutError, NetlinkError) as error:
                _log.warning("This host's addresses can't be read: %s", error)
        elif verdict is False:
            return False
        if len(self._verdicts) > 4096:
            self._verdicts.clear()
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        networks = self._own if self._configured is None else self._configured
        verdict = any(ip in network for network in networks if network.version == ip.version)
        self._verdicts[address] = verdict
        return verdict

    def reconfigure(self, networks: Iterable[Network] | None, interface: str) -> None:
        """Decide by these from now on."""
        self._configured = None if networks is None else tuple(networks)
        self._interface = interface
        self._read_at = -math.inf
        self._verdicts.clear()

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(wait=False)


def _own_networks(interface: str) -> tuple[Network, ...]:
    name = interface_name(interface) if interface else ""
    found = local_addresses()
    return tuple({local.network for local in found if not name or local.interface == name or local.network.is_loopback})


class Neighbours:
    """Which MAC address the kernel's neighbour table gives to an IP address.

    The table is read whole, at most five times a second, so a flood of strangers costs nothing. Entries that the
    kernel has not heard of lately (incomplete, failed) don't count. May be asked on a running event loop: pyroute2's
    sockets want a loop of their own, so they live in a thread here.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="neighbours")
        self._table: dict[str, MacAddress] = {}
        self._read_at = -math.inf

    def mac_of(self, address: str) -> MacAddress | None:
        """The MAC address behind `address`, None where it isn't known (as for another subnet's)."""
        if address.startswith("127.") or address == "::1":
            return None  # this host itself has no neighbour's entry; don't read the table for it again and again
        age = time.monotonic() - self._read_at
        if age > (_KNOWN_SECONDS if address in self._table else _UNKNOWN_SECONDS):
            try:
                self._table = self._worker.submit(_read_neighbours).result(timeout=1)
            except (OSError, TimeoutError, NetlinkError) as error:
                _log.warning("The neighbour table can't be read: %s", error)
            self._read_at = time.monotonic()
        return self._table.get(address)

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(wait=False)


def _read_neighbours() -> dict[str, MacAddress]:
    table = {}
    with IPRoute() as route:
        for message in route.get_neighbours():
            link_address = str(message.get_attr("NDA_LLADDR") or "")
            if message["state"] & _NEIGHBOUR_TRUSTED and len(link_address) == 17:
                table[str(message.get_attr("NDA_DST"))] = MacAddress.parse(link_address)
    return table
