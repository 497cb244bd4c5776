"""Boot files over HTTP: ``/boot/<id>/<file>``, the same answers as TFTP's.

Files are sent by the kernel (sendfile) with Range, ETag and conditional requests (RFC 9110) by aiohttp's FileResponse,
which is given the descriptor that the resolver opened, never a path below a folder.
"""

from __future__ import annotations

import time

from aiohttp import hdrs, web

from netbootd.boot.contract import BootFiles, EventSink, observed, parse_request
from netbootd.errors import DeniedError, NotFoundError
from netbootd.httpd.peers import local_address, peer_address
from netbootd.model.event import Outcome, Stage
from netbootd.model.identity import Evidence
from netbootd.model.node import Node
from netbootd.model.resource import BootPath, FileSource, Resource


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
        outcome, detail = Outcome.FAILED, "the connection was lost"
        response: web.StreamResponse | None = None
        try:
            response = await _send(request, resource)
            outcome, detail = Outcome.OK, ""
            return response
        finally:
            if request.method == hdrs.METH_GET:
                size = resource.size if outcome is Outcome.OK else 0
                seconds = time.monotonic() - began
                self._event(node, evidence, path, outcome, resource.stage, size=size, seconds=seconds, detail=detail)

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


async def _send(request: web.Request, resource: Resource) -> web.StreamResponse:
    """Answer with the resource's bytes, whole before this returns."""
    source = resource.open()
    try:
        if isinstance(source, FileSource):
            response: web.StreamResponse = web.FileResponse(
                f"/proc/self/fd/{source.fileno()}", headers={hdrs.CONTENT_TYPE: "application/octet-stream"}
            )
        else:
            response = _from_memory(request, resource, source.read(source.size()))
        await response.prepare(request)
        await response.write_eof()
        return response
    finally:
        source.close()


def _from_memory(request: web.Request, resource: Resource, data: bytes) -> web.Response:
    tags = [tag.value for tag in request.if_none_match or ()]
    if resource.etag in tags or "*" in tags:
        response = web.Response(status=304)
    else:
        response = web.Response(body=data, content_type="application/octet-stream")
    response.etag = resource.etag
    return response
