"""Looks into an initramfs: any number of cpio archives one behind the other, each of them plain or compressed.

After init/initramfs.c: zeros between archives are padding, a compressed part ends where its decoder says so, and what
comes later overwrites what came before. Decoded is all that a kernel can be built to decode: gzip, bzip2, xz, lzma and
Zstandard (with the standard library, or its backport), lz4 (with python-lz4) and lzo.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from netbootd.errors import FormatError
from netbootd.formats import cpio, lz4legacy, lzop
from netbootd.formats.cpio import Member

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_FEED = 1 << 18
_CHUNK = 1 << 20
_SIZE_LIMIT = 1 << 30  # bytes of all parts together, packed and unpacked; the largest published have a third of it
_MEMBER_LIMIT = 300_000
_KEPT_LIMIT = 64 << 20  # bytes of names, links' targets and wanted content
_PART_LIMIT = 64
_MEMORY = 256 << 20
_DEPTH = 2


@dataclass(frozen=True, slots=True)
class Contents:
    """What an initramfs unpacks to: its entries by path, the last of each name.

    `unread` tells why something behind them could not be looked into; empty if all could.
    """

    members: Mapping[str, Member]
    unread: str = ""

    def resolve(self, path: str) -> str:
        """A path with its links followed, as a name of `members`; the path itself where it leads nowhere."""
        todo, done = path.strip("/").split("/")[::-1], list[str]()
        for _ in range(1000):
            if not todo:
                break
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            member = self.members.get("/".join([*done, part]))
            if member and member.mode & 0o170000 == 0o120000 and member.data is not None:
                target = member.data.decode("utf-8", "surrogateescape")
                if target.startswith("/"):
                    done = []
                todo += [name for name in target.split("/")[::-1] if name]
            else:
                done.append(part)
        return "/".join(done)

    def get(self, path: str) -> Member | None:
        """The entry at a path, links followed."""
        return self.members.get(self.resolve(path))

    def text(self, path: str) -> str:
        """The content that was kept of a file, as text; empty without."""
        member = self.get(path)
        return (member.data or b"").decode("utf-8", "surrogateescape") if member else ""

    def below(self, path: str) -> list[str]:
        """The paths of all entries below a folder, links followed."""
        folder = self.resolve(path) + "/"
        return [name for name in self.members if name.startswith(folder)]


def look(read: Callable[[int], bytes], wanted: Callable[[str, int], bool]) -> Contents:
    """Everything that an initramfs unpacks to.

    :param read: reads on in the file, at most so many bytes
    :param wanted: whether a file's content is to be kept, by name and size
    :raises FormatError: it is larger than any that can be booted
    """
    members: dict[str, Member] = {}
    unread = ""
    tally = _Tally()
    try:
        for member in _parts(_Source(read, tally), wanted, 0):
            tally.count(member)
            members[member.name] = member
    except _TooLargeError:
        raise
    except FormatError as error:
        unread = error.message
    return Contents(members, unread)


class _TooLargeError(FormatError):
    pass


class _Tally:
    """What all parts of one initramfs come to, whatever lies in whatever; a small file unpacks to much.

    :raises FormatError: from its methods, where that is too much
    """

    def __init__(self) -> None:
        self._bytes = self._members = self._kept = 0

    def add(self, size: int) -> None:
        """Count bytes that were read or unpacked."""
        self._bytes += size
        if self._bytes > _SIZE_LIMIT:
            raise _TooLargeError(f"Reading an initramfs: it has more than {_SIZE_LIMIT >> 20} MiB.")

    def count(self, member: Member) -> None:
        """Count an entry, which takes memory."""
        self._members += 1
        self._kept += len(member.name) + len(member.data or b"")
        if self._members > _MEMBER_LIMIT:
            raise _TooLargeError(f"Reading an initramfs: it has more than {_MEMBER_LIMIT} files.")
        if self._kept > _KEPT_LIMIT:
            raise _TooLargeError(f"Reading an initramfs: its names and links have more than {_KEPT_LIMIT >> 20} MiB.")


class _Source:
    """Bytes to be taken from the front, some of which can be given back."""

    def __init__(self, read: Callable[[int], bytes], tally: _Tally) -> None:
        self.tally = tally
        self._read = read
        self._held = bytearray()

    def take(self, size: int) -> bytes:
        while len(self._held) < size and (chunk := self._read(_FEED)):
            self.tally.add(len(chunk))
            self._held += chunk
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    def give_back(self, data: bytes) -> None:
        self._held[:0] = data

    def skip_zeros(self) -> None:
        while data := self.take(_FEED):
            rest = data.lstrip(b"\0")
            if rest:
                self.give_back(rest)
                return


def _parts(source: _Source, wanted: Callable[[str, int], bool], depth: int) -> Iterator[Member]:
    for _ in range(_PART_LIMIT):
        source.skip_zeros()
        start = source.take(6)
        if not start:
            return
        source.give_back(start)
        if start in cpio.MAGICS:
            yield from cpio.read(source.take, wanted)
            continue
        decoder = _decoder(start)
        if decoder is None or depth >= _DEPTH:
            raise FormatError(
                "Reading an initramfs: a part of it is no cpio archive and not compressed in a known way."
            )
        yield from _parts(_Source(_reader(source, decoder), source.tally), wanted, depth + 1)
    raise _TooLargeError(f"Reading an initramfs: it has more than {_PART_LIMIT} parts.")


def _decoder(start: bytes) -> Any:
    if start.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 27})
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    if start.startswith(b"\x5d\0\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY)
    if start.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    if start.startswith(lz4legacy.MAGIC):
        return lz4legacy.Lz4Decoder()
    if lzop.MAGIC.startswith(start):
        return lzop.LzopDecoder()
    return None


def _reader(source: _Source, decoder: Any) -> Callable[[int], bytes]:
    """Reads what a compressed part yields; what lies behind the part goes back to its source."""

    def feed() -> bytes:
        data = source.take(_FEED)
        if not data and not (isinstance(decoder, _NOT_PYTHONS) and decoder.at_end_of_input()):
            raise FormatError("Reading an initramfs: a compressed part of it is cut short.")
        return data

    def more(size: int) -> bytes:
        while not decoder.eof:
            if isinstance(decoder, _Zlib):
                data = decoder.unconsumed_tail or feed()
            else:
                data = feed() if decoder.needs_input else b""
            try:
                out = decoder.decompress(data, _CHUNK)
            except (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, ValueError, MemoryError) as error:
                raise FormatError(f"Reading an initramfs: a compressed part of it is broken ({error}).") from None
            if decoder.eof:
                source.give_back(decoder.unused_data)
            if out:
                return bytes(out)
        return b""

    return more


_Zlib = type(zlib.decompressobj())
_NOT_PYTHONS = (lz4legacy.Lz4Decoder, lzop.LzopDecoder)
