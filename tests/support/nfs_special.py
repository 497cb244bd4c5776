"""Runs within a virtual machine, as root: what a kernel's client makes of a read-only export, call by call.

``python3 nfs_special.py LOCAL MOUNTED``: the same tree as its disk shows it and over NFS. After the Connectathon suite
(its basic and special tests): what asks is done on both and compared; what changes anything is tried on the mounted one
alone, which is best mounted for writing, so that it is the server that refuses. Prints JSON: what differed, and how
each change was refused. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_PIECE = 1 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)
for _name in ("opendir", "readdir", "telldir"):
    getattr(_LIBC, _name).restype = ctypes.c_long if _name == "telldir" else ctypes.c_void_p


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the name of its error."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


class Tree:
    """One of the two views, and paths in it that the checks need, chosen by what they are."""

    def __init__(self, root: str, chosen: dict[str, str]) -> None:
        self.root, self.chosen = root, chosen

    def path(self, kind: str) -> str:
        return os.path.join(self.root, self.chosen[kind])


def choose(root: str) -> dict[str, str]:
    """A file, the largest one, a symbolic link, a folder deep down, the folder with most names."""
    files: dict[str, int] = {}
    links, folders = [], {}
    for folder, names, others in os.walk(root):
        folders[os.path.relpath(folder, root)] = len(names) + len(others)
        for name in others:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                files[os.path.relpath(path, root)] = status.st_size
            elif stat.S_ISLNK(status.st_mode):
                links.append(os.path.relpath(path, root))
    return {
        "file": max((size, name) for name, size in files.items() if size < 64 << 20)[1],
        "large": max((size, name) for name, size in files.items())[1],
        "link": max(links, key=lambda name: len(os.readlink(os.path.join(root, name)))),
        "deep": max(folders, key=lambda name: name.count("/")),
        "many": max(folders, key=folders.__getitem__),
    }


# ---------------------------------------------------------------- what asks


def look_up(tree: Tree) -> Any:
    """Connectathon basic 3: names along a path, the ones that there are none of, and what can't be a name."""
    file, deep = tree.path("file"), tree.path("deep")
    return [
        os.path.samefile(f"{deep}/..", os.path.dirname(deep)),
        os.path.samefile(f"{deep}/.", deep),
        outcome(lambda: os.stat(f"{tree.root}/no such file")),
        outcome(lambda: os.stat(f"{file}/below")),
        outcome(lambda: os.stat(f"{tree.root}/{'n' * 256}")),
        outcome(lambda: os.listdir(file)),
        outcome(lambda: os.readlink(file)),
        os.stat(f"{tree.root}/").st_mode,
    ]


def working_directory(tree: Tree) -> Any:
    """Connectathon basic 3: getcwd(3) below the mount."""
    before = os.getcwd()
    os.chdir(tree.path("deep"))
    try:
        return os.path.relpath(os.getcwd(), os.path.realpath(tree.root)), sorted(os.listdir("."))
    finally:
        os.chdir(before)


def follow_link(tree: Tree) -> Any:
    """Connectathon basic 8: readlink(2) into buffers that are long enough and not, and lstat(2)'s size."""
    target = os.readlink(tree.path("link"))
    return target, os.lstat(tree.path("link")).st_size == len(os.fsencode(target))


