"""Card images: a publisher's image with a node's cloud-init documents in its FAT partition, all else as published.

What changes is planned on the image as it lies (`netbootd.formats.fatwrite`) and put in while the image is copied or
packed. A file is written as ``FILE.part`` and gets its name when it is on disk whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from netbootd.errors import BusyError, FormatError, HostError, NetbootdError, UsageError
from netbootd.formats.bootroot import find_boot_and_root
from netbootd.formats.draft import Edit, patched
from netbootd.formats.ext4 import ROOT, Ext4, Kind
from netbootd.formats.fatwrite import put_files
from netbootd.formats.partitions import read_table
from netbootd.formats.window import Window
from netbootd.images import pc
from netbootd.images.catalog import resolve
from netbootd.images.compress import PIECE, pack
from netbootd.images.decompress import Stopped, decompress
from netbootd.images.download import fetch
from netbootd.images.progress import Progress
from netbootd.images.threads import in_thread
from netbootd.model.image import CARD, ImageSpec

_COPY = 8 << 20
_COPY_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class CardOptions:
    """How to make a card. `mirror`, `keyring` and `skip_verify` as for any build; `private` keeps others from it."""

    output: Path
    compress: bool = False
    private: bool = False
    mirror: str | None = None
    keyring: Path | None = None
    skip_verify: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class CardFile:
    """A card image as written: its size and digest (empty where none was worked out), and those of the raw image."""

    size: int
    sha256: str
    raw_size: int
    raw_sha256: str


async def make_card(
    spec: ImageSpec, documents: Mapping[str, bytes], downloads: Path, options: CardOptions, progress: Progress
) -> CardFile | None:
    """Make a card image of `spec` as a file; None for a dry run.

    :param documents: the files for the FAT partition
    :raises NetbootdError: by the table of the operator's contract; an earlier file of that name stays as it was
    """
    check_output(options.output)
    release = await resolve(
        spec, mirror=options.mirror, keyring=options.keyring, skip_verify=options.skip_verify, progress=progress
    )
    if options.dry_run:
        return None
    with _output_file(options.output, private=options.private) as fd:
        archive = await fetch(release, downloads, progress)
        if options.output.exists() and archive.samefile(options.output):
            raise UsageError(
                f"Writing {options.output}: it is the source itself.", hint="Give --output another file's name."
            )

        def work(stop: threading.Event) -> CardFile:
            if pc.holds_iso(archive):
                raise UsageError(
                    f"Making a card of {spec.name}: {archive.name} installs PCs, and no Raspberry Pi boots from it.",
                    hint="Leave --target sdcard out: PCs boot it over the network.",
                )
            with decompress(
                archive,
                options.output.parent,
                progress=progress,
                sha256=release.sha256,
                extract_sha256=release.extract_sha256,
                stop=stop,
            ) as image:
                edits = card_edits(image.window, documents)
                write = pack_card if options.compress else copy_card
                return write(image.window, edits, fd, progress, stop)

        return await in_thread(work)


def card_edits(window: Window, documents: Mapping[str, bytes]) -> list[Edit]:
    """What has to be written where for the image in `window` to have `documents` in its boot partition.

    :raises FormatError: the image is broken, has no room for them, or nothing in it would read them
    """
    boot, root = find_boot_and_root(window, read_table(window))
    if not _has_cloud_init(Ext4(window.sub(root.offset, root.size))):
        raise FormatError(
            "making a card: the image has no cloud-init (/etc/cloud), so nothing would read the card's documents",
            hint="Raspberry Pi OS has it since trixie; a card with bookworm is set up with Raspberry Pi Imager.",
        )
    return [edit.moved(boot.offset) for edit in put_files(window.sub(boot.offset, boot.size), documents)]


def _has_cloud_init(ext4: Ext4) -> bool:
    inode = ext4.inode(ROOT)
    for name in (b"etc", b"cloud"):
        found = next((entry.inode for entry in inode.entries() if entry.name == name), None)
        if found is None:
            return False
        inode = ext4.inode(found)
        if inode.kind is not Kind.DIR:
            return False
    return True


# ---------------------------------------------------------------- writing


def copy_card(window: Window, edits: Sequence[Edit], fd: int, progress: Progress, stop: threading.Event) -> CardFile:
    """Write the image with its edits to the empty file `fd`; holes stay holes.

    :raises OSError: the disk is full, or fails
    :raises FormatError: the image ends early
    :raises Stopped: `stop` was set
    """
    progress.step("Writing the card image")
    progress.total(window.size)
    os.ftruncate(fd, window.size)
    done = 0
    for start, end in _data(window):
        progress.advance(start - done)
        done = start
        while done < end:
            if stop.is_set():
                raise Stopped
            count = _copy(window, fd, done, min(_COPY, end - done))
            done += count
            progress.advance(count)
    progress.advance(window.size - done)
    for edit in edits:
        _write(fd, edit.data, edit.offset)
    return CardFile(window.size, "", window.size, "")


def pack_card(window: Window, edits: Sequence[Edit], fd: int, progress: Progress, stop: threading.Event) -> CardFile:
    """Write the image with its edits to the empty file `fd` as xz. Raises as `copy_card` does."""
    progress.step("Compressing the card image")
    progress.total(window.size)
    raw, packed, size = hashlib.sha256(), hashlib.sha256(), 0

    def pieces() -> Iterator[bytes]:
        for at in range(0, window.size, PIECE):
            if stop.is_set():
                raise Stopped
            piece = patched(at, window.read(at, min(PIECE, window.size - at)), edits)
            raw.update(piece)
            yield piece

    for count, data in pack(pieces()):
        _write(fd, data, size)
        packed.update(data)
        size += len(data)
        progress.advance(count)
    return CardFile(size, packed.hexdigest(), window.size, raw.hexdigest())


def stage_card(
    window: Window, documents: Mapping[str, bytes], folder: Path, progress: Progress, stop: threading.Event
) -> CardFile:
    """Write the packed card image and its digest into a generation's folder. Raises as `copy_card` does."""
    edits = card_edits(window, documents)
    path = folder / CARD
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        card = pack_card(window, edits, fd, progress, stop)
    finally:
        os.close(fd)
    path.with_name(f"{CARD}.sha256").write_text(f"{card.sha256}  {CARD}\n")
    return card


