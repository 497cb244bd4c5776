"""Who is asking: from a serial or MAC in the path, the neighbour table, or an address seen before.

A serial counts first, then a MAC, then the address. An address is believed only where nothing better is known: it is
tied to a node by a request that named the node, unless the neighbour table shows that another machine sent it, and let
go when another MAC turns up behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from netbootd.errors import DeniedError
from netbootd.model.identity import Evidence, MacAddress, Serial
from netbootd.model.node import Node

STRANGERS_KEPT = 4096
"""So many machines without configuration are remembered; a flood of made-up serials pushes out the oldest."""


class Identities:
    """The nodes of the configuration and the strangers met so far."""

    def __init__(
        self,
        nodes: Iterable[Node],
        *,
        stranger_image: str,
        refuse_strangers: bool,
        mac_of: Callable[[str], MacAddress | None],
    ) -> None:
        """Know `nodes`; `mac_of` asks the neighbour table for the MAC behind an address."""
        self._nodes = tuple(nodes)
        self._by_serial = {node.serial: node for node in self._nodes if node.serial}
        self._by_mac = {node.mac: node for node in self._nodes if node.mac}
        self._stranger_image = stranger_image
        self._refuse = refuse_strangers
        self._mac_of = mac_of
        self._strangers: OrderedDict[str, Node] = OrderedDict()
        self._at_address: OrderedDict[str, Node] = OrderedDict()

    def reconfigure(self, nodes: Iterable[Node], *, stranger_image: str, refuse_strangers: bool) -> None:
        """Know these nodes from now on, and nobody else yet: whoever was met is to be remembered anew."""
        self._nodes = tuple(nodes)
        self._by_serial = {node.serial: node for node in self._nodes if node.serial}
        self._by_mac = {node.mac: node for node in self._nodes if node.mac}
        self._stranger_image = stranger_image
        self._refuse = refuse_strangers
        self._strangers.clear()
        self._at_address.clear()

    @property
    def configured(self) -> tuple[Node, ...]:
        """The nodes of the configuration, in its order."""
        return self._nodes

    def remember(self, serial: Serial | None, mac: MacAddress | None, address: str) -> None:
        """Take in a machine seen before the service was started."""
        if serial or mac:
            node = self._named(serial, mac)
            if address:
                self._tie(address, replace(node, mac=node.mac or mac, address=address))

    def identify(self, evidence: Evidence) -> Node:
        """See `netbootd.boot.contract.BootFiles.identify`."""
        mac = evidence.mac or (self._mac_of(evidence.address) if evidence.address else None)
        if evidence.named:
            node = self._named(evidence.serial, mac)
        else:
            node = self._unnamed(evidence.address, mac)
        if self._refuse and not node.configured:
            raise DeniedError(
                f"{node.name} is not in the configuration, and unknown nodes are refused.",
                hint='Add a [[node]] for it, or set [defaults] unknown_nodes = "serve".',
            )
        from_itself = mac is None or node.mac in (None, mac)
        wanted = node.mac or mac, node.serial or evidence.serial, evidence.address
        if (node.mac, node.serial, node.address) != wanted:
            node = replace(node, mac=wanted[0], serial=wanted[1], address=wanted[2])
        if evidence.named and evidence.address and from_itself:
            self._tie(evidence.address, node)
        return node

    def find(self, text: str) -> Node | None:
        """A node by name, serial or MAC as a person writes it; None where neither configured nor met."""
        wanted = text.strip().lower()
        known = [*self._nodes, *self._strangers.values()]
        for node in known:
            names = {
                node.name.lower(),
                str(node.serial or ""),
                str(node.mac or ""),
                node.mac.dashed if node.mac else "",
            }
            if wanted in names:
                return node
        try:
            serial = Serial.parse(wanted)
        except ValueError:
            return None
        return next((node for node in known if node.serial == serial), None)

    def _named(self, serial: Serial | None, mac: MacAddress | None) -> Node:
        node = self._by_serial.get(serial) if serial else None
        if node is None and mac:
            node = self._by_mac.get(mac)
            if node and serial and node.serial and node.serial != serial:
                node = None  # another machine behind a MAC that is configured for a different serial
        return node or self._stranger(serial, mac, "")

    def _unnamed(self, address: str, mac: MacAddress | None) -> Node:
        if mac and mac in self._by_mac:
            return self._by_mac[mac]
        tied = self._at_address.get(address)
        if tied and (mac is None or tied.mac in (None, mac)):
            return tied
        return self._stranger(None, mac, address)

    def _stranger(self, serial: Serial | None, mac: MacAddress | None, address: str) -> Node:
        for key, met in reversed(self._strangers.items()) if mac and not serial else ():
            if met.mac == mac:
                self._strangers.move_to_end(key)
                return met
        name = f"pi-{serial}" if serial else f"node-{mac.dashed}" if mac else "node-" + _as_label(address)
        node = Node(name=name, image=self._stranger_image, hostname=name, serial=serial, mac=mac)
        node = self._strangers.get(node.key or name, node)
        if mac and not node.mac:
            node = replace(node, mac=mac)
        self._strangers[node.key] = node
        self._strangers.move_to_end(node.key)
        if len(self._strangers) > STRANGERS_KEPT:
            self._strangers.popitem(last=False)
        return node

    def _tie(self, address: str, node: Node) -> None:
        self._at_address[address] = node
        self._at_address.move_to_end(address)
        if len(self._at_address) > STRANGERS_KEPT:
            self._at_address.popitem(last=False)


def _as_label(address: str) -> str:
    """An address as a part of a host name (RFC 1123): ``192-0-2-7``."""
    return address.replace(".", "-").replace(":", "-").strip("-") or "unknown"
