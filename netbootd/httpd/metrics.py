"""``/metrics``: what monitoring asks for."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web


class MetricsRoute:
    """The route of the metrics.

    :param render: their text and its content type
    """

    def __init__(self, render: Callable[[], tuple[bytes, str]]) -> None:
        self._render = render

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route; HEAD comes with GET."""
        router.add_get("/metrics", self._get)

    async def _get(self, request: web.Request) -> web.Response:
        text, content_type = self._render()
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: content_type})
