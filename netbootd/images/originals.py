"""What patches replace is kept beside the trees, so that a generation can be made of an earlier one.

``original/`` in a generation has the files, links and emptied folders that its patches replaced or removed, each under
a number, and index.json, which says of every path that was touched what it was before. Both trees as they were exported
are thus at hand without the archive: `clone` makes them anew with hard links to all that patches left alone. Nobody
writes to either, for generations never change, and a patch replaces a file and does not write into it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netbootd.formats.treeattributes import TreeAttributes
from netbootd.images.export import forget_inherited

REVISION = 1
"""To be raised whenever exports come out differently: an older generation is no longer made use of then."""

ORIGINAL = "original"
_INDEX = "index.json"
_RECORD = "attributes"
_TREES = ("boot", "root")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TELL = 512  # names after which the progress is told


class Originals:
    """The folder of one build, being filled; a context manager.

    :param folder: to be made
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self._fd = os.open(folder, _FOLDER)
        self._paths: dict[str, dict[str, int | None]] = {label: {} for label in _TREES}
        self._count = 0

    def __enter__(self) -> Originals:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def keep(self, label: str, path: bytes, above: int) -> None:
        """Keep what has this path (and is no folder) before it goes; what was never in the image is not kept.

        :param above: a descriptor of the folder that it is in
        :raises OSError: the disk fails
        """
        if (number := self._number(label, path)) is not None:
            name = path.rpartition(b"/")[2]
            os.link(name, number, src_dir_fd=above, dst_dir_fd=self._fd, follow_symlinks=False)

    def keep_folder(self, label: str, path: bytes, above: int) -> bool:
        """Take a folder that has been emptied out of the tree; False where it is none of the image's.

        :param above: a descriptor of the folder that it is in
        :raises OSError: the disk fails
        """
        number = self._number(label, path)
        if number is None:
            return False
        os.rename(path.rpartition(b"/")[2], number, src_dir_fd=above, dst_dir_fd=self._fd)
        return True

    def made(self, label: str, path: bytes) -> None:
        """Note a path that the image does not have."""
        self._paths[label].setdefault(os.fsdecode(path), None)

    def _number(self, label: str, path: bytes) -> bytes | None:
        known = os.fsdecode(path)
        if known in self._paths[label]:
            return None
        number, self._count = self._count, self._count + 1
        self._paths[label][known] = number
        return b"%d" % number

    def finish(self, inputs: dict[str, Any], record: bytes | None) -> None:
        """Write down what there is.

        :param inputs: what `usable` will compare
        :param record: the attributes of the root file system as it was, where they are kept in a record
        :raises OSError: the disk fails
        """
        if record is not None:
            (self.folder / _RECORD).write_bytes(record)
        index = {"revision": REVISION, "inputs": inputs, "paths": self._paths}
        (self.folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n")


def usable(generation: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether `clone` can make of this generation what an export would give of these inputs."""
    try:
        index = json.loads((generation / ORIGINAL / _INDEX).read_bytes())
        return bool(index["revision"] == REVISION and index["inputs"] == inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def clone(generation: Path, work: Path, progress: Callable[[int], None]) -> dict[str, int]:
    """Make boot/ and root/ in `work` as they were before the generation was patched.

    :param progress: told the number of names that were made; may raise to stop
    :returns: how many names each tree has, the top folder not counted
    :raises OSError: something is missing or can't be linked, or the disk fails
    :raises ValueError, KeyError, AttributeError: index.json is not what was written
    """
    paths = json.loads((generation / ORIGINAL / _INDEX).read_bytes())["paths"]
    counts = {}
    for label in _TREES:
        touched = {os.fsencode(path): number for path, number in paths[label].items()}
        (work / label).mkdir(mode=0o700)
        with (
            _opened(generation / label) as source,
            _opened(generation / ORIGINAL) as kept,
            _opened(work / label) as target,
        ):
            forget_inherited(target)
            cloned = _Clone(source, kept, target, touched, progress)
            cloned.run()
            counts[label] = cloned.count
    return counts


def recorded(generation: Path) -> TreeAttributes:
    """The attributes of the root file system before it was patched.

    :raises OSError: there are none
    :raises FormatError: they are damaged
    """
    return TreeAttributes.parse((generation / ORIGINAL / _RECORD).read_bytes())


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, _FOLDER)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Clone:
    """One tree: `source` as it is patched, what it was in `kept` by number, and the new `target`, as descriptors."""

    source: int
    kept: int
    target: int
    touched: dict[bytes, int | None]
    progress: Callable[[int], None]
    count: int = 0
    _folders: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # path, and where its attributes are

    def run(self) -> None:
        self._folders.append((b".", self.source, b"."))
        self._link_all()
        for path in sorted(self.touched, key=lambda path: path.count(b"/")):  # a folder before what is in it
            number = self.touched[path]
            if number is not None:
                self._restore(path, b"%d" % number)
        for path, top, name in reversed(self._folders):  # making things in a folder changes its times
            _copy_attributes(os.open(name, _FOLDER, dir_fd=top), os.open(path, _FOLDER, dir_fd=self.target))
        self.progress(self.count % _TELL)

    def _link_all(self) -> None:
        """All that patches left alone."""
        pending = [b""]
        while pending:
            folder = pending.pop()
            here = os.open(folder or b".", _FOLDER, dir_fd=self.source)
            there = os.open(folder or b".", _FOLDER, dir_fd=self.target)
            try:
                with os.scandir(here) as entries:
                    found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
                for name, is_folder in found:
                    path = folder + b"/" + name if folder else name
                    if path in self.touched:
                        continue
                    if is_folder:
                        os.mkdir(name, 0o700, dir_fd=there)
                        self._folders.append((path, self.source, path))
                        pending.append(path)
                    else:
                        os.link(name, name, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
                    self._made()
            finally:
                os.close(here)
                os.close(there)

    def _restore(self, path: bytes, number: bytes) -> None:
        if stat.S_ISDIR(os.stat(number, dir_fd=self.kept, follow_symlinks=False).st_mode):
            os.mkdir(path, 0o700, dir_fd=self.target)
            self._folders.append((path, self.kept, number))
        else:
            os.link(number, path, src_dir_fd=self.kept, dst_dir_fd=self.target, follow_symlinks=False)
        self._made()

    def _made(self) -> None:
        self.count += 1
        if not self.count % _TELL:
            self.progress(_TELL)


def _copy_attributes(source: int, target: int) -> None:
    """Give one folder what another has: owner, attributes, mode, times. Closes both descriptors."""
    try:
        status = os.fstat(source)
        if os.geteuid() == 0:
            os.fchown(target, status.st_uid, status.st_gid)
        for name in os.listxattr(source):
            os.setxattr(target, name, os.getxattr(source, name))
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(source)
        os.close(target)
