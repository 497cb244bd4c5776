"""Compressed streams that can only be read from front to back: gzip (RFC 1952), Zstandard (RFC 8878).

Both may be several members or frames one after the other; what is cut short, or has something else behind its end, is
refused (zlib and gzip accept the latter silently). Zstandard is the standard library's from Python 3.14 on, and before
that its backport, which is the same code and interface. Windows above 128 MiB (`zstd --long=28` and more) are refused:
so much memory is not given to a stranger's file.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from netbootd.errors import FormatError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"

_FEED = 128 << 10
_CHUNK = 1 << 20
_WINDOW_LOG = 27
_SMALL = 4096  # bytes: a member that yields less is counted,
_SMALL_MEMBERS = 10_000  # and so many of them are no image


class Decoder(Protocol):
    """What the standard library's decompressors have in common."""

    @property
    def eof(self) -> bool:
        """The member's end was reached."""

    @property
    def needs_input(self) -> bool:
        """No more comes out before more goes in."""

    @property
    def unused_data(self) -> bytes:
        """What was given behind the member's end."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most `max_length` bytes of what `data` and all before it yield."""


class _Gzip:
    """zlib's decoder with the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _zstd() -> Any:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


def gunzip(read: Callable[[int], bytes]) -> Iterator[tuple[int, bytes]]:
    """Decode gzip; see `_members`. Zeros behind the last member are padding, as for gzip itself."""
    return _members(read, _Gzip, "gzip", lambda rest: rest[:1] == b"\x00" and not any(rest))


def unzstd(read: Callable[[int], bytes]) -> Iterator[tuple[int, bytes]]:
    """Decode Zstandard, skippable frames included; see `_members`."""
    return _members(read, _zstd, "zstd", lambda _: False)


def _members(
    read: Callable[[int], bytes], new: Callable[[], Decoder], name: str, padding: Callable[[bytes], bool]
) -> Iterator[tuple[int, bytes]]:
    """Tell (compressed bytes read for it, decoded bytes) a piece, until all members are decoded.

    :param read: like a file's `read`: up to so many bytes, empty at the end
    :param padding: whether a rest behind a member is padding up to the file's end
    :raises FormatError: cut short, damaged, something behind the end, or a window that is too large
    """
    decoder, produced, small = new(), 0, 0
    data = read(_FEED)
    taken = len(data)
    try:
        while True:
            output = decoder.decompress(data, _CHUNK)
            data = b""
            if output or taken:
                yield taken, output
            produced, taken = produced + len(output), 0
            if decoder.eof:
                data = decoder.unused_data
                if not data:
                    data = read(_FEED)
                    taken = len(data)
                if not data:
                    return
                if padding(data):
                    while data := read(_FEED):
                        if not padding(data):
                            raise _broken(name, "there is something behind its end")
                    return
                small += produced < _SMALL
                if small > _SMALL_MEMBERS:
                    raise _broken(name, "it is split into absurdly many parts")
                decoder, produced = new(), 0
            elif decoder.needs_input:
                data = read(_FEED)
                taken = len(data)
                if not data:
                    raise _broken(name, "it is cut short")
    except (zlib.error, zstd.ZstdError) as error:
        raise _broken(name, str(error)) from error


def _broken(name: str, why: str) -> FormatError:
    return FormatError(f"Decompressing {name}: {why}.", hint="The archive is damaged; fetch it again.")
