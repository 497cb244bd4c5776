"""Where the bytes of a transfer come from: fbtftp's data-source contract, and what makes it fast and safe.

This is fbtftp's home here. Its ``ResponseData`` (read, size, close) is the contract that `netbootd.model.resource`
shares, so sources written for fbtftp can be served; its constants are the numbers of the errors on the wire; its
``NetasciiReader`` is the idea of `NetasciiSource`, which neither keeps the file in memory nor looks at single octets.

Small contents are read at once. Larger files are opened and mapped once for all clients that read the same file: who
asks for one block at a time is sent what `netbootd.tftpd.frames` reads, who asks for windows what is mapped. A mapped
file that is cut short would kill whoever touches the missing pages; here only the kernel does, inside sendmsg, and
that fails with EFAULT. Nothing in this program may look into a mapping. What can be neither held nor mapped is
streamed: read front to back, keeping one window.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable

from fbtftp import constants
from fbtftp.base_handler import ResponseData
from fbtftp.base_server import ServerStats

from netbootd.errors import BusyError, DeniedError, NetbootdError, NotFoundError
from netbootd.model.resource import ByteSource, FileSource, MemorySource, Resource
from netbootd.tftpd.frames import Frames
from netbootd.tftpd.packets import ErrorCode, Mode
from netbootd.tftpd.transfer import Buffer, Payload

__all__ = ["Contents", "NetasciiSource", "Opener", "ServerStats", "StreamedPayload", "refusal"]

MAPPED_FROM = 64 * 1024
"""Octets from which on a file is mapped and not read at once."""

_CHUNK = 64 * 1024
_REMEMBERED_SIZES = 256


def refusal(error: Exception) -> tuple[ErrorCode, str]:
    """The ERROR that tells a client of a failure, without a word about the server's folders."""
    match error:
        case NotFoundError() | FileNotFoundError():
            return ErrorCode(constants.ERR_FILE_NOT_FOUND), "file not found"
        case DeniedError() | PermissionError():
            return ErrorCode(constants.ERR_ACCESS_VIOLATION), "access denied"
        case BusyError():
            return ErrorCode(constants.ERR_UNDEFINED), "server is busy, try again"
        case _:
            return ErrorCode(constants.ERR_UNDEFINED), "server failure"


class NetasciiSource(ResponseData):  # type: ignore[misc, unused-ignore] # fbtftp has no types
    """A text file as netascii (RFC 764): LF becomes CR LF, CR becomes CR NUL. The size is that of the result.

    :param open_source: opens the untranslated file; called twice where the size is not known from before
    :param known_size: the result of `size` for the same file, counted earlier
    """

    def __init__(self, open_source: Callable[[], ByteSource], known_size: int | None = None) -> None:
        self._size = _netascii_size(open_source()) if known_size is None else known_size
        self._source = open_source()
        self._rest = bytearray()
        self._position = 0

    def read(self, n: int) -> bytes:
        """Up to `n` octets of the translation, never beyond `size`."""
        n = min(n, self._size - self._position)
        while len(self._rest) < n:
            data = self._source.read(_CHUNK)
            if not data:
                break
            self._rest += data.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")
        data = bytes(self._rest[:n])
        del self._rest[:n]
        self._position += len(data)
        return data

    def size(self) -> int:
        """Octets of the whole translation."""
        return self._size

    def close(self) -> None:
        """Close the file underneath."""
        self._source.close()


def _netascii_size(source: ByteSource) -> int:
    size = 0
    try:
        while data := source.read(_CHUNK):
            size += len(data) + data.count(b"\r") + data.count(b"\n")
    finally:
        source.close()
    return size


class StreamedPayload:
    """A source as a `Payload`: slices come front to back, and at most `keep` octets before the last end again.

    :raises EOFError: (by slicing) the source has fewer octets than it said
    """

    __slots__ = ("_data", "_keep", "_source", "_start", "size")

    def __init__(self, source: ByteSource, size: int, keep: int) -> None:
        self._source, self.size, self._keep = source, size, keep
        self._data = bytearray()
        self._start = 0

    def __getitem__(self, part: slice, /) -> Buffer:
        start, stop = part.start, min(part.stop, self.size)
        while self._start + len(self._data) < stop:
            data = self._source.read(max(_CHUNK, self._keep))
            if not data:
                raise EOFError("the source ended early")
            spare = start - self._keep - self._start
            if spare > _CHUNK:
                del self._data[:spare]
                self._start += spare
            self._data += data
        return bytes(self._data[start - self._start : stop - self._start])


