"""The four NoCloud documents, rendered for each node when it asks.

All four are always answered with 200 to a node that may boot: cloud-init retries a missing network-config or
vendor-data for ten seconds, and gives up without meta-data or user-data (cloudinit/sources/DataSourceNoCloud.py,
url_helper.readurl). A document with secrets goes only to whom the operator's contract lets have it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Protocol

from aiohttp import web

from netbootd.boot.contract import BootFiles, EventSink, observed, parse_id
from netbootd.cloudinit.seed import DOCUMENTS, Seed
from netbootd.errors import ConfigError, DeniedError, NotFoundError
from netbootd.httpd.peers import local_address, peer_address
from netbootd.model.event import Outcome, Stage
from netbootd.model.identity import Evidence, Serial
from netbootd.model.node import Node

_CONTENT_TYPE = {
    "meta-data": "text/yaml",
    "network-config": "text/yaml",
    "user-data": "text/cloud-config",
    "vendor-data": "text/cloud-config",
}


class SeedAccess(Protocol):
    """Who may read a node's documents."""

    def check(self, node: Node, evidence: Evidence, token: str, *, secret: bool) -> None:
        """Let the request pass.

        :param token: the one in the address, "" without
        :param secret: whether the document holds a secret
        :raises DeniedError: it may not have it
        """


class BuildSeed(Protocol):
    """Makes the documents that a request is answered from."""

    def __call__(self, node: Node, evidence: Evidence, token: str, document: str, /) -> Awaitable[tuple[Seed, str]]:
        """The documents of a node that was asked for one of them, and what is to be noted of it.

        :raises ConfigError: a document is faulty
        """


class SeedRoutes:
    """The routes of the NoCloud documents."""

    def __init__(self, files: BootFiles, build: BuildSeed, access: SeedAccess, record: EventSink) -> None:
        self._files = files
        self._build = build
        self._access = access
        self._record = record

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes; HEAD comes with GET."""
        names = "|".join(DOCUMENTS)
        router.add_get(f"/nocloud/{{id}}/{{document:{names}}}", self._get)
        router.add_get(f"/nocloud/{{id}}/{{token}}/{{document:{names}}}", self._get)
        router.add_get(f"/{{document:{names}}}", self._get)

    async def _get(self, request: web.Request) -> web.Response:
        began = time.monotonic()
        document, token = request.match_info["document"], request.match_info.get("token", "")
        evidence = evidence_of(request)
        node = self._files.identify(evidence)
        outcome, detail = Outcome.FAILED, "refused"
        try:
            seed, note = await self._build(node, evidence, token, document)
            self._access.check(node, evidence, token, secret=document in seed.uses_secrets)
            response = web.Response(body=seed.document(document))
            response.headers["Content-Type"] = _CONTENT_TYPE[document]
            outcome, detail = Outcome.OK, note
            return response
        except (DeniedError, ConfigError) as error:
            detail = " ".join((error.message, *error.details))
            raise
        finally:
            self._record(
                observed(
                    node,
                    evidence,
                    f"nocloud/{document}",
                    outcome,
                    stage=Stage.SEED if document == "meta-data" else None,
                    generation=self._files.generation_of(node),
                    size=len(seed.document(document)) if outcome is Outcome.OK else 0,
                    seconds=time.monotonic() - began,
                    detail=detail,
                )
            )


def evidence_of(request: web.Request) -> Evidence:
    """What a request reveals: the ``<id>`` of its address where there is one, and the addresses.

    A node that is known by nothing but its address may give that as its id, and is believed only if it is the sender's.

    :raises NotFoundError: the ``<id>`` is neither a serial nor a MAC
    """
    peer, local = peer_address(request), local_address(request)
    text = request.match_info.get("id", peer)
    if text == peer:
        return Evidence("http", peer, local)
    who = parse_id(text)
    if who is None:
        raise NotFoundError(f"{text} is neither a serial number nor a MAC address.")
    return Evidence("http", peer, local, *((who, None) if isinstance(who, Serial) else (None, who)))
