"""Sends a resource over HTTP: whole or a range of it, or why not (RFC 9110 sections 13 and 14).

A file goes from the page cache to the socket by the kernel (sendfile). Evaluated in the order of section 13.2.2:
If-Match, If-Unmodified-Since, If-None-Match, If-Modified-Since, then Range with If-Range. Left out: several ranges at
once, which a server may answer with the whole (14.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import ETag, hdrs, web

from netbootd.httpd.sendfile import FileSender
from netbootd.model.resource import ByteSource, FileSource, Resource

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})-(\d{0,18})\s*\Z", re.ASCII | re.IGNORECASE)
_READ = 256 << 10

SENDER = web.AppKey("sender", FileSender)
"""Where the application keeps what sends its files."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is answered: the status, and `count` bytes from `start` on (none with 304, 412 and 416)."""

    status: int
    start: int = 0
    count: int = 0


def decide(request: web.BaseRequest, etag: str, modified: datetime, size: int) -> Decision:
    """Judge a request's conditions and range against a resource.

    :param etag: its strong validator, without quotes
    :param modified: its date in UTC, whole seconds
    """
    request = _with_lists_joined(request)
    if request.if_match is not None:
        if not _any_is(request.if_match, etag, weakly=False):
            return Decision(412)
    elif request.if_unmodified_since is not None and modified > request.if_unmodified_since:
        return Decision(412)
    if request.if_none_match is not None:
        if _any_is(request.if_none_match, etag, weakly=True):
            return Decision(304)
    elif request.if_modified_since is not None and modified <= request.if_modified_since:
        return Decision(304)
    match = _RANGE.match(request.headers.get(hdrs.RANGE, ""))
    if match is None or match[0].strip().endswith("=-") or not _range_counts(request, etag, modified):
        return Decision(200, 0, size)
    if match[1]:
        start, stop = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
        if match[2] and int(match[2]) < int(match[1]):
            return Decision(200, 0, size)  # not a range at all (14.1.1)
    else:
        start, stop = max(0, size - int(match[2])), size
    return Decision(206, start, stop - start) if start < stop else Decision(416)


def _with_lists_joined(request: web.BaseRequest) -> web.BaseRequest:
    """A list may come in several lines of the same name, which are one list (RFC 9110 section 5.3)."""
    for name in (hdrs.IF_MATCH, hdrs.IF_NONE_MATCH):
        lines = request.headers.getall(name, ())
        if len(lines) > 1:
            headers = request.headers.copy()
            headers[name] = ", ".join(lines)
            request = request.clone(headers=headers)
    return request


def _any_is(tags: Iterable[ETag], etag: str, *, weakly: bool) -> bool:
    return any(tag.value == "*" or (tag.value == etag and (weakly or not tag.is_weak)) for tag in tags)


def _range_counts(request: web.BaseRequest, etag: str, modified: datetime) -> bool:
    """Whether If-Range still holds: the very same tag, or the very same date."""
    given = request.headers.get(hdrs.IF_RANGE)
    if given is None:
        return True
    return given.strip() == f'"{etag}"' if '"' in given else request.if_range == modified


async def send(request: web.Request, resource: Resource) -> tuple[web.StreamResponse, str]:
    """Answer with a resource: the response, and what went wrong ("" when all of it is on its way).

    After a fault the connection is closed, which is all that can be told to a peer in the middle of an answer.
    """
    modified = datetime.fromtimestamp(resource.mtime_ns // 10**9, UTC)
    source = resource.open()
    try:
        size = source.size()  # of what was opened: the resource may have been replaced since it was looked up
        decision = decide(request, resource.etag, modified, size)
        response = web.StreamResponse(status=decision.status)
        response.etag = resource.etag
        response.last_modified = modified
        response.headers[hdrs.ACCEPT_RANGES] = "bytes"
        if decision.status in (200, 206):
            response.content_type = "application/octet-stream"
        if decision.status == 206:
            stop = decision.start + decision.count
            response.headers[hdrs.CONTENT_RANGE] = f"bytes {decision.start}-{stop - 1}/{size}"
        elif decision.status == 416:
            response.headers[hdrs.CONTENT_RANGE] = f"bytes */{size}"
        if decision.status != 304:
            response.content_length = decision.count
        try:
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD and decision.count:
                await _send_body(request, response, source, decision)
            await response.write_eof()
        except OSError as error:
            if request.transport is not None:
                request.transport.abort()
            lost = isinstance(error, ConnectionError | TimeoutError)
            return response, "the connection was lost" if lost else str(error.strerror or error)
        return response, ""
    finally:
        source.close()


async def _send_body(
    request: web.Request, response: web.StreamResponse, source: ByteSource, decision: Decision
) -> None:
    start, left = decision.start, decision.count
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the peer has gone")
    if isinstance(source, FileSource):
        left -= await request.app[SENDER].send(transport, source.fileno(), start, left)
    else:
        source.read(start)
        while left and (data := source.read(min(left, _READ))):
            await response.write(data)
            left -= len(data)
    if left:
        raise OSError("the file was cut short while it was being sent")
