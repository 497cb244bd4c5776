"""How the attributes of an exported root file system are kept: by the store itself, or in a record beside the tree.

As root everything is what it is in the image. For a plain user, who can neither give files away nor make devices, the
content lies in the tree and the rest in the record, by which netbootd's own NFS server shows the tree: device nodes,
fifos and sockets are empty files, and nothing has an owner, a set-id bit or an extended attribute. What others could
read in the image they can read on disk, and nothing that they could not; they can change none of it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Protocol

from netbootd.errors import HostError
from netbootd.formats.ext4 import Entry, Kind
from netbootd.formats.treeattributes import Attributes, TreeAttributes

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE_TYPES = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO, Kind.SOCK: stat.S_IFSOCK}
_TYPES = {**_NODE_TYPES, Kind.DIR: stat.S_IFDIR, Kind.FILE: stat.S_IFREG, Kind.LINK: stat.S_IFLNK}
_DEVICES = (Kind.CHAR, Kind.BLOCK)


class Dressing(Protocol):
    """Gives what an export has made its attributes. Times are kept by the store in either way."""

    def dress(self, fd: int, entry: Entry) -> None:
        """A file, or a folder that is complete."""

    def dress_name(self, above: int, entry: Entry) -> None:
        """The same by name, in the folder at the descriptor `above`: a link, and what there is no need to open."""

    def make_node(self, above: int, entry: Entry) -> None:
        """Make a device node, fifo or socket."""

    def again(self, entry: Entry, first: bytes) -> None:
        """A further name of what has been dressed under the path `first`."""


class StoreDressing:
    """The store keeps everything; takes root."""

    def dress(self, fd: int, entry: Entry) -> None:
        """Owner first, which clears set-id bits and capabilities; the mode after the ACL, which would change it.

        :raises HostError: the store can't keep an extended attribute
        """
        inode = entry.inode
        os.fchown(fd, inode.uid, inode.gid)
        for name, value in entry.xattrs.items():
            _set(fd, name, value, entry)
        os.fchmod(fd, inode.mode)
        os.utime(fd, ns=(inode.atime_ns, inode.mtime_ns))

    def dress_name(self, above: int, entry: Entry) -> None:
        """The same for what can't be opened, or not without harm."""
        inode, name = entry.inode, entry.name
        os.chown(name, inode.uid, inode.gid, dir_fd=above, follow_symlinks=False)
        if entry.xattrs:
            path = b"/proc/self/fd/%d/" % above + name
            for key, value in entry.xattrs.items():
                _set(path, key, value, entry)
        if inode.kind is not Kind.LINK:
            os.chmod(name, inode.mode, dir_fd=above)
        os.utime(name, ns=(inode.atime_ns, inode.mtime_ns), dir_fd=above, follow_symlinks=False)

    def make_node(self, above: int, entry: Entry) -> None:
        """See `Dressing`."""
        os.mknod(entry.name, _NODE_TYPES[entry.inode.kind] | 0o600, entry.inode.rdev, dir_fd=above)
        self.dress_name(above, entry)

    def again(self, entry: Entry, first: bytes) -> None:
        """A hard link has what its file has."""


class RecordDressing:
    """The store keeps names, content and times; all else goes into `record`."""

    def __init__(self, record: TreeAttributes) -> None:
        self.record = record

    def dress(self, fd: int, entry: Entry) -> None:
        """See `Dressing`.

        :raises FormatError: the image has more to note than any operating system's
        """
        inode = entry.inode
        self._note(entry)
        os.fchmod(fd, mode_on_disk(_TYPES[inode.kind] | inode.mode))
        os.utime(fd, ns=(inode.atime_ns, inode.mtime_ns))

    def dress_name(self, above: int, entry: Entry) -> None:
        """See `Dressing`."""
        inode = entry.inode
        self._note(entry)
        if inode.kind is not Kind.LINK:
            os.chmod(entry.name, mode_on_disk(_TYPES[inode.kind] | inode.mode), dir_fd=above)
        os.utime(entry.name, ns=(inode.atime_ns, inode.mtime_ns), dir_fd=above, follow_symlinks=False)

    def make_node(self, above: int, entry: Entry) -> None:
        """An empty file stands for it."""
        fd = os.open(entry.name, _NEW, 0o600, dir_fd=above)
        try:
            self.dress(fd, entry)
        finally:
            os.close(fd)

    def again(self, entry: Entry, first: bytes) -> None:
        """See `Dressing`."""
        self.record.link(entry.path, first)

    def _note(self, entry: Entry) -> None:
        inode = entry.inode
        device = inode.rdev if inode.kind in _DEVICES else 0
        attributes = Attributes(
            _TYPES[inode.kind] | inode.mode,
            inode.uid,
            inode.gid,
            os.major(device),
            os.minor(device),
            tuple(sorted(entry.xattrs.items())),
        )
        self.record.set(entry.path, attributes)


def mode_on_disk(mode: int) -> int:
    """The permissions on disk of a recorded file or folder: all for its maker, for the rest what others have of it.

    The image's group is not the group that the file has on disk, so that counts for nothing.

    :param mode: as st_mode, with the type
    """
    others = mode & (stat.S_IROTH | stat.S_IXOTH)
    executable = stat.S_ISDIR(mode) or mode & 0o111
    return (0o700 if executable else 0o600) | others << 3 | others


def _set(target: int | bytes, name: str, value: bytes, entry: Entry) -> None:
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and len(value) < 2048:
            raise
        raise cannot_keep(entry, name, value, error) from error


def cannot_keep(entry: Entry, name: str, value: bytes, error: OSError) -> HostError:
    """What to tell of an extended attribute that the store refuses."""
    return HostError(
        f"Exporting {shown(entry)}: this store can't keep its attribute {name} ({len(value)} bytes): {error.strerror}.",
        hint="Choose a folder on ext4 (made with -O ea_inode for large attributes), XFS or btrfs with --state.",
    )


def shown(entry: Entry) -> str:
    """The path of an entry, for a sentence."""
    return repr("/" + os.fsdecode(entry.path))
