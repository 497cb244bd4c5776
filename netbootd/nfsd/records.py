"""Where the attributes of an exported tree's entries come from: the disk, or the record of a plain user's tree."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from netbootd.errors import FormatError
from netbootd.formats import treeattributes
from netbootd.formats.treeattributes import Attributes, TreeAttributes
from netbootd.nfsd import posixacl
from netbootd.nfsd.attributes import on_disk

_log = logging.getLogger(__name__)

_ACLS = (posixacl.ACCESS, posixacl.DEFAULT)
_STOOD_FOR = (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)


class Source:
    """They are what the disk has."""

    def of(self, path: bytes, status: os.stat_result) -> Attributes:
        """Type, mode, owner and device number of the entry at `path`, which lies on disk as `status` tells."""
        return on_disk(status)

    def acls(self, its: Attributes, where: int | bytes) -> tuple[bytes, bytes]:
        """(access, default) ACLs of what `of` gave `its`; `where` is a descriptor, or a path that is not followed."""
        try:
            names = os.listxattr(where) if isinstance(where, int) else os.listxattr(where, follow_symlinks=False)
            access, default = (_xattr(where, name) if name in names else b"" for name in _ACLS)
        except OSError as error:  # a file system without extended attributes, or no /proc
            _log.debug("no ACLs of %s: %s", where if isinstance(where, int) else os.fsdecode(where), error)
            return b"", b""
        return access, default


class Recorded(Source):
    """They are what a file beside the tree says.

    An entry of which it says nothing, or another type than such a tree has there, is root's alone: somebody has been at
    the tree since. `strangers` counts those.
    """

    def __init__(self, known: TreeAttributes) -> None:
        self._known = known
        self.strangers = 0

    def of(self, path: bytes, status: os.stat_result) -> Attributes:
        """See `Source`."""
        found = self._known.get(path)
        if found is not None and found.type == _type_shown(status, found.type):
            return found
        self.strangers += 1
        kind = stat.S_IFMT(status.st_mode)
        return Attributes(kind | (0o700 if kind == stat.S_IFDIR else 0o777 if kind == stat.S_IFLNK else 0o600))

    def acls(self, its: Attributes, where: int | bytes) -> tuple[bytes, bytes]:
        """See `Source`; what is root's alone has none, whatever the record has under its path."""
        xattrs = dict(its.xattrs)
        return xattrs.get(posixacl.ACCESS, b""), xattrs.get(posixacl.DEFAULT, b"")


def _type_shown(status: os.stat_result, recorded: int) -> int:
    """The type that an entry can be shown as: its own, and an empty file stands for what only root can make."""
    own = stat.S_IFMT(status.st_mode)
    stands_for = own == stat.S_IFREG and status.st_size == 0 and recorded in _STOOD_FOR
    return recorded if stands_for else own


def load(path: bytes) -> Recorded:
    """Read the file beside a tree.

    :raises OSError: it can't be read, or is damaged
    """
    with Path(os.fsdecode(path)).open("rb") as file:
        data = file.read(treeattributes.MAX_BYTES + 1)
    try:
        return Recorded(TreeAttributes.parse(data))
    except FormatError as error:
        raise OSError(f"{error} ({os.fsdecode(path)})") from error


def _xattr(where: int | bytes, name: str) -> bytes:
    return os.getxattr(where, name) if isinstance(where, int) else os.getxattr(where, name, follow_symlinks=False)
