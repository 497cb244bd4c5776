"""The answer to (node, path): bytes with a size, a date and an origin, and where they are read from.

`ByteSource` is fbtftp's data-source contract (``fbtftp.base_handler.ResponseData``: read, size, close), which TFTP,
HTTP and the tests share.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from netbootd.model.event import Stage

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class BootPath(str):
    """A normalised relative path below a node's boot folder: no empty, ``.`` or ``..`` parts, no NUL, no leading slash.

    It is looked up name by name in the layers, never joined to a folder's string.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> BootPath:
        """Normalise what a client asked for: backslashes become slashes, empty and ``.`` parts are dropped.

        :raises ValueError: a ``..`` part, a control character, or nothing left
        """
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts or ".." in parts or _CONTROL.search(text):
            raise ValueError(f"not a path of a boot file: {text!r}")
        return cls("/".join(parts))


class ByteSource(Protocol):
    """Bytes of a known size, read once from front to back."""

    def read(self, n: int, /) -> bytes:
        """Up to `n` bytes; ``b""`` at the end."""

    def size(self) -> int:
        """The whole size in bytes, known before the first read."""

    def close(self) -> None:
        """Free what is held. May be called twice."""


class MemorySource:
    """A `ByteSource` over bytes in memory; servers may send `data` directly."""

    __slots__ = ("_stream", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._stream = io.BytesIO(data)

    def read(self, n: int, /) -> bytes:
        """See `ByteSource`."""
        return self._stream.read(n)

    def size(self) -> int:
        """See `ByteSource`."""
        return len(self.data)

    def close(self) -> None:
        """See `ByteSource`."""


class FileSource:
    """A `ByteSource` over an open regular file; servers may use `fileno()` for sendfile or mmap.

    It owns the descriptor. The size is that of the moment it was opened: if the file is cut short underneath, `read`
    ends early and the server has to treat that as a failure.
    """

    __slots__ = ("_fd", "_position", "_size")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._position = 0

    def fileno(self) -> int:
        """The open descriptor, valid until `close`."""
        return self._fd

    def read(self, n: int, /) -> bytes:
        """See `ByteSource`."""
        data = os.pread(self._fd, min(n, self._size - self._position), self._position)
        self._position += len(data)
        return data

    def size(self) -> int:
        """See `ByteSource`."""
        return self._size

    def close(self) -> None:
        """See `ByteSource`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class Resource:
    """A file as one node gets it.

    `size` is known before the first byte. `etag` is a digest of what the bytes depend on. `origin` names the layer
    (``rendered``, ``node``, ``defaults``, ``image``) and `detail` the file or inputs behind it, for people. `stage` is
    the stage that is reached when the file has been sent whole.
    """

    path: BootPath
    size: int
    mtime_ns: int
    etag: str
    origin: str
    detail: str
    stage: Stage
    open: Callable[[], ByteSource]
