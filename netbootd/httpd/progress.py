"""What nodes report while they come up: cloud-init's webhook (``/events/<id>``) and phone-home (``/phone-home/<id>``).

Formats: cloudinit/reporting/handlers.py (WebHookHandler) and cloudinit/config/cc_phone_home.py. What a node says of
itself is recorded and shown, never acted on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

from netbootd.boot.contract import BootFiles, EventSink, observed
from netbootd.httpd.seed import evidence_of
from netbootd.model.event import Outcome, Stage

_SHOWN = 200
"""Characters of a node's own words that are kept."""


class ProgressRoutes:
    """The two routes that nodes post to."""

    def __init__(self, files: BootFiles, record: EventSink) -> None:
        self._files = files
        self._record = record

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes, each also without an id for the node told by its address."""
        for suffix in ("", "/{id}"):
            router.add_post("/events" + suffix, self._event)
            router.add_post("/phone-home" + suffix, self._phone_home)

    async def _event(self, request: web.Request) -> web.Response:
        try:
            report = json.loads(await request.read())
        except (ValueError, RecursionError):
            raise web.HTTPBadRequest(text="no JSON\n") from None
        if not isinstance(report, dict):
            raise web.HTTPBadRequest(text="no JSON object\n")
        name = _text(report.get("name")) or "unnamed"
        result = _text(report.get("result"))
        words = [_text(report.get("event_type")), result, _text(report.get("description"))]
        outcome = Outcome.FAILED if result == "FAIL" else Outcome.OK
        self._note(request, f"events/{name}", outcome, None, " ".join(word for word in words if word))
        return web.Response(status=204)

    async def _phone_home(self, request: web.Request) -> web.Response:
        form: Mapping[str, object] = await request.post()
        detail = ", ".join(
            f"{key} {_text(form[key])}" for key in ("hostname", "fqdn", "instance_id") if _text(form.get(key))
        )
        self._note(request, "phone-home", Outcome.OK, Stage.READY, detail)
        return web.Response(status=204)

    def _note(self, request: web.Request, path: str, outcome: Outcome, stage: Stage | None, detail: str) -> None:
        evidence = evidence_of(request)
        node = self._files.identify(evidence)
        generation = self._files.generation_of(node)
        self._record(observed(node, evidence, path, outcome, stage=stage, generation=generation, detail=detail))


def _text(value: object) -> str:
    """A node's word as one short printable line."""
    text = value if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else " " for c in text[:_SHOWN]).strip()
