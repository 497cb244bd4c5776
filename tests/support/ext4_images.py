"""Makes ext4 images by e2fsprogs, and reads them through the product: for tests of the reader and the export.

`source_tree` is a folder with what a reader must know; `mke2fs -d` copies it, holes, links, devices and attributes
included, so that the folder itself is the truth. Devices, owners and trusted attributes need root.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netbootd.formats.ext4 import Ext4
from netbootd.formats.window import Window
from tests.support.processes import run

ROOT = 2

FEATURES: dict[str, tuple[str, ...]] = {
    "default": (),
    "1K": ("-b", "1024"),
    "2K": ("-b", "2048"),
    "64K": ("-b", "65536"),
    "ext2": ("-t", "ext2"),
    "ext3-1K": ("-t", "ext3", "-b", "1024"),
    "no-extents": ("-O", "^extents,^64bit"),
    "inline": ("-O", "inline_data", "-I", "512"),
    "no-csum": ("-O", "^metadata_csum"),
    "gdt-csum": ("-O", "^metadata_csum,uninit_bg"),
    "meta-bg": ("-O", "meta_bg,^resize_inode", "-b", "1024"),
    "32bit": ("-O", "^64bit"),
    "csum-seed": ("-O", "metadata_csum_seed"),
    "ea-inode": ("-O", "ea_inode", "-I", "256"),
    "128-byte-inodes": ("-I", "128", "-O", "^extra_isize,^metadata_csum"),
    "bigalloc": ("-O", "bigalloc", "-C", "16384"),
    "sparse-super2": ("-O", "sparse_super2"),
    "flex-off": ("-O", "^flex_bg,^resize_inode"),
    "no-filetype": ("-O", "^filetype,^dir_index"),
    "large-dir": ("-O", "large_dir", "-b", "1024"),
    "orphan-file": ("-O", "orphan_file"),
    "no-journal": ("-O", "^has_journal"),
}
"""mke2fs options by name. `orphan-file` needs e2fsprogs 1.47."""


def source_tree(folder: Path) -> Path:
    """A folder with files of every shape; gives itself."""
    folder.mkdir()
    (folder / "etc").mkdir(mode=0o755)
    (folder / "usr").mkdir(mode=0o750)
    for size in (0, 1, 59, 60, 61, 100, 155, 4095, 4096, 4097, 70_000):
        (folder / "etc" / f"size-{size}").write_bytes(os.urandom(size))
    many = folder / "usr" / "many"
    many.mkdir()
    for number in range(900):
        (many / f"a-name-that-takes-some-room-{number:05}").write_bytes(b"%d" % number)
    odd = folder / "usr" / "odd"
    odd.mkdir(mode=0o1777)
    for name in (b"\xff\xfe", b"new\nline", "ünïcode".encode(), b"x" * 255, b" ", b"-rf"):
        (odd / os.fsdecode(name)).write_bytes(name)
    (odd / "short-link").symlink_to("../many")
    (odd / "59").symlink_to("a" * 59)
    (odd / "60").symlink_to("b" * 60)
    (odd / "long-link").symlink_to("c/" * 450)
    (odd / "hard-1").write_bytes(b"linked")
    (odd / "hard-2").hardlink_to(odd / "hard-1")
    (folder / "etc" / "hard-3").hardlink_to(odd / "hard-1")
    os.mkfifo(odd / "fifo", 0o620)
    with (folder / "usr" / "sparse").open("wb") as file:
        for number in range(150):
            file.seek(number * 40_960 + 5)
            file.write(b"island %d" % number)
        file.truncate(150 * 40_960 + 77_777)
    with (folder / "usr" / "hole").open("wb") as file:
        file.truncate(5 << 20)
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("secret", 0o600), ("none", 0o000)):
        path = odd / name
        path.write_bytes(b"#!")
        path.chmod(mode)
    os.setxattr(odd / "setuid", "user.note", b"a value")
    os.setxattr(folder / "etc", "user.folder", b"\0\1\2")
    acl = ((1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    acl_value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *row) for row in acl)
    (odd / "secret").chmod(0o640)
    os.setxattr(odd / "secret", "system.posix_acl_access", acl_value)
    if os.geteuid() == 0:
        os.mknod(odd / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(odd / "disk", stat.S_IFBLK | 0o640, os.makedev(259, 70_000))
        os.chown(odd / "setgid", 100_001, 70_000)
        (odd / "setgid").chmod(0o2755)
        os.chown(odd / "short-link", 33, 34, follow_symlinks=False)
        capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
        (odd / "ping").write_bytes(b"ping")
        os.setxattr(odd / "ping", "security.capability", capability)
    times = (-86_400 * 365 * 10, 0, 1_234_567_890, 2**31 - 1)  # mke2fs keeps no more than these 32 bits of seconds
    for number, seconds in enumerate(times):
        path = folder / "etc" / f"time-{number}"
        path.write_bytes(b"")
        os.utime(path, ns=(seconds * 10**9 + 987_654_321, seconds * 10**9 + 123_456_789))
    os.utime(odd / "long-link", ns=(5, 1_111_111_111_222_333_444), follow_symlinks=False)
    os.utime(many, ns=(7, 1_000_000_000_000_000_001))
    return folder


def make(image: Path, source: Path | None, *options: str, size: str = "96M") -> Path:
    """An image made by mke2fs, 512 KiB of a partition's offset left out; gives its path."""
    content = ("-d", source) if source else ()
    kind = () if "-t" in options else ("-t", "ext4")
    run(["mke2fs", "-q", "-F", "-L", "writable", *kind, *options, *content, image, size])
    return image


