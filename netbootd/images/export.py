"""Writes the files of an image's partitions into folders, as the kernel would show them on a read-only mount.

Type, mode, owner, times to the nanosecond, hard links, holes, device nodes, extended attributes with capabilities and
ACLs. A folder gets its own attributes when all in it is done, so that until then nobody else can reach into it, and
each name is made anew beneath its folder's descriptor: nothing is ever written through a link or over a file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from netbootd.errors import HostError
from netbootd.formats.ext4 import Entry, Ext4, Extent, Kind
from netbootd.formats.fat import Fat
from netbootd.images.decompress.landing import LandedWindow
from netbootd.images.dressing import Dressing, StoreDressing, shown

_CHUNK = 1 << 20
_LARGE = 256 << 10  # from here on the kernel copies: where the store can, it shares the blocks instead
_TELL = 64  # names after which the progress is told, be they ever so small
_COPY_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INHERITED = ("system.posix_acl_default", "system.posix_acl_access")

Advance = Callable[[int], None]
"""Told of bytes written; may raise to stop the export."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was written: names by type, the top folder not counted, and the `bytes` of content, holes left out.

    A second name of anything counts as one of the `hard_links` only.
    """

    files: int = 0
    folders: int = 0
    symlinks: int = 0
    hard_links: int = 0
    nodes: int = 0
    bytes: int = 0

    @property
    def names(self) -> int:
        """All of them."""
        return self.files + self.folders + self.symlinks + self.hard_links + self.nodes

    def as_dict(self) -> dict[str, int]:
        """For image.json."""
        return asdict(self)


# ------------------------------------------------------------------------------------------------------------- FAT


def export_fat(fat: Fat, folder: Path, progress: Advance) -> Counts:
    """Write all files of `fat` into the empty `folder`: mode 0644, folders 0755, owner ours, times as they are.

    :raises FormatError: the file system is damaged or hostile
    :raises OSError: the disk is full, or fails
    """
    files = folders = size = 0
    stack = [(os.open(folder, _FOLDER), 0)]  # the open folders with their times; the top one of a FAT has none
    try:
        forget_inherited(stack[0][0])
        for entry in fat.walk():
            while len(stack) > entry.path.count("/") + 1:
                _leave_fat_folder(*stack.pop())
            above = stack[-1][0]
            if entry.is_dir:
                os.mkdir(entry.name, 0o700, dir_fd=above)
                stack.append((os.open(entry.name, _FOLDER, dir_fd=above), entry.mtime_ns))
                folders += 1
                continue
            fd = os.open(entry.name, _NEW, 0o600, dir_fd=above)
            try:
                for chunk in fat.chunks(entry):
                    _write(fd, memoryview(chunk), -1)
                    progress(len(chunk))
                os.fchmod(fd, 0o644)
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(fd)
            files += 1
            size += entry.size
        while stack:
            _leave_fat_folder(*stack.pop())
    finally:
        for fd, _ in stack:
            os.close(fd)
    return Counts(files=files, folders=folders, bytes=size)


def _leave_fat_folder(fd: int, mtime_ns: int) -> None:
    try:
        os.fchmod(fd, 0o755)
        os.utime(fd, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(fd)


def _write(fd: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at `offset`, -1 for the descriptor's position."""
    while view:
        count = os.write(fd, view) if offset < 0 else os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count if offset >= 0 else 0


def forget_inherited(fd: int) -> None:
    """Take the ACLs from a new folder that its parent's default ACL gave it: what is made in it would get them too."""
    for name in _INHERITED:
        try:
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise


# ------------------------------------------------------------------------------------------------------------ ext4


def export_ext4(ext4: Ext4, folder: Path, progress: Advance, dressing: Dressing | None = None) -> Counts:
    """Write everything in `ext4` into the empty `folder`, which becomes its root.

    The caller keeps others out of the folder above meanwhile. Content that landed in files while the image was decoded
    (`netbootd.images.decompress.landing`) is moved to its place, not written again.

    :param dressing: how attributes are kept; by the store, unless it is given
    :raises FormatError: the file system is damaged or hostile
    :raises HostError: the store can't keep an attribute or a size
    :raises OSError: the disk is full, or fails
    """
    export = _Export(ext4, progress, dressing or StoreDressing())
    try:
        export.run(folder)
    finally:
        export.close()
    return export.counts()


