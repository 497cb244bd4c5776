"""The index of one exported tree: every entry's name, place and attributes, read once and kept in a few flat arrays.

A published generation never changes, so everything but file contents is answered from here, without a system call and
without waiting for a disk; 60,000 entries take about 10 MB. `scan` walks the tree name by name beneath its root
folder's descriptor and follows no symbolic link; it doesn't descend into other mounted file systems. Files are opened
the same way, and only if they still are what the index says.

Of a tree that was made without privileges the owners, modes, types, device numbers and ACLs come from the record beside
it (`netbootd.formats.treeattributes`), and what its files have on disk counts for nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence

from netbootd.formats.treeattributes import Attributes
from netbootd.nfsd import attributes, records
from netbootd.nfsd.attributes import Facts
from netbootd.nfsd.listings import Listings
from netbootd.nfsd.records import Recorded, Source

_log = logging.getLogger(__name__)

ROOT = 0
"""The number of a tree's root folder."""

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ABSENT = 0xFFFFFFFF


class Tree:
    """An indexed tree. Entries that are hard links of one file share one number; numbers run from 0, the root.

    Numbers and path digests depend on nothing but the names in the tree, so they come out the same after a restart and
    for an exact copy on another machine.
    """

    def __init__(self, path: bytes, fsid: bytes) -> None:
        """Open the tree's root; `scan` fills the rest.

        :raises OSError: `path` is not a folder that can be opened
        """
        self.path = path
        self.fsid = fsid
        self._root_fd = -1
        self._root_fd = os.open(path, os.O_RDONLY | _FOLDER)
        self._post_ops = bytearray()
        self._parents = array("I")
        self._entries = array("I")  # number -> its first directory entry
        self._keys = array("Q")
        self._first_child = array("I")
        self._child_count = array("I")
        self._names = bytearray()
        self._name_ends = array("I")
        self._targets_of_entries = array("I")
        self._symlinks: dict[int, bytes] = {}
        self._acls: dict[int, tuple[bytes, bytes]] = {}
        self._unreadable: set[int] = set()
        self._by_key: array[int] | None = None
        self.listings = Listings()

    def close(self) -> None:
        """Give back the root's descriptor. May be called twice; the last reference that goes does it, too: a thread
        may still be reading when nobody else wants the tree any more."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def __del__(self) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._parents)

    @property
    def root_fd(self) -> int:
        """The root folder's descriptor, valid until `close`."""
        return self._root_fd

    # ------------------------------------------------------------------ looking up

    def find(self, number: int, key: int) -> int | None:
        """The number of the entry whose path has the digest `key`, None for none; `number` is where it should be."""
        if number < len(self._keys) and self._keys[number] == key:
            return number
        if self._by_key is None:
            self._by_key = array("I", sorted(range(len(self._keys)), key=self._keys.__getitem__))
        place = bisect_left(self._by_key, key, key=self._keys.__getitem__)
        if place < len(self._by_key) and self._keys[self._by_key[place]] == key:
            return self._by_key[place]
        return None

    def key(self, number: int) -> int:
        """The 64-bit digest of the entry's path."""
        return self._keys[number]

    def post_op(self, number: int) -> bytes:
        """The entry's attributes as a post_op_attr."""
        start = number * attributes.SIZE
        return bytes(self._post_ops[start : start + attributes.SIZE])

    def facts(self, number: int) -> Facts:
        """The entry's type, mode, owner and size."""
        return Facts(self._post_ops, number * attributes.SIZE)

    def parent(self, number: int) -> int:
        """The folder that holds the entry (a hard link's first name counts); the root's parent is the root."""
        return self._parents[number]

    def children(self, number: int) -> range:
        """The directory entries of a folder, in the order of their names as bytes."""
        first = self._first_child[number]
        return range(first, first + self._child_count[number])

    def listing(self, entries: range) -> Iterator[tuple[bytearray, int, bytearray]]:
        """Of each directory entry: its name, the number behind it, and the attributes of that as a post_op_attr."""
        names, ends, targets, attrs, size = (
            self._names,
            self._name_ends,
            self._targets_of_entries,
            self._post_ops,
            attributes.SIZE,
        )
        begin = ends[entries.start - 1] if entries.start else 0
        for entry in entries:
            end, number = ends[entry], targets[entry]
            yield names[begin:end], number, attrs[number * size : (number + 1) * size]
            begin = end

    def name(self, entry: int) -> bytes:
        """The name of a directory entry."""
        return bytes(self._names[self._name_ends[entry - 1] if entry else 0 : self._name_ends[entry]])

    def lookup(self, folder: int, name: bytes) -> int | None:
        """The entry called `name` in a folder, None where there is none."""
        children = self.children(folder)
        place = bisect_left(children, name, key=self.name)
        if place == len(children) or self.name(children[place]) != name:
            return None
        return self._targets_of_entries[children[place]]

    def symlink(self, number: int) -> bytes | None:
        """A symbolic link's target, None for anything else."""
        return self._symlinks.get(number)

    def acls(self, number: int) -> tuple[bytes, bytes] | None:
        """The stored (access, default) ACLs as extended attributes' values, each may be empty; None without both."""
        return self._acls.get(number)

    def unreadable(self, number: int) -> bool:
        """Whether the server itself was not allowed to list this folder."""
        return number in self._unreadable

    def names_to(self, number: int) -> list[bytes]:
        """The names on the way from the root to the entry."""
        names = []
        while number != ROOT:
            names.append(self.name(self._entries[number]))
            number = self._parents[number]
        return names[::-1]

    def open(self, number: int) -> int:
        """A read-only descriptor of a regular file. May wait for the disk.

        :raises OSError: it is gone, or can't be opened by us
        :raises FileNotFoundError: what lies there now is another file than the index knows
        """
        fd = open_beneath(self._root_fd, self.names_to(number), _FILE)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or self._changed(number, status):
                raise FileNotFoundError(f"changed since it was indexed: {self.names_to(number)!r}")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _changed(self, number: int, status: os.stat_result) -> bool:
        now = attributes.encode(status, attributes.on_disk(status), int.from_bytes(self.fsid, "big"))
        return attributes.identity(now) != attributes.identity(self.post_op(number))

    # ------------------------------------------------------------------ building

    def _add(self, parent: int, key: int, entry: int, status: os.stat_result, its: Attributes) -> int:
        number = len(self._parents)
        self._parents.append(parent)
        self._keys.append(key)
        self._entries.append(entry)
        self._first_child.append(0)
        self._child_count.append(0)
        self._post_ops += attributes.encode(status, its, int.from_bytes(self.fsid, "big"))
        return number

    def _fill(self, source: Source) -> None:
        status = os.fstat(self._root_fd)
        device = status.st_dev
        links: dict[int, int] = {}
        its = source.of(b"", status)
        self._add(ROOT, _key(0, b""), _ABSENT, status, its)
        self._keep_acls(ROOT, source.acls(its, self._root_fd))
        folders: deque[tuple[int, tuple[bytes, ...]]] = deque([(ROOT, ())])
        while folders:
            number, names = folders.popleft()
            try:
                fd = open_beneath(self._root_fd, names, os.O_RDONLY | _FOLDER)
            except PermissionError:
                self._unreadable.add(number)
                continue
            try:
                self._fill_folder(number, names, fd, device, links, folders, source)
            finally:
                os.close(fd)

    def _fill_folder(
        self,
        folder: int,
        names: tuple[bytes, ...],
        fd: int,
        device: int,
        links: dict[int, int],
        folders: deque[tuple[int, tuple[bytes, ...]]],
        source: Source,
    ) -> None:
        with os.scandir(fd) as listing:
            entries = sorted((os.fsencode(entry.name), entry) for entry in listing)
        self._first_child[folder] = len(self._name_ends)
        base = self._keys[folder]
        above = b"".join(part + b"/" for part in names)
        for name, dir_entry in entries:
            status = dir_entry.stat(follow_symlinks=False)
            kind = stat.S_IFMT(status.st_mode)
            known = links.get(status.st_ino) if status.st_nlink > 1 and kind != stat.S_IFDIR else None
            if known is None:
                its = source.of(above + name, status)
                known = self._add(folder, _key(base, name), len(self._name_ends), status, its)
                if kind == stat.S_IFLNK:
                    self._symlinks[known] = os.fsencode(os.readlink(dir_entry.name, dir_fd=fd))
                elif status.st_dev == device:
                    if kind == stat.S_IFDIR:
                        folders.append((known, (*names, name)))
                    self._keep_acls(known, source.acls(its, b"/proc/self/fd/%d/%b" % (fd, name)))
                if status.st_nlink > 1 and kind != stat.S_IFDIR:
                    links[status.st_ino] = known
            self._names += name
            self._name_ends.append(len(self._names))
            self._targets_of_entries.append(known)
        self._child_count[folder] = len(entries)

    def _keep_acls(self, number: int, acls: tuple[bytes, bytes]) -> None:
        if any(acls):
            self._acls[number] = acls