@contextmanager
def opened(image: Path) -> Iterator[Ext4]:
    """The product's reader on an image."""
    fd = os.open(image, os.O_RDONLY)
    try:
        yield Ext4(Window.whole(fd))
    finally:
        os.close(fd)


def read_image(fs: Ext4) -> dict[bytes, dict[str, Any]]:
    """Everything in it by path, lost+found left out; times in whole seconds, as mke2fs keeps them."""
    rows: dict[bytes, dict[str, Any]] = {}
    for entry in fs.walk():
        inode = entry.inode
        path = b"/" + entry.path if entry.path else b""
        if path == b"/lost+found":
            continue
        row: dict[str, Any] = {
            "kind": str(inode.kind),
            "mode": inode.mode,
            "uid": inode.uid,
            "gid": inode.gid,
            "mtime": inode.mtime_ns // 10**9,
            "xattrs": inode.xattrs(),
        }
        if inode.kind == "file":
            row |= {"size": inode.size, "digest": hashlib.sha256(inode.read()).hexdigest(), "nlink": inode.nlink}
        elif inode.kind == "link":
            row["target"] = inode.target()
        elif inode.kind in ("char", "block"):
            row["rdev"] = inode.rdev
        rows[path] = row
    return rows


def read_folder(folder: Path) -> dict[bytes, dict[str, Any]]:
    """A folder in the same terms, by the operating system."""
    rows: dict[bytes, dict[str, Any]] = {}
    kinds = {
        stat.S_IFDIR: "dir",
        stat.S_IFREG: "file",
        stat.S_IFLNK: "link",
        stat.S_IFCHR: "char",
        stat.S_IFBLK: "block",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "sock",
    }
    root = os.fsencode(folder)

    def visit(path: bytes) -> None:
        full = root + path
        status = os.lstat(full)
        kind = kinds[stat.S_IFMT(status.st_mode)]
        row: dict[str, Any] = {
            "kind": kind,
            "mode": stat.S_IMODE(status.st_mode),
            "uid": status.st_uid,
            "gid": status.st_gid,
            "mtime": status.st_mtime_ns // 10**9,
            "xattrs": {
                name: os.getxattr(full, name, follow_symlinks=False)
                for name in os.listxattr(full, follow_symlinks=False)
            },
        }
        if kind == "file":
            with open(full, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            row |= {"size": status.st_size, "digest": digest, "nlink": status.st_nlink}
        elif kind == "link":
            row["target"] = os.readlink(full)
        elif kind in ("char", "block"):
            row["rdev"] = status.st_rdev
        rows[path] = row
        if kind == "dir":
            for name in os.listdir(full):
                if path or name != b"lost+found":
                    visit(path + b"/" + name)

    visit(b"")
    return rows