class _Export:
    """One run over one file system, with a descriptor for each folder that is being filled."""

    __slots__ = (
        "_buffer",
        "_bytes",
        "_copies",
        "_count",
        "_dressing",
        "_entry",
        "_fs",
        "_landed",
        "_linked",
        "_open",
        "_progress",
        "_told",
    )

    def __init__(self, ext4: Ext4, progress: Advance, dressing: Dressing) -> None:
        self._fs = ext4
        self._progress = progress
        self._dressing = dressing
        self._open: list[tuple[int, Entry]] = []
        self._entry: Entry | None = None
        # The first name of inodes that have more than one: (folder's path, name), as a folder's path is there once.
        self._linked: dict[int, tuple[bytes, bytes]] = {}
        self._copies = True  # the kernel, from the image into files
        window = ext4.window
        self._landed = window.files if isinstance(window, LandedWindow) else None
        self._buffer = memoryview(bytearray(_CHUNK))
        self._count = dict.fromkeys(("files", "folders", "symlinks", "hard_links", "nodes"), 0)
        self._bytes = 0
        self._told = 0  # of which the progress was told

    def counts(self) -> Counts:
        return Counts(**self._count, bytes=self._bytes)

    def close(self) -> None:
        for fd, _ in self._open:
            os.close(fd)
        self._open.clear()

    def run(self, folder: Path) -> None:
        try:
            for number, entry in enumerate(self._fs.walk()):
                self._entry = entry
                if not number % _TELL:
                    self._tell()
                if not entry.depth:
                    self._enter(os.open(folder, _FOLDER), entry)
                    forget_inherited(self._open[0][0])
                    continue
                while len(self._open) > entry.depth:
                    self._leave()
                self._make(entry, self._open[-1][0])
            while self._open:
                self._leave()
            self._tell()
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> OSError:
        """The error with the name that it is about; one that tells of a lack of the store says so."""
        if isinstance(error, HostError) or self._entry is None or error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        return HostError(
            f"Exporting {shown(self._entry)} from the root file system: {error.strerror or error}.",
            hint="Choose a folder on ext4, XFS or btrfs with --state.",
        )

    def _enter(self, fd: int, entry: Entry) -> None:
        self._open.append((fd, entry))

    def _leave(self) -> None:
        fd, entry = self._open.pop()
        try:
            self._entry = entry
            self._dressing.dress(fd, entry)
        finally:
            os.close(fd)

    def _make(self, entry: Entry, above: int) -> None:
        inode, name = entry.inode, entry.name
        kind = inode.kind
        if entry.again:
            folder, base = self._linked[inode.number]
            first, top = folder + b"/" + base if folder else base, self._open[0][0]
            os.link(first, name, src_dir_fd=top, dst_dir_fd=above, follow_symlinks=False)
            self._dressing.again(entry, first)
            self._count["hard_links"] += 1
            return
        if kind is Kind.DIR:
            os.mkdir(name, 0o700, dir_fd=above)
            self._enter(os.open(name, _FOLDER, dir_fd=above), entry)
            self._count["folders"] += 1
            return
        if inode.nlink > 1:
            self._linked[inode.number] = entry.folder, entry.name
        if kind is Kind.FILE:
            self._file(entry, above)
            self._count["files"] += 1
        elif kind is Kind.LINK:
            os.symlink(entry.target, name, dir_fd=above)
            self._dressing.dress_name(above, entry)
            self._count["symlinks"] += 1
        else:
            self._dressing.make_node(above, entry)
            self._count["nodes"] += 1

    # ---------------------------------------------------------------- content

    def _file(self, entry: Entry, above: int) -> None:
        if self._landed is None:
            self._new_file(entry, above)
            return
        rest = self._landed.take(entry.inode.number, entry.extents, entry.name, above)
        if rest is None:
            self._new_file(entry, above)
            return
        self._advance(_content(entry.extents) - _content(rest))
        if not rest and entry.extents[-1].disk is not None:
            self._dressing.dress_name(above, entry)  # it is complete: there is no need to open it
            return
        fd = os.open(entry.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            for offset, length, disk in rest:
                if disk is not None:
                    self._copy(disk, fd, offset, length)
            os.ftruncate(fd, entry.inode.size)
            self._dressing.dress(fd, entry)
        finally:
            os.close(fd)

    def _new_file(self, entry: Entry, above: int) -> None:
        inode = entry.inode
        fd = os.open(entry.name, _NEW, 0o600, dir_fd=above)
        try:
            end = 0  # of what has been written
            content = inode.inline
            if content is not None:
                _write(fd, memoryview(content), 0)
                end = len(content)
                self._bytes += end
            for offset, length, disk in entry.extents:
                if disk is not None:
                    self._copy(disk, fd, offset, length)
                    end = offset + length
            if end < inode.size:
                os.ftruncate(fd, inode.size)
            self._dressing.dress(fd, entry)
        finally:
            os.close(fd)

    def _copy(self, disk: int, fd: int, offset: int, length: int) -> None:
        """Copy a stretch of the image into a file."""
        window = self._fs.window
        end = disk + length
        here = not self._fs.replayed and window.holds(disk, length)  # else it has to be read by `Ext4.read`
        if here and self._copies and length >= _LARGE:
            while disk < end:
                try:
                    count = os.copy_file_range(window.fd, fd, min(_CHUNK, end - disk), window.offset + disk, offset)
                except OSError as error:
                    if error.errno not in _COPY_CANNOT:
                        raise
                    count = 0
                if not count:
                    self._copies = False  # it can't, or the image ends early, which is told below
                    break
                disk += count
                offset += count
                self._advance(count)
        while disk < end:
            part = self._buffer[: min(_CHUNK, end - disk)]
            count = len(part)
            if not here or os.preadv(window.fd, [part], window.offset + disk) != count:
                part = memoryview(self._fs.read(disk, count))
            _write(fd, part, offset)
            disk += count
            offset += count
            self._advance(count)

    def _advance(self, count: int) -> None:
        self._bytes += count
        if self._bytes - self._told >= _CHUNK:
            self._tell()

    def _tell(self) -> None:
        self._progress(self._bytes - self._told)
        self._told = self._bytes


def _content(extents: list[Extent]) -> int:
    """Bytes that are no holes."""
    return sum(extent.length for extent in extents if extent.disk is not None)
