"""Programs of the image for its initramfs: each with the shared libraries that it is loaded with.

As ld.so(8) looks for them: in the folders that the program names itself, then in those that every system has, Debian's
by architecture among them. Nothing is run; the image may be of another architecture than we are.
"""

from __future__ import annotations

from netbootd.errors import FormatError
from netbootd.formats import elf
from netbootd.formats.cpio import Member
from netbootd.formats.initramfs import Contents
from netbootd.images.patches.tree import Tree

_LIMIT = 64 << 20  # of all that is read for one program; systemd's are the largest, with 10 MB
_MAX_LIBRARIES = 200
_TRIPLETS = {
    (183, 64): "aarch64-linux-gnu",
    (40, 32): "arm-linux-gnueabihf",
    (62, 64): "x86_64-linux-gnu",
}
"""Debian's folder of libraries by e_machine and class (gABI's registry of machines)."""


def find(tree: Tree, *paths: str) -> str:
    """The first of these paths that is a file of the image; empty where none is."""
    return next((path for path in paths if tree.is_file(path)), "")


def with_libraries(tree: Tree, contents: Contents, path: str, target: str) -> list[Member] | None:
    """What an initramfs lacks to run a program; None where the image can't run it either.

    Libraries keep their places, and those that the initramfs has already are taken to be the image's.

    :param path: the program in the image's root
    :param target: where it comes to lie in the initramfs
    :raises FormatError: it and its libraries are larger than any such program
    """
    read = _Reader(tree)
    data = read(path)
    if data is None:
        return None
    try:
        program = elf.read(data)
    except FormatError:
        return None
    added = {contents.resolve(target): Member(contents.resolve(target), 0o100755, data)}
    seen: set[str] = set()
    todo = [(path, program)]
    while todo:
        place, loaded = todo.pop()
        if loaded.interpreter and loaded.interpreter not in seen:
            seen |= {loaded.interpreter, loaded.interpreter.rpartition("/")[2]}  # libraries name it, too
            interpreter = read(loaded.interpreter)
            if interpreter is None:
                return None
            _add(contents, added, loaded.interpreter, interpreter)
        for name in loaded.needed:
            if name in seen:
                continue
            seen.add(name)
            found = _library(read, name, place, loaded)
            if found is None or len(seen) > _MAX_LIBRARIES:
                return None
            where, content, library = found
            _add(contents, added, where, content)
            todo.append((where, library))
    return list(added.values())


class _Reader:
    """Reads files of the image, up to so many bytes in all: an image may name anything as a library."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._left = _LIMIT

    def __call__(self, path: str) -> bytes | None:
        data = self._tree.read(path, self._left)
        self._left -= len(data or b"")
        return data


def _add(contents: Contents, added: dict[str, Member], path: str, data: bytes) -> None:
    if not contents.get(path):
        added[contents.resolve(path)] = Member(contents.resolve(path), 0o100755, data)


def _library(read: _Reader, name: str, user: str, loaded: elf.Elf) -> tuple[str, bytes, elf.Elf] | None:
    """A library that `user` names: its path, content and headers."""
    origin = user.rpartition("/")[0]
    own = [folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for folder in loaded.search]
    triplet = _TRIPLETS.get(loaded.machine)
    usual = [f"{base}/{triplet}" for base in ("/lib", "/usr/lib")] if triplet else []
    bits = ["/lib64", "/usr/lib64"] if loaded.machine[1] == 64 else []
    for folder in [""] if "/" in name else [*own, *usual, *bits, "/lib", "/usr/lib"]:
        path = f"{folder}/{name}" if folder else name
        data = read(path)
        if data is None:
            continue
        try:
            library = elf.read(data)
        except FormatError:
            continue  # a linker's script, say
        if library.machine == loaded.machine:
            return path, data, library
    return None
