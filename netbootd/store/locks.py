"""Locks between processes: one build of an image at a time (flock(2), gone with the process that held it)."""

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
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
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