class _Mapping:
    """A mapped file and how many transfers read it. The descriptor stays open to see whether the file changes."""

    __slots__ = ("_map", "_source", "key", "users", "view")

    def __init__(self, source: FileSource, key: tuple[int, ...], size: int) -> None:
        self._map = mmap.mmap(source.fileno(), size, prot=mmap.PROT_READ)
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_WILLNEED)
        self.view = memoryview(self._map)
        self._source = source
        self.key = key
        self.users = 0

    def fileno(self) -> int:
        """The descriptor, valid until `close`."""
        return self._source.fileno()

    def intact(self) -> bool:
        """Whether the file still has the size and date it was opened with. Being replaced or removed is no change."""
        return _key_of(self._source.fileno()) == self.key

    def close(self) -> None:
        self.view.release()
        try:
            self._map.close()
        except BufferError:
            pass  # a datagram that waits to be sent still points into it; it goes with that
        self._source.close()


def _key_of(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Contents:
    """What one transfer sends: `payload`, its `size`, whether it is still `intact`; `close` when done.

    :param fd: the descriptor of a large file; -1: there is none
    """

    __slots__ = ("_close", "_fd", "intact", "payload", "size")

    def __init__(
        self,
        payload: Payload,
        size: int,
        intact: Callable[[], bool] = lambda: True,
        close: Callable[[], None] = lambda: None,
        fd: int = -1,
    ) -> None:
        self.payload, self.size, self.intact, self._close = payload, size, intact, close
        self._fd = fd

    def frames(self, blksize: int) -> Frames | None:
        """The contents as packets, where they are a large file."""
        return Frames(self._fd, self.size, blksize) if self._fd >= 0 else None

    def close(self) -> None:
        """Free what is held. May be called twice."""
        close, self._close = self._close, lambda: None
        self.payload = b""
        close()


class Opener:
    """Opens resources for transfers, and shares mappings among them."""

    def __init__(self) -> None:
        self._mappings: dict[tuple[int, ...], _Mapping] = {}
        self._netascii_sizes: OrderedDict[tuple[str, str], int] = OrderedDict()

    def open(self, resource: Resource, mode: Mode, keep: int) -> Contents:
        """The contents of `resource` as `mode` wants them.

        :param keep: octets that may be asked for again once later ones were: a window
        :raises OSError: the file can't be opened or read
        :raises EOFError: it ended early
        """
        if mode is Mode.NETASCII:
            return self._held_or_streamed(self._netascii(resource), keep)
        source = resource.open()
        if isinstance(source, MemorySource):
            return Contents(source.data, len(source.data))
        if isinstance(source, FileSource) and source.size() >= MAPPED_FROM:
            try:
                return self._mapped(source)
            except (OSError, ValueError):
                pass  # a file system without mappings
        return self._held_or_streamed(source, keep)

    def _netascii(self, resource: Resource) -> ByteSource:
        key = (resource.detail, resource.etag)
        source = NetasciiSource(resource.open, self._netascii_sizes.get(key))
        self._netascii_sizes[key] = source.size()
        if len(self._netascii_sizes) > _REMEMBERED_SIZES:
            self._netascii_sizes.popitem(last=False)
        return source

    @staticmethod
    def _held_or_streamed(source: ByteSource, keep: int) -> Contents:
        size = source.size()
        if size > MAPPED_FROM:
            return Contents(StreamedPayload(source, size, keep), size, close=source.close)
        data = bytearray()
        try:
            while len(data) < size and (part := source.read(size - len(data))):
                data += part
        finally:
            source.close()
        if len(data) < size:
            raise EOFError("the source ended early")
        return Contents(bytes(data), size)

    def _mapped(self, source: FileSource) -> Contents:
        key = _key_of(source.fileno())
        mapping = self._mappings.get(key)
        if mapping is None:
            mapping = self._mappings[key] = _Mapping(source, key, key[2])
        else:
            source.close()
        mapping.users += 1

        def close() -> None:
            mapping.users -= 1
            if not mapping.users:
                if self._mappings.get(key) is mapping:
                    del self._mappings[key]
                mapping.close()

        return Contents(mapping.view, key[2], mapping.intact, close, mapping.fileno())


def reason(error: Exception) -> str:
    """What went wrong, for events and logs (not for the wire)."""
    return error.message if isinstance(error, NetbootdError) else f"{type(error).__name__}: {error}"
