"""Goes through all names of an ext4 file system, each checked against everything met before.

A directory that is reached twice, a name too many for an inode's link count, a block with two owners (be it another
file, an inode table or the journal), and depths and numbers that no operating system has are refused. Inodes without a
name (the orphans of an unclean end, the quota and orphan files) are never seen, as on a mount.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from netbootd.formats.ext4.directory import DirEntry
from netbootd.formats.ext4.extents import Extent
from netbootd.formats.ext4.faults import damaged, unsupported
from netbootd.formats.ext4.inode import FLAG_EA_INODE, Inode, Kind

if TYPE_CHECKING:
    from netbootd.formats.ext4.filesystem import Ext4

logger = logging.getLogger(__name__)

MAX_ENTRIES = 1_500_000
MAX_LINKED = (
    250_000  # inodes with several names, of which an exporter remembers the first; the largest images have 5,000
)
MAX_DEPTH = 256  # an exporter holds one descriptor a level
MAX_PATH = 4095  # PATH_MAX without its NUL: what lies deeper no program that serves it could open

_NO_EXTENTS: list[Extent] = []
_NO_XATTRS: dict[str, bytes] = {}


class Entry(NamedTuple):
    """One name. `folder` is the path of its directory and `depth` how many directories lie above it.

    The top directory comes first, with depth 0 and no name. `again` is set for all names of an inode but the first;
    `extents` (files), `target` (symbolic links) and `xattrs` stand only with the first.
    """

    depth: int
    folder: bytes
    name: bytes
    inode: Inode
    again: bool
    extents: list[Extent]
    target: bytes
    xattrs: dict[str, bytes]

    @property
    def path(self) -> bytes:
        """Relative to the top directory, whose path is empty."""
        return self.folder + b"/" + self.name if self.folder else self.name


def walk(fs: Ext4) -> Iterator[Entry]:
    """See `Ext4.walk`."""
    state = _Walk(fs)
    root = fs.root()
    yield state.first(0, b"", b"", root)
    pending: list[tuple[bytes, int, Iterator[DirEntry]]] = [(b"", root.number, state.names(root, root.number))]
    while pending:
        folder, parent, names = pending[-1]
        depth = len(pending)
        for name, number in names:
            entry = state.entry(depth, folder, name, number)
            yield entry
            if entry.inode.kind is Kind.DIR:
                if depth >= MAX_DEPTH:
                    raise unsupported(f"{_shown(entry.path)} lies more than {MAX_DEPTH} directories deep", _NONE_SUCH)
                pending.append((entry.path, number, state.names(entry.inode, parent)))
                break
        else:
            pending.pop()
    state.finish()


_NONE_SUCH = "No image of an operating system is like that."


def _shown(path: bytes) -> str:
    """A path for a sentence: printable, and not longer than a line."""
    text = ascii("/" + path.lstrip(b"/").decode(errors="surrogateescape"))
    return text if len(text) <= 200 else f"{text[:100]}…{text[-90:]}"


class _Walk:
    """What has been met so far."""

    __slots__ = ("_claims", "_entries", "_fs", "_links", "_met")

    def __init__(self, fs: Ext4) -> None:
        self._fs = fs
        self._entries = 0
        self._met = bytearray(fs.superblock.inodes_count + 1)
        self._links: dict[int, int] = {}  # inodes that may have several names: the names that are still to come
        self._claims = fs.claims()

    def names(self, inode: Inode, parent: int) -> Iterator[DirEntry]:
        return inode.entries(self._claims, parent=parent)

    def entry(self, depth: int, folder: bytes, name: bytes, number: int) -> Entry:
        """The checked entry of a name."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise unsupported(f"it has more than {MAX_ENTRIES} names", _NONE_SUCH)
        if len(folder) + 1 + len(name) > MAX_PATH:
            raise unsupported(f"the path {_shown(folder + b'/' + name)} has more than {MAX_PATH} bytes", _NONE_SUCH)
        inode = self._fs.inode(number)
        if self._met[number]:
            self._again(inode, folder + b"/" + name)
            return Entry(depth, folder, name, inode, True, _NO_EXTENTS, b"", _NO_XATTRS)
        return self.first(depth, folder, name, inode)

    def first(self, depth: int, folder: bytes, name: bytes, inode: Inode) -> Entry:
        """The entry of an inode that is met for the first time."""
        kind = inode.kind
        self._met[inode.number] = 1
        if inode.nlink > 1 and kind is not Kind.DIR:
            self._links[inode.number] = inode.nlink - 1
            if len(self._links) > MAX_LINKED:
                raise unsupported(f"it has more than {MAX_LINKED} files with several names", _NONE_SUCH)
        if inode.flags & FLAG_EA_INODE:
            raise damaged(f"{_shown(folder + b'/' + name)} names inode {inode.number}, which holds an attribute")
        extents, target = _NO_EXTENTS, b""
        if kind is Kind.FILE:
            extents = inode.extents(self._claims)
        elif kind is Kind.LINK:
            target = inode.target(self._claims)
        return Entry(depth, folder, name, inode, False, extents, target, inode.xattrs(self._claims))

    def _again(self, inode: Inode, path: bytes) -> None:
        if inode.kind is Kind.DIR:
            raise damaged(f"the directory in inode {inode.number} has a second name: {_shown(path)}")
        left = self._links.get(inode.number, 0)
        if not left:
            raise damaged(f"{_shown(path)} is one name too many for inode {inode.number}, which has {inode.nlink}")
        self._links[inode.number] = left - 1

    def finish(self) -> None:
        short = sum(1 for left in self._links.values() if left)
        if short:
            logger.warning("%d files have fewer names in the image than their inodes say", short)
