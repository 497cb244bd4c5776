"""Where a decompressed image goes: a nameless file whose runs of zeros are holes, bounded in size and in disk room."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import tempfile
import threading
from pathlib import Path

from netbootd.errors import FormatError, HostError

LIMIT = 64 << 30
"""Bytes: no Pi image is larger, a decompression bomb is."""

HEAD = 36 << 10
"""Bytes from which `check_head` tells a disk image."""

RESERVE = 64 << 20
"""Bytes that stay free on the file system of the scratch file, for whoever else writes there."""

_PIECE = 64 << 10  # bytes: runs of zeros are looked for in pieces of this size
_ZEROS = bytes(_PIECE)
_EVERY = 64 << 20  # bytes written between two looks at the free room


class SparseFile:
    """A scratch file without a name: it is gone with its last descriptor, also after kill -9. `fd` is the caller's.

    `write` may be called from several threads for ranges that don't overlap.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self.size = 0
        self._lock = threading.Lock()
        self._unseen = 0
        self.fd = _nameless(folder)
        self._room()

    def write(self, position: int, data: bytes) -> None:
        """Put `data` at `position`; zeros are left out.

        :raises FormatError: beyond the limit, or the first bytes are no disk image's
        :raises HostError: the disk is full
        """
        self.check(position, data)
        self.put(position, data)
        self.reach(position + len(data))

    def check(self, position: int, data: bytes) -> None:
        """See whether this can be a part of an image.

        :raises FormatError: see `write`
        """
        if position + len(data) > self.limit:
            raise FormatError(
                f"Decompressing: the image is larger than {self.limit >> 30} GiB.",
                hint="No image for a Pi is that large: the archive is damaged or made to fill disks.",
            )
        if position == 0 and len(data) >= HEAD:
            check_head(data, tar=True)

    def put(self, position: int, data: bytes) -> None:
        """As `write`, of what has been checked; the size stays as it is.

        :raises HostError: the disk is full
        """
        view = memoryview(data)
        start = None
        for at in range(0, len(data), _PIECE):
            if data.startswith(_ZEROS, at) or (at + _PIECE > len(data) and not any(view[at:])):
                if start is not None:
                    self._put(position + start, view[start:at])
                    start = None
            elif start is None:
                start = at
        if start is not None:
            self._put(position + start, view[start:])

    def reach(self, end: int) -> None:
        """Note that the image has at least `end` bytes."""
        with self._lock:
            self.size = max(self.size, end)

    def _put(self, position: int, data: memoryview) -> None:
        self.account(len(data))
        try:
            while data:
                done = os.pwrite(self.fd, data, position)
                position, data = position + done, data[done:]
        except OSError as error:
            raise self.explained(error) from error

    def account(self, amount: int) -> None:
        """Note that so many bytes are about to be written, and look now and then whether there is room.

        :raises HostError: there is none
        """
        with self._lock:
            self._unseen += amount
            look = self._unseen >= _EVERY
            if look:
                self._unseen = 0
        if look:
            self._room()

    def explained(self, error: OSError) -> HostError:
        """What to tell of a failed write."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._full()
        return HostError(f"Decompressing into {self.folder}: {error.strerror}.")

    def _room(self) -> None:
        found = os.fstatvfs(self.fd)
        if found.f_bavail * found.f_frsize < RESERVE:
            raise self._full()

    def _full(self) -> HostError:
        return HostError(
            f"Decompressing into {self.folder}: no room is left on that file system.",
            hint="Free some, or put the state folder elsewhere with --state.",
        )

    def finish(self) -> None:
        """Give the file its full size: a hole at the end has none yet."""
        os.ftruncate(self.fd, self.size)


class BackgroundWriter:
    """Writes to a `SparseFile` from front to back in a thread of its own, while the caller decodes the next piece.

    :param digest: fed with all that is written, where one is wanted
    """

    def __init__(self, target: SparseFile, digest: hashlib._Hash | None = None) -> None:
        self._target = target
        self._digest = digest
        self._queue: queue.Queue[bytes | None] = queue.Queue(maxsize=32)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="image-writer", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Queue `data`; raises what went wrong with an earlier piece."""
        if self._error is not None:
            raise self._error
        self._queue.put(data)

    def close(self) -> None:
        """Wait until all is written, and raise what went wrong."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End the thread because the caller failed; its own error is of no interest any more."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        position = 0
        while (data := self._queue.get()) is not None:
            if self._error is not None:
                continue  # the queue is emptied, so that the decoder never waits for ever
            try:
                self._target.write(position, data)
                if self._digest is not None:
                    self._digest.update(data)
            except BaseException as error:
                self._error = error
            position += len(data)


def check_head(head: bytes, tar: bool = False) -> None:
    """Refuse what is not a disk image, by its first 36 KiB.

    Called on the first piece already, so that a bomb or a foreign file ends before it fills the disk.

    :param tar: let a tar archive pass as well
    :raises FormatError: no MBR or GPT, no ISO 9660 volume
    """
    if head[510:512] == b"\x55\xaa" or b"EFI PART" in (head[512:520], head[4096:4104]):
        return
    if head[32769:32774] == b"CD001" or (tar and head[257:262] == b"ustar"):
        return
    raise FormatError(
        "Reading the image: it has no partition table, so it is not the image of a disk.",
        hint="Give the image of a whole card, as the publisher offers it (.img, or .img.xz, .gz, .zst, .zip).",
    )


def _nameless(folder: Path) -> int:
    try:
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:  # not every file system has it, and FUSE says EISDIR
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            fd, name = tempfile.mkstemp(prefix=".image-", dir=folder)
            Path(name).unlink()
            return fd
    except OSError as error:
        raise HostError(
            f"Making a scratch file in {folder}: {error.strerror}.", hint="Choose another state folder with --state."
        ) from error
