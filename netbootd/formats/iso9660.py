"""Reads files of an ISO 9660 image where they lie, without a mount (ECMA-119; names by Rock Ridge or Joliet).

pycdlib reads the directories, all of them when it opens an image; so what it may read is bounded here, and with it the
memory and the time that a hostile image can cost. A file's bytes are not copied: its extent times 2048 is where it
begins in the image, and callers read or clone them from there.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pycdlib

from netbootd.errors import FormatError
from netbootd.formats.window import Window

SECTOR = 2048
_DIRECTORIES_LIMIT = 4 << 20
"""Bytes that pycdlib may read of an image: 30,000 names, where an installation medium has a few thousand."""

_BEYOND = (1 << 32) * SECTOR + (1 << 32)  # extents and lengths have 32 bits

_MAGIC_AT = 16 * SECTOR + 1
_MAGIC = b"CD001"
_DAMAGED = "The image is damaged or not what it says; fetch it again."


@dataclass(frozen=True, slots=True)
class IsoFile:
    """A regular file: its path without a leading slash, and where its bytes lie in the image."""

    path: str
    offset: int
    size: int


def is_iso9660(window: Window) -> bool:
    """Whether a volume descriptor says so (ECMA-119 section 8.1)."""
    return window.size > _MAGIC_AT + len(_MAGIC) and window.read(_MAGIC_AT, len(_MAGIC)) == _MAGIC


class Iso9660:
    """An ISO image, open; use it as a context manager.

    :raises FormatError: it is none, broken, or has more directories than an installation medium
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        if not is_iso9660(window):
            raise FormatError("Reading an ISO image: it has no ISO 9660 volume descriptor.", hint=_DAMAGED)
        self._iso = pycdlib.PyCdlib()
        try:
            self._iso.open_fp(cast(BinaryIO, _Bounded(window)))
            rock_ridge, joliet = self._iso.has_rock_ridge(), self._iso.has_joliet()
            size = self._iso.pvd.space_size * SECTOR
            self._names = "rr_path" if rock_ridge else "joliet_path" if joliet else "iso_path"
        except FormatError:
            raise
        except (
            Exception
        ) as error:  # a library for tools meets hostile bytes here: whatever it trips over is their fault
            raise _broken(error) from error
        if size > window.size:
            raise FormatError(
                f"Reading an ISO image: it has {window.size} of its {size} bytes.",
                hint="The image is truncated; fetch it again.",
            )

    def __enter__(self) -> Iso9660:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the directories. The descriptor stays the caller's."""
        try:
            self._iso.close()
        except Exception as error:
            raise _broken(error) from error

    def files(self, folder: str) -> dict[str, IsoFile]:
        """The regular files of a folder by name, in the image's order; none where there is no such folder.

        :param folder: its path without slashes at its ends, "" for the root
        :raises FormatError: the directory is broken, or a file leaves the image
        """
        found = {}
        for name, record in self._children(folder):
            if name and not record.is_dir() and not record.is_symlink():
                found[name] = self._file(f"{folder}/{name}".lstrip("/"), record)
        return found

    def read(self, file: IsoFile, limit: int) -> bytes:
        """The bytes of a small file.

        :raises FormatError: it is larger than `limit`
        """
        if file.size > limit:
            raise FormatError(f"Reading an ISO image: its {file.path} has {file.size} bytes, {limit} at most can be.")
        return self._window.read(file.offset, file.size)

    def _children(self, folder: str) -> Iterator[tuple[str, Any]]:
        path = "/" + (folder.upper() if self._names == "iso_path" else folder)
        try:
            for record in self._iso.list_children(**{self._names: path}):
                if record is not None and not record.is_dot() and not record.is_dotdot():
                    yield self._name(record), record
        except pycdlib.pycdlibexception.PyCdlibInvalidInput:
            return  # no such folder
        except FormatError:
            raise
        except Exception as error:
            raise _broken(error) from error

    def _name(self, record: Any) -> str:
        """The record's name as people know it; "" where that can't be a file's."""
        if self._names == "rr_path":
            name = record.rock_ridge.name().decode("utf-8", "replace") if record.rock_ridge else ""
        elif self._names == "joliet_path":
            name = record.file_identifier().decode("utf-16-be", "replace").partition(";")[0]
        else:
            name = record.file_identifier().decode("ascii", "replace").partition(";")[0].rstrip(".").lower()
        return "" if "/" in name or "\0" in name or name in (".", "..") else name

    def _file(self, path: str, record: Any) -> IsoFile:
        offset, size = record.extent_location() * SECTOR, record.data_length
        if record.data_continuation is not None:
            raise FormatError(f"Reading an ISO image: its {path} lies in several pieces, which is not supported.")
        if size and offset + size > self._window.size:
            raise FormatError(
                f"Reading an ISO image: its {path} ends at {offset + size}, beyond its {self._window.size} bytes.",
                hint="The image is truncated; fetch it again.",
            )
        return IsoFile(path, offset, size)


def _broken(error: Exception) -> FormatError:
    detail = " ".join(str(error).split())[:200] or type(error).__name__
    return FormatError(f"Reading an ISO image: it is broken ({detail}).", hint=_DAMAGED)


class _Bounded(io.RawIOBase):
    """The file that pycdlib reads: the window, and no more of it than an installation medium's directories have.

    Its end is said to be where no ISO's is: pycdlib would shorten the files that leave the image without a word.
    """

    mode = "rb"

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window
        self._at = 0
        self._left = _DIRECTORIES_LIMIT

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, _BEYOND)[whence]
        if base + offset < 0:
            raise FormatError("Reading an ISO image: something of it lies before its beginning.", hint=_DAMAGED)
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        there = max(0, self._window.size - self._at)
        size = there if size < 0 else min(size, there)
        self._left -= size
        if self._left < 0:
            raise FormatError(
                f"Reading an ISO image: its directories have more than {_DIRECTORIES_LIMIT >> 20} MiB.", hint=_DAMAGED
            )
        data = self._window.read(self._at, size) if size else b""
        self._at += size
        return data
