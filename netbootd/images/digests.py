"""The digest of a file, worked out beside the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
from pathlib import Path

from netbootd.errors import HostError, NotFoundError, UsageError
from netbootd.images.progress import Progress

_CHUNK = 8 << 20
_HEX = re.compile(r"[0-9a-fA-F]{64}\Z")


def check_hex(text: str) -> str:
    """A SHA-256 digest as the operator wrote it, in lower case; empty stays empty.

    :raises UsageError: it is not 64 hex digits
    """
    if text and not _HEX.match(text):
        raise UsageError(f"--sha256 {text!r} is not a SHA-256 digest.", hint="It has 64 hex digits.")
    return text.lower()


async def file_digest(path: Path, progress: Progress) -> tuple[str, int]:
    """SHA-256 (hex) and size of a file, or of a block device such as a card reader.

    :raises NotFoundError: there is no such file
    :raises UsageError: it is a folder, a pipe or another thing that has no bytes of its own
    :raises HostError: it can't be read
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"Reading {path}: there is no such file.", hint="Check --source or --mirror.") from None
    except OSError as error:
        raise HostError(f"Reading {path}: {error.strerror}.", hint="Can this user read it?") from error
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            kind = "a folder" if stat.S_ISDIR(mode) else "neither a file nor a block device"
            raise UsageError(f"Reading {path}: it is {kind}.", hint="Name an image or archive.")
        size = os.lseek(fd, 0, os.SEEK_END)
        digest = hashlib.sha256()
        await hash_range(fd, 0, size, digest, progress)
        return digest.hexdigest(), size
    except OSError as error:
        if isinstance(error, HostError):
            raise
        raise HostError(f"Reading {path}: {error.strerror}.") from error
    finally:
        os.close(fd)


async def hash_range(fd: int, start: int, end: int, digest: hashlib._Hash, progress: Progress) -> None:
    """Add the bytes from `start` up to `end` to `digest`, piece by piece in a thread, so that a cancellation is heard.

    :raises OSError: it can't be read, or is shorter than `end`
    """
    buffer = memoryview(bytearray(_CHUNK))

    def piece(at: int) -> int:
        got = os.preadv(fd, [buffer[: min(_CHUNK, end - at)]], at)
        digest.update(buffer[:got])
        return got

    at = start
    while at < end:
        # shielded: `fd` is closed by who opened it, and not while the thread still reads from it
        task = asyncio.create_task(asyncio.to_thread(piece, at))
        try:
            got = await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise
        if not got:
            raise OSError(0, f"it ends at {at} of {end} bytes")
        at += got
        progress.advance(got)