def _key(parent: int, name: bytes) -> int:
    """The path digest of an entry, from its folder's digest and its name."""
    digest = hashlib.blake2b(parent.to_bytes(8, "big") + name, digest_size=8).digest()
    return int.from_bytes(digest, "big")


def scan(path: bytes, fsid: bytes, attributes_file: bytes | None = None) -> Tree:
    """Index the tree at `path`. Takes about a second for 60,000 entries: call it from a thread.

    :param attributes_file: the record of its attributes, where they are not on disk
    :raises OSError: the tree or its record can't be read; a folder that we may not list is no error, its callers get
        NFS3ERR_ACCES
    """
    source = Source() if attributes_file is None else records.load(attributes_file)
    tree = Tree(path, fsid)
    try:
        tree._fill(source)
    except BaseException:
        tree.close()
        raise
    if tree._unreadable:
        _log.warning(
            "%d folders of %s can't be read by this server; nodes will get 'permission denied' there",
            len(tree._unreadable),
            os.fsdecode(path),
        )
    if isinstance(source, Recorded) and source.strangers:
        _log.warning(
            "%d entries of %s are not as they were made: only root on a node may use them",
            source.strangers,
            os.fsdecode(path),
        )
    return tree


def open_beneath(root_fd: int, names: Sequence[bytes], flags: int) -> int:
    """Open what lies at `names` beneath a folder, one name at a time, through no symbolic link.

    :raises OSError: it is not there, or one of the names is a symbolic link
    """
    if not names:
        return os.open(".", flags, dir_fd=root_fd)
    folder = root_fd
    try:
        for name in names[:-1]:
            inner = os.open(name, os.O_PATH | _FOLDER, dir_fd=folder)
            if folder != root_fd:
                os.close(folder)
            folder = inner
        return os.open(names[-1], flags, dir_fd=folder)
    finally:
        if folder != root_fd:
            os.close(folder)
