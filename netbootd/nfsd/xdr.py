"""External Data Representation (RFC 4506), as much as RPC, NFSv3, MOUNT and the port mapper use.

`Reader` walks over the bytes of one record and refuses whatever leaves it; the functions make bytes. Left out: floats,
enumerations (plain u32 here) and unions, which the procedures decode by hand.
"""

from __future__ import annotations

import struct

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")

TRUE = b"\0\0\0\1"
FALSE = b"\0\0\0\0"


class XdrError(ValueError):
    """The bytes are not what the procedure's arguments should be."""


class Reader:
    """A cursor over `data` from `position` on. Every method raises `XdrError` where the bytes end too early."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def u32(self) -> int:
        """An unsigned 32-bit number."""
        try:
            value: int = _U32.unpack_from(self.data, self.position)[0]
        except struct.error as error:
            raise XdrError("the record ends inside a number") from error
        self.position += 4
        return value

    def u64(self) -> int:
        """An unsigned 64-bit number (XDR's unsigned hyper)."""
        try:
            value: int = _U64.unpack_from(self.data, self.position)[0]
        except struct.error as error:
            raise XdrError("the record ends inside a number") from error
        self.position += 8
        return value

    def boolean(self) -> bool:
        """True or False; other values than 1 and 0 are refused."""
        value = self.u32()
        if value > 1:
            raise XdrError(f"not a boolean: {value}")
        return value == 1

    def fixed(self, length: int) -> bytes:
        """Opaque data of a fixed length, and its padding."""
        start = self.position
        end = start + length
        if end + (-length & 3) > len(self.data):
            raise XdrError("the record ends inside opaque data")
        self.position = end + (-length & 3)
        return self.data[start:end]

    def opaque(self, limit: int) -> bytes:
        """Opaque data or a string with its length before it, at most `limit` bytes."""
        length = self.u32()
        if length > limit:
            raise XdrError(f"opaque data of {length} bytes, at most {limit} are allowed")
        return self.fixed(length)


def u32(value: int) -> bytes:
    """An unsigned 32-bit number."""
    return _U32.pack(value)


def u64(value: int) -> bytes:
    """An unsigned 64-bit number."""
    return _U64.pack(value)


def opaque(data: bytes) -> bytes:
    """Opaque data or a string: length, bytes, padding."""
    return _U32.pack(len(data)) + data + _PADDING[len(data) & 3]


def padding(length: int) -> bytes:
    """The zero bytes that follow `length` bytes of opaque data."""
    return _PADDING[length & 3]
