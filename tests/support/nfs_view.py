"""A tree as NFSv3 and NFSACL show it, in the rows of the image maker's manifest."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Any

from tests.support import nfs_wire as nfs
from tests.support.nfs_wire import Attributes, Client, opaque, u32

Row = dict[str, Any]

WHOLE = 64 << 20
"""Bytes of the largest file that is read as a whole; a larger one has its ends read, under the key ``ends``."""

END = 1 << 20
_TYPES = {1: "file", 2: "dir", 3: "block", 4: "char", 5: "link", 6: "sock", 7: "fifo"}
_IN_DEFAULT_LIST = 0x1000
_USER_OBJ, _GROUP_OBJ, _MASK = 0x01, 0x04, 0x10
_NO_ID = (_USER_OBJ, _GROUP_OBJ, _MASK, 0x20)
_SECONDS = 1 << 32


async def view(client: Client, export: bytes) -> dict[str, Row]:
    """Every path ("" is the top) with all that can be asked about it; as READDIRPLUS tells it, and GETATTR, too."""
    top = await client.mount(export)
    rows = {"": await _row(client, top, await client.getattr(top))}
    names: dict[int, str] = {}
    folders = [("", top)]
    while folders:
        folder, handle = folders.pop()
        for entry in await client.list_all(handle, 32768, plus=True):
            if entry.name in (b".", b".."):
                continue
            assert entry.attributes == await client.getattr(entry.handle), entry.name
            path = f"{folder}/{os.fsdecode(entry.name)}".lstrip("/")
            row = rows[path] = await _row(client, entry.handle, entry.attributes)
            if row["type"] == "dir":
                folders.append((path, entry.handle))
            elif row["nlink"] > 1:
                row["fileid"] = entry.attributes.fileid
                names.setdefault(entry.attributes.fileid, path)
    return rows


async def _row(client: Client, handle: bytes, its: Attributes) -> Row:
    kind = _TYPES[its.type]
    row: Row = {"type": kind, "mode": f"{its.mode:04o}", "uid": its.uid, "gid": its.gid, "nlink": its.nlink}
    row["mtime_ns"] = its.mtime * 10**9 + its.mtime_ns
    if kind in ("file", "link"):
        row["size"] = its.size
    if kind in ("char", "block"):
        row["rdev"] = [its.major, its.minor]
    if kind == "link":
        row["target"] = os.fsdecode(await client.readlink(handle))
    if kind == "file" and its.size <= WHOLE:
        row["sha256"] = hashlib.sha256(await client.read_whole(handle)).hexdigest()
    elif kind == "file":
        row["ends"] = [(await client.read(handle, place, END))[0] for place in (0, its.size - END)]
    if kind != "link":
        row["acls"] = await acls(client, handle)
    return row


async def acls(client: Client, handle: bytes) -> list[list[tuple[int, int, int]]]:
    """The access and the default list: (tag, permissions, id) each, sorted; the id is 0 where it is not told by tag."""
    results = await client.call(nfs.NFSACL, 3, 1, opaque(handle) + u32(15))
    assert results.u32() == 0
    assert results.post_op() is not None
    assert results.u32() == 15
    lists = []
    for flag in (0, _IN_DEFAULT_LIST):
        count = results.u32()
        assert results.u32() == count
        entries = [struct.unpack(">3I", results.take(12)) for _ in range(count)]
        assert all(tag & _IN_DEFAULT_LIST == flag for tag, _, _ in entries)
        found = [(tag & ~flag, perm, 0 if tag & ~flag in _NO_ID else ident) for tag, ident, perm in entries]
        lists.append(sorted(found))
    results.end()
    return lists


def expected_acls(row: Row) -> list[list[tuple[int, int, int]]]:
    """What `acls` should give for a row of the manifest: from its attributes, or from its mode."""
    mode = int(row["mode"], 8)
    lists = [[(tag, mode >> shift & 7, 0) for tag, shift in ((_USER_OBJ, 6), (_GROUP_OBJ, 3), (0x20, 0))], []]
    for number, name in enumerate(("access", "default")):
        if value := row.get("xattrs", {}).get(f"system.posix_acl_{name}"):
            entries = struct.iter_unpack("<HHI", bytes.fromhex(value)[4:])
            lists[number] = [(tag, perm, 0 if tag in _NO_ID else ident) for tag, perm, ident in entries]
    for entries in lists:
        if len(entries) == 3:  # the wire has four at least: fs/nfs_common/nfsacl.c makes a mask of the group's
            entries += [(_MASK, perm, 0) for tag, perm, _ in entries if tag == _GROUP_OBJ]
    return [sorted(entries) for entries in lists]


def differences(truth: dict[str, Row], seen: dict[str, Row], patched: set[str]) -> list[str]:
    """One line for each path that is not shown as the manifest has it; of patched ones nothing is compared."""
    lines = [f"{path} is in one of both only" for path in sorted((truth.keys() ^ seen.keys()) - patched)]
    for path in sorted((truth.keys() & seen.keys()) - patched):
        want, have = truth[path], seen[path]
        keys = {"type", "mode", "uid", "gid", "size", "rdev", "target"} & want.keys()
        if want["type"] != "dir":
            keys.add("nlink")
        if 0 <= want["mtime_ns"] < _SECONDS * 10**9 and not any(os.path.dirname(name) == path for name in patched):
            keys.add("mtime_ns")  # of a folder in which something was patched it may differ; nfstime3 ends in 2106
        if want["type"] == "file" and want["size"] <= WHOLE:
            keys.add("sha256")
        lines += [
            f"{path} {key}: {have.get(key)!r}, not {want[key]!r}" for key in sorted(keys) if have.get(key) != want[key]
        ]
        if want["type"] != "link" and have["acls"] != expected_acls(want):
            lines.append(f"{path} acls: {have['acls']}, not {expected_acls(want)}")
        if "hardlink" in want and want["hardlink"] not in patched:
            first = seen[want["hardlink"]]
            if have.get("fileid") != first.get("fileid"):
                lines.append(f"{path} is not the same file as {want['hardlink']}")
    return lines
