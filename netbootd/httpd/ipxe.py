"""The script that a PC's iPXE boots from: ``/ipxe/boot.ipxe``, and with ``?mac=`` that of one machine.

Who is known by its address gets its script at once, anyone else one that asks again with its MAC.
"""

from __future__ import annotations

import time
from typing import Protocol

from aiohttp import web

from netbootd.boot import ipxe
from netbootd.boot.contract import EventSink, observed
from netbootd.errors import ConfigError, DeniedError, NotFoundError
from netbootd.httpd.peers import local_address, peer_address
from netbootd.model.event import Outcome, Stage
from netbootd.model.identity import Evidence, MacAddress
from netbootd.model.node import Node


class Scripts(Protocol):
    """Identifies machines and renders their scripts; `netbootd.boot.files.BootDirectory` does."""

    def identify(self, evidence: Evidence) -> Node:
        """See `netbootd.boot.contract.BootFiles`."""

    def generation_of(self, node: Node) -> str:
        """See `netbootd.boot.contract.BootFiles`."""

    def ipxe_script(self, node: Node | None, local: str) -> tuple[str, str]:
        """A script, and why it boots nothing ("" where it does)."""


class IpxeRoutes:
    """The route of iPXE's scripts."""

    def __init__(self, scripts: Scripts, record: EventSink) -> None:
        self._scripts = scripts
        self._record = record

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route; HEAD comes with GET."""
        router.add_get("/ipxe/boot.ipxe", self._get)

    async def _get(self, request: web.Request) -> web.Response:
        began = time.monotonic()
        evidence = Evidence("http", peer_address(request), local_address(request), mac=_mac(request))
        try:
            node: Node | None = self._scripts.identify(evidence)
        except DeniedError:
            if evidence.mac is not None:
                raise
            node = None  # refused as a stranger, and may yet turn out to be none
        fault = ""
        try:
            script, fault = self._scripts.ipxe_script(node, evidence.local)
        except ConfigError as error:
            script, fault = ipxe.say(" ".join(error.paragraph().split())), error.message
        if node is not None and node.id:
            self._record(
                observed(
                    node,
                    evidence,
                    "ipxe/boot.ipxe",
                    Outcome.FAILED if fault else Outcome.OK,
                    stage=Stage.FIRMWARE,
                    generation=self._scripts.generation_of(node),
                    size=len(script),
                    seconds=time.monotonic() - began,
                    detail=fault,
                )
            )
        return web.Response(text=script, content_type="text/plain", charset="utf-8")


def _mac(request: web.Request) -> MacAddress | None:
    """The MAC that the request names, None where it names none.

    :raises NotFoundError: it is none
    """
    text = request.query.get("mac", "")
    try:
        return MacAddress.parse(text) if text else None
    except ValueError as error:
        raise NotFoundError(str(error)) from None
