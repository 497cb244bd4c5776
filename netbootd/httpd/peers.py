"""The two ends of a request's connection, as plain IP addresses."""

from __future__ import annotations

from aiohttp import web


def peer_address(request: web.Request) -> str:
    """The peer's IP address, without a zone, an IPv4-mapped one as IPv4."""
    return _address(request, "peername")


def local_address(request: web.Request) -> str:
    """The address of ours that the peer asked."""
    return _address(request, "sockname")


def _address(request: web.Request, end: str) -> str:
    name = request.transport.get_extra_info(end) if request.transport else None
    text = str(name[0]) if name else ""
    return text.partition("%")[0].removeprefix("::ffff:")
