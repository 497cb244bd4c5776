"""NFSACL version 3, byte by byte: answers written down from the kernel's server (Linux 6.12)."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import nfs_wire as nfs
from tests.support.nfs_server import Running, serving
from tests.support.nfs_wire import Client, auth_sys, opaque, u32, u64

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


def set_acl(path: Path, kind: str, *entries: tuple[int, int, int]) -> None:
    """Store an ACL: (tag, perm, id) each, as setfacl does."""
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, f"system.posix_acl_{kind}", value)


UNDEFINED = 0xFFFFFFFF


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, mode in [("plain", 0o640), ("acl", 0o600), ("dir", 0o750), ("journal", 0o755), ("executable", 0o755)]:
        path = tmp_path / name
        path.mkdir() if name in ("dir", "journal") else path.write_bytes(b"content")
        path.chmod(mode)
    set_acl(
        tmp_path / "acl",
        "access",
        *[(USER_OBJ, 6, UNDEFINED), (USER, 7, 1001), (GROUP_OBJ, 4, UNDEFINED), (GROUP, 5, 1002), (GROUP, 2, 1003)],
        *[(MASK, 6, UNDEFINED), (OTHER, 0, UNDEFINED)],
    )
    set_acl(
        tmp_path / "journal",
        "default",
        *[(USER_OBJ, 7, UNDEFINED), (GROUP_OBJ, 5, UNDEFINED), (OTHER, 0, UNDEFINED)],
    )
    return tmp_path


@pytest.fixture
async def running(tree: Path) -> AsyncIterator[Running]:
    async with serving(tree) as running:
        yield running


@pytest.fixture
async def client(running: Running) -> AsyncIterator[Client]:
    async with await running.client() as client:
        yield client


async def getacl(client: Client, handle: bytes, mask: int) -> bytes:
    """What follows the attributes of a good answer."""
    results = await client.call(nfs.NFSACL, 3, 1, opaque(handle) + u32(mask))
    assert results.u32() == 0
    assert results.post_op() == await client.getattr(handle)
    return results.rest


def words(text: str) -> bytes:
    return bytes.fromhex(text.replace("|", "").replace(" ", ""))


async def test_a_file_without_an_acl(client: Client, tree: Path) -> None:
    handle = await client.lookup(await client.mount(bytes(tree)), b"plain")
    uid, gid = os.getuid(), (tree / "plain").stat().st_gid
    lists = words(
        f"00000004 00000004 | 00000001 {uid:08x} 00000006 | 00000004 {gid:08x} 00000004 |"
        "00000010 00000000 00000004 | 00000020 00000000 00000000 | 00000000 00000000"
    )
    assert await getacl(client, handle, 3) == u32(3) + lists
    assert await getacl(client, handle, 15) == u32(15) + lists
    assert await getacl(client, handle, 1) == u32(1) + lists


async def test_counts_and_lists_come_as_asked(client: Client, tree: Path) -> None:
    handle = await client.lookup(await client.mount(bytes(tree)), b"plain")
    assert await getacl(client, handle, 2) == u32(2, 4, 0, 0, 0)
    assert await getacl(client, handle, 0) == u32(0, 0, 0, 0, 0)
    assert await getacl(client, handle, 12) == u32(12, 0, 0, 0, 0)
    journal = await client.lookup(await client.mount(bytes(tree)), b"journal")
    assert await getacl(client, journal, 8) == u32(8, 0, 0, 4, 0)


async def test_a_stored_access_acl(client: Client, tree: Path) -> None:
    handle = await client.lookup(await client.mount(bytes(tree)), b"acl")
    uid, gid = os.getuid(), (tree / "acl").stat().st_gid
    entries = [(1, uid, 6), (2, 1001, 7), (4, gid, 4), (8, 1002, 5), (8, 1003, 2), (16, 0, 6), (32, 0, 0)]
    assert await getacl(client, handle, 3) == u32(3, 7, 7) + b"".join(u32(*entry) for entry in entries) + u32(0, 0)


async def test_a_stored_default_acl_gets_its_mask_and_mark(client: Client, tree: Path) -> None:
    handle = await client.lookup(await client.mount(bytes(tree)), b"journal")
    uid, gid = os.getuid(), (tree / "journal").stat().st_gid
    access = [(1, uid, 7), (4, gid, 5), (16, 0, 5), (32, 0, 5)]
    default = [(0x1001, uid, 7), (0x1004, gid, 5), (0x1010, 0, 5), (0x1020, 0, 0)]
    expected = u32(15, 4, 4) + b"".join(u32(*entry) for entry in access)
    expected += u32(4, 4) + b"".join(u32(*entry) for entry in default)
    assert await getacl(client, handle, 15) == expected


async def test_refusals(client: Client, tree: Path) -> None:
    root = await client.mount(bytes(tree))
    for mask in (16, 0x8000, 0xFFFFFFFF):
        results = await client.call(nfs.NFSACL, 3, 1, opaque(root) + u32(mask))
        assert results.u32() == nfs.INVAL
        results.post_op()
        results.end()
    results = await client.call(nfs.NFSACL, 3, 1, opaque(b"x" * 24) + u32(3))
    assert results.rest == u32(nfs.BADHANDLE, 0)
    before = os.listxattr(tree / "plain")
    plain = await client.lookup(root, b"plain")
    lists = u32(1, 1, 1, 0, 7) + u32(0, 0)
    results = await client.call(nfs.NFSACL, 3, 2, opaque(plain) + u32(1) + lists)
    assert results.u32() == nfs.ROFS
    assert results.post_op() == await client.getattr(plain)
    results.end()
    assert os.listxattr(tree / "plain") == before


async def test_the_stored_acl_decides_who_may_read(client: Client, tree: Path) -> None:
    """setfacl -m u:1001:rwx,g:1002:rx,g:1003:w,m::rw: the mask cuts, the best matching group counts."""
    handle = await client.lookup(await client.mount(bytes(tree)), b"acl")
    gid = (tree / "acl").stat().st_gid
    for credential, allowed in [
        (auth_sys(1001, 9), 0x01),
        (auth_sys(4444, 1002), 0x01),
        (auth_sys(4444, 9, (1003,)), 0),
        (auth_sys(4444, 9, (1003, 1002)), 0x01),
        (auth_sys(4444, gid), 0x01),
        (auth_sys(4444, 9), 0),
        (auth_sys(0, 0), 0x01),
    ]:
        assert await client.access(handle, credential=credential) == allowed
        status = await client.status(nfs.READ, opaque(handle) + u64(0) + u32(10), credential)
        assert status == (nfs.OK if allowed else nfs.ACCES)
