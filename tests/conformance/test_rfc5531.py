"""ONC RPC over TCP: record marking, credentials, and what is answered to calls that can't be served."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netbootd.nfsd.connection import RECORD_LIMIT
from tests.support import nfs_wire as nfs
from tests.support.nfs_server import Running, serving
from tests.support.nfs_wire import (
    Accepted,
    Client,
    Denied,
    auth_none,
    auth_sys,
    call_record,
    marked,
    opaque,
    parse_reply,
    u32,
)

NULL = call_record(nfs.NFS, 3, 0, xid=77)
SUCCESS = Accepted(0, b"")
GARBAGE_ARGS = Accepted(4, b"")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "file").write_bytes(b"content")
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def client(running: Running) -> AsyncIterator[Client]:
    async with await running.client() as client:
        yield client


async def test_a_port_of_any_process_is_too_weak_where_that_is_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 5531, section 9: AUTH_TOOWEAK, "rejected for security reasons"; for every program but the port mapper."""
    async with serving(tmp_path, secure=True, mount_port=0, portmap_port=0) as running:
        ports = running.server.ports
        for port in (ports.port, ports.mount_port):
            async with await Client.connect(port) as client:
                assert client.writer.get_extra_info("sockname")[1] >= 1024
                for program, procedure in ((nfs.NFS, nfs.GETATTR), (nfs.NFSACL, 1), (nfs.MOUNT, 1), (nfs.MOUNT, 5)):
                    for who in (auth_sys(), auth_sys(1000, 1000), auth_none()):
                        call = call_record(program, 3, procedure, opaque(bytes(tmp_path)), who)
                        assert await client.outcome(call) == Denied((1, 5))
                assert await client.outcome(call_record(nfs.MOUNT, 3, 0)) == SUCCESS  # asks whether it is there
        assert caplog.text.count("[nfs] secure") == 1  # not once a call
        assert not running.mounts
        assert ports.portmap_port is not None
        async with await Client.connect(ports.portmap_port) as client:
            asked = await client.call(nfs.PORTMAP, 2, 3, u32(nfs.NFS, 3, nfs.TCP, 0))
            assert asked.u32() == ports.port


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("cut", [0, 1, 4, 20, len(NULL) - 1])
async def test_fragments_and_packets_of_any_size(client: Client, step: int, cut: int) -> None:
    stream = marked(NULL[:cut], last=False) + marked(b"", last=False) + marked(NULL[cut:]) + marked(NULL)
    for start in range(0, len(stream), step):
        client.send(stream[start : start + step])
        await client.writer.drain()
        if step < 10 and start % 40 < step:
            await asyncio.sleep(0)
    assert parse_reply(await client.receive()) == (77, SUCCESS)
    assert parse_reply(await client.receive()) == (77, SUCCESS)


async def test_every_byte_a_fragment(client: Client) -> None:
    client.send(b"".join(marked(NULL[i : i + 1], last=i == len(NULL) - 1) for i in range(len(NULL))))
    assert parse_reply(await client.receive()) == (77, SUCCESS)


async def test_calls_behind_each_other_are_answered_in_one_go(client: Client) -> None:
    client.send(b"".join(marked(call_record(nfs.NFS, 3, 0, xid=number)) for number in range(500)))
    assert [parse_reply(await client.receive()) for _ in range(500)] == [(number, SUCCESS) for number in range(500)]


async def test_a_record_beyond_the_limit_ends_the_connection_and_no_other(running: Running, client: Client) -> None:
    for stream in (
        u32(0x80000000 | RECORD_LIMIT + 1),
        u32(0x7FFFFFFF),
        u32(RECORD_LIMIT) + bytes(RECORD_LIMIT) + u32(8),
    ):
        async with await running.client() as greedy:
            greedy.send(stream)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await greedy.receive()
    assert await client.outcome(NULL) == SUCCESS