def _data(window: Window) -> Iterator[tuple[int, int]]:
    """Where the window's file has data, as (start, end) within the window; all of it where that can't be told."""
    at = 0
    while at < window.size:
        try:
            start = os.lseek(window.fd, window.offset + at, os.SEEK_DATA) - window.offset
            end = os.lseek(window.fd, window.offset + start, os.SEEK_HOLE) - window.offset
        except OSError as error:
            if error.errno != errno.ENXIO:  # which says that nothing follows but a hole
                yield at, window.size
            return
        if start >= window.size:
            return
        at = min(end, window.size)
        yield start, at


def _copy(window: Window, fd: int, at: int, count: int) -> int:
    """Copy some bytes to the same place, by the kernel where it can; returns how many."""
    try:
        if copied := os.copy_file_range(window.fd, fd, count, window.offset + at, at):
            return copied
    except OSError as error:
        if error.errno not in _COPY_CANNOT:
            raise
    _write(fd, window.read(at, count), at)
    return count


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


# ---------------------------------------------------------------- the file


def check_output(path: Path) -> None:
    """See whether a card image can be written to `path`, which is a file or nothing yet.

    :raises HostError: it is something else, or its folder is not there or not ours to write
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise _disk_error(error, path) from error
    if stat.S_ISBLK(mode):
        raise HostError(
            f"Writing {path}: it is a device; a card image is written to a file only.",
            hint="Write the file to the card afterwards, with Raspberry Pi Imager or dd.",
        )
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a file"
        raise HostError(f"Writing {path}: it is {kind}.", hint="--output names the file to write.")
    if not path.parent.is_dir():
        raise HostError(f"Writing {path}: there is no folder {path.parent}.", hint="Make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise HostError(f"Writing {path}: {path.parent} can't be written to.", hint="Choose another --output.")


@contextmanager
def _output_file(path: Path, *, private: bool) -> Iterator[int]:
    """An empty file beside `path` that takes its place at the end, and is gone after a failure.

    :raises BusyError: another process writes it just now
    """
    part = path.with_name(f"{path.name}.part")
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise _disk_error(error, part) from error
    try:
        _claim(fd, part)
        try:
            if private:
                os.fchmod(fd, 0o600)
            os.ftruncate(fd, 0)
            yield fd
            os.fsync(fd)
            part.replace(path)
            _sync_folder(path.parent)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and not isinstance(error, NetbootdError):
                raise _disk_error(error, path) from error
            raise
    finally:
        os.close(fd)


def _claim(fd: int, part: Path) -> None:
    """Make sure that the open file is ours alone, and still the one of that name."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise HostError(f"Writing {part}: it is not a file.", hint="Choose another --output.")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(fd), part.stat(follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        same = False
    if not same:
        raise BusyError(f"Writing {part}: another process is writing it.", hint="Wait for it, or choose another FILE.")


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _disk_error(error: OSError, path: Path) -> HostError:
    if isinstance(error, HostError):
        return error
    hint = f"Free some room in {path.parent}." if error.errno in _NO_ROOM else "Choose another --output."
    return HostError(f"Writing {path}: {error.strerror or error}.", hint=hint)
