"""Can this folder keep what a root file system has? Each attribute is tried out before the first byte is written.

A file system may lack what Linux has (exFAT, a Windows share), and so may our rights (a plain user, a container without
CAP_MKNOD). Neither can be told from names and numbers as surely as by trying.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from netbootd.errors import HostError
from netbootd.formats.ext4 import Entry, Ext4, Kind
from netbootd.formats.ext4.superblock import INCOMPAT_EA_INODE
from netbootd.images.dressing import cannot_keep

_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # version 2, CAP_NET_RAW: as ping has it
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, perm, ident)
    for tag, perm, ident in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, 1),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
)
_USUAL_BLOCK, _USUAL_INODE = 4096, 256  # bytes
_ENTRY = 16  # bytes that ext4 takes for an attribute beside its name and value
_USUAL_SET = {"trusted.netbootd.block": bytes(4028), "trusted.netbootd.inode": bytes(56)}
"""What fills a block of 4 KiB and the room in an inode of 256 bytes to their last (Linux: fs/ext4/xattr.h)."""

_TIMES = (-1_500_000_000, 4_102_444_800_123_456_789, 15_032_385_535_000_000_000)
"""In nanoseconds: before 1970, behind 32 bits of seconds, and ext4's last second, in 2446."""


def check_target(folder: Path, *, recorded: bool = False) -> None:
    """See whether `folder` can hold a root file system as it is.

    :param recorded: owners, modes, devices and extended attributes are kept in a record beside the tree
    :raises HostError: it can't; names what would be lost
    """
    lost: list[str] = []
    with _scratch(folder) as place:
        for what, attempt in _ATTEMPTS.items():
            if recorded and what not in _CONTENT:
                continue
            try:
                kept = attempt(place)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise HostError(
                        f"Writing to {folder}: {error.strerror}.",
                        hint="Free some room (netbootd images prune), or choose another disk with --state.",
                    ) from error
                kept = False
            if not kept:
                lost.append(what)
    if not lost:
        return
    if os.geteuid() != 0 and not _CONTENT.intersection(lost):
        raise HostError(
            f"Exporting a root file system to {folder}: a plain user can't keep its {', '.join(lost)}.",
            hint="Run prepare as root (sudo netbootd prepare …), or with --unprivileged: that keeps them in a file"
            " beside the tree, by which netbootd's own NFS server serves it.",
        )
    raise HostError(
        f"Exporting a root file system to {folder}: this store can't keep its {', '.join(lost)}.",
        hint="Choose a folder on ext4, XFS or btrfs with --state; a container also needs CAP_MKNOD and CAP_SETFCAP.",
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    try:
        place = Path(tempfile.mkdtemp(prefix=".build-check-", dir=folder))
    except OSError as error:
        raise HostError(
            f"Writing to {folder}: {error.strerror}.", hint="--state names another state folder."
        ) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _file(place: Path, name: str) -> Path:
    path = place / name
    path.touch(mode=0o600)
    return path


def _owners(place: Path) -> bool:
    path, link = _file(place, "owner"), place / "owner-link"
    link.symlink_to("nowhere")
    for each in (path, link):
        os.chown(each, 0x12345678, 54321, follow_symlinks=False)
    statuses = [path.lstat(), link.lstat()]
    return all((status.st_uid, status.st_gid) == (0x12345678, 54321) for status in statuses)


def _modes(place: Path) -> bool:
    path, folder = _file(place, "mode"), place / "mode-folder"
    folder.mkdir()
    path.chmod(0o6751)
    folder.chmod(0o3705)
    return stat.S_IMODE(path.stat().st_mode) == 0o6751 and stat.S_IMODE(folder.stat().st_mode) == 0o3705


def _times(place: Path) -> bool:
    path = _file(place, "time")
    for when in _TIMES:
        os.utime(path, ns=(when, when))
        status = path.stat()
        if (status.st_atime_ns, status.st_mtime_ns) != (when, when):
            return False
    return True


def _devices(place: Path) -> bool:
    kinds = (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
    for kind in kinds:
        path = place / f"node-{kind:o}"
        number = os.makedev(259, 70_000) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        os.mknod(path, kind | 0o600, number)
        status = path.stat()
        if stat.S_IFMT(status.st_mode) != kind or status.st_rdev != number:
            return False
    return True


def _links(place: Path) -> bool:
    path, other, symbolic = _file(place, "link"), place / "link-2", place / "link-3"
    other.hardlink_to(path)
    symbolic.symlink_to("nowhere")
    return path.stat().st_nlink == 2 and os.fspath(symbolic.readlink()) == "nowhere"


def _holes(place: Path) -> bool:
    path = _file(place, "hole")
    os.truncate(path, 1 << 22)
    return path.stat().st_blocks * 512 < 1 << 22


def _names(place: Path) -> bool:
    names = {b"case", b"CASE", b"\xff\xfe", b"a:b*?\n\\", b" ends with a dot.", b"x" * 255}
    for name in names:
        (place / os.fsdecode(name)).touch()
    return names <= {os.fsencode(entry.name) for entry in os.scandir(place)}


def _attribute(name: str, value: bytes, *, of_folder: bool = False) -> Callable[[Path], bool]:
    def attempt(place: Path) -> bool:
        path = place / name
        if of_folder:
            path.mkdir()
        else:
            path.touch()
        path.chmod(0o640)
        os.setxattr(path, name, value)
        return os.getxattr(path, name) == value

    return attempt


_ATTEMPTS: dict[str, Callable[[Path], bool]] = {
    "owners": _owners,
    "modes": _modes,
    "nanosecond times": _times,
    "device nodes, fifos and sockets": _devices,
    "hard and symbolic links": _links,
    "file names": _names,
    "holes": _holes,
    "capabilities": _attribute("security.capability", _CAPABILITY),
    "access control lists": _attribute("system.posix_acl_access", _ACL),
    "default access control lists": _attribute("system.posix_acl_default", _ACL, of_folder=True),
    "extended attributes": _attribute("user.netbootd", b"x"),
    "trusted attributes": _attribute("trusted.netbootd", b"x"),
}
_CONTENT = frozenset(("nanosecond times", "hard and symbolic links", "file names", "holes"))
"""What any user can keep, and a record does not replace."""


# ---------------------------------------------------------------- attributes of unusual size


def check_attributes(ext4: Ext4, folder: Path) -> None:
    """See whether `folder` can keep the largest sets of extended attributes that an image has, before any is written.

    An image whose inodes and attribute blocks are of the usual size has no more than a store with the like can keep;
    any other, or one for a store that can't keep that much (ext4 with blocks of 1 KiB), is gone through for them.

    :raises FormatError: the file system is damaged or hostile
    :raises HostError: it can't; names the file that has them
    """
    superblock = ext4.superblock
    usual = (
        not superblock.incompat & INCOMPAT_EA_INODE
        and superblock.block_size <= _USUAL_BLOCK
        and superblock.inode_size <= _USUAL_INODE
    )
    with _scratch(folder) as place:
        if usual and _refused(_file(place, "usual"), _USUAL_SET) is None:
            return
        for number, entry in enumerate(_extremes(ext4)):
            path = place / f"attributes-{number}"
            if entry.inode.kind is Kind.DIR:
                path.mkdir()  # default ACLs are for folders only
            else:
                path.touch()
            if (refused := _refused(path, entry.xattrs)) is not None:
                name, error = refused
                raise cannot_keep(entry, name, entry.xattrs[name], error) from error


def _refused(path: Path, attributes: Mapping[str, bytes]) -> tuple[str, OSError] | None:
    """The first of some attributes that can't be kept all together, and why; None where they can."""
    for name, value in attributes.items():
        try:
            os.setxattr(path, name, value)
        except OSError as error:
            return name, error
    return None


def _extremes(ext4: Ext4) -> list[Entry]:
    """The entries with the largest set of attributes and with the largest value: stores have bounds of either kind."""
    largest: dict[str, tuple[int, Entry]] = {}
    for entry in ext4.walk():
        if not entry.xattrs:
            continue
        room = sum(_ENTRY + (len(name) + 3 & ~3) + (len(value) + 3 & ~3) for name, value in entry.xattrs.items())
        for kind, size in (("set", room), ("value", max(map(len, entry.xattrs.values())))):
            if kind not in largest or size > largest[kind][0]:
                largest[kind] = size, entry
    return list({entry.path: entry for _, entry in largest.values()}.values())
