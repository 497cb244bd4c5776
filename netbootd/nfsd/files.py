"""Open files: kept for a while, since every READ of a client names one, and read without ever making the loop wait.

A descriptor is closed when the last reference to its `OpenFile` goes: the cache lets it go early, an answer that is
still being sent keeps it.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

from netbootd.nfsd.tree import Tree
from netbootd.nfsd.v3 import NFS3ERR_ACCES, NFS3ERR_IO, NFS3ERR_JUKEBOX, NFS3ERR_STALE

_PROBE_STEP = 128 << 10
_WARM_STEP = 256 << 10
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class OpenFile:
    """A read-only descriptor that closes itself with its last reference.

    `tells` is false where the file system can't tell what would have to wait for a disk.
    """

    __slots__ = ("fd", "tells")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.tells = _tells(fd)

    def __del__(self) -> None:
        os.close(self.fd)

    def read_cached(self, offset: int, count: int) -> bytes | None:
        """`count` bytes if all of them can be had without waiting for a disk, else None."""
        buffer = bytearray(count)
        try:
            got = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:  # EAGAIN, mostly
            return None
        return bytes(buffer) if got == count else None

    def cached(self, offset: int, count: int) -> bool:
        """Whether the range seems to be in memory, judged by a byte of every 128 KiB and the last one."""
        byte = [bytearray(1)]
        last = offset + count - 1
        try:
            for position in (*range(offset, last, _PROBE_STEP), last):
                if os.preadv(self.fd, byte, position, os.RWF_NOWAIT) != 1:
                    return False
        except OSError:
            return False
        return True

    def warm(self, offset: int, count: int) -> None:
        """Bring a range into the page cache. Waits for the disk.

        :raises OSError: the disk failed, or the file has become shorter
        """
        buffer = memoryview(bytearray(min(count, _WARM_STEP)))
        end = offset + count
        while offset < end:
            got = os.preadv(self.fd, [buffer[: end - offset]], offset)
            if not got:
                raise OSError(errno.EIO, "the file has become shorter")
            offset += got

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes. May wait for a disk.

        :raises OSError: the disk failed, or the file has become shorter
        """
        parts = []
        while count:
            data = os.pread(self.fd, count, offset)
            if not data:
                raise OSError(errno.EIO, "the file has become shorter")
            parts.append(data)
            offset += len(data)
            count -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class OpenFiles:
    """The most recently read files of all trees, at most `limit` of them. Belongs to the event loop's thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[tuple[Tree, int], OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, tree: Tree, number: int) -> OpenFile | None:
        """The file if it is open."""
        file = self._files.get((tree, number))
        if file is not None:
            self._files.move_to_end((tree, number))
        return file

    def keep(self, tree: Tree, number: int, file: OpenFile) -> None:
        """Remember a file that was opened for a read."""
        self._files[tree, number] = file
        if len(self._files) > self._limit:
            self._files.popitem(last=False)

    def forget(self, tree: Tree) -> None:
        """Let go of a tree's files."""
        for key in [key for key in self._files if key[0] is tree]:
            del self._files[key]

    def clear(self) -> None:
        """Let go of everything."""
        self._files.clear()


def fetch(
    tree: Tree, number: int, file: OpenFile | None, offset: int, count: int, warm_from: int
) -> tuple[OpenFile, bytes | None]:
    """Open a file where that is still to be done, and read from it; for a worker thread.

    No data comes with it where `warm_from` or more bytes are in the page cache now.

    :raises OSError: see `status_of`
    """
    if file is None:
        file = OpenFile(tree.open(number))
    if file.tells and count >= warm_from:
        file.warm(offset, count)
        return file, None
    return file, file.read(offset, count)


def _tells(fd: int) -> bool:
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


def status_of(error: OSError) -> int:
    """The nfsstat3 that tells of a file that could not be opened or read."""
    if error.errno in _GONE or (error.errno is None and isinstance(error, FileNotFoundError)):
        return NFS3ERR_STALE
    if isinstance(error, PermissionError):
        return NFS3ERR_ACCES
    return NFS3ERR_JUKEBOX if error.errno in _NO_ROOM else NFS3ERR_IO
