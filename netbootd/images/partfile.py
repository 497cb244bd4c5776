"""A file that is being downloaded: ``NAME.part``, and beside it ``NAME.part.json``, the note of where it comes from.

What is on disk can be taken up again after a crash at any moment: the note is written (by rename) before the first
byte of what it describes, and the file gets its own name only when its digest is right. Bytes that a power cut lost or
garbled are found by the digest, which is worked out anew from the file whenever it is taken up.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from netbootd.errors import HostError
from netbootd.images.digests import hash_range
from netbootd.images.progress import Progress


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the bytes come from, and what tells whether the server still has the same file (RFC 9110 section 8.8).

    `size` is the whole file's (0: not known); `encoding` the Content-Encoding that it came in, empty mostly.
    """

    url: str
    etag: str
    modified: str
    size: int
    encoding: str

    @property
    def validator(self) -> str:
        """For If-Range: a strong ETag, else the date; empty where there is neither (RFC 9110 section 13.1.5)."""
        return self.etag if self.etag.startswith('"') else self.modified


class PartFile:
    """The unfinished file, open; every method may raise HostError, after which the file can still be taken up.

    The caller holds the folder's lock.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.part"
        self._note = folder / f"{name}.part.json"
        self.size = 0
        self.digest = hashlib.sha256()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self.origin = _read_note(self._note)

    async def take_up(self, progress: Progress) -> None:
        """Count what is there, if a note says where it comes from; without one it will be written over.

        :raises OSError: it can't be read
        """
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size and self.origin is not None:
            progress.total(size)
            await hash_range(self._fd, 0, size, self.digest, progress)
            self.size = size

    def restart(self, origin: Origin | None) -> None:
        """Forget all bytes; what comes now is from `origin`."""
        os.ftruncate(self._fd, 0)
        self.size, self.digest, self.origin = 0, hashlib.sha256(), origin
        if origin is not None:
            beside = self._note.with_name(f"{self._note.name}.part")
            beside.write_text(json.dumps(asdict(origin)) + "\n")
            beside.replace(self._note)

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, self.size)
            self.digest.update(view[:done])
            self.size += done
            view = view[done:]

    def reopen(self, size: int) -> None:
        """Another file of `size` bytes has been moved to `path`: go on with that."""
        os.close(self._fd)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.size = size

    def finish(self, final: Path) -> None:
        """Give it its name, once it is on disk whole; the notes go."""
        os.fsync(self._fd)
        self.path.replace(final)
        self._note.unlink(missing_ok=True)
        for folder in {final.parent, self.path.parent}:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def discard(self) -> None:
        """Delete it with its note."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it; what is there stays."""
        os.close(self._fd)


def _read_note(path: Path) -> Origin | None:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(1 << 16))
        origin = Origin(**value)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = (origin.url, origin.etag, origin.modified, origin.encoding)
    good = all(isinstance(text, str) and text.isprintable() for text in texts) and type(origin.size) is int
    return origin if good else None


def disk_error(error: OSError, doing: str) -> HostError:
    """A failure of the disk while `doing`, as a sentence."""
    return HostError(
        f"{doing}: {error.strerror or error}.",
        hint="Is the disk full or read-only? Free some room, or choose another disk with --state; "
        "what is there already is kept.",
    )
