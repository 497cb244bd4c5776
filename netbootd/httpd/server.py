"""The HTTP server: it opens the sockets, admits peers, and turns our errors into HTTP's words (RFC 9110).

Not found is 404, denied 403, busy 503 with Retry-After (which cloud-init obeys), anything else 500; an answer never
names a path of the server.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from netbootd.errors import BusyError, DeniedError, NetbootdError, NotFoundError
from netbootd.host.sockets import listen_tcp, pace_by_loss
from netbootd.httpd.answer import SENDER
from netbootd.httpd.connections import ConnectionGuard, ConnectionLimits
from netbootd.httpd.peers import peer_address
from netbootd.httpd.sendfile import FileSender

_log = logging.getLogger(__name__)

MAX_BODY = 256 * 1024
"""Bytes of a POST that are read at most; cloud-init's reports are a few KiB."""

_SHOWN = 200  # characters of a complaint that quotes a peer


class _PeersFaults(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log: what isn't HTTP is answered 400 and no error of ours, which would fill the log with tracebacks."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **kwargs: Any) -> None:
        """See `logging.Logger`."""
        if isinstance(exc_info, HttpProcessingError):
            self.debug(f"HTTP: {msg}: %s", *args, " ".join(exc_info.message.split())[:_SHOWN])
        else:
            super().exception(msg, *args, exc_info=exc_info, **kwargs)


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Where to listen and whom to answer. `binds` are (address, port) pairs, port 0 means any free one."""

    binds: tuple[tuple[str, int], ...]
    allowed: Callable[[str], bool]
    sockets: tuple[socket.socket, ...] = ()
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)


class Routes(Protocol):
    """A part of the site."""

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add its routes."""


class HttpServer:
    """One HTTP server on all its sockets: `bind`, `start`, then `stop`.

    :param routes: the parts of the site, beside ``/healthz``
    """

    def __init__(self, settings: HttpSettings, *routes: Routes) -> None:
        self._settings = settings
        self.connections = ConnectionGuard(settings.limits)
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_BODY, handler_args={"access_log": None})
        app.cleanup_ctx.append(_file_sender)
        app.router.add_get("/healthz", self._healthz)
        for part in routes:
            part.add_to(app.router)
        self._runner = web.AppRunner(
            app, access_log=None, logger=_PeersFaults(_log), keepalive_timeout=30.0, shutdown_timeout=1.0
        )
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []

    @property
    def addresses(self) -> list[str]:
        """``ADDR:PORT`` of every socket."""
        found = []
        for listener in self._sockets:
            host, port = listener.getsockname()[:2]
            found.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        return found

    @property
    def port(self) -> int:
        """The port of the first socket, to be written into URLs."""
        return int(self._sockets[0].getsockname()[1])

    def bind(self) -> None:
        """Open every socket.

        :raises HostError: a port can't be had; none stays open then
        """
        self._sockets = list(self._settings.sockets)
        try:
            for address, port in () if self._sockets else self._settings.binds:
                self._sockets.append(listen_tcp(address, port, what="HTTP", option="--http-port"))
        except BaseException:
            for listener in self._sockets:
                listener.close()
            raise

    async def start(self) -> None:
        """Answer on the sockets that `bind` opened."""
        await self._runner.setup()
        handlers = self._runner.server
        assert handlers is not None
        self.connections.start()
        for listener in self._sockets:
            pace_by_loss(listener)
            self._servers.append(
                await asyncio.get_running_loop().create_server(
                    lambda: self.connections.protocol(handlers()), sock=listener, backlog=1024
                )
            )

    async def stop(self, drain_seconds: float) -> None:
        """Take no new connection, let open requests end for so long, then close."""
        for server in self._servers:
            server.close()
        if not self._servers:
            for listener in self._sockets:
                listener.close()
        runner = self._runner
        runner._shutdown_timeout = max(0.1, drain_seconds)
        await runner.cleanup()
        self.connections.stop()

    @web.middleware
    async def _answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        peer, transport = peer_address(request), request.transport
        self.connections.begin(transport)
        try:
            if not self._settings.allowed(peer):
                raise DeniedError(f"{peer} is not in the allowed networks.")
            if request.method == "POST":
                async with asyncio.timeout(self._settings.limits.header):
                    return await handler(request)
            return await handler(request)
        except (web.HTTPException, asyncio.CancelledError, ConnectionError):
            raise
        except NotFoundError:
            return _plain(404, "not found")
        except DeniedError as error:
            _log.info("HTTP: refused %s to %s: %s", request.path, peer, error, extra={"fields": {"PEER": peer}})
            return _plain(403, "forbidden")
        except TimeoutError:
            return _plain(408, "too slow", {"Connection": "close"})
        except BusyError:
            return _plain(503, "busy", {"Retry-After": "2"})
        except NetbootdError as error:  # expected, and the operator's to mend: a sentence without a traceback
            _log.error("HTTP: %s for %s failed: %s", request.path, peer, " ".join(error.paragraph().split()))
            return _plain(500, "internal error")
        except Exception:
            _log.exception("HTTP: %s %s from %s failed", request.method, request.path, peer)
            return _plain(500, "internal error")
        finally:
            self.connections.end(transport)

    async def _healthz(self, request: web.Request) -> web.Response:
        return _plain(200, "ok")


async def _file_sender(app: web.Application) -> AsyncIterator[None]:
    app[SENDER] = FileSender()
    yield
    app[SENDER].close()


def _plain(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=headers)
