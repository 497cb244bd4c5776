"""The port mapper: version 2, and rpcbind versions 3 and 4, over UDP and TCP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.support import nfs_wire as nfs
from tests.support.nfs_server import Running, serving
from tests.support.nfs_wire import Accepted, Client, Unpacker, call_record, opaque, parse_reply, u32
from tests.support.processes import run

Ask = Callable[[bytes], Awaitable[Accepted]]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, portmap_port=0, mount_port=0) as running:
        yield running


def ask_udp(port: int, record: bytes, host: str = "127.0.0.1") -> Accepted:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((host, port))  # an answer from elsewhere would not arrive
        sock.send(record)
        _, outcome = parse_reply(sock.recv(65536))
    assert isinstance(outcome, Accepted)
    return outcome


@pytest.fixture(params=["tcp", "udp"])
async def ask(request: pytest.FixtureRequest, running: Running) -> AsyncIterator[Ask]:
    port = running.server.ports.portmap_port
    assert port
    if request.param == "udp":

        async def udp(record: bytes) -> Accepted:
            return await asyncio.to_thread(ask_udp, port, record)

        yield udp
        return
    async with await Client.connect(port) as client:

        async def tcp(record: bytes) -> Accepted:
            outcome = await client.outcome(record)
            assert isinstance(outcome, Accepted)
            return outcome

        yield tcp


async def test_getport(running: Running, ask: Ask) -> None:
    ports = running.server.ports
    for program, version, protocol, port in [
        (nfs.NFS, 3, nfs.TCP, ports.port),
        (nfs.MOUNT, 3, nfs.TCP, ports.mount_port),
        (nfs.NFSACL, 3, nfs.TCP, ports.port),
        (nfs.PORTMAP, 2, nfs.UDP, ports.portmap_port),
        (nfs.MOUNT, 1, nfs.TCP, ports.mount_port),
        (nfs.NFS, 3, nfs.UDP, 0),
        (100021, 4, nfs.TCP, 0),
    ]:
        record = call_record(nfs.PORTMAP, 2, 3, u32(program, version, protocol, 0))
        assert await ask(record) == Accepted(0, u32(port or 0)), program


async def test_dump(running: Running, ask: Ask) -> None:
    results = Unpacker((await ask(call_record(nfs.PORTMAP, 2, 4))).body)
    table = set()
    while results.u32():
        table.add((results.u32(), results.u32(), results.u32(), results.u32()))
    results.end()
    ports = running.server.ports
    assert (nfs.NFS, 3, nfs.TCP, ports.port) in table
    assert (nfs.MOUNT, 3, nfs.TCP, ports.mount_port) in table
    assert (nfs.PORTMAP, 2, nfs.UDP, ports.portmap_port) in table


@pytest.mark.parametrize("version", [3, 4])
async def test_getaddr(running: Running, ask: Ask, version: int) -> None:
    args = u32(nfs.NFS, 3) + opaque(b"tcp") + opaque(b"") + opaque(b"")
    outcome = await ask(call_record(nfs.PORTMAP, version, 3, args))
    port = running.server.ports.port
    assert outcome == Accepted(0, opaque(f"127.0.0.1.{port >> 8}.{port & 255}".encode()))
    unknown = u32(100021, 4) + opaque(b"tcp") + opaque(b"") + opaque(b"")
    assert await ask(call_record(nfs.PORTMAP, version, 3, unknown)) == Accepted(0, opaque(b""))


async def test_nobody_can_register_or_have_calls_passed_on(ask: Ask) -> None:
    mapping = u32(200000, 1, nfs.TCP, 9)
    assert await ask(call_record(nfs.PORTMAP, 2, 1, mapping)) == Accepted(0, u32(0))
    assert await ask(call_record(nfs.PORTMAP, 2, 2, mapping)) == Accepted(0, u32(0))
    assert await ask(call_record(nfs.PORTMAP, 2, 3, mapping)) == Accepted(0, u32(0))
    assert (await ask(call_record(nfs.PORTMAP, 2, 5, u32(nfs.NFS, 3, 0, 0)))).status == 3
    assert (await ask(call_record(nfs.PORTMAP, 4, 5, u32(nfs.NFS, 3, 0, 0)))).status == 3


async def test_other_versions_and_garbage(ask: Ask) -> None:
    assert await ask(call_record(nfs.PORTMAP, 5, 0)) == Accepted(2, u32(2, 4))
    assert await ask(call_record(nfs.PORTMAP, 2, 3, u32(1))) == Accepted(4, b"")
    assert await ask(call_record(nfs.PORTMAP, 2, 0)) == Accepted(0, b"")


async def test_rubbish_datagrams_change_nothing(running: Running) -> None:
    port = running.server.ports.portmap_port
    assert port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for data in (b"", b"\0", bytes(500), b"\xff" * 1400, call_record(nfs.PORTMAP, 2, 0)[:30], bytes(9000)):
            sock.sendto(data, ("127.0.0.1", port))
    null = await asyncio.to_thread(ask_udp, port, call_record(nfs.PORTMAP, 2, 0))
    assert null == Accepted(0, b"")


async def test_the_answer_comes_from_the_address_that_was_asked(tmp_path: Path) -> None:
    async with serving(tmp_path, addresses=("0.0.0.0", "::"), portmap_port=0) as running:
        ports = running.server.ports
        assert ports.portmap_port
        for host in ("127.0.0.1", "127.0.0.99", "::1"):
            netid = b"tcp6" if ":" in host else b"tcp"
            args = u32(nfs.NFS, 3) + opaque(netid) + opaque(b"") + opaque(b"")
            outcome = await asyncio.to_thread(ask_udp, ports.portmap_port, call_record(nfs.PORTMAP, 4, 3, args), host)
            assert outcome.body == opaque(f"{host}.{ports.port >> 8}.{ports.port & 255}".encode())


async def test_strangers_get_no_answer_over_udp(tmp_path: Path) -> None:
    async with serving(tmp_path, portmap_port=0, allow=lambda address: False) as running:
        port = running.server.ports.portmap_port
        assert port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.3)
            sock.sendto(call_record(nfs.PORTMAP, 2, 4), ("127.0.0.1", port))
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(sock.recv, 100)


async def test_rpcinfo_understands_the_services(running: Running) -> None:
    """rpcinfo asks a program directly when told its address; asking port 111 needs a namespace (see netns)."""
    port = running.server.ports.port
    done = await asyncio.to_thread(
        run, ["rpcinfo", "-a", f"127.0.0.1.{port >> 8}.{port & 255}", "-T", "tcp", "100003", "3"]
    )
    assert "ready and waiting" in done.stdout