async def test_a_write_as_large_as_allowed_is_taken_and_refused(client: Client, tmp_path: Path) -> None:
    root = await client.mount(bytes(tmp_path))
    info = await client.nfs(nfs.FSINFO, opaque(root))
    info.take(4 + 88 + 12)
    wtmax = info.u32()
    handle = await client.lookup(root, b"file")
    args = opaque(handle) + nfs.u64(0) + u32(wtmax, 2) + opaque(os.urandom(wtmax))
    assert await client.status(nfs.WRITE, args) == nfs.ROFS
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        (call_record(nfs.NFS, 3, 0, credential=auth_none()), SUCCESS),
        (call_record(nfs.NFS, 3, 0, credential=auth_sys(1, 2, tuple(range(16)))), SUCCESS),
        (call_record(nfs.NFSACL, 3, 0), SUCCESS),
        (call_record(nfs.MOUNT, 3, 0), SUCCESS),
        (call_record(nfs.NFS, 3, 0, rpc_version=3), Denied((0, 2, 2))),
        (call_record(nfs.NFS, 3, 0, rpc_version=1), Denied((0, 2, 2))),
        (call_record(100021, 4, 0), Accepted(1, b"")),
        (call_record(nfs.PORTMAP, 2, 0), Accepted(1, b"")),
        (call_record(nfs.NFS, 2, 0), Accepted(2, u32(3, 3))),
        (call_record(nfs.NFS, 4, 0), Accepted(2, u32(3, 3))),
        (call_record(nfs.MOUNT, 1, 0), Accepted(2, u32(3, 3))),
        (call_record(nfs.NFSACL, 2, 0), Accepted(2, u32(3, 3))),
        (call_record(nfs.NFS, 3, 22), Accepted(3, b"")),
        (call_record(nfs.MOUNT, 3, 6), Accepted(3, b"")),
        (call_record(nfs.NFSACL, 3, 5), Accepted(3, b"")),
        (call_record(nfs.NFS, 3, 1, b""), GARBAGE_ARGS),
        (call_record(nfs.NFS, 3, 1, u32(24)), GARBAGE_ARGS),
        (call_record(nfs.NFS, 3, 1, u32(65) + bytes(68)), GARBAGE_ARGS),
        (call_record(nfs.NFS, 3, 1, u32(0xFFFFFFFF) + bytes(68)), GARBAGE_ARGS),
        (call_record(nfs.MOUNT, 3, 1, u32(1025) + bytes(1028)), GARBAGE_ARGS),
        (call_record(nfs.NFSACL, 3, 1, u32(3)), GARBAGE_ARGS),
        (call_record(nfs.NFS, 3, 0, credential=auth_sys(1, 2, tuple(range(17)))), Denied((1, 1))),
        (call_record(nfs.NFS, 3, 0, credential=auth_sys(machine=b"m" * 256)), Denied((1, 1))),
        (call_record(nfs.NFS, 3, 0, credential=u32(1) + opaque(b"short")), Denied((1, 1))),
        (call_record(nfs.NFS, 3, 0, credential=u32(1, 401) + bytes(404)), Denied((1, 1))),
        (call_record(nfs.NFS, 3, 0, credential=u32(2) + opaque(b"shorthand")), Denied((1, 2))),
        (call_record(nfs.NFS, 3, 0, credential=u32(6) + opaque(b"gss")), Denied((1, 2))),
        (u32(9, 0, 2, nfs.NFS, 3, 0) + auth_none() + u32(0, 401) + bytes(404), Denied((1, 3))),
    ],
)
async def test_what_is_answered(client: Client, record: bytes, outcome: Accepted | Denied) -> None:
    assert await client.outcome(record) == outcome
    assert await client.outcome(NULL) == SUCCESS, "the connection goes on"


@pytest.mark.parametrize("record", [b"", b"\0", bytes(11), u32(5, 1, 0, 0, 0, 0), u32(5, 7, 2, nfs.NFS, 3, 0)])
async def test_what_is_no_call_gets_no_answer(client: Client, record: bytes) -> None:
    client.send(marked(record) + marked(NULL))
    assert parse_reply(await client.receive()) == (77, SUCCESS)


async def test_a_cut_call_is_answered_or_dropped(client: Client, tmp_path: Path) -> None:
    root = await client.mount(bytes(tmp_path))
    whole = call_record(nfs.NFS, 3, nfs.READDIRPLUS, opaque(root) + bytes(16) + u32(1000, 1000), xid=5)
    for length in range(len(whole)):
        client.send(marked(whole[:length]) + marked(NULL))
        xid, outcome = parse_reply(await client.receive())
        if xid == 5:
            assert outcome != SUCCESS
            assert parse_reply(await client.receive()) == (77, SUCCESS)
        else:
            assert length < 12, "a call whose transaction is known gets an answer"


async def test_a_client_that_ends_its_side_still_gets_its_answers(running: Running) -> None:
    async with await running.client() as client:
        client.send(marked(NULL) * 3)
        client.writer.write_eof()
        for _ in range(3):
            assert parse_reply(await client.receive()) == (77, SUCCESS)
        assert await client.reader.read() == b""


async def test_ipv6_and_both_address_families(tmp_path: Path) -> None:
    for addresses, hosts in [(("::",), ["127.0.0.1", "::1"]), (("127.0.0.1", "::1"), ["127.0.0.1", "::1"])]:
        async with serving(tmp_path, addresses=addresses) as running:
            for host in hosts:
                async with await Client.connect(running.port, host) as client:
                    await client.mount(bytes(tmp_path))
            assert [address for address, _, _ in running.mounts] == hosts


async def test_who_is_not_allowed_gets_no_word(tmp_path: Path) -> None:
    asked = []

    def allow(address: str) -> bool:
        asked.append(address)
        return len(asked) > 1

    async with serving(tmp_path, allow=allow) as running:
        stranger = await running.client()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await stranger.outcome(NULL)
        await stranger.close()
        async with await running.client() as client:
            assert await client.outcome(NULL) == SUCCESS
    assert asked == ["127.0.0.1"] * 2


async def test_sockets_that_are_handed_in(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    async with serving(tmp_path, sockets=(listener,)) as running:
        assert running.server.ports.port == running.server.ports.mount_port == port
        async with await running.client() as client:
            await client.mount(bytes(tmp_path))


async def test_a_mount_port_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path, mount_port=0) as running:
        ports = running.server.ports
        assert ports.mount_port != ports.port
        async with await Client.connect(ports.mount_port) as client:
            handle = await client.mount(bytes(tmp_path))
            assert await client.outcome(NULL) == Accepted(1, b"")
        async with await running.client() as client:
            assert (await client.getattr(handle)).type == 2
