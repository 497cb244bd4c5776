"""The archives in ``downloads/``: which are there whole, what they are still good for, and what may go.

``downloads/<sha256>/<file name>`` is an archive whose digest was right when it got its name; beside it, or in a folder
named after an URL, lies what is unfinished. A folder is locked by who downloads into it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from netbootd.errors import BusyError, HostError
from netbootd.store.layout import NOT_FINISHED, Layout
from netbootd.store.locks import exclusive_folder

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Archive:
    """One whole archive: its digest, `size` in bytes, and when it came (nanoseconds since 1970)."""

    sha256: str
    path: Path
    size: int
    mtime_ns: int


class Archives:
    """The archives of a state folder."""

    def __init__(self, layout: Layout) -> None:
        self._folder = layout.downloads

    def find(self, sha256: str) -> Archive | None:
        """The archive with that digest, None where it isn't there whole."""
        return next(self._in(sha256), None) if _DIGEST.match(sha256) else None

    def all(self) -> list[Archive]:
        """Every whole archive, the oldest first."""
        found = [archive for name in self._names() for archive in self._in(name)]
        return sorted(found, key=lambda archive: (archive.mtime_ns, archive.sha256))

    def prune(self, needed: Collection[str]) -> list[Archive]:
        """Delete the archives but those `needed` (by digest) and the newest of all; returns what went.

        A folder with something unfinished stays as it is: it can be taken up again, or is being downloaded into now.
        The caller keeps builds away.

        :raises HostError: one can't be deleted
        """
        every = self.all()
        gone = []
        for archive in every[:-1]:
            folder = archive.path.parent
            if archive.sha256 in needed:
                continue
            try:
                with exclusive_folder(folder, f"Deleting {archive.path}"):
                    if any(path.name.endswith(NOT_FINISHED) for path in folder.iterdir()):
                        continue
                    shutil.rmtree(folder)
            except BusyError:
                continue
            except OSError as error:
                raise HostError(f"Deleting {folder}: {error.strerror or error}.") from error
            gone.append(archive)
        return gone

    def _names(self) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self._folder) if _DIGEST.match(entry.name)]
        except FileNotFoundError:
            return []

    def _in(self, sha256: str) -> Iterator[Archive]:
        """The whole archive of one folder; mirrors may have given it several names, one is enough."""
        try:
            entries = sorted(os.scandir(self._folder / sha256), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and not entry.name.endswith(NOT_FINISHED):
                status = entry.stat(follow_symlinks=False)
                yield Archive(sha256, Path(entry.path), status.st_size, status.st_mtime_ns)
                return
