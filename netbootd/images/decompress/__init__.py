"""From a published archive to a raw disk image that can be read in place, told by content and never by name.

xz, gzip and Zstandard are decoded into a nameless sparse file; a zip's one image likewise; a tar's one image and a
plain image are read where they lie. An xz of several blocks is decoded on all cores, anything else beside the writing.
Memory is bounded whatever the archive says. Left out: bzip2, lzip, lz4, 7z, and the disk formats of virtual machines.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from netbootd.errors import FormatError, HostError, NotFoundError, VerificationError
from netbootd.formats.window import Window
from netbootd.images.decompress import containers, streams, xz
from netbootd.images.decompress.landing import Landed, LandedWindow, LandingFile
from netbootd.images.decompress.sparse import HEAD, LIMIT, BackgroundWriter, SparseFile, check_head
from netbootd.images.progress import Progress

__all__ = ["LIMIT", "RawImage", "Stopped", "decompress"]

_CHUNK = 1 << 20
_FOREIGN = {
    b"BZh": "bzip2",
    b"LZIP": "lzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x5d\x00\x00": "lzma (the old format of xz)",
    b"Rar!": "rar",
    b"QFI\xfb": "qcow2, a virtual machine's disk",
    b"KDMV": "VMDK, a virtual machine's disk",
    b"PK\x05\x06": "an empty zip",
}


class Stopped(Exception):  # noqa: N818 - not a failure: the caller asked for it
    """The caller's `stop` event was set; nothing is left behind."""


@dataclass(slots=True)
class RawImage:
    """A raw disk image: `size` bytes at `offset` of the descriptor `fd`, which this object owns.

    `kind` is what it was packed as (xz, gzip, zstd, zip, tar, plain; ``xz, tar`` for a tar inside). Where parts of it
    have `landed` in files, the descriptor alone is not the image: read it through `window`.
    """

    fd: int
    offset: int
    size: int
    kind: str
    landed: Landed | None = None

    @property
    def window(self) -> Window:
        """Random access to the image, as long as this object is open."""
        if self.landed is not None:
            return LandedWindow(self.fd, self.offset, self.size, self.landed)
        return Window(self.fd, self.offset, self.size)

    def close(self) -> None:
        """Close the descriptor; the scratch file is gone with it, and whatever landed and was not taken."""
        if self.landed is not None:
            self.landed.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> RawImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def decompress(
    path: Path,
    scratch: Path,
    *,
    landing: Path | None = None,
    progress: Progress,
    sha256: str = "",
    extract_sha256: str = "",
    limit: int = LIMIT,
    workers: int = 0,
    stop: threading.Event | None = None,
) -> RawImage:
    """The image in the archive `path`. It blocks; run it in a thread beside an event loop.

    :param scratch: an existing folder on a file system with room; nothing with a name is made in it
    :param landing: a folder to be made, in which the content of files lands (see `decompress.landing`); none does
        where the archive is read in place
    :param sha256: the archive's digest (hex), checked beside the decoding where it is given
    :param extract_sha256: the image's digest, checked likewise
    :param limit: bytes that the image may have
    :param workers: threads that decode; 0: as many as this process has cores
    :param stop: set it to make the work end soon, with `Stopped`
    :raises FormatError: damaged, cut short, of an unknown kind, too large, or not the image of a disk
    :raises VerificationError: a digest does not match
    :raises HostError: the file can't be read, or the disk is full
    :raises NotFoundError: no such file
    """
    stop = stop or threading.Event()
    with _Archive(path, sha256, stop) as archive:
        job = _Job(archive, scratch, landing, progress, extract_sha256, limit, workers or _cores(), stop)
        image = job.run()
        try:
            archive.check()
        except BaseException:
            image.close()
            raise
        return image


