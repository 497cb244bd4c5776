"""The embedded NFS server with clients that mean no good, or only half mean to be clients; and with slow disks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import resource
import socket
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from netbootd.nfsd import connection, files
from netbootd.nfsd.connection import RECORD_LIMIT
from netbootd.nfsd.rpc import Records
from netbootd.nfsd.server import Limits
from netbootd.service.exports import GenerationExports
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout
from tests.support import nfs_wire as nfs
from tests.support.nfs_server import Running, export_of, serving
from tests.support.nfs_wire import Client, auth_none, auth_sys, call_record, marked, opaque, parse_reply, u32, u64

MIB = 1 << 20
NULL = call_record(nfs.NFS, 3, 0, xid=77)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Octets of this process that are in memory and are no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


async def eventually(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


async def ends(client: Client) -> None:
    """The server ends this connection."""
    async with asyncio.timeout(20):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            while True:
                await client.receive()
    await client.close()


def read_call(handle: bytes, offset: int, count: int, xid: int) -> bytes:
    return marked(call_record(nfs.NFS, 3, nfs.READ, opaque(handle) + u64(offset) + u32(count), xid=xid))


def fill(path: Path, size: int) -> bytes:
    """Random bytes in a file, all of them on the disk, so that the page cache may forget them."""
    data = os.urandom(size)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def forget(path: Path) -> None:
    """Take the file out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


# ---------------------------------------------------------------------- records that are wrong


async def templates(running: Running, root: Path) -> list[bytes]:
    """A good call of every procedure of every program."""
    async with await running.client() as client:
        top = await client.mount(bytes(root))
        file, folder = await client.lookup(top, b"file"), await client.lookup(top, b"folder")
    sattr, name = u32(0, 0, 0, 0, 0, 0), opaque(b"name")
    plain = [opaque(handle) for handle in (top, file, folder)]
    bodies = {
        nfs.GETATTR: b"",
        nfs.SETATTR: sattr + u32(0),
        nfs.LOOKUP: name,
        nfs.ACCESS: u32(0x3F),
        nfs.READLINK: b"",
        nfs.READ: u64(0) + u32(500),
        nfs.WRITE: u64(0) + u32(4, 2) + name,
        nfs.CREATE: name + u32(0) + sattr,
        nfs.MKDIR: name + sattr,
        nfs.SYMLINK: name + sattr + name,
        nfs.MKNOD: name + u32(3) + sattr + u32(1, 3),
        nfs.REMOVE: name,
        nfs.RMDIR: name,
        nfs.RENAME: name + plain[0] + name,
        nfs.LINK: plain[2] + name,
        nfs.READDIR: u64(0) + bytes(8) + u32(600),
        nfs.READDIRPLUS: u64(0) + bytes(8) + u32(600, 900),
        nfs.FSSTAT: b"",
        nfs.FSINFO: b"",
        nfs.PATHCONF: b"",
        nfs.COMMIT: u64(0) + u32(0),
    }
    calls = [call_record(nfs.NFS, 3, 0), call_record(nfs.MOUNT, 3, 1, opaque(bytes(root)))]
    calls += [call_record(nfs.MOUNT, 3, number) for number in (0, 2, 4, 5)]
    calls += [call_record(nfs.NFSACL, 3, 1, handle + u32(15)) for handle in plain]
    calls += [call_record(nfs.NFSACL, 3, 2, plain[1] + u32(1, 0, 0, 0, 0))]
    for number, body in bodies.items():
        for handle in plain:
            who = (auth_sys(), auth_sys(1000, 1000, (4, 27)), auth_none())[len(calls) % 3]
            calls.append(call_record(nfs.NFS, 3, number, handle + body, who))
    return calls


