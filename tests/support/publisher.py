"""A publisher's web server as the network shows it: it can redirect, break off, lie, stall, or change its files.

Written on a bare socket and apart from every HTTP library, so that each byte of a misbehaviour is ours. Folders are
laid out as the publishers do; every request is kept, with its path as it came over the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

MODIFIED = "Tue, 05 Aug 2025 00:00:00 GMT"


@dataclass
class Request:
    path: str
    """As on the wire, not unquoted."""
    headers: dict[str, str]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass
class Reply:
    """What is sent. `length` is what Content-Length says (None: the truth, -1: nothing, until the connection closes).

    `cut`: break the connection off after so many bytes of the body. `hold`: send `cut` bytes, then wait for the event.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    cut: int | None = None
    hold: asyncio.Event | None = None


Rule = Callable[[Request, Reply], Reply | None]


class Publisher:
    """Serves `files` (path to bytes) with Range, If-Range, ETag and Last-Modified. Rules may change a reply."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.rules: list[Rule] = []
        self.etags = True
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.url = ""

    async def __aenter__(self) -> Publisher:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def ranges(self, ending: str) -> list[str]:
        """The Range headers ("" without one) of the requests for paths with this ending, in order."""
        return [request.range for request in self.requests if unquote(request.path).endswith(ending)]

    # ------------------------------------------------------------------------------------------------- the layouts

    def ubuntu(self, folder: str, files: dict[str, bytes], sign: Callable[[bytes], bytes] | None = None) -> None:
        """``releases/<folder>/release`` with SHA256SUMS, and its signature where `sign` makes one."""
        base = f"/releases/{folder}/release"
        sums = "".join(f"{sha256(data)} *{name}\n" for name, data in files.items()).encode()
        self.files |= {f"{base}/{name}": data for name, data in files.items()}
        self.files[f"{base}/SHA256SUMS"] = sums
        if sign is not None:
            self.files[f"{base}/SHA256SUMS.gpg"] = sign(sums)

    def index(self, items: list[dict[str, Any]], path: str = "/os_list_imagingutility_v4.json") -> None:
        self.files[path] = json.dumps({"imager": {}, "os_list": items}).encode()

    # ------------------------------------------------------------------------------------------------------ serving

    def _reply(self, request: Request) -> Reply:
        data = self.files.get(unquote(request.path.partition("?")[0]))
        if data is None:
            return Reply(404, body=b"nothing here\n")
        headers = {"Last-Modified": MODIFIED, "Accept-Ranges": "bytes"}
        etag = f'"{sha256(data)[:16]}"'
        if self.etags:
            headers["ETag"] = etag
        condition = request.headers.get("if-range", "")
        match = re.fullmatch(r"bytes=(\d+)-", request.range)
        if match is None or (condition and condition not in (etag if self.etags else "", MODIFIED)):
            return Reply(200, headers, data)
        start = int(match[1])
        if start >= len(data):
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Reply(206, headers, data[start:])

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        request = Request(head[0].split(" ")[1], headers)
        self.requests.append(request)
        reply = self._reply(request)
        for rule in self.rules:
            reply = rule(request, reply) or reply
        length = len(reply.body) if reply.length is None else reply.length
        if length >= 0:
            reply.headers["Content-Length"] = str(length)
        lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body[: reply.cut])
        await writer.drain()
        if reply.hold is not None:
            await reply.hold.wait()
            writer.write(reply.body[reply.cut :])
            await writer.drain()
        return reply.cut is None and length == len(reply.body)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def times(count: int, rule: Rule, ending: str = "") -> Rule:
    """`rule` for the first `count` requests whose path ends so."""
    left = [count]

    def limited(request: Request, reply: Reply) -> Reply | None:
        if not left[0] or not unquote(request.path).endswith(ending):
            return None
        left[0] -= 1
        return rule(request, reply)

    return limited


class Told:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.done = 0
        self.whole: int | None = None

    def step(self, title: str) -> None:
        self.steps.append(title)
        self.done, self.whole = 0, None

    def total(self, amount: int | None) -> None:
        self.whole = amount

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)