def read_everywhere(tree: Tree) -> Any:
    """Connectathon basic 5 and special bigfile: around the ends, past them, and across 2 and 4 GiB."""
    found = []
    for kind in ("file", "large"):
        with open(tree.path(kind), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for place in {0, 1, 4095, size - 1, size, size + 4096, (2 << 30) - 7, (4 << 30) - 7, size // 2}:
                if place >= 0:
                    found.append((place, os.pread(file.fileno(), 8192, place)))
            found.append((outcome(lambda file=file: file.seek(-1)), file.seek(0, os.SEEK_END) == size))  # type: ignore[misc]
    return sorted(found, key=repr)


def read_by_other_ways(tree: Tree) -> Any:
    """A mapping, O_DIRECT where the client has it, and a file open many times at once (special: dup)."""
    path = tree.path("file")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        whole = mapped[:]
        copy = os.dup(file.fileno())
        again = os.pread(copy, _PIECE, 0)
        os.close(copy)

    def read(_: int) -> bool:
        with open(path, "rb") as file:
            return file.read() == whole

    with ThreadPoolExecutor(16) as pool:
        every = all(pool.map(read, range(64)))
    return whole[:_PIECE], again, every


def list_folder(tree: Tree) -> Any:
    """Connectathon basic 6 and special telldir: every name once; telldir(3) and seekdir(3) find it again."""
    path = tree.path("many")
    stream = ctypes.c_void_p(_LIBC.opendir(os.fsencode(path)))
    names, places = [], []
    try:
        while True:
            place = _LIBC.telldir(stream)
            entry = _LIBC.readdir(stream)
            if not entry:
                break
            places.append(place)
            names.append(ctypes.string_at(entry + 19))  # struct dirent: two 64-bit words, reclen, type, name
        same = True
        for at in range(0, len(names), max(1, len(names) // 50)):
            _LIBC.seekdir(stream, ctypes.c_long(places[at]))
            same = same and ctypes.string_at(_LIBC.readdir(stream) + 19) == names[at]
    finally:
        _LIBC.closedir(stream)
    return sorted(names), len(set(names)) == len(names), same


def ask_rights(tree: Tree) -> Any:
    """access(2) and open(2) of a plain user, by the modes that the disk has."""
    script = (
        "import os,sys\n"
        "for folder, names, files in os.walk(sys.argv[1]):\n"
        "    for name in sorted(files)[:20]:\n"
        "        path = os.path.join(folder, name)\n"
        "        if not os.path.islink(path): print(os.path.relpath(path, sys.argv[1]).encode(), os.access(path, 4),"
        " os.access(path, 1))\n"
    )
    words = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", sys.executable, "-c", script]
    return sorted(subprocess.run([*words, tree.path("etc")], capture_output=True, text=True).stdout.splitlines())


def ask_space(tree: Tree) -> Any:
    """Connectathon basic 9: statfs(2). What is served is read-only, and names may be as long as on the disk."""
    status = os.statvfs(tree.root)
    return status.f_namemax, status.f_blocks > 0, status.f_files > 0


ASKING = (
    *(look_up, working_directory, follow_link, read_everywhere, read_by_other_ways, list_folder, ask_rights),
    ask_space,
)


# ---------------------------------------------------------------- what would change something


def changes(tree: Tree) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Connectathon basic 1, 2, 4, 5, 7, 8 and special excltest, holey, negseek's writing half, rename."""
    file, folder, new = tree.path("file"), tree.path("deep"), os.path.join(tree.root, "new")
    exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    yield "create", lambda: os.open(new, os.O_CREAT | os.O_WRONLY)
    yield "create exclusively", lambda: os.open(new, exclusive)
    yield "open for writing", lambda: os.open(file, os.O_WRONLY)
    yield "open for appending", lambda: os.open(file, os.O_RDWR | os.O_APPEND)
    yield "truncate while opening", lambda: os.open(file, os.O_RDWR | os.O_TRUNC)
    yield "truncate", lambda: os.truncate(file, 0)
    yield "remove", lambda: os.unlink(file)
    yield "make a folder", lambda: os.mkdir(new)
    yield "remove a folder", lambda: os.rmdir(folder)
    yield "rename", lambda: os.rename(file, new)
    yield "link", lambda: os.link(file, new)
    yield "link symbolically", lambda: os.symlink("target", new)
    yield "make a pipe", lambda: os.mkfifo(new)
    yield "make a device", lambda: os.mknod(new, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    yield "change a mode", lambda: os.chmod(file, 0o777)
    yield "change an owner", lambda: os.chown(file, 1, 1)
    yield "change times", lambda: os.utime(file, (1, 1))
    yield "set an attribute", lambda: os.setxattr(file, "user.x", b"x")


def main(local: str, mounted: str) -> None:
    chosen = {**choose(local), "etc": "etc"}
    here, there = Tree(local, chosen), Tree(mounted, chosen)
    found = []
    for ask in ASKING:
        expected, seen = outcome(lambda ask=ask: ask(here)), outcome(lambda ask=ask: ask(there))  # type: ignore[misc]
        if expected != seen:
            found.append(f"{ask.__name__}: {str(seen)[:300]}, not {str(expected)[:300]}")
    before = os.listdir(mounted)
    refused = {name: outcome(change) for name, change in changes(there)}
    if os.listdir(mounted) != before:
        found.append("something was changed")
    print(json.dumps({"differences": found, "refused": refused}))


if __name__ == "__main__":
    main(*sys.argv[1:])