def mutated(dice: random.Random, call: bytes) -> bytes:
    """The call with something wrong in it."""
    words = (0, 1, 2, 3, 8, 24, 65, 255, 400, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    place = dice.randrange(len(call) // 4) * 4
    match dice.randrange(6):
        case 0:
            changed = bytearray(call)
            for _ in range(dice.randrange(1, 5)):
                changed[dice.randrange(len(call))] = dice.randrange(256)
            return bytes(changed)
        case 1 | 2:
            return call[:place] + u32(dice.choice(words)) + call[place + 4 :]
        case 3:
            return call[: dice.randrange(len(call))]
        case 4:
            return call[:place] + dice.randbytes(dice.randrange(40)) + call[place:]
        case _:
            return call + call[place:] * dice.randrange(3)


async def test_mutated_records_leave_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """100,000 of them, 100 on a connection, of which some end in the middle of a record or with a mark that lies."""
    caplog.set_level(logging.WARNING)
    dice = random.Random("rfc1813")
    (tmp_path / "file").write_bytes(os.urandom(4000))
    (tmp_path / "folder").mkdir()
    for number in range(50):
        (tmp_path / "folder" / str(number)).touch()
    before = descriptors()
    async with serving(tmp_path) as running:
        calls = await templates(running, tmp_path)
        sizes = []
        answered = 0
        for number in range(1052):
            records = [marked(mutated(dice, dice.choice(calls))) for _ in range(100)]
            if number % 20 == 0:
                records[-1] = u32(dice.choice((0, 5, 0x80000000, 0x80000005, 0xFFFFFFFF, 0x7FFFFFFF))) + b"rest"
            async with await running.client() as client, asyncio.timeout(20):
                client.send(b"".join(records))
                client.writer.write_eof()
                try:
                    while data := await client.reader.read(MIB):
                        answered += len(data)
                except ConnectionError:  # a mark that lied, and more behind it that the server didn't read
                    pass
            if number % 263 == 262:
                sizes.append(resident())
        assert running.server.counters.calls >= 100_000
        assert answered > 2_000_000
        await eventually(lambda: running.server.connected == 0, "no connection is left over")
        assert sizes[-1] - sizes[0] < 8 * MIB, sizes
        async with await running.client() as client:
            handle = await client.lookup(await client.mount(bytes(tmp_path)), b"file")
            assert (await client.read_whole(handle)) == (tmp_path / "file").read_bytes()
    gc.collect()
    assert descriptors() <= before
    said = [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert not said, said
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


async def test_rubbish_to_the_port_mapper_leaves_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    dice = random.Random("rfc1833")
    calls = [call_record(nfs.PORTMAP, 2, 3, u32(nfs.NFS, 3, nfs.TCP, 0)), call_record(nfs.PORTMAP, 2, 4)]
    address = u32(nfs.NFS, 3) + opaque(b"tcp") + opaque(b"") + opaque(b"")
    calls += [call_record(nfs.PORTMAP, version, number, address) for version in (3, 4) for number in (1, 2, 3, 4, 9)]
    async with serving(tmp_path, portmap_port=0) as running:
        port = running.server.ports.portmap_port
        assert port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(("127.0.0.1", port))
            loop = asyncio.get_running_loop()
            largest = 0
            for number in range(5000):
                sock.send(mutated(dice, dice.choice(calls)))
                if number % 20 == 19:
                    sock.send(call_record(nfs.PORTMAP, 2, 0, xid=number))
                    async with asyncio.timeout(20):
                        while (reply := await loop.sock_recv(sock, 65536))[:4] != u32(number):
                            largest = max(largest, len(reply))
            assert 100 < largest <= 1400
    said = [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert not said, said


def test_a_record_of_tiny_fragments_takes_no_more_than_its_bytes() -> None:
    records = Records(RECORD_LIMIT)
    stream = marked(b"x", last=False) * (RECORD_LIMIT - 1)
    tracemalloc.start()
    try:
        for start in range(0, len(stream), 65536):
            assert not list(records.feed(stream[start : start + 65536]))
        assert tracemalloc.get_traced_memory()[0] < 4 * RECORD_LIMIT
    finally:
        tracemalloc.stop()
    assert list(records.feed(marked(b"y"))) == [b"x" * (RECORD_LIMIT - 1) + b"y"]


# ---------------------------------------------------------------------- clients that stop in the middle


async def test_connections_that_stand_still_are_ended(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2 * MIB))
    before = descriptors()
    async with serving(tmp_path, limits=Limits(idle=1.5, stalled=0.3, sweep=0.05)) as running:
        loop = asyncio.get_running_loop()
        began = loop.time()
        half = await running.client()
        half.send(marked(NULL)[:-3])
        mark = await running.client()
        mark.send(u32(0x80000100)[:2])
        deaf = await running.client()
        handle = await deaf.lookup(await deaf.mount(bytes(tmp_path)), b"file")
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        deaf.send(b"".join(read_call(handle, 0, MIB, number) for number in range(40)))
        idle = await running.client()
        await eventually(lambda: running.server.connected == 1, "those that stopped in the middle are ended")
        assert loop.time() - began < 1.5 + 5
        await eventually(lambda: running.server.connected == 0, "the idle one is ended")
        assert loop.time() - began >= 1.5
        for client in (half, mark, idle):
            await ends(client)
        deaf.writer.transport.abort()
    gc.collect()
    await eventually(lambda: descriptors() <= before, "every socket is closed")


async def test_one_address_has_its_share_of_connections(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=Limits(connections=6, connections_per_address=4)) as running:
        clients = [await running.client() for _ in range(4)]
        for client in clients:
            assert isinstance(await client.outcome(NULL), nfs.Accepted)
        await ends(await running.client())
        assert running.server.counters.refused == 1
        other, writer = await asyncio.open_connection("127.0.0.1", running.port, local_addr=("127.0.0.9", 0))
        fifth = Client(other, writer, auth_sys())
        assert isinstance(await fifth.outcome(NULL), nfs.Accepted)
        await clients.pop().close()
        await eventually(lambda: running.server.connected == 4, "a place is free again")
        async with await running.client() as again:
            assert isinstance(await again.outcome(NULL), nfs.Accepted)
        for client in (*clients, fifth):
            await client.close()


@pytest.mark.parametrize("tells", [True, False], ids=["page cache", "memory"])
@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
async def test_slow_readers_cost_little_memory_and_get_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool, cold: bool
) -> None:
    """Twelve clients ask for 48 MiB each and read nothing for a while, on file systems that can say what is cached and
    on such that can't."""
    if not tells:
        monkeypatch.setattr(files, "_tells", lambda fd: False)
    monkeypatch.setattr(connection, "_PROBED_SECONDS", 0.0)
    data = fill(tmp_path / "file", 8 * MIB)
    async with serving(tmp_path) as running:
        clients = [await running.client() for _ in range(12)]
        handle = await clients[0].lookup(await clients[0].mount(bytes(tmp_path)), b"file")
        before = resident()
        for client in clients:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(b"".join(read_call(handle, number % 8 * MIB, MIB, number) for number in range(48)))
        if cold:
            forget(tmp_path / "file")
        async with await running.client() as other:
            for _ in range(5):
                assert await other.read(handle, 5, 100) == (data[5:105], False)
                await asyncio.sleep(0.02)
        assert resident() - before < 12 * 3 * MIB
        if cold:
            forget(tmp_path / "file")
        client = clients.pop()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        got = set()
        for _ in range(48):
            xid, outcome = parse_reply(await client.receive())
            assert isinstance(outcome, nfs.Accepted)
            assert outcome.body[-MIB:] == data[xid % 8 * MIB : (xid % 8 + 1) * MIB]
            got.add(xid)
        assert got == set(range(48))
        await client.close()
        for client in clients:
            client.writer.transport.abort()


# ---------------------------------------------------------------------- disks that are slow


async def test_a_disk_that_hangs_holds_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread waits for a file; attributes, listings and cached files are still answered."""
    cached = fill(tmp_path / "cached", MIB)
    slow = fill(tmp_path / "slow", MIB)
    released = threading.Event()
    read, warm = files.OpenFile.read, files.OpenFile.warm
    hanging: set[int] = set()

    def wait(file: files.OpenFile) -> None:
        if os.fstat(file.fd).st_ino == (tmp_path / "slow").stat().st_ino:
            hanging.add(threading.get_ident())
            assert released.wait(30)

    monkeypatch.setattr(files.OpenFile, "read", lambda file, *args: (wait(file), read(file, *args))[1])
    monkeypatch.setattr(files.OpenFile, "warm", lambda file, *args: (wait(file), warm(file, *args))[1])
    try:
        async with serving(tmp_path) as running, await running.client() as client, await running.client() as waiting:
            root = await client.mount(bytes(tmp_path))
            handles = {name: await client.lookup(root, name) for name in (b"cached", b"slow")}
            assert (await client.read(handles[b"cached"], 0, MIB))[0] == cached
            for number in range(12):
                waiting.send(read_call(handles[b"slow"], 0, 50_000 if number % 2 else 100, number))
            await eventually(lambda: len(hanging) == Limits().threads, "all threads wait")
            async with asyncio.timeout(10):
                for _ in range(20):
                    assert (await client.getattr(handles[b"slow"])).size == MIB
                    assert len((await client.readdirplus(root)).entries) == 4
                    assert (await client.read(handles[b"cached"], 0, MIB))[0] == cached
            released.set()
            for _ in range(12):
                number, outcome = parse_reply(await waiting.receive())
                assert isinstance(outcome, nfs.Accepted)
                assert slow[: 50_000 if number % 2 else 100] in outcome.body
    finally:
        released.set()


async def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the answer where it has not begun; by ending the connection where half of it is on its way."""
    fill(tmp_path / "file", 8 * MIB)

    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(connection, "_PROBED_SECONDS", 0.0)
    async with serving(tmp_path) as running, await running.client() as client:
        handle = await client.lookup(await client.mount(bytes(tmp_path)), b"file")
        with monkeypatch.context() as broken:
            broken.setattr(files.OpenFile, "warm", fail)
            broken.setattr(files.OpenFile, "read", fail)
            for count in (100, MIB):
                assert await client.status(nfs.READ, opaque(handle) + u64(0) + u32(count)) == 5  # NFS3ERR_IO
        assert len((await client.read(handle, 0, MIB))[0]) == MIB
        monkeypatch.setattr(files.OpenFile, "cached", lambda *args: True)
        deaf = await running.client()
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        deaf.send(b"".join(read_call(handle, number * MIB, MIB, number) for number in range(8)))
        await asyncio.sleep(0.1)
        monkeypatch.setattr(files.OpenFile, "cached", lambda *args: False)
        monkeypatch.setattr(files.OpenFile, "warm", fail)
        deaf.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await ends(deaf)
        assert (await client.getattr(handle)).size == 8 * MIB


# ---------------------------------------------------------------------- exports that go, handles that lie


async def test_a_tree_that_goes_gives_its_descriptors_back(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(20)]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_bytes(b"content")
    async with serving(limits=Limits(sweep=0.02)) as running, await running.client() as client:
        before = descriptors()
        for folder in folders:
            running.table.exports = [export_of(folder)]
            handle = await client.lookup(await client.mount(bytes(folder)), b"file")
            assert await client.read(handle, 0, 9) == (b"content", True)
        running.table.exports = []
        await eventually(lambda: descriptors() <= before, "the roots and files are closed")
        assert await client.status(nfs.GETATTR, opaque(handle)) == nfs.STALE


def test_invented_handles_make_nobody_search_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    generation = layout.generation("noble", "0123456789abcdef")
    generation.root.mkdir(parents=True)
    (generation.path / "image.json").write_text("{}")
    generations = Generations(layout)
    searches = []
    names = generations.names
    monkeypatch.setattr(generations, "names", lambda: (searches.append(1), names())[1])
    exports = GenerationExports(generations)
    for number in range(1000):
        assert exports.by_fsid(number.to_bytes(8, "big")) is None
    assert len(searches) < 10
    found = exports.find(os.fsencode(generation.root))
    assert found is not None
    assert exports.by_fsid(found.fsid) == found, "what was just mounted is known at once"
    assert GenerationExports(generations).by_fsid(found.fsid) == found, "after a restart, too"
    (generation.path / "image.json").unlink()
    assert exports.by_fsid(found.fsid) is None, "pruned"


async def test_a_handle_opens_no_other_export(tmp_path: Path) -> None:
    """A handle under another export's identity names what that export has at the same path, or nothing."""
    first, second = tmp_path / "g1", tmp_path / "g2"
    for folder, name in ((first, "only-here"), (second, "there")):
        folder.mkdir()
        (folder / name).write_text(name)
    async with serving(first, second) as running, await running.client() as client:
        handle = await client.lookup(await client.mount(bytes(first)), b"only-here")
        other = await client.mount(bytes(second))
        forged = other[:12] + handle[12:]
        assert handle[:12] != other[:12]
        assert await client.status(nfs.GETATTR, opaque(forged)) == nfs.STALE
        running.table.exports.pop(0)
        async with asyncio.timeout(10):
            while await client.status(nfs.READ, opaque(handle) + u64(0) + u32(9)) != nfs.STALE:
                await asyncio.sleep(0.05)


async def test_search_and_read_permission_of_folders_are_told_apart(tmp_path: Path) -> None:
    stranger = auth_sys(54321, 54321)
    for name, mode in (("listable", 0o744), ("searchable", 0o711)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"content")
        (tmp_path / name).chmod(mode)
    async with serving(tmp_path) as running, await running.client(stranger) as client:
        root = await client.mount(bytes(tmp_path))
        if not tmp_path.stat().st_mode & 1:  # pytest's folders are closed to strangers
            assert await client.status(nfs.LOOKUP, opaque(root) + opaque(b"listable")) == nfs.ACCES
        listable, searchable = [
            await client.lookup(root, name, auth_sys(0, 0)) for name in (b"listable", b"searchable")
        ]
        assert [entry.name for entry in (await client.readdir(listable)).entries] == [b".", b"..", b"file"]
        assert await client.status(nfs.LOOKUP, opaque(listable) + opaque(b"file")) == nfs.ACCES
        assert await client.access(listable) == 0x01
        assert (await client.readdir(searchable)).status == nfs.ACCES
        assert await client.access(searchable) == 0x02
        assert await client.read(await client.lookup(searchable, b"file"), 0, 9) == (b"content", True)


async def test_the_process_may_have_few_descriptors(tmp_path: Path) -> None:
    """More files than may be open are read in turn, and connections leave room for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(200):
        (tmp_path / str(number)).write_text(str(number))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(128, descriptors() + 80), hard))
    try:
        async with serving(tmp_path) as running, await running.client() as client:
            root = await client.mount(bytes(tmp_path))
            for number in range(200):
                name = str(number).encode()
                assert await client.read(await client.lookup(root, name), 0, 9) == (name, True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
