"""Edits an exported tree as a program inside a chroot would see it, and keeps account of what it changed.

Every name is opened beneath the descriptor of the folder that holds it, never through a link; links on the way are read
and followed inside the tree, where ``/`` and ``..`` end at its top (path_resolution(7), as chroot(2) has it). What is
changed is replaced (a new inode, by rename), so that a file's other hard links keep their content; owner, mode and
extended attributes stay, and so do the times of the file and of the folder around it: the same image gives the same
tree.

What is replaced or removed can be kept (`Originals`), for the trees to be made again as they were.

Where the attributes of a tree are kept in a record beside it, what it says goes for what lies on disk, and every change
is noted there, too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from netbootd.errors import FormatError
from netbootd.formats.treeattributes import Attributes, TreeAttributes
from netbootd.images.dressing import mode_on_disk
from netbootd.images.originals import Originals

READ_LIMIT = 1 << 20
"""Bytes of the largest file that is edited or looked into as a whole; configuration files are a thousandth of it."""

_MAX_LINKS = 40  # as Linux (include/linux/namei.h, MAXSYMLINKS)
_MAX_PARTS = 256
_MAX_REMOVED = 10_000
_MAX_REMOVED_DEPTH = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_NAME = b".netbootd-new"
_TEXT_LIMIT = 16384
_LARGE_CHUNK = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class Patch:
    """One changed path: ``boot/…`` or ``root/…``.

    `before` and `after` are the file's text, ``-> TARGET`` of a link, or a few words in brackets for what has no text
    or whose content must not be shown; None where there was or is nothing.
    """

    path: str
    before: str | None
    after: str | None
    why: str


@dataclass(frozen=True, slots=True)
class _Place:
    """A resolved name: the names of its parents (none of them a link) and its own; both empty for the top."""

    parents: tuple[bytes, ...]
    name: bytes

    @property
    def path(self) -> str:
        return os.fsdecode(self.raw)

    @property
    def raw(self) -> bytes:
        return b"/".join((*self.parents, self.name))


@dataclass(slots=True)
class Tree:
    """One tree, open: a context manager.

    :param folder: its top
    :param label: what the paths of patches begin with, ``boot`` or ``root``
    :param record: where its attributes are kept; None: on disk
    :param originals: where to keep what gives way
    """

    folder: Path
    label: str
    record: TreeAttributes | None = None
    originals: Originals | None = None
    _made: dict[str, Patch] = field(default_factory=dict)
    _top: int = -1
    _left: int | None = None  # bytes that may still be read, where that is bounded

    def __enter__(self) -> Tree:
        self._top = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._top)
        self._top = -1

    @property
    def patches(self) -> list[Patch]:
        """What was changed so far, one patch a path."""
        return list(self._made.values())

    # ---------------------------------------------------------------- looking

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | None:
        """The content of a regular file, links followed; None where there is none, or something else.

        :raises FormatError: it is larger than `limit`
        """
        place = self._resolve(path)
        if place is None:
            return None
        status = self._stat(place)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > limit:
            raise FormatError(
                f"Reading {self.label}/{place.path} of the image: it has {status.st_size} bytes,"
                f" and {limit} are the most that such a file can have.",
                hint="Is the image broken, or made by somebody who wishes you ill?",
            )
        if self._left is not None:
            if status.st_size > self._left:
                raise FormatError(
                    f"Reading {self.label}/{place.path} of the image: with its {status.st_size} bytes this is more"
                    " than can be taken in at once.",
                    hint="Is the image broken, or made by somebody who wishes you ill?",
                )
            self._left -= status.st_size
        return self._content(place)

    @contextmanager
    def bounded(self, size: int) -> Iterator[None]:
        """Let `read` give no more than `size` bytes meanwhile, for one who holds them all."""
        self._left = size
        try:
            yield
        finally:
            self._left = None

    def text(self, path: str) -> str:
        """The content as text, empty where there is no such file; bytes that are not UTF-8 survive `write`.

        :raises FormatError: see `read`
        """
        return (self.read(path) or b"").decode("utf-8", "surrogateescape")

    def size(self, path: str) -> int:
        """The size of a regular file, links followed; -1 where there is none."""
        place = self._resolve(path)
        status = self._stat(place) if place else None
        return status.st_size if status and stat.S_ISREG(status.st_mode) else -1

    def is_file(self, path: str) -> bool:
        """Whether this is a regular file, links followed."""
        return self.size(path) >= 0

    def is_folder(self, path: str) -> bool:
        """Whether this is a folder, links followed."""
        place = self._resolve(path)
        status = self._stat(place) if place else None
        return status is not None and stat.S_ISDIR(status.st_mode)

    def is_there(self, path: str) -> bool:
        """Whether this name exists, be it a dangling link."""
        place = self._resolve(path, last=False)
        return place is not None and self._stat(place) is not None

    def link(self, path: str) -> str:
        """Where a link leads, as it is written; empty for anything else."""
        place = self._resolve(path, last=False)
        status = self._stat(place) if place else None
        return self._target(place) if place and status and stat.S_ISLNK(status.st_mode) else ""

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none where there is no such folder."""
        place = self._resolve(path)
        status = self._stat(place) if place else None
        if place is None or status is None or not stat.S_ISDIR(status.st_mode):
            return []
        with self._open_folder((*place.parents, place.name) if place.name else ()) as here:
            return sorted(os.fsdecode(name) for name in os.listdir(here))  # noqa: PTH208

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A descriptor of a regular file, links followed, for reading.

        :raises FormatError: there is no such file
        """
        place = self._resolve(path)
        status = self._stat(place) if place else None
        if place is None or status is None or not stat.S_ISREG(status.st_mode):
            raise FormatError(f"Reading {self.label}/{path} of the image: there is no such file.")
        with self._open_folder(place.parents) as here:
            fd = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            try:
                yield fd
            finally:
                os.close(fd)

    # ---------------------------------------------------------------- changing

    def write(self, path: str, text: str | bytes, why: str, *, mode: int = 0o644, secret: bool = False) -> None:
        """Make this a regular file of that content; folders that are missing are made.

        A file that was there keeps its owner, mode and attributes; a link gives way to the file.

        :param mode: of a file that was not there
        :param secret: the old content is not shown in the patch
        :raises FormatError: something else than a file or a link has the name
        """
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        place = self._place_for(path, why)
        status = self._stat(place)
        if status and not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise self._not_a_file(place, status)
        if status and stat.S_ISREG(status.st_mode) and status.st_size == len(data) and data == self._content(place):
            return
        before = self._shown(place, status, secret)
        old = status if status and stat.S_ISREG(status.st_mode) else None
        with self._open_folder(place.parents) as here, _times_kept(here) as times:
            fd = _create(here, mode)
            try:
                with os.fdopen(fd, "wb", closefd=False) as file:
                    file.write(data)
                if old:
                    self._take_over(fd, place, old)
                else:
                    self._give_to_root(fd, place, stat.S_IFREG | mode)
                os.utime(fd, ns=(old.st_atime_ns, old.st_mtime_ns) if old else times)
                self._keep(place, status, here)
                os.rename(_NEW_NAME, place.name, src_dir_fd=here, dst_dir_fd=here)
            finally:
                os.close(fd)
        self._note(place, before, self._shown(place, self._stat(place), False), why)

    def append(self, path: str, data: bytes, why: str) -> None:
        """Put bytes behind a regular file of any size (links followed), in a new inode; see `write`.

        :raises FormatError: there is no such file
        """
        place = self._resolve(path)
        status = self._stat(place) if place else None
        if place is None or status is None or not stat.S_ISREG(status.st_mode):
            raise FormatError(f"Extending {self.label}/{path} of the image: there is no such file.")
        with self._open_folder(place.parents) as here, _times_kept(here):
            source = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            try:
                fd = _create(here, 0o600)
                try:
                    with os.fdopen(fd, "wb", closefd=False) as file:
                        while chunk := os.read(source, _LARGE_CHUNK):
                            file.write(chunk)
                        file.write(data)
                    self._take_over(fd, place, status)
                    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
                    self._keep(place, status, here)
                    os.rename(_NEW_NAME, place.name, src_dir_fd=here, dst_dir_fd=here)
                finally:
                    os.close(fd)
            finally:
                os.close(source)
        self._note(place, f"({status.st_size} bytes)", f"({status.st_size + len(data)} bytes)", why)

    def symlink(self, path: str, target: str, why: str, *, secret: bool = False) -> None:
        """Make this a link; what was there (no folder) gives way.

        :param secret: the old content is not shown in the patch
        :raises FormatError: it is a folder
        """
        place = self._place_for(path, why)
        status = self._stat(place)
        if status and stat.S_ISLNK(status.st_mode) and self._target(place) == target:
            return
        if status and stat.S_ISDIR(status.st_mode):
            raise self._not_a_file(place, status)
        before = self._shown(place, status, secret)
        with self._open_folder(place.parents) as here, _times_kept(here) as times:
            _unlink_stale(here)
            os.symlink(target, _NEW_NAME, dir_fd=here)
            if self.record is not None:
                self.record.set(place.raw, Attributes(stat.S_IFLNK | 0o777))
            os.utime(_NEW_NAME, ns=times, dir_fd=here, follow_symlinks=False)
            self._keep(place, status, here)
            os.rename(_NEW_NAME, place.name, src_dir_fd=here, dst_dir_fd=here)
        self._note(place, before, f"-> {target}", why)

    def folder_at(self, path: str, why: str, *, mode: int = 0o755) -> None:
        """Make this a folder, and the missing ones above it. One that is there stays as it is."""
        place = self._place_for(path, why)
        if self._stat(place) is None:
            self._make_folder(place, why, mode)

    def remove(self, path: str, why: str, *, secret: bool = False) -> None:
        """Remove a name, a folder with all that is in it. A link is removed, not what it leads to.

        :param secret: the content is not shown in the patch
        :raises FormatError: a folder has more in it than this is meant for
        """
        place = self._resolve(path, last=False)
        status = self._stat(place) if place else None
        if place is None or status is None:
            return
        if len(self._made) > _MAX_REMOVED:
            raise FormatError(f"Removing {self.label}/{place.path} of the image: there are too many files in it.")
        if stat.S_ISDIR(status.st_mode):
            if len(place.parents) > _MAX_REMOVED_DEPTH:
                raise FormatError(f"Removing {self.label}/{place.path} of the image: folders are nested too deep.")
            for name in self.names(place.path):
                self.remove(f"{place.path}/{name}", why, secret=secret)
        before = self._shown(place, status, secret)
        with self._open_folder(place.parents) as here, _times_kept(here):
            if not stat.S_ISDIR(status.st_mode):
                self._keep(place, status, here)
                os.unlink(place.name, dir_fd=here)
            elif self.originals is None or not self.originals.keep_folder(self.label, place.raw, here):
                os.rmdir(place.name, dir_fd=here)
        if self.record is not None:
            self.record.remove(place.raw)
        self._note(place, before, None, why)

    # ---------------------------------------------------------------- names

    def _resolve(self, path: str, *, last: bool = True) -> _Place | None:
        """The place of a name whose folders are there; None where one of them isn't, or links go round.

        :param last: follow a link that is the last component, too
        """
        todo = [part for part in reversed(os.fsencode(path).split(b"/")) if part not in (b"", b".")]
        done: list[bytes] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                del done[-1:]
                continue
            if len(done) >= _MAX_PARTS or b"\0" in part:
                return None
            if not todo and not last:
                return _Place(tuple(done), part)
            place = _Place(tuple(done), part)
            status = self._stat(place)
            if status is not None and stat.S_ISLNK(status.st_mode):
                links += 1
                target = os.fsencode(self._target(place))
                if links > _MAX_LINKS:
                    return None
                if target.startswith(b"/"):
                    done.clear()
                todo += [name for name in reversed(target.split(b"/")) if name not in (b"", b".")]
                continue
            if todo and (status is None or not stat.S_ISDIR(status.st_mode)):
                return None
            done.append(part)
        return _Place(tuple(done[:-1]), done[-1] if done else b"")

    def _place_for(self, path: str, why: str) -> _Place:
        """The place of a name that is to be written; the folders above it are made where they are missing."""
        if "\0" in path:
            raise FormatError(f"Writing {self.label}/{path!r} of the image: no file can have such a name.")
        above, _, name = path.rstrip("/").rpartition("/")
        folder = self._resolve(above)
        if folder is None:
            parent = self._place_for(above, why)
            if (status := self._stat(parent)) and stat.S_ISLNK(status.st_mode):
                raise FormatError(
                    f"Writing {self.label}/{path} of the image: {parent.path} is a link that leads nowhere.",
                    hint="The image's own folders are needed here; is it broken?",
                )
            if status is None:
                self._make_folder(parent, why, 0o755)
            folder = self._resolve(above)
        if folder and folder.name:
            status = self._stat(folder)
            if status is None:
                self._make_folder(folder, why, 0o755)
            elif not stat.S_ISDIR(status.st_mode):
                folder = None
        if folder is None:
            raise FormatError(
                f"Writing {self.label}/{path} of the image: {self.label}/{above} is no folder.",
                hint="Is the image broken?",
            )
        parents = (*folder.parents, folder.name) if folder.name else ()
        return _Place(parents, os.fsencode(name))

    def _make_folder(self, place: _Place, why: str, mode: int) -> None:
        with self._open_folder(place.parents) as here, _times_kept(here) as times:
            self._keep(place, None, here)
            os.mkdir(place.name, mode, dir_fd=here)
            fd = os.open(place.name, _DIRECTORY, dir_fd=here)
            try:
                self._give_to_root(fd, place, stat.S_IFDIR | mode)
                os.utime(fd, ns=times)
            finally:
                os.close(fd)
        self._note(place, None, "(a folder)", why)

    @contextmanager
    def _open_folder(self, parts: tuple[bytes, ...]) -> Iterator[int]:
        here = os.dup(self._top)
        try:
            for part in parts:
                below = os.open(part, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    # ---------------------------------------------------------------- one name

    def _keep(self, place: _Place, status: os.stat_result | None, folder: int) -> None:
        """Keep what is about to give way; None: there is nothing yet."""
        if self.originals is None:
            return
        if status is None:
            self.originals.made(self.label, place.raw)
        else:
            self.originals.keep(self.label, place.raw, folder)

    def _stat(self, place: _Place) -> os.stat_result | None:
        try:
            with self._open_folder(place.parents) as here:
                status = os.stat(place.name, dir_fd=here, follow_symlinks=False) if place.name else os.fstat(here)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise
        recorded = self.record.get(place.raw) if self.record is not None else None
        return _as_recorded(status, recorded) if recorded else status

    def _target(self, place: _Place) -> str:
        with self._open_folder(place.parents) as here:
            return os.fsdecode(os.readlink(place.name, dir_fd=here))

    def _content(self, place: _Place) -> bytes:
        with self._open_folder(place.parents) as here:
            fd = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            with os.fdopen(fd, "rb") as file:
                return file.read()

    def _take_over(self, fd: int, place: _Place, old: os.stat_result) -> None:
        """Give the file at `fd` what the one at `place` has: owner, attributes, mode (in this order: chown clears)."""
        if self.record is not None:  # it goes by the path, which stays
            os.fchmod(fd, mode_on_disk(old.st_mode))
            return
        _own(fd, old.st_uid, old.st_gid)
        with self._open_folder(place.parents) as here:
            source = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            try:
                for name in os.listxattr(source):
                    os.setxattr(fd, name, os.getxattr(source, name))
            finally:
                os.close(source)
        os.fchmod(fd, stat.S_IMODE(old.st_mode))

    def _give_to_root(self, fd: int, place: _Place, mode: int) -> None:
        """Make what is new at `place` root's, with a mode (as st_mode)."""
        if self.record is not None:
            self.record.set(place.raw, Attributes(mode))
            os.fchmod(fd, mode_on_disk(mode))
        else:
            _own(fd, 0, 0)
            os.fchmod(fd, stat.S_IMODE(mode))

    def _shown(self, place: _Place, status: os.stat_result | None, secret: bool) -> str | None:
        if status is None:
            return None
        if stat.S_ISLNK(status.st_mode):
            return f"-> {self._target(place)}"
        if not stat.S_ISREG(status.st_mode):
            return f"({_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')})"
        if secret or status.st_size > _TEXT_LIMIT:
            return f"({status.st_size} bytes)"
        try:
            return self._content(place).decode()
        except UnicodeDecodeError:
            return f"({status.st_size} bytes)"

    def _note(self, place: _Place, before: str | None, after: str | None, why: str) -> None:
        """Keep the patch; one that changes the same path again counts as one with it."""
        path = f"{self.label}/{place.path}"
        if earlier := self._made.pop(path, None):
            before = earlier.before
        if before is not None or after is not None:
            self._made[path] = Patch(path, before, after, why)

    def _not_a_file(self, place: _Place, status: os.stat_result) -> FormatError:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        return FormatError(
            f"Patching {self.label}/{place.path} of the image: it is {kind}, not a file.",
            hint="An operating system has a file there; is the image broken?",
        )


@contextmanager
def _times_kept(folder: int) -> Iterator[tuple[int, int]]:
    """Gives a folder its times back, which changed with a name in it; (atime, mtime) in ns."""
    status = os.fstat(folder)
    times = (status.st_atime_ns, status.st_mtime_ns)
    yield times
    os.utime(folder, ns=times)


def _create(folder: int, mode: int) -> int:
    _unlink_stale(folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(_NEW_NAME, flags, mode & 0o700 | 0o600, dir_fd=folder)


def _unlink_stale(folder: int) -> None:
    try:
        os.unlink(_NEW_NAME, dir_fd=folder)
    except FileNotFoundError:
        pass


def _own(fd: int, uid: int, gid: int) -> None:
    """Give the file to its owner. A plain user can't, and has no need to: of a boot partition, FAT keeps no owners."""
    status = os.fstat(fd)
    if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)


def _as_recorded(status: os.stat_result, recorded: Attributes) -> os.stat_result:
    """What lies on disk, with the type, mode and owner that it has in the image."""
    return os.stat_result(
        (recorded.mode, *status[1:4], recorded.uid, recorded.gid, *status[6:10]),
        {"st_atime_ns": status.st_atime_ns, "st_mtime_ns": status.st_mtime_ns},
    )
