"""What is exported: the root tree of every live generation, and for NFSv4 the folders on the way to each.

But not of one that was made without privileges: the kernel would show what its files have on disk, to everybody.

Identities (the ``uuid`` of an export, which is in every file handle) follow from the image's name and the generation's
id alone, so that handles survive a restart of the server and of the host.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from netbootd.model.export import Export
from netbootd.nfsd.kernel.caches import ROOT_TREE, WAY, Flag, Grant

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ExportBook:
    """The grants of this moment, by path and by fsid.

    :param exports: gives the live exports
    :param secure: grant them to calls from reserved ports alone
    """

    def __init__(self, exports: Callable[[], Iterable[Export]], *, secure: bool = False) -> None:
        self._exports = exports
        self.secure = secure
        self._ports = Flag(0) if secure else Flag.INSECURE_PORT
        self._grants: dict[bytes, Grant] = {}
        self._by_export: dict[tuple[str, str], Grant] = {}

    def refresh(self) -> bool:
        """Look again at what there is; whether it has changed."""
        before = self._grants
        grants: dict[bytes, Grant] = {}
        by_export = {}
        for export in self._exports():
            grant = grant_of(export) if export.attributes is None else None
            if grant is not None:
                grant = replace(grant, flags=grant.flags | self._ports)
                grants[grant.path] = by_export[export.image, export.generation] = grant
        for way in {way for path in grants for way in ways(path)} - set(grants):
            top = way == b"/"
            try:
                inode = os.lstat(way).st_ino
            except OSError:  # going away at this moment
                continue
            identity = b"" if top else _digest(b"way", way)
            flags = WAY | self._ports | (Flag.FSID if top else Flag(0))
            grants[way] = Grant(way, flags, identity, inode)
        self._grants, self._by_export = grants, by_export
        return grants != before

    def roots(self) -> list[Grant]:
        """The root trees."""
        return list(self._by_export.values())

    def of(self, image: str, generation: str) -> Grant | None:
        """The root tree of a generation, None where it isn't exported (any more)."""
        return self._by_export.get((image, generation))

    def at(self, path: bytes) -> Grant | None:
        """What is exported at a path."""
        return self._grants.get(path)

    def named(self, kind: int, fsid: bytes) -> Grant | None:
        """What a file handle is of."""
        return next((grant for grant in self._grants.values() if grant.is_named_by(kind, fsid)), None)


def grant_of(export: Export) -> Grant | None:
    """The grant of a live export; None where its folder is gone, or is none."""
    path = os.path.realpath(export.path)
    try:
        fd = os.open(path, _FOLDER)
    except OSError:
        return None
    try:
        return Grant(path, ROOT_TREE, uuid_of(export), os.fstat(fd).st_ino)
    finally:
        os.close(fd)


def uuid_of(export: Export) -> bytes:
    """The 16 bytes that identify an export."""
    return _digest(b"root", export.fsid)


def ways(path: bytes) -> Iterable[bytes]:
    """The folders above a path, the root last."""
    while path != b"/":
        path = path.rpartition(b"/")[0] or b"/"
        yield path


def _digest(kind: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16, person=b"nfs " + kind).digest()
