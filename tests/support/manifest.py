"""Compares a prepared generation with the truth about its image: what the kernel's own mount and mtools said of it.

What ``image.json`` lists as patched is left out, but for the check that it was changed; everything else has to be equal
in type, mode, owner, times, size, content, holes, link target, device number, hard links and extended attributes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.image_cache import DiskImage

Row = dict[str, Any]

_TYPES = {
    stat.S_IFDIR: "dir",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
}
_FAT_TIME_STEP = 2


def differences(image: DiskImage, generation: Path) -> list[str]:
    """One line for each path that differs from the image without being listed as patched, or the other way round."""
    manifest = json.loads((generation / "image.json").read_text())
    patched = {patch["path"] for patch in manifest["patches"]}
    found = []
    trees = {"root": (image.root_manifest, walk_root), "boot": (image.boot_manifest, walk_boot)}
    for tree, (truth, walk) in trees.items():
        folder = generation / tree
        listed = {path.removeprefix(f"{tree}/") for path in patched if path.startswith(f"{tree}/")}
        found += [f"{tree}/{line}" for line in compare(read_manifest(truth), dict(walk(folder)), listed)]
    return found


def compare(truth: dict[str, Row], actual: dict[str, Row], patched: set[str]) -> list[str]:
    """The paths (and fields) in which `actual` is not `truth`. A patched path may differ, and has to."""
    lines = []
    for path in sorted(truth.keys() | actual.keys()):
        want, have = truth.get(path), actual.get(path)
        if want is None or have is None:
            problem = "is missing" if have is None else "is not in the image"
        else:
            problem = ", ".join(f"{k}: {have.get(k)!r}, not {want.get(k)!r}" for k in _unequal(want, have))
        if path in patched:
            if not problem:
                lines.append(f"{path} is listed as patched, and is not")
        elif problem and not (want and have and _explained(path, want, have, patched)):
            lines.append(f"{path} {problem}")
    return lines


def _unequal(want: Row, have: Row) -> list[str]:
    keys = want.keys() | have.keys()
    if not want.get("holes"):  # unwritten blocks may become holes, but no hole may become blocks
        keys -= {"holes"}
    return sorted(key for key in keys if want.get(key) != have.get(key))


def _explained(path: str, want: Row, have: Row, patched: set[str]) -> bool:
    """A folder's time changes when a name in it is patched."""
    inside = any(os.path.dirname(name) == path for name in patched)
    return want["type"] == "dir" and inside and _unequal(want, have) == ["mtime_ns"]


def read_manifest(path: Path) -> dict[str, Row]:
    """The rows of a manifest by path, with only what can be compared between two file systems."""
    rows = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "mode" in row:
            rows[row["path"]] = _comparable(row)
        else:
            rows[row["path"]] = {key: value for key, value in row.items() if key != "path"}
    return rows


def _comparable(row: Row) -> Row:
    row = {key: value for key, value in row.items() if key != "path"}
    blocks = row.pop("blocks512", None)
    if row["type"] == "dir":
        del row["nlink"]  # not every file system counts a folder's children
    if row["type"] == "file":
        row["holes"] = blocks * 512 + 4096 <= row["size"]  # a block less than full: at least one hole
    return row


def walk_root(folder: Path) -> Iterator[tuple[str, Row]]:
    """Every path below `folder` ("" is itself), as the rows of the image maker's manifest have it."""
    names: dict[tuple[int, int], str] = {}
    stack = [b""]
    top = os.fsencode(folder)
    while stack:
        relative = stack.pop()
        full = os.path.join(top, relative) if relative else top
        status = os.lstat(full)
        path, kind = os.fsdecode(relative), _TYPES[stat.S_IFMT(status.st_mode)]
        row: Row = {"path": path, "type": kind, "mode": f"{stat.S_IMODE(status.st_mode):04o}"}
        row |= {"uid": status.st_uid, "gid": status.st_gid, "mtime_ns": status.st_mtime_ns, "nlink": status.st_nlink}
        if kind in ("file", "link"):
            row["size"] = status.st_size
        if kind == "file":
            row |= {"blocks512": status.st_blocks, "sha256": sha256_of(full)}
        if kind == "link":
            row["target"] = os.fsdecode(os.readlink(full))
        if kind in ("char", "block"):
            row["rdev"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
        if kind != "dir" and status.st_nlink > 1:
            row["hardlink"] = names.setdefault((status.st_dev, status.st_ino), path)
        if attributes := os.listxattr(full, follow_symlinks=False):
            row["xattrs"] = {n: os.getxattr(full, n, follow_symlinks=False).hex() for n in sorted(attributes)}
        yield path, _comparable(row)
        if kind == "dir":
            stack += [os.path.join(relative, name) for name in sorted(os.listdir(full), reverse=True)]


def walk_boot(folder: Path) -> Iterator[tuple[str, Row]]:
    """Every path below `folder`, as mtools' manifest has it; FAT keeps times of files in steps of two seconds."""
    for base, folders, files in os.walk(folder):
        for name in sorted(folders + files):
            full = os.path.join(base, name)
            path = os.path.relpath(full, folder)
            if name in folders:
                yield path, {"type": "dir"}
            else:
                status = os.lstat(full)
                when = int(status.st_mtime) // _FAT_TIME_STEP * _FAT_TIME_STEP
                yield path, {"type": "file", "size": status.st_size, "mtime": when, "sha256": sha256_of(full)}


def sha256_of(path: str | bytes) -> str:
    """The digest of a file's content; holes are hashed without being read."""
    digest, zeros = hashlib.sha256(), bytes(1 << 20)
    with open(path, "rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                data = size
            for offset in range(at, data, len(zeros)):
                digest.update(zeros[: min(len(zeros), data - offset)])
            at = data
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE) if at < size else size
            while at < end:
                chunk = os.pread(file.fileno(), min(len(zeros), end - at), at)
                digest.update(chunk)
                at += len(chunk)
    return digest.hexdigest()