class _Archive:
    """The open archive, and a thread that works out its digest while others decode."""

    def __init__(self, path: Path, sha256: str, stop: threading.Event) -> None:
        self.path = path
        self._expected = sha256.lower()
        self._stops = (stop, threading.Event())
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(f"Reading the image {path}: there is no such file.") from None
        except OSError as error:
            raise HostError(f"Reading the image {path}: {error.strerror}.") from error
        self._before = os.fstat(self.fd)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        self._digest = hashlib.sha256()
        self._fault: OSError | None = None
        self._hasher: threading.Thread | None = None
        if self._expected:
            self._hasher = threading.Thread(target=self._hash, name="archive-digest", daemon=True)
            self._hasher.start()

    def __enter__(self) -> _Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hasher is not None:
            if error is not None:
                self._stops[1].set()
            self._hasher.join()
        os.close(self.fd)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`."""
        data = b""
        while len(data) < length:
            try:
                more = os.pread(self.fd, length - len(data), offset + len(data))
            except OSError as error:
                raise HostError(f"Reading {self.path}: {error.strerror}.") from error
            if not more:
                raise FormatError(f"Reading {self.path}: it ends at {offset + len(data)} of {self.size} bytes.")
            data = data + more if data else more
        return data

    def _hash(self) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        at = 0
        try:
            while not any(stop.is_set() for stop in self._stops) and (got := os.preadv(self.fd, [buffer], at)):
                self._digest.update(buffer[:got])
                at += got
        except OSError as error:
            self._fault = error

    def check(self) -> None:
        """Whether the archive is the expected one, and stayed the same while it was read."""
        after = os.fstat(self.fd)
        if (after.st_size, after.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise FormatError(f"Reading {self.path}: it changed while it was read.", hint="Run the command again.")
        if self._hasher is None:
            return
        self._hasher.join()
        if self._stops[0].is_set():
            raise Stopped
        if self._fault is not None:
            raise HostError(f"Reading {self.path}: {self._fault.strerror}.")
        if self._digest.hexdigest() != self._expected:
            raise VerificationError(
                f"Reading {self.path}: its sha256 is {self._digest.hexdigest()}, {self._expected} was expected.",
                hint="The file is damaged or another one: remove it and run the command again.",
            )


@dataclass(slots=True)
class _Job:
    """One run of `decompress`."""

    archive: _Archive
    scratch: Path
    landing: Path | None
    progress: Progress
    extract_sha256: str
    limit: int
    workers: int
    stop: threading.Event

    def run(self) -> RawImage:
        head = self.archive.read(0, min(self.archive.size, HEAD))
        self.progress.step(f"Decompressing {self.archive.path.name}")
        if head.startswith(xz.MAGIC):
            return self._unpacked("xz", self._xz)
        if head.startswith(streams.GZIP):
            return self._unpacked("gzip", lambda target: self._stream(target, streams.gunzip))
        if head.startswith(streams.ZSTD) or head[1:4] == b"\x2a\x4d\x18":  # a skippable frame may come first
            return self._unpacked("zstd", lambda target: self._stream(target, streams.unzstd))
        if head.startswith(containers.ZIP):
            return self._unpacked("zip", self._zip)
        for magic, name in _FOREIGN.items():
            if head.startswith(magic):
                raise FormatError(
                    f"Reading {self.archive.path}: this is {name}, which can't be read.",
                    hint="Give a raw image, plain or as xz, gzip, zstd, zip or tar.",
                )
        if self.stop.is_set():
            raise Stopped
        self.progress.total(None)
        return self._inside(RawImage(os.dup(self.archive.fd), 0, self.archive.size, "plain"))

    def _unpacked(self, kind: str, unpack: Callable[[SparseFile], str]) -> RawImage:
        """Run `unpack` into a new scratch file; it returns the image's digest where that was worked out on the way."""
        landing = LandingFile(self.scratch, self.limit, self.landing) if self.landing else None
        target = landing or SparseFile(self.scratch, self.limit)
        image = RawImage(target.fd, 0, 0, kind, landing.landed if landing else None)
        try:
            digest = unpack(target)
            if self.stop.is_set():
                raise Stopped
            target.finish()
            image.size = target.size
            self._compare(digest or (self._hashed(image.window) if self.extract_sha256 else ""))
        except BaseException:
            image.close()
            raise
        return self._inside(image)

    def _inside(self, image: RawImage) -> RawImage:
        """The image itself, where it lies in a tar archive."""
        try:
            head = image.window.read(0, min(image.size, HEAD))
            if containers.is_tar(head):
                found = containers.find_in_tar(image.window)
                image.offset, image.size = found.offset, found.size
                image.kind = "tar" if image.kind == "plain" else f"{image.kind}, tar"
                head = found.read(0, min(found.size, HEAD))
            check_head(head)
            if image.kind in ("plain", "tar") and self.extract_sha256:
                self._compare(self._hashed(image.window))
        except BaseException:
            image.close()
            raise
        return image

    def _compare(self, digest: str) -> None:
        if digest and digest != self.extract_sha256.lower():
            raise VerificationError(
                f"Decompressing {self.archive.path}: the image's sha256 is {digest}, "
                f"{self.extract_sha256} was expected.",
                hint="The archive is not the one that the publisher lists; fetch it again.",
            )

    # -------------------------------------------------------------------------------------------------------- xz

    def _xz(self, target: SparseFile) -> str:
        found = xz.blocks(self.archive.read, self.archive.size)
        total = found[-1].start + found[-1].size if found else 0
        if total > self.limit:
            raise FormatError(
                f"Decompressing xz: the image is {total >> 30} GiB large, more than {self.limit >> 30} GiB.",
                hint="No image for a Pi is that large: the archive is damaged or made to fill disks.",
            )
        needed = xz.memory_needed(self.archive.read, found)
        if needed > xz.MEMORY:
            raise FormatError(
                f"Decompressing xz: it needs {needed >> 20} MiB of memory, more than {xz.MEMORY >> 20} MiB.",
                hint="Pack it again with a smaller dictionary (xz -9 at most).",
            )
        self.progress.total(total)
        if len(found) == 1:
            decode = xz.decode(self.archive.read, found[0], lambda _, data: writer.write(data), self.stop)
            digest = self._wanted()
            writer = BackgroundWriter(target, digest)
            self._drive(writer, decode)
            return digest.hexdigest() if digest is not None else ""
        self._parallel(target, found, max(1, min(self.workers, xz.MEMORY // needed)))
        target.reach(total)
        return ""

    def _parallel(self, target: SparseFile, found: list[xz.Block], workers: int) -> None:
        done = [0] * len(found)
        halt = threading.Event()

        def one(number: int) -> None:
            for amount in xz.decode(self.archive.read, found[number], target.write, halt):
                done[number] += amount
                if self.stop.is_set():
                    halt.set()

        told = 0
        with ThreadPoolExecutor(workers, thread_name_prefix="xz") as pool:
            futures: set[Future[None]] = {pool.submit(one, number) for number in range(len(found))}
            try:
                while futures:
                    over, futures = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
                    for future in over:
                        future.result()
                    now = sum(done)
                    self.progress.advance(now - told)
                    told = now
                    if self.stop.is_set():
                        raise Stopped
            except BaseException:
                halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    # --------------------------------------------------------------------------------------------- front to back

    def _stream(
        self, target: SparseFile, decode: Callable[[Callable[[int], bytes]], Iterator[tuple[int, bytes]]]
    ) -> str:
        self.progress.total(self.archive.size)
        digest = self._wanted()
        writer = BackgroundWriter(target, digest)
        position = 0

        def read(length: int) -> bytes:
            nonlocal position
            data = self.archive.read(position, min(length, self.archive.size - position))
            position += len(data)
            return data

        def pieces() -> Iterator[int]:
            for taken, data in decode(read):
                writer.write(data)
                yield taken

        self._drive(writer, pieces())
        return digest.hexdigest() if digest is not None else ""

    def _zip(self, target: SparseFile) -> str:
        size, content = containers.unzip(self.archive.fd)
        self.progress.total(size)
        digest = self._wanted()
        writer = BackgroundWriter(target, digest)

        def pieces() -> Iterator[int]:
            for data in content:
                writer.write(data)
                yield len(data)

        self._drive(writer, pieces())
        return digest.hexdigest() if digest is not None else ""

    def _drive(self, writer: BackgroundWriter, pieces: Iterator[int]) -> None:
        try:
            for amount in pieces:
                self.progress.advance(amount)
                if self.stop.is_set():
                    raise Stopped
        except BaseException:
            writer.abandon()
            raise
        writer.close()

    def _wanted(self) -> hashlib._Hash | None:
        return hashlib.sha256() if self.extract_sha256 else None

    def _hashed(self, window: Window) -> str:
        digest = hashlib.sha256()
        for at in range(0, window.size, _CHUNK):
            digest.update(window.read(at, min(_CHUNK, window.size - at)))
            if self.stop.is_set():
                raise Stopped
        return digest.hexdigest()


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)))
