"""NFS version 3 and MOUNT version 3: every procedure of the embedded server, over real sockets."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import nfs_wire as nfs
from tests.support.nfs_server import Running, export_of, serving
from tests.support.nfs_wire import Client, auth_none, auth_sys, opaque, u32, u64
from tests.support.processes import run

BIG = 5 << 30
PATTERN = os.urandom(3 << 20)
ODD_NAMES = [b"\xff\xfe not utf-8", b"new\nline", "grüße".encode(), b" ", b"..hidden", b"x" * 255]


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.write_bytes(data)
    path.chmod(mode)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export") / "root"
    for folder in ("etc", "odd", "many", "closed", "empty", "etc/deep/er"):
        (root / folder).mkdir(parents=True)
    _write(root / "etc/hostname", b"node\n")
    _write(root / "etc/shadow", b"secret", 0o640)
    _write(root / "program", b"#!/bin/true\n", 0o711)
    _write(root / "pattern", PATTERN)
    _write(root / "nothing", b"")
    os.link(root / "etc/hostname", root / "etc/zz-same")
    os.link(root / "etc/hostname", root / "a-same")
    os.symlink("etc/hostname", root / "link")
    os.symlink("/etc/passwd", root / "outside")
    os.symlink("../../../../..", root / "climb")
    os.mkfifo(root / "fifo", 0o600)
    for name in ODD_NAMES:
        _write(Path(os.fsdecode(bytes(root / "odd") + b"/" + name)), name)
    for number in range(3000):
        (root / "many" / f"entry-{number:04}").touch()
    _write(root / "closed/inside", b"inside")
    (root / "closed").chmod(0o700)
    with (root / "big").open("wb") as file:
        file.seek(BIG)
        file.write(b"the end")
    os.utime(root / "etc/hostname", ns=(1_111_111_111_222_333_444, 1_222_333_444_555_666_777))
    return root


@pytest.fixture
async def running(tree: Path) -> AsyncIterator[Running]:
    async with serving(tree) as running:
        yield running


@pytest.fixture
async def client(running: Running) -> AsyncIterator[Client]:
    async with await running.client() as client:
        yield client


@pytest.fixture
async def root(client: Client, tree: Path) -> bytes:
    return await client.mount(bytes(tree))


# ---------------------------------------------------------------------- MOUNT


async def test_mnt_tells_of_the_mount_and_gives_the_flavours(running: Running, client: Client, tree: Path) -> None:
    results = await client.call(nfs.MOUNT, 3, 1, opaque(bytes(tree)))
    assert results.u32() == 0
    handle = results.opaque()
    assert len(handle) <= 64
    flavours = [results.u32() for _ in range(results.u32())]
    results.end()
    assert flavours[0] == 1
    assert [(address, export.path) for address, export, _ in running.mounts] == [("127.0.0.1", bytes(tree))]
    assert running.mounts[0][2] >= 0
    assert stat.S_ISDIR(tree.stat().st_mode)
    assert (await client.getattr(handle)).type == 2


@pytest.mark.parametrize("change", ["//{}", "{}/", "/.{}", "{}/.", "{}//"])
async def test_mnt_takes_a_path_however_it_is_written(client: Client, tree: Path, change: str) -> None:
    usual = await client.mount(bytes(tree))
    assert await client.mount(os.fsencode(change.format(tree))) == usual


async def test_mnt_of_a_folder_inside_an_export(client: Client, tree: Path, root: bytes) -> None:
    inside = await client.mount(bytes(tree / "etc"))
    assert inside == await client.lookup(root, b"etc")


async def test_mnt_refuses_what_is_not_exported(client: Client, tree: Path) -> None:
    assert await client.mount_status(b"/etc") == nfs.NOENT
    assert await client.mount_status(bytes(tree.parent)) == nfs.NOENT
    assert await client.mount_status(bytes(tree) + b"/../root") == nfs.NOENT
    assert await client.mount_status(bytes(tree / "missing")) == nfs.NOENT
    assert await client.mount_status(bytes(tree / "etc/hostname")) == nfs.NOTDIR
    assert await client.mount_status(bytes(tree / "climb")) == nfs.NOTDIR
    assert await client.mount_status(b"relative") == nfs.NOENT
    assert await client.mount_status(b"") == nfs.NOENT


async def test_export_dump_umnt_and_umntall(client: Client, tree: Path) -> None:
    await client.mount(bytes(tree))
    await client.mount(bytes(tree / "etc"))
    exports = await client.call(nfs.MOUNT, 3, 5)
    assert exports.u32() == 1
    assert exports.opaque() == bytes(tree)
    assert (exports.u32(), exports.u32(), exports.rest) == (0, 0, b"")

    async def mounted() -> list[bytes]:
        results = await client.call(nfs.MOUNT, 3, 2)
        paths = []
        while results.u32():
            assert results.opaque() == b"127.0.0.1"
            paths.append(results.opaque())
        results.end()
        return paths

    assert await mounted() == [bytes(tree), bytes(tree / "etc")]
    assert (await client.call(nfs.MOUNT, 3, 3, opaque(bytes(tree / "etc")))).rest == b""
    assert await mounted() == [bytes(tree)]
    assert (await client.call(nfs.MOUNT, 3, 4)).rest == b""
    assert await mounted() == []


# ---------------------------------------------------------------------- attributes and names


async def test_attributes_are_those_of_the_files(client: Client, tree: Path, root: bytes) -> None:
    kinds = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 5, stat.S_IFIFO: 7}
    fsids = set()
    for name in ("etc", "etc/hostname", "etc/shadow", "program", "link", "fifo", "big", "nothing"):
        attributes = await client.getattr(await client.walk(root, name))
        status = os.lstat(tree / name)
        assert attributes.type == kinds[stat.S_IFMT(status.st_mode)], name
        assert attributes.mode == stat.S_IMODE(status.st_mode)
        assert (attributes.nlink, attributes.uid, attributes.gid) == (status.st_nlink, status.st_uid, status.st_gid)
        assert (attributes.size, attributes.used) == (status.st_size, status.st_blocks * 512)
        assert attributes.fileid == status.st_ino
        assert attributes.mtime * 10**9 + attributes.mtime_ns == status.st_mtime_ns
        assert attributes.ctime * 10**9 + attributes.ctime_ns == status.st_ctime_ns
        fsids.add(attributes.fsid)
    assert len(fsids) == 1


async def test_hard_links_are_one_object(client: Client, root: bytes) -> None:
    handles = {await client.walk(root, name) for name in ("etc/hostname", "etc/zz-same", "a-same")}
    assert len(handles) == 1


async def test_dot_and_dot_dot(client: Client, root: bytes) -> None:
    etc = await client.lookup(root, b"etc")
    deep = await client.walk(root, "etc/deep")
    assert await client.lookup(etc, b".") == etc
    assert await client.lookup(deep, b"..") == etc
    assert await client.lookup(root, b"..") == root, "the export's root has no way up"


async def test_lookup_refusals(client: Client, root: bytes) -> None:
    hostname = await client.walk(root, "etc/hostname")
    link = await client.lookup(root, b"climb")
    for folder, name, status in [
        (root, b"missing", nfs.NOENT),
        (root, b"", nfs.ACCES),
        (root, b"etc/hostname", nfs.NOENT),
        (root, b"etc\0", nfs.NOENT),
        (root, b"n" * 256, nfs.NAMETOOLONG),
        (hostname, b"x", nfs.NOTDIR),
        (link, b"etc", nfs.NOTDIR),
    ]:
        results = await client.nfs(nfs.LOOKUP, opaque(folder) + opaque(name))
        assert results.u32() == status, name
        assert results.post_op() is not None, "the folder's attributes come with the refusal"
        results.end()


async def test_readlink_never_follows(client: Client, root: bytes) -> None:
    for name, target in [(b"link", b"etc/hostname"), (b"outside", b"/etc/passwd"), (b"climb", b"../../../../..")]:
        handle = await client.lookup(root, name)
        assert await client.readlink(handle) == target
        assert await client.status(nfs.READ, opaque(handle) + u64(0) + u32(10)) == nfs.INVAL
    assert await client.status(nfs.READLINK, opaque(root)) == nfs.INVAL


async def test_names_may_be_any_bytes(client: Client, root: bytes) -> None:
    odd = await client.lookup(root, b"odd")
    entries = await client.list_all(odd)
    assert sorted(entry.name for entry in entries) == sorted([b".", b"..", *ODD_NAMES])
    for name in ODD_NAMES:
        data, eof = await client.read(await client.lookup(odd, name), 0, 1000)
        assert (data, eof) == (name, True)


# ---------------------------------------------------------------------- READ


async def test_read_gives_the_bytes_and_tells_the_end(client: Client, root: bytes) -> None:
    handle = await client.lookup(root, b"pattern")
    for offset, count in [(0, 1), (1, 4097), (5, 65537), (0, 1 << 20), (1 << 20, 1 << 20), (len(PATTERN) - 3, 3)]:
        for _ in ("not open yet or from a thread", "from the page cache"):
            data, eof = await client.read(handle, offset, count)
            assert data == PATTERN[offset : offset + count]
            assert eof == (offset + count >= len(PATTERN))
    assert await client.read(handle, len(PATTERN) - 3, 100) == (PATTERN[-3:], True)
    assert await client.read(handle, len(PATTERN), 100) == (b"", True)
    assert await client.read(handle, 1 << 60, 100) == (b"", True)
    assert await client.read(handle, 5, 0) == (b"", False)
    assert await client.read(await client.lookup(root, b"nothing"), 0, 100) == (b"", True)


async def test_a_read_is_no_longer_than_fsinfo_says(client: Client, root: bytes) -> None:
    results = await client.nfs(nfs.FSINFO, opaque(root))
    assert results.u32() == 0
    results.post_op()
    rtmax = results.u32()
    handle = await client.lookup(root, b"pattern")
    data, eof = await client.read(handle, 0, 0xFFFFFFFF)
    assert (len(data), eof) == (rtmax, False)


async def test_a_file_beyond_four_gibibytes(client: Client, root: bytes) -> None:
    handle = await client.lookup(root, b"big")
    assert await client.read(handle, BIG - 2, 100) == (b"\0\0the end", True)
    data, eof = await client.read(handle, 3 << 30, 1 << 20)
    assert (data.count(0), eof) == (1 << 20, False)


async def test_many_reads_in_flight_are_all_answered(client: Client, root: bytes) -> None:
    handle = await client.lookup(root, b"pattern")
    wanted = {}
    for number in range(100):
        offset = number * 30011 % len(PATTERN)
        record = nfs.call_record(nfs.NFS, 3, nfs.READ, opaque(handle) + u64(offset) + u32(50_000), xid=1000 + number)
        wanted[1000 + number] = PATTERN[offset : offset + 50_000]
        client.send(nfs.marked(record))
    for _ in range(100):
        xid, outcome = nfs.parse_reply(await client.receive())
        assert isinstance(outcome, nfs.Accepted)
        assert wanted.pop(xid) in outcome.body
    assert not wanted


async def test_read_of_other_things(client: Client, root: bytes) -> None:
    fifo = await client.lookup(root, b"fifo")
    assert await client.status(nfs.READ, opaque(root) + u64(0) + u32(1)) == nfs.ISDIR
    assert await client.status(nfs.READ, opaque(fifo) + u64(0) + u32(1)) == nfs.INVAL


# ---------------------------------------------------------------------- folders


async def test_readdir_in_pieces_of_any_size(client: Client, tree: Path, root: bytes) -> None:
    many = await client.lookup(root, b"many")
    names = {os.fsencode(name) for name in os.listdir(tree / "many")} | {b".", b".."}
    for count in (512, 1000, 8192, 1 << 20):
        for plus in (False, True):
            entries = await client.list_all(many, count, plus=plus)
            assert len(entries) == len(names)
            assert {entry.name for entry in entries} == names
            assert len({entry.cookie for entry in entries}) == len(names)


async def test_readdir_keeps_within_the_room(client: Client, root: bytes) -> None:
    many = await client.lookup(root, b"many")
    for count in (200, 512, 4096, 32768):
        listing = await client.readdir(many, count=count)
        assert 0 < listing.size - 4 <= count
        listing = await client.readdirplus(many, maxcount=count * 2)
        assert 0 < listing.size - 4 <= count * 2
    assert (await client.readdir(many, count=100)).status == nfs.TOOSMALL
    assert (await client.readdirplus(many, maxcount=200)).status == nfs.TOOSMALL


async def test_readdirplus_says_what_lookup_and_getattr_say(client: Client, root: bytes) -> None:
    entries = await client.list_all(root, 32768, plus=True)
    assert len(entries) > 10
    for entry in entries:
        handle = await client.lookup(root, entry.name)
        assert entry.handle == handle
        assert entry.attributes == await client.getattr(handle)
        assert entry.attributes is not None
        assert entry.fileid == entry.attributes.fileid


async def test_a_listing_goes_on_from_any_cookie_and_after_a_restart(tree: Path) -> None:
    async with serving(tree) as running, await running.client() as client:
        many = await client.lookup(await client.mount(bytes(tree)), b"many")
        whole = await client.list_all(many)
        listing = await client.readdir(many, count=2000)
    async with serving(tree) as running, await running.client() as client:
        rest: list[nfs.Entry] = []
        cookie = listing.entries[-1].cookie
        while not listing.eof:
            listing = await client.readdir(many, cookie, listing.verifier, 30_000)
            assert listing.status == 0
            rest += listing.entries
            cookie = rest[-1].cookie
        assert [entry.name for entry in rest] == [entry.name for entry in whole[-len(rest) :]]
        again = await client.readdir(many, whole[7].cookie, listing.verifier, 30_000)
        assert again.entries[0] == whole[8]
        end = await client.readdir(many, whole[-1].cookie, listing.verifier)
        assert (end.entries, end.eof) == ([], True)


async def test_cookies_that_nobody_gave(client: Client, root: bytes) -> None:
    many = await client.lookup(root, b"many")
    listing = await client.readdir(many)
    assert (await client.readdir(many, 10**9, listing.verifier)).status == nfs.BAD_COOKIE
    assert (await client.readdir(many, 5, b"\xff" * 8)).status == nfs.BAD_COOKIE
    assert (await client.readdirplus(many, 2**64 - 1, listing.verifier)).status == nfs.BAD_COOKIE
    assert (await client.readdir(await client.lookup(root, b"pattern"))).status == nfs.NOTDIR


async def test_an_empty_folder(client: Client, root: bytes) -> None:
    listing = await client.readdir(await client.lookup(root, b"empty"))
    assert [entry.name for entry in listing.entries] == [b".", b".."]
    assert listing.eof


# ---------------------------------------------------------------------- the file system


async def test_fsinfo_pathconf_fsstat(client: Client, tree: Path, root: bytes) -> None:
    info = await client.nfs(nfs.FSINFO, opaque(root))
    assert info.u32() == 0
    assert info.post_op() is not None
    rtmax, rtpref, _, wtmax, _, _, dtpref = (info.u32() for _ in range(7))
    assert rtmax == rtpref == 1 << 20
    assert wtmax > 0
    assert dtpref >= 4096
    assert info.u64() >= BIG
    info.take(8)
    assert info.u32() & 3 == 3, "hard and symbolic links"
    info.end()

    paths = await client.nfs(nfs.PATHCONF, opaque(root))
    assert paths.u32() == 0
    assert paths.post_op() is not None
    link_max, name_max, no_trunc, _, insensitive, preserving = (paths.u32() for _ in range(6))
    assert (name_max, no_trunc, insensitive, preserving) == (255, 1, 0, 1)
    assert link_max >= 3
    paths.end()

    space = await client.nfs(nfs.FSSTAT, opaque(root))
    assert space.u32() == 0
    assert space.post_op() is not None
    total, free, available = space.u64(), space.u64(), space.u64()
    there = os.statvfs(tree)
    assert total == there.f_blocks * there.f_frsize
    assert available <= free <= total
    assert space.u64() == there.f_files
    space.take(20)
    space.end()


# ---------------------------------------------------------------------- nothing is ever changed

NO_SATTR = u32(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("procedure", "after", "shape"),
    [
        (nfs.SETATTR, u32(1, 0o777, 0, 0, 0, 0, 0) + u32(0), "w"),
        (nfs.WRITE, u64(0) + u32(4, 2) + opaque(b"data"), "w"),
        (nfs.CREATE, opaque(b"new") + u32(0) + NO_SATTR, "w"),
        (nfs.CREATE, opaque(b"new") + u32(2) + bytes(8), "w"),
        (nfs.MKDIR, opaque(b"new") + NO_SATTR, "w"),
        (nfs.SYMLINK, opaque(b"new") + NO_SATTR + opaque(b"target"), "w"),
        (nfs.MKNOD, opaque(b"new") + u32(4) + NO_SATTR + u32(1, 3), "w"),
        (nfs.REMOVE, opaque(b"nothing"), "w"),
        (nfs.RMDIR, opaque(b"empty"), "w"),
        (nfs.RENAME, opaque(b"nothing") + b"ROOT" + opaque(b"new"), "ww"),
        (nfs.LINK, b"ROOT" + opaque(b"new"), "pw"),
        (nfs.COMMIT, u64(0) + u32(0), "w"),
    ],
)
async def test_modifying_is_refused_with_wcc_data(
    client: Client, tree: Path, root: bytes, procedure: int, after: bytes, shape: str
) -> None:
    before = sorted(os.listdir(tree)), tree.stat()
    results = await client.nfs(procedure, opaque(root) + after.replace(b"ROOT", opaque(root)))
    assert results.u32() == nfs.ROFS
    now = await client.getattr(root)
    for part in shape:
        if part == "p":
            assert results.post_op() == now
            continue
        earlier, later = results.wcc()
        assert earlier == (now.size, now.mtime, now.mtime_ns, now.ctime, now.ctime_ns)
        assert later == now
    results.end()
    assert (sorted(os.listdir(tree)), tree.stat()) == before

    results = await client.nfs(procedure, opaque(bytes(24)) + after.replace(b"ROOT", opaque(root)))
    assert results.u32() == nfs.BADHANDLE
    for part in shape:
        assert results.post_op() is None if part == "p" else results.wcc() == (None, None)
    results.end()


# ---------------------------------------------------------------------- rights

STRANGER = auth_sys(54321, 54321)


async def test_others_are_refused_what_root_may(client: Client, tree: Path, root: bytes) -> None:
    shadow = await client.walk(root, "etc/shadow")
    closed = await client.lookup(root, b"closed")
    assert len(await client.list_all(closed, plus=True)) == 3  # to root: the answer is kept, and still only root's
    assert await client.read(shadow, 0, 100) == (b"secret", True)
    assert await client.access(shadow) == 0x01
    assert await client.access(closed) == 0x03
    for who in (STRANGER, auth_none()):
        assert await client.access(shadow, credential=who) == 0
        assert await client.status(nfs.READ, opaque(shadow) + u64(0) + u32(9), who) == nfs.ACCES
        assert await client.status(nfs.LOOKUP, opaque(closed) + opaque(b"inside"), who) == nfs.ACCES
        assert (await client.readdir(closed, credential=who)).status == nfs.ACCES
        assert (await client.readdirplus(closed, credential=who)).status == nfs.ACCES
        assert await client.status(nfs.GETATTR, opaque(shadow), who) == nfs.OK
    group = (tree / "etc/shadow").stat().st_gid
    for member in (auth_sys(54321, group), auth_sys(54321, 1, (5, group))):
        assert await client.access(shadow, credential=member) == 0x01
        assert await client.read(shadow, 0, 100, credential=member) == (b"secret", True)


async def test_a_program_that_may_only_be_executed_can_be_loaded(client: Client, root: bytes) -> None:
    program = await client.lookup(root, b"program")
    assert await client.access(program, credential=STRANGER) == 0x20
    assert (await client.read(program, 0, 2, credential=STRANGER))[0] == b"#!"


async def test_access_answers_only_what_was_asked(client: Client, root: bytes) -> None:
    etc = await client.lookup(root, b"etc")
    assert await client.access(etc, 0x02) == 0x02
    assert await client.access(etc, 0x1C) == 0, "nobody may change anything"
    hostname = await client.walk(root, "etc/hostname")
    assert await client.access(hostname) == 0x01, "root executes only what is executable"


# ---------------------------------------------------------------------- handles


async def test_handles_survive_a_restart(tree: Path) -> None:
    async with serving(tree) as running, await running.client() as client:
        root = await client.mount(bytes(tree))
        handles = {path: await client.walk(root, path) for path in ("etc/hostname", "pattern", "odd", "etc/deep/er")}
        attributes = {path: await client.getattr(handle) for path, handle in handles.items()}
    async with serving(tree) as running, await running.client() as client:
        for path, handle in handles.items():
            assert await client.getattr(handle) == attributes[path]
        assert await client.read(handles["etc/hostname"], 0, 100) == (b"node\n", True)


async def test_forged_handles_reach_nothing(client: Client, tree: Path, root: bytes) -> None:
    seen = {await client.walk(root, entry) for entry in ("etc", "pattern")} | {root}
    for length in (0, 1, 8, 23, 25, 32, 64):
        assert await client.status(nfs.GETATTR, opaque(os.urandom(length))) == nfs.BADHANDLE
    for position in range(len(root)):
        for bit in range(8):
            forged = bytearray(root)
            forged[position] ^= 1 << bit
            results = await client.nfs(nfs.GETATTR, opaque(bytes(forged)))
            status = results.u32()
            assert (
                status in (nfs.BADHANDLE, nfs.STALE)
                or bytes(forged) in seen
                or (results.attributes().fileid == tree.stat().st_ino)
            )


async def test_a_generation_that_appears_and_one_that_goes(tmp_path: Path) -> None:
    first, second = tmp_path / "g1", tmp_path / "g2"
    for folder in (first, second):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    async with serving(first) as running, await running.client() as client:
        old = await client.lookup(await client.mount(bytes(first)), b"name")
        assert await client.mount_status(bytes(second)) == nfs.NOENT
        running.table.exports.append(export_of(second))
        new = await client.lookup(await client.mount(bytes(second)), b"name")
        assert await client.read(new, 0, 10) == (b"g2", True)
        assert await client.read(old, 0, 10) == (b"g1", True)
        del running.table.exports[0]
        async with asyncio.timeout(10):
            while await client.status(nfs.GETATTR, opaque(old)) != nfs.STALE:
                await asyncio.sleep(0.05)
        assert await client.read(new, 0, 10) == (b"g2", True)


async def test_a_file_replaced_underneath_is_stale_not_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "g1"
    folder.mkdir()
    (folder / "a").write_bytes(b"first")
    (folder / "b").write_bytes(b"other")
    os.symlink("/etc/passwd", folder / "s")
    async with serving(folder) as running, await running.client() as client:
        root = await client.mount(bytes(folder))
        handle = await client.lookup(root, b"a")
        assert await client.read(await client.lookup(root, b"b"), 0, 10) == (b"other", True)
        (folder / "a").unlink()
        os.symlink("/etc/passwd", folder / "a")
        assert await client.status(nfs.READ, opaque(handle) + u64(0) + u32(10)) == nfs.STALE
        (folder / "a").unlink()
        (folder / "a").write_bytes(b"second")
        assert await client.status(nfs.READ, opaque(handle) + u64(0) + u32(10)) == nfs.STALE


# ---------------------------------------------------------------------- an independent client


def _url(running: Running, path: Path, *, more: str = "") -> str:
    port = running.port
    return f"nfs://127.0.0.1{path}?nfsport={port}&mountport={running.server.ports.mount_port}&version=3{more}"


async def test_libnfs_lists_and_reads_the_same(running: Running, tree: Path, tmp_path: Path) -> None:
    listed = await asyncio.to_thread(run, ["nfs-ls", _url(running, tree)])
    names = {line.split(maxsplit=5)[5]: line.split() for line in listed.stdout.splitlines()}
    assert set(names) == set(os.listdir(tree))
    assert names["big"][4] == str(BIG + 7)
    assert names["etc"][0].startswith("drwx")
    copy = tmp_path / "copy"
    await asyncio.to_thread(run, ["nfs-cp", _url(running, tree / "pattern"), str(copy)])
    assert copy.read_bytes() == PATTERN
    many = await asyncio.to_thread(run, ["nfs-ls", _url(running, tree / "many")])
    assert len(many.stdout.splitlines()) == 3000


async def test_libnfs_is_refused_as_another_user(running: Running, tree: Path) -> None:
    url = _url(running, tree / "etc/shadow", more="&uid=54321&gid=54321")
    refused = await asyncio.to_thread(run, ["nfs-cat", url], check=False)
    assert refused.returncode != 0
    assert "secret" not in refused.stdout
    read = await asyncio.to_thread(run, ["nfs-cat", _url(running, tree / "etc/shadow", more="&uid=0&gid=0")])
    assert read.stdout == "secret"
