"""Layers of boot files: folders that are looked into name by name, so that no path can lead out of them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from netbootd.errors import NotFoundError
from netbootd.model.event import Stage
from netbootd.model.resource import BootPath, ByteSource, FileSource, Resource

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Folder:
    """One layer. `origin` is its name in events and explanations.

    Symbolic links are followed only where they stay below the folder; anything but a regular file is not there.
    """

    path: Path
    origin: str

    def find(self, path: BootPath, stage: Stage) -> Resource | None:
        """The file of that name, None where there is none."""
        fd = self._open(path)
        if fd is None:
            return None
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return Resource(
            path=path,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            etag=f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}",
            origin=self.origin,
            detail=str(self.path / path),
            stage=stage,
            open=partial(self.open, path),
        )

    def open(self, path: BootPath) -> ByteSource:
        """The bytes of a file that `find` has found.

        :raises NotFoundError: it has gone since
        """
        fd = self._open(path)
        if fd is None:
            raise NotFoundError(f"{path} has gone from {self.path}.")
        return FileSource(fd)

    def read(self, path: str) -> bytes | None:
        """The whole of a small file, None where there is none."""
        fd = self._open(BootPath.parse(path))
        if fd is None:
            return None
        source = FileSource(fd)
        try:
            return source.read(source.size())
        finally:
            source.close()

    def files(self) -> Iterator[str]:
        """Every regular file's path below the folder, sorted."""
        for base, folders, names in os.walk(self.path):
            folders.sort()
            for name in sorted(names):
                full = Path(base, name)
                if full.is_file():
                    yield str(full.relative_to(self.path))

    def _open(self, path: BootPath) -> int | None:
        # Most of what firmware asks for isn't there. Where the whole name leads nowhere, no careful way does either.
        # (access(2) by effective ids: else it does not count the capabilities that open(2) does.)
        if not os.access(f"{self.path}/{path}", os.F_OK, effective_ids=True):
            return None
        try:
            fd = _open_beneath(self.path, path)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR) or (real := self._follow(path)) is None:
                return None
            try:
                fd = _open_beneath(self.path, real)
            except OSError:
                return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return fd

    def _follow(self, path: BootPath) -> BootPath | None:
        """Where symbolic links lead, None unless that is another file of this folder."""
        try:
            folder = self.path.resolve(strict=True)
            real = (folder / path).resolve(strict=True).relative_to(folder)
            return BootPath.parse(str(real)) if str(real) != str(path) else None
        except (OSError, ValueError, RuntimeError):
            return None


def _open_beneath(folder: Path, path: str) -> int:
    """A descriptor of `path` below `folder`; no component of it is followed through a link.

    :raises OSError: ELOOP or ENOTDIR where a component is a link, else as open(2)
    """
    *parents, name = path.split("/")
    if ".." in path.split("/"):  # a BootPath has none; nobody else's may climb out either
        raise FileNotFoundError(errno.ENOENT, "not below the folder", path)
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            below = os.open(part, _FOLDER, dir_fd=here)
            os.close(here)
            here = below
        return os.open(name, _FILE, dir_fd=here)
    finally:
        os.close(here)
