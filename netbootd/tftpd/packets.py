"""TFTP packets to values and back: RFC 1350 (requests, DATA, ACK, ERROR) and RFC 2347 (option pairs, OACK).

Left out: WRQ beyond its head (we never accept one) and DATA that a client would send. Numbers are those of
`fbtftp.constants`; a test compares them, because codecs here import nothing but values.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

DEFAULT_BLKSIZE = 512
"""Octets of a full block where no blksize was agreed (RFC 1350 section 2)."""

MAX_REQUEST = 2048
"""Longest request that is read: RFC 2347 allows 512 octets, real ones stay far below."""

MAX_MESSAGE = 400
"""Longest text of an ERROR that we send, in octets."""


class Opcode(enum.IntEnum):
    """The six packet types."""

    RRQ = 1
    WRQ = 2
    DATA = 3
    ACK = 4
    ERROR = 5
    OACK = 6


class ErrorCode(enum.IntEnum):
    """The error codes of RFC 1350 and, last, RFC 2347."""

    UNDEFINED = 0
    FILE_NOT_FOUND = 1
    ACCESS_VIOLATION = 2
    DISK_FULL = 3
    ILLEGAL_OPERATION = 4
    UNKNOWN_TRANSFER_ID = 5
    FILE_EXISTS = 6
    NO_SUCH_USER = 7
    INVALID_OPTIONS = 8


class PacketError(ValueError):
    """A datagram that is no TFTP packet; the text is fit for the ERROR that answers it."""


class Mode(enum.StrEnum):
    """How the bytes of a file travel. RFC 1350's ``mail`` is obsolete and not here."""

    OCTET = "octet"
    NETASCII = "netascii"


_DATA = int(Opcode.DATA) << 16
_REQUESTS = {b"\0\1": Opcode.RRQ, b"\0\2": Opcode.WRQ}
_MODES = {mode.encode(): mode for mode in Mode}


@dataclass(frozen=True, slots=True)
class Request:
    """An RRQ or WRQ. `filename` as sent; `options` keep their order, names as sent, the first of equals only."""

    opcode: Opcode
    filename: bytes
    mode: Mode
    options: dict[str, str] = field(default_factory=dict)


def opcode_of(data: bytes) -> int:
    """The number of the packet type, which may be none of `Opcode`; 0 for a datagram too short to have one."""
    return int.from_bytes(data[:2], "big") if len(data) >= 2 else 0


def parse_request(data: bytes) -> Request:
    """Read an RRQ or WRQ with its options.

    :raises PacketError: it is neither, a string lacks its NUL, the mode is unknown, an option has no value
    """
    opcode = _REQUESTS.get(data[:2])
    if opcode is None:
        raise PacketError("not a request")
    if len(data) > MAX_REQUEST or not data.endswith(b"\0"):
        raise PacketError("malformed request")
    filename, *rest = data[2:-1].split(b"\0")
    if not rest:
        raise PacketError("request without a mode")
    mode = _MODES.get(rest[0].lower())
    if mode is None:
        raise PacketError("unknown transfer mode")
    pairs = rest[1:]
    if len(pairs) % 2 and not pairs[-1]:
        pairs.pop()  # firmware that pads its request with zeros
    if len(pairs) % 2:
        raise PacketError("option without a value")
    options: dict[str, str] = {}
    seen = set()
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        text = name.decode("latin-1")
        if text.lower() not in seen:
            seen.add(text.lower())
            options[text] = value.decode("latin-1")
    return Request(opcode, filename, mode, options)


def header(block: int) -> bytes:
    """The first four octets of DATA; the number of `block` (counted from 1) rolls over to 0 after 65,535."""
    return (_DATA | block & 0xFFFF).to_bytes(4, "big")


def encode_oack(options: dict[str, str]) -> bytes:
    """An OACK that accepts `options`."""
    return Opcode.OACK.to_bytes(2, "big") + b"".join(
        text.encode("latin-1") + b"\0" for pair in options.items() for text in pair
    )


def encode_error(code: ErrorCode, message: str) -> bytes:
    """An ERROR; what the message has beyond ASCII becomes question marks."""
    text = message.encode("ascii", "replace").replace(b"\0", b"?")[:MAX_MESSAGE]
    return Opcode.ERROR.to_bytes(2, "big") + code.to_bytes(2, "big") + text + b"\0"


def decode_error(data: bytes) -> tuple[int, str]:
    """Code and text of an ERROR; a truncated one is code 0 without text. The text is printable ASCII."""
    text = data[4:].partition(b"\0")[0][:MAX_MESSAGE].decode("ascii", "replace")
    code = int.from_bytes(data[2:4], "big") if len(data) >= 4 else 0
    return code, "".join(c if c.isprintable() else "?" for c in text)
