"""What `netbootd serve` may ask of the privileged part, and the answers: JSON, one object a packet of a Unix socket.

Everything is checked here before it is looked at: a request has exactly the fields of its kind. None names a path: an
image and a generation are looked up among those that the state folder holds.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from netbootd.errors import BusyError, HostError, NetbootdError, NotFoundError, UsageError

LIMIT = 32768
"""Bytes of a request or answer."""
_MAX_ADDRESSES, _MAX_DEPTH, _MAX_NAME = 32, 64, 255
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_GENERATION = re.compile(r"[0-9a-f]{8,64}\Z")


@dataclass(frozen=True, slots=True)
class Start:
    """Serve on these addresses (text) and this port."""

    addresses: tuple[str, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Handle:
    """Give the file handle of a folder in a generation's root, for a client; `below`: names from the root to there."""

    image: str
    generation: str
    below: tuple[bytes, ...]
    address: str


@dataclass(frozen=True, slots=True)
class Register:
    """Tell the host's rpcbind that MOUNT is answered on this port."""

    mount_port: int


@dataclass(frozen=True, slots=True)
class Status:
    """Tell how things are."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Tell the addresses of clients with NFSv4 state."""


Request = Start | Handle | Register | Status | Clients
_KINDS: dict[str, type[Request]] = {
    "start": Start,
    "handle": Handle,
    "register": Register,
    "status": Status,
    "clients": Clients,
}
_ERRORS: dict[str, type[NetbootdError]] = {
    error.code: error for error in (HostError, NotFoundError, UsageError, BusyError)
}


def encode_request(request: Request) -> bytes:
    """The packet of a request."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(request, cls))
    fields: dict[str, Any] = asdict(request)
    if isinstance(request, Handle):
        fields["below"] = [name.hex() for name in request.below]
    return json.dumps({"do": kind, **fields}).encode()


def parse_request(packet: bytes) -> Request:
    """Read a request.

    :raises UsageError: it is none, or one of its fields is not what it should be
    """
    if len(packet) > LIMIT:
        raise UsageError("A request that is too long.")
    try:
        value = json.loads(packet)
    except (ValueError, RecursionError) as error:
        raise UsageError("A request that is no JSON.") from error
    if not isinstance(value, dict) or not isinstance(value.get("do"), str) or value["do"] not in _KINDS:
        raise UsageError("A request of no known kind.")
    kind = _KINDS[value.pop("do")]
    if set(value) != set(kind.__slots__):
        raise UsageError(f"A request {kind.__name__} with other fields than {', '.join(kind.__slots__) or 'none'}.")
    if kind is Start:
        addresses = _list(value["addresses"], _MAX_ADDRESSES, _address)
        if not addresses:
            raise UsageError("A request to serve nowhere.")
        return Start(tuple(addresses), _port(value["port"]))
    if kind is Register:
        return Register(_port(value["mount_port"]))
    if kind is Handle:
        return Handle(
            _matching(value["image"], _IMAGE),
            _matching(value["generation"], _GENERATION),
            tuple(_list(value["below"], _MAX_DEPTH, _name)),
            _address(value["address"]),
        )
    return Clients() if kind is Clients else Status()


def encode_answer(value: dict[str, Any]) -> bytes:
    """The packet of an answer."""
    return json.dumps({"answer": value}).encode()


def encode_error(error: NetbootdError) -> bytes:
    """The packet that tells of a failure."""
    return json.dumps({"error": error.code, "message": error.message, "hint": error.hint}).encode()


def parse_answer(packet: bytes) -> dict[str, Any]:
    """Read an answer.

    :raises NetbootdError: what the other side tells of, as it was raised there; or HostError: it is no answer
    """
    try:
        value = json.loads(packet)
        if "answer" in value:
            return dict(value["answer"])
        cls = _ERRORS.get(value["error"], HostError)
        error = cls(str(value["message"]), hint=str(value["hint"]))
    except (ValueError, TypeError, KeyError) as broken:
        raise HostError("The privileged part for NFS answers what is not understood.") from broken
    raise error


def _list(value: object, most: int, read: Callable[[object], Any]) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise UsageError("A field that is no list, or a list that is too long.")
    return [read(one) for one in value]


def _address(value: object) -> str:
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise UsageError("A field that is no IP address.") from None


def _port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1024 <= value <= 65535:
        raise UsageError("NFS and MOUNT take a port from 1024 to 65535 here.")
    return value


def _matching(value: object, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.match(value):
        raise UsageError("A field that can't be the name of an image or generation.")
    return value


def _name(value: object) -> bytes:
    try:
        name = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        name = b""
    if not 0 < len(name) <= _MAX_NAME or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise UsageError("A field that can't be the name of a folder.")
    return name
