"""The .xz container, block by block (tukaani.org/xz/xz-file-format.txt 1.2.1).

The index at the end of each stream tells where every block lies and what it yields, so blocks are decoded in parallel:
liblzma works without the interpreter's lock. Each block is handed to liblzma as a stream of its own, with the header of
its stream before it and an index of one record behind it: liblzma then checks the block's header, its sizes and its
check as in any stream, and no filter chain is interpreted here. Being read from the end, a file that is cut short or
has something behind it is refused before any work is done; the standard library accepts both.

Left out: .lzma, filters that liblzma does not know, and checks other than CRC32, CRC64, SHA-256.
"""

from __future__ import annotations

import lzma
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from netbootd.errors import FormatError

MAGIC = b"\xfd7zXZ\x00"
MEMORY = 256 << 20
"""Bytes that all decoders together may use: `xz -9` needs 65 MiB a thread."""

_FOOTER = b"YZ"
_CHECKS = (0, 1, 4, 10)  # none, CRC32, CRC64, SHA-256
_STREAMS = 1 << 14
_BLOCKS = 1 << 18
_FEED = 256 << 10
_CHUNK = 1 << 20
_HINT = "The archive is damaged; fetch it again."

Read = Callable[[int, int], bytes]
"""(offset, length) to exactly that many bytes of the archive."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block: `length` bytes (without padding) at `offset` of the archive become `size` bytes at `start`."""

    offset: int
    length: int
    start: int
    size: int
    flags: bytes


def blocks(read: Read, size: int) -> list[Block]:
    """All blocks of a file of `size` bytes, in order, from the indexes of its streams.

    :raises FormatError: cut short, damaged, or with something other than padding behind a stream
    """
    if size % 4 or size < 32:
        raise _broken("it is cut short or has something behind its end")
    streams: list[list[tuple[int, int, int, bytes]]] = []
    end = size
    count = 0
    while end > 0:
        end = _skip_padding(read, end)
        start, found = _stream(read, end)
        count += len(found)
        streams.append(found)
        if len(streams) > _STREAMS or count > _BLOCKS:
            raise _broken("it is split into absurdly many parts")
        end = start
    result: list[Block] = []
    position = 0
    for found in reversed(streams):
        for offset, length, uncompressed, flags in found:
            result.append(Block(offset, length, position, uncompressed, flags))
            position += uncompressed
    return result


def memory_needed(read: Read, found: list[Block]) -> int:
    """Bytes that decoding the hungriest block takes: its LZMA2 dictionary and a little."""
    largest = 0
    for block in found:
        largest = max(largest, _dictionary(read(block.offset, min(block.length, 1024))))
    return largest + (1 << 20)


def decode(read: Read, block: Block, write: Callable[[int, bytes], None], stop: threading.Event) -> Iterator[int]:
    """Decode one block, give it to `write` (position in the image, bytes), and tell the bytes of each piece.

    :raises FormatError: the block is damaged, or is not what the index says
    """
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    feed = _as_stream(read, block)
    position, end = block.start, block.start + block.size
    try:
        while not decoder.eof and not stop.is_set():
            piece = next(feed, b"") if decoder.needs_input else b""
            if decoder.needs_input and not piece:
                break
            data = decoder.decompress(piece, _CHUNK)
            if position + len(data) > end:
                break
            if data:
                write(position, data)
                position += len(data)
                yield len(data)
    except lzma.LZMAError as error:
        raise _broken(f"{error} (in the block at {block.offset})") from error
    if not stop.is_set() and (not decoder.eof or decoder.unused_data or position != end):
        raise _broken(f"the block at {block.offset} is not what the index says")


def _as_stream(read: Read, block: Block) -> Iterator[bytes]:
    """The block as a whole stream, in pieces: header, block with padding, index of one record, footer."""
    checked = block.flags + zlib.crc32(block.flags).to_bytes(4, "little")
    padded = -(-block.length // 4) * 4
    head = MAGIC + checked
    for at in range(0, padded, _FEED):
        yield head + read(block.offset + at, min(_FEED, padded - at))
        head = b""
    index = b"\x00\x01" + _varint_bytes(block.length) + _varint_bytes(block.size)
    index += bytes(-len(index) % 4)
    index += zlib.crc32(index).to_bytes(4, "little")
    tail = (len(index) // 4 - 1).to_bytes(4, "little") + block.flags
    yield index + zlib.crc32(tail).to_bytes(4, "little") + tail + _FOOTER


def _skip_padding(read: Read, end: int) -> int:
    """The end of the last stream before `end`: padding is zeros, a multiple of four bytes (section 2.2)."""
    while end > 0:
        length = min(end, 1 << 16)
        tail = read(end - length, length).rstrip(b"\x00")
        if tail:
            return end - (length - len(tail)) // 4 * 4
        end -= length
    raise _broken("a stream is missing before its padding")


def _stream(read: Read, end: int) -> tuple[int, list[tuple[int, int, int, bytes]]]:
    """Where the stream that ends at `end` begins, and its blocks: (offset, length, uncompressed size, flags)."""
    if end < 32:
        raise _broken("it is cut short")
    footer = read(end - 12, 12)
    if footer[10:] != _FOOTER or zlib.crc32(footer[4:10]) != int.from_bytes(footer[:4], "little"):
        raise _broken("it is cut short or has something behind its end")
    flags = footer[8:10]
    if flags[0] or flags[1] not in _CHECKS:
        raise _broken("it uses a check that is not supported")
    index_size = (int.from_bytes(footer[4:8], "little") + 1) * 4
    index_start = end - 12 - index_size
    if index_start < 12 or index_size > 20 * _BLOCKS:
        raise _broken("its index has an impossible size")
    records = _index(read(index_start, index_size))
    start = index_start - sum(-(-length // 4) * 4 for length, _ in records) - 12
    if start < 0 or read(start, 12) != MAGIC + flags + zlib.crc32(flags).to_bytes(4, "little"):
        raise _broken("its index does not fit its length")
    found, offset = [], start + 12
    for length, uncompressed in records:
        found.append((offset, length, uncompressed, flags))
        offset += -(-length // 4) * 4
    return start, found


def _index(data: bytes) -> list[tuple[int, int]]:
    """The records of an index (section 4): (unpadded size, uncompressed size) a block."""
    if data[0] != 0 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise _broken("its index is damaged")
    count, at = _varint(data, 1)
    if count > _BLOCKS:
        raise _broken("it is split into absurdly many parts")
    records = []
    for _ in range(count):
        length, at = _varint(data, at)
        uncompressed, at = _varint(data, at)
        if length < 5:
            raise _broken("its index is damaged")
        records.append((length, uncompressed))
    if len(data) - 4 - at > 3 or any(data[at:-4]):
        raise _broken("its index is damaged")
    return records


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte (section 1.2), and where it ends."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise _broken("a number in it is damaged")


def _varint_bytes(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _dictionary(head: bytes) -> int:
    """The LZMA2 dictionary that a block header (section 3.1) asks for; 0 where it can't be told."""
    try:
        at = 2
        for bit in (0x40, 0x80):
            if head[1] & bit:
                _, at = _varint(head, at)
        for _ in range((head[1] & 3) + 1):
            ident, at = _varint(head, at)
            length, at = _varint(head, at)
            if ident == 0x21 and length == 1:
                bits = head[at] & 0x3F
                return (2 | bits & 1) << (bits // 2 + 11)
            at += length
    except (IndexError, FormatError):
        return 0  # the decoder says what is wrong with it
    return 0


def _broken(why: str) -> FormatError:
    return FormatError(f"Decompressing xz: {why}.", hint=_HINT)
