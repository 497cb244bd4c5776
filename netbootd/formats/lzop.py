"""Decodes what lzop(1) writes, as far as the kernel reads it.

After lib/decompress_unlzo.c (the container: a header, then blocks of at most 256 KiB with one checksum each, a size of
zero at the end) and Documentation/staging/lzo.rst (LZO1X). Left out: the checksums, which the kernel doesn't look at
either, and lzo-rle, which lzop doesn't write. No well-kept Python library has wheels for it.
"""

from __future__ import annotations

import struct

MAGIC = b"\x89LZO\0\r\n\x1a\n"

_BLOCK = 256 << 10
_NEW = 0x0940
_HAS_FILTER = 0x800


class LzopDecoder:
    """Works as the standard library's decompressors do, but for the size of what it returns: a block, not less."""

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self._held = bytearray()
        self._begun = False
        self._starved = True

    @property
    def needs_input(self) -> bool:
        """Whether the next block isn't there as a whole."""
        return self._starved and not self.eof

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """What the next whole block comes to, at most 256 KiB; empty where none is there yet.

        :raises ValueError: it is broken
        """
        self._held += data
        self._starved = False
        if not self._begun:
            size = _header(self._held)
            self._starved = size == 0
            self._begun = size > 0
            del self._held[:size]
            return b""
        if len(self._held) >= 4 and not any(self._held[:4]):
            self.eof = True
            self.unused_data = bytes(self._held[4:])
            self._held.clear()
            return b""
        if len(self._held) < 12:
            self._starved = True
            return b""
        plain, packed = struct.unpack_from(">II", self._held)
        if not 0 < packed <= plain <= _BLOCK:
            raise ValueError(f"a block of {packed} bytes for {plain}")
        if len(self._held) < 12 + packed:
            self._starved = True
            return b""
        block = bytes(self._held[12 : 12 + packed])
        del self._held[: 12 + packed]
        return block if packed == plain else decode(block, plain)

    def at_end_of_input(self) -> bool:
        """Tell that nothing follows; whether the file ends there well: only behind its mark."""
        return self.eof


def _header(data: bytearray) -> int:
    """The size of the header; 0 where it isn't there as a whole."""
    if not MAGIC.startswith(data[: len(MAGIC)]):
        raise ValueError("no lzop header")
    if len(data) < 64 + 255:  # more than the longest; a file that is shorter has nothing in it
        return 0 if len(data) < 33 else _header_size(data)
    return _header_size(data)


def _header_size(data: bytearray) -> int:
    (version,) = struct.unpack_from(">H", data, 9)
    at = 16 + (version >= _NEW)  # versions of lzop, of its library, the one needed; method; level
    (flags,) = struct.unpack_from(">I", data, at)
    at += 8 if flags & _HAS_FILTER else 4
    at += 12 if version >= _NEW else 8  # mode and times
    size = at + 1 + data[at] + 4 if at < len(data) else len(data) + 1  # name and checksum
    return size if size <= len(data) else 0


def decode(data: bytes, size: int) -> bytes:
    """Decode one LZO1X block.

    :param size: of what it comes to, in bytes
    :raises ValueError: it is broken, or comes to another size
    """
    try:
        out = _decode(data, size)
    except IndexError:
        raise ValueError("an LZO block that is cut short") from None
    if len(out) != size:
        raise ValueError(f"an LZO block of {len(out)} bytes instead of {size}")
    return bytes(out)


def _decode(data: bytes, size: int) -> bytearray:
    out = bytearray()
    at = state = 0  # state: the literals that came last, 4 for more than 3
    if data[0] > 17:
        run = data[0] - 17
        at, state = 1 + run, min(run, 4)
        out += _literals(data, 1, run)
    while len(out) <= size:
        code = data[at]
        at += 1
        if code < 16 and state == 0:
            run, at = _length(data, at, code, 15)
            out += _literals(data, at, run + 3)
            at, state = at + run + 3, 4
            continue
        if code >= 64:
            length = (code >> 5) + 1
            distance, state = (data[at] << 3) + (code >> 2 & 7) + 1, code & 3
            at += 1
        elif code >= 16:
            length, at = _length(data, at, code & (31 if code >= 32 else 7), 31 if code >= 32 else 7)
            length += 2
            pair = data[at] | data[at + 1] << 8
            at, state = at + 2, pair & 3
            distance = (pair >> 2) + 1
            if code < 32:
                distance += 16383 + ((code & 8) << 11)
                if distance == 16384:
                    return out
        else:
            length = 2 if state < 4 else 3
            distance = (data[at] << 2) + (code >> 2) + (1 if state < 4 else 2049)
            at, state = at + 1, code & 3
        if distance > len(out) or len(out) + length > size:
            raise ValueError("an LZO block that points outside of itself")
        start = len(out) - distance
        if distance >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // distance + 1))[:length]
        out += _literals(data, at, state)
        at += state
    raise ValueError("an LZO block that comes to more than it says")


def _length(data: bytes, at: int, value: int, all_ones: int) -> tuple[int, int]:
    """A length that may go on in the bytes that follow, and where to read on."""
    if value:
        return value, at
    value = all_ones
    while data[at] == 0:
        value += 255
        at += 1
    return value + data[at], at + 1


def _literals(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise IndexError(at)
    return data[at : at + count]
