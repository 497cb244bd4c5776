"""Locks between processes: one build of an image, one download of an archive at a time.

flock(2): gone with the process that held it, however that ended.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netbootd.errors import BusyError


@contextmanager
def exclusive(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file `path` (made where it is missing, never removed).

    :param doing: what needs the lock, for the message
    :raises BusyError: another process holds it
    """
    with _held(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), path, doing):
        yield


@contextmanager
def exclusive_folder(path: Path, doing: str) -> Iterator[None]:
    """Hold an existing folder itself, so that no lock file lies in it.

    :param doing: what needs the lock, for the message
    :raises BusyError: another process holds it
    """
    with _held(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW), path, doing):
        yield


@contextmanager
def _held(fd: int, path: Path, doing: str) -> Iterator[None]:
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{doing}: another netbootd process is at it (it holds {path}).",
                hint="Wait until it is done, then run the command again.",
            ) from None
        yield
    finally:
        os.close(fd)
