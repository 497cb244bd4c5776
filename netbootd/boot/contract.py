"""What the servers need to know of booting: who asks, and what that machine gets for a path.

One implementation (`netbootd.boot.files.BootDirectory`) serves TFTP and HTTP, so that the two can't disagree; tests
bring their own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Protocol

from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.model.identity import Evidence, MacAddress, Serial
from netbootd.model.node import Node
from netbootd.model.resource import BootPath, Resource

EventSink = Callable[[BootEvent], None]
"""Where servers report what they saw. Called on the event loop; must not block or raise."""

_SERIAL_FOLDER = re.compile(r"(?:[0-9a-fA-F]{8}|[0-9a-fA-F]{16})\Z")
_MAC_FOLDER = re.compile(r"(?:[0-9a-fA-F]{2}-){5}[0-9a-fA-F]{2}\Z")


class BootFiles(Protocol):
    """Identifies machines and resolves their boot files. Both calls are synchronous and take microseconds."""

    def identify(self, evidence: Evidence) -> Node:
        """The node behind the evidence: by serial, then MAC, then address. A stranger gets the defaults.

        :raises DeniedError: strangers are refused by the configuration
        """

    def resolve(self, node: Node, path: BootPath, local: str) -> Resource:
        """The file that `node` gets for `path`; `local` is the address of ours that it asked (may be empty).

        :raises NotFoundError: no layer has it
        :raises DeniedError: it is never served, or not to this node
        """

    def generation_of(self, node: Node) -> str:
        """The id of the generation that the node boots, empty where it has none."""


def parse_id(text: str) -> Serial | MacAddress | None:
    """An ``<id>`` of a path: a serial number (8 or 16 hex digits) or a MAC with dashes; None for anything else."""
    if _SERIAL_FOLDER.match(text):
        return Serial.parse(text)
    if _MAC_FOLDER.match(text):
        return MacAddress.parse(text)
    return None


def parse_request(text: str, protocol: str, address: str, local: str) -> tuple[Evidence, BootPath]:
    """Read ``/<id>/<file>`` or ``/<file>`` as Raspberry Pi firmware asks for it.

    :param address: the peer's IP address; `local`: the address of ours that was asked
    :raises ValueError: not a path of a boot file (see `BootPath.parse`)
    """
    path = BootPath.parse(text)
    head, slash, rest = path.partition("/")
    who = parse_id(head) if slash else None
    if who is None:
        return Evidence(protocol, address, local), path
    serial, mac = (who, None) if isinstance(who, Serial) else (None, who)
    return Evidence(protocol, address, local, serial, mac), BootPath(rest)


def observed(
    node: Node,
    evidence: Evidence,
    path: str,
    outcome: Outcome,
    *,
    stage: Stage | None = None,
    generation: str = "",
    size: int = 0,
    seconds: float = 0.0,
    detail: str = "",
) -> BootEvent:
    """The event of one request that has ended just now."""
    return BootEvent(
        time=time.time(),
        protocol=evidence.protocol,
        path=path,
        outcome=outcome,
        stage=stage,
        node=node.name,
        key=node.key,
        serial=str(node.serial or ""),
        mac=str(node.mac or ""),
        address=evidence.address,
        image=node.image,
        generation=generation,
        bytes=size,
        seconds=seconds,
        detail=detail,
    )
