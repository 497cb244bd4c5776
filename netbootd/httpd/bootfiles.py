"""Boot files over HTTP: ``/boot/<id>/<file>``, the same answers as TFTP's.

What is sent comes from the descriptor that the resolver opened, never from a path below a folder.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import hdrs, web

from netbootd.boot.contract import BootFiles, EventSink, observed, parse_request
from netbootd.errors import DeniedError, NotFoundError
from netbootd.httpd.answer import send
from netbootd.httpd.peers import local_address, peer_address
from netbootd.model.event import Outcome, Stage
from netbootd.model.identity import Evidence
from netbootd.model.node import Node
from netbootd.model.resource import BootPath


class BootFileRoutes:
    """The route of boot files."""

    def __init__(self, files: BootFiles, record: EventSink) -> None:
        self._files = files
        self._record = record

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route; HEAD comes with GET."""
        router.add_get("/boot/{path:.*}", self._get)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        began = time.monotonic()
        try:
            evidence, path = parse_request(
                request.match_info["path"], "http", peer_address(request), local_address(request)
            )
        except ValueError as error:
            raise NotFoundError("not a boot file's path") from error
        node = self._files.identify(evidence)
        try:
            resource = self._files.resolve(node, path, evidence.local)
        except (NotFoundError, DeniedError) as error:
            self._event(node, evidence, path, Outcome.MISS, Stage.FIRMWARE, detail=error.message)
            raise
        try:
            response, fault = await send(request, resource)
        except asyncio.CancelledError:
            detail = "the server is shutting down"
            self._event(node, evidence, path, Outcome.FAILED, Stage.FIRMWARE, detail=detail)
            raise
        if request.method == hdrs.METH_GET:
            sent = 0 if fault else response.content_length or 0
            self._event(
                node,
                evidence,
                path,
                Outcome.FAILED if fault else Outcome.OK,
                resource.stage if sent == resource.size else Stage.FIRMWARE,  # a part is not the kernel
                size=sent,
                seconds=time.monotonic() - began,
                detail=fault,
            )
        return response

    def _event(
        self,
        node: Node,
        evidence: Evidence,
        path: BootPath,
        outcome: Outcome,
        stage: Stage,
        *,
        size: int = 0,
        seconds: float = 0.0,
        detail: str = "",
    ) -> None:
        generation = self._files.generation_of(node)
        self._record(
            observed(
                node,
                evidence,
                path,
                outcome,
                stage=stage,
                generation=generation,
                size=size,
                seconds=seconds,
                detail=detail,
            )
        )
