"""The TFTP server on a LAN that isn't friendly: rubbish, forged and silent requests, strangers, floods."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from netbootd.model.event import Outcome
from tests.support.tftp_wire import ACK, ERROR, OACK, RRQ, WAYS, Bench, Client, serving

UNLIMITED = {"requests_per_second": 1e9, "total_requests_per_second": 1e9}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Octets of this process that are in memory and are no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def rubbish(dice: random.Random) -> bytes:
    """Half a packet, a whole one with something wrong in it, or nothing of the kind."""
    words = [
        b"",
        b"\0",
        b"a",
        b"octet",
        b"netascii",
        b"mail",
        b"blksize",
        b"8",
        b"0",
        b"1468",
        b"65464",
        b"99999999999",
    ]
    words += [b"tsize", b"timeout", b"255", b"windowsize", b"65535", b"../../etc/passwd", b"\xff\xfe", b"x" * 300]
    body = b"\0".join(dice.choice(words) for _ in range(dice.randrange(9)))
    match dice.randrange(5):
        case 0:
            return dice.randbytes(dice.randrange(40))
        case 1:
            return struct.pack("!H", dice.randrange(9)) + dice.randbytes(dice.randrange(12))
        case 2:
            return struct.pack("!H", dice.randrange(1, 3)) + body
        case 3:
            return struct.pack("!H", RRQ) + b"a\0octet\0" + body + b"\0"
        case _:
            return struct.pack("!H", RRQ) + dice.randbytes(dice.randrange(1, 30)) + b"\0octet\0" + body + b"\0"


@pytest.mark.parametrize("way", ["ipv4", "ipv6", "single-port"])
async def test_rubbish_leaves_no_trace(tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """A third of 100,000 datagrams each way, to the server's port and to those of its transfers."""
    caplog.set_level(logging.WARNING)
    dice = random.Random(way)
    before = descriptors()
    async with serving(tmp_path, way, max_transfers=32, **UNLIMITED) as bench:
        bench.files.held["a"] = os.urandom(2000)
        clients = [bench.client() for _ in range(8)]
        sizes = []
        for number in range(33_400):
            client = clients[number % len(clients)]
            try:
                client.sock.sendto(rubbish(dice), client.tid if number % 5 == 0 else client.server)
            except ConnectionRefusedError:
                pass
            if number % 64 == 0:
                await asyncio.sleep(0)
                while True:  # answers are read, and now and then believed
                    try:
                        _, client.tid = client.sock.recvfrom(70_000)
                    except (BlockingIOError, ConnectionRefusedError):
                        break
                bench.events.clear()
                bench.files.asked.clear()
            if number % 8_350 == 8_349:
                sizes.append(resident())
        assert descriptors() <= before + 8 + 2 * 32 + 8
        assert sizes[-1] - sizes[0] < 8 << 20, sizes
        for name in ("malformed", "requests", "misses", "strangers" if way != "ipv4" else "errors"):
            assert bench.server.stats[name] > 100, bench.server.stats.snapshot()
        bench.files.held["b"] = b"still here"
        assert await bench.client().fetch("b", tsize=0) == b"still here"
    assert descriptors() <= before
    said = [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert not said, said


async def test_silent_requests_cost_nothing_that_lasts(tmp_path: Path) -> None:
    """10,000 requests from 400 ports of 50 hosts that never answer, each wanting a `timeout` of 255 s."""
    before = descriptors()
    (tmp_path / "big").write_bytes(os.urandom(60_000))
    async with serving(tmp_path, "wildcard", max_transfers=64, max_transfers_per_client=16, **UNLIMITED) as bench:
        clients = [bench.client(f"127.0.1.{number % 50 + 1}") for number in range(400)]
        sizes = []
        for number in range(10_000):
            clients[number % 400].request("big", timeout=255, tsize=0, blksize=1024 + number % 400)
            if number % 25 == 0:
                await asyncio.sleep(0)
                assert bench.server.stats.open <= 64
            if number % 2_000 == 1_999:
                bench.events.clear()
                bench.files.asked.clear()
                sizes.append(resident())
                assert len(await bench.client("127.0.0.9").fetch("big", blksize=8192)) == 60_000
        assert descriptors() <= before + 400 + 5 + 2 * 64 + 8
        assert sizes[-1] - sizes[0] < 8 << 20, sizes
        assert len(bench.server._timers or ()) < 64 * 2 + 64 + 1
    assert descriptors() <= before


async def test_a_forged_request_sends_its_victim_little(tmp_path: Path) -> None:
    async def victims_share(way: str, options: dict[str, object]) -> int:
        async with serving(tmp_path, way) as bench:
            bench.files.held["a"] = bytes(10_000_000)
            victim = bench.client()
            victim.request("a", **options)
            octets = 0
            while bench.server.stats.open or not octets:
                try:
                    octets += 48 + len(await victim.datagram(0.2))  # IPv6's and UDP's headers
                except TimeoutError:
                    continue
            assert (await bench.event()).outcome is Outcome.ABORTED
            return octets

    wishes: list[dict[str, object]] = [{}, {"tsize": 0, "blksize": 1468, "windowsize": 64}, {"blksize": 65464}]
    async with asyncio.timeout(60):  # all at once, since each takes its time to be given up
        shares = await asyncio.gather(*(victims_share(way, wish) for way in WAYS for wish in wishes))
    assert all(0 < share < 4096 for share in shares), shares


async def test_a_refused_request_sends_little_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        for name in ("missing", "../x", "x" * 500):
            client = bench.client()
            client.request(name)
            assert len(await client.datagram()) < 100
            await client.silence(0.02)


async def test_only_the_operators_networks_are_answered(tmp_path: Path) -> None:
    async with serving(tmp_path, "wildcard", allow=(ip_network("127.0.1.0/24"),)) as bench:
        bench.files.held["a"] = b"a"
        for _ in range(3):
            stranger = bench.client("127.0.2.1")
            stranger.request("a")
            stranger.request("missing")
            stranger.raw(struct.pack("!HH", ACK, 1), stranger.server)
            await stranger.silence(0.05)
        assert await bench.client("127.0.1.1").fetch("a") == b"a"
        assert (await bench.event()).address == "127.0.1.1"
        assert bench.server.stats["refused"] == 9


async def test_a_flood_is_dropped_above_the_rate(tmp_path: Path) -> None:
    async with serving(tmp_path, "wildcard", requests_per_second=0.001, total_requests_per_second=1000) as bench:
        bench.server._guard._clients.clear()
        bench.server._guard._rate = 10
        client = bench.client()
        for _ in range(200):
            client.request("missing")
        answers = 0
        while True:
            try:
                await client.receive(0.1)
            except TimeoutError:
                break
            answers += 1
        assert 20 <= answers < 40
        assert bench.server.stats["limited"] == 200 - answers
        bench.files.held["a"] = b"a"
        assert await bench.client("127.0.0.5").fetch("a") == b"a"


async def test_one_client_can_have_so_many_transfers_and_no_more(tmp_path: Path) -> None:
    async with serving(tmp_path, "wildcard", max_transfers_per_client=3, max_transfers=5) as bench:
        bench.files.held["a"] = bytes(5000)

        async def begun(source: str) -> tuple[Client, int]:
            client = bench.client(source)
            client.request("a")
            packet = await client.receive()
            if packet.opcode == ERROR:
                return client, -1
            client.ack(1)
            return client, (await client.receive()).number

        assert [(await begun("127.0.0.1"))[1] for _ in range(4)] == [2, 2, 2, -1]
        assert [(await begun("127.0.0.2"))[1] for _ in range(3)] == [2, 2, -1]
        assert bench.server.stats.open == 5
        assert bench.server.stats["limited"] == 2


@pytest.fixture(params=WAYS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path, request.param) as bench:
        yield bench


async def test_a_symbolic_link_or_another_nodes_name_leads_nowhere(bench: Bench) -> None:
    (bench.files.root / "1a2b3c4d").mkdir()
    (bench.files.root / "1a2b3c4d" / "own").write_bytes(b"own")
    assert await bench.client().fetch("1a2b3c4d/own") == b"own"
    for name in ("1a2b3c4d", "1a2b3c4d/", "1a2b3c4d/..", "1a2b3c4d/../1a2b3c4d/own", "/etc/passwd", "own"):
        client = bench.client()
        client.request(name)
        packet = await client.receive()
        assert packet.opcode == ERROR
        assert packet.number in (1, 2)


async def test_a_stranger_cannot_spoil_a_transfer(bench: Bench) -> None:
    """From another port, and (where the server is asked at any address) from another host."""
    bench.files.held["a"] = data = os.urandom(20_000)
    client, strangers = bench.client(), [bench.client() for _ in range(3)]
    client.request("a", tsize=0)
    assert (await client.receive()).opcode == OACK
    client.ack(0)
    got = b""
    while len(got) < len(data):
        packet = await client.receive()
        got += packet.data
        for stranger in strangers:
            stranger.raw(struct.pack("!HH", ACK, packet.number), client.tid)
            stranger.error(0, to=client.tid)
            stranger.raw(b"", client.tid)
        await asyncio.sleep(0)
        client.ack(packet.number)
    assert got == data
    assert (await bench.event()).outcome is Outcome.OK
    assert bench.server.stats["retransmits"] == 0


async def test_a_request_to_everybody_is_ignored(tmp_path: Path) -> None:
    """RFC 1123 section 4.2.3.5, as loopback's broadcast address shows it."""
    async with serving(tmp_path, "wildcard") as bench:
        bench.files.held["a"] = b"a"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.bind(("127.0.0.1", 0))
            sock.sendto(b"\0\1a\0octet\0", ("127.255.255.255", bench.address[1]))
            async with asyncio.timeout(5):
                while not bench.server.stats["refused"]:
                    await asyncio.sleep(0.005)
            with pytest.raises(BlockingIOError):
                sock.recv(1000)
        assert not bench.events
