"""The TFTP server as a service: files that change, draining, handed-down sockets, ports in use, advice."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netbootd.errors import HostError
from netbootd.model.event import Outcome
from netbootd.tftpd import advice
from netbootd.tftpd.server import TftpServer, TftpSettings
from tests.support.tftp_folder import FolderFiles
from tests.support.tftp_wire import DATA, ERROR, WAYS, Bench, Client, serving


@pytest.fixture(params=WAYS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path, request.param) as bench:
        yield bench


async def started(bench: Bench, name: str, **options: object) -> tuple[Client, bytes]:
    """A client that has the first block, and that block."""
    client = bench.client()
    client.request(name, **options)
    packet = await client.receive()
    if packet.opcode != DATA:
        client.ack(0)
        packet = await client.receive()
    return client, packet.data


async def rest(client: Client, got: bytes, blksize: int = 512) -> bytes:
    """The whole file of a client that has its first block; AssertionError with the text of an ERROR."""
    block = 1
    while len(got) % blksize == 0:
        client.ack(block)
        packet = await client.receive()
        assert packet.opcode == DATA, packet.data
        assert packet.number == (block + 1) & 0xFFFF
        block += 1
        got += packet.data
        if not packet.data:
            break
    client.ack(block)
    return got


@pytest.mark.parametrize("size", [3_000, 200_000])
async def test_a_file_that_is_replaced_arrives_as_it_was(bench: Bench, size: int) -> None:
    path = bench.files.root / "initrd.img"
    old, new = os.urandom(size + 1), os.urandom(size + 7)
    path.write_bytes(old)
    client, first = await started(bench, "initrd.img", blksize=1024)
    (bench.files.root / "new").write_bytes(new)
    (bench.files.root / "new").replace(path)
    assert await bench.client().fetch("initrd.img", blksize=1024) == new
    assert await rest(client, first, 1024) == old
    path.unlink()
    assert await bench.outcomes(2) == [Outcome.OK, Outcome.OK]


@pytest.mark.parametrize("windowsize", [1, 8])
@pytest.mark.parametrize("left", [0, 10, 100_000, 199_999])
async def test_a_file_that_is_cut_short_ends_with_an_error(bench: Bench, left: int, windowsize: int) -> None:
    path = bench.files.root / "initrd.img"
    path.write_bytes(os.urandom(200_000))
    client, _ = await started(bench, "initrd.img", blksize=1468, windowsize=windowsize)
    os.truncate(path, left)
    with pytest.raises(AssertionError):  # the ERROR in place of the next block
        block = windowsize
        for _ in range(windowsize - 1):
            await client.receive()
        while True:
            client.ack(block)
            for _ in range(windowsize):
                packet = await client.receive()
                assert packet.opcode == DATA, packet.data
                block += 1
    event = await bench.event()
    assert event.outcome is Outcome.FAILED
    assert "changed" in event.detail or "cut short" in event.detail
    bench.files.held["b"] = b"alive"
    assert await bench.client().fetch("b") == b"alive"


async def test_a_file_that_is_written_over_is_not_passed_off_as_whole(bench: Bench) -> None:
    path = bench.files.root / "initrd.img"
    path.write_bytes(os.urandom(100_000))
    os.utime(path, ns=(0, 0))
    client, first = await started(bench, "initrd.img")
    with path.open("r+b") as stream:
        stream.write(b"another file")
    with pytest.raises(AssertionError, match="changed"):
        await rest(client, first)
    assert (await bench.event()).outcome is Outcome.FAILED


async def test_a_source_that_breaks_ends_the_transfer_with_a_word(bench: Bench) -> None:
    class Broken:
        def read(self, n: int, /) -> bytes:
            raise OSError(5, "Input/output error", "/srv/secret")

        def size(self) -> int:
            return 1_000_000

        def close(self) -> None:
            pass

    bench.files.sources["a"] = Broken()
    client = bench.client()
    client.request("a")
    packet = await client.receive()
    assert (packet.opcode, packet.number) == (ERROR, 0)
    assert b"srv" not in packet.data
    assert (await bench.event()).outcome is Outcome.FAILED


# Stopping


async def test_open_transfers_finish_and_new_ones_are_refused(bench: Bench) -> None:
    data = bench.files.held["a"] = os.urandom(20_000)
    client, first = await started(bench, "a")
    stopping = asyncio.create_task(bench.server.stop(20))
    await asyncio.sleep(0.01)
    late = bench.client()
    late.request("a")
    packet = await late.receive()
    assert (packet.opcode, packet.number) == (ERROR, 0)
    assert b"try again" in packet.data
    assert not stopping.done()
    assert await rest(client, first) == data
    async with asyncio.timeout(5):
        await stopping
    outcomes = [event.outcome for event in bench.events]
    assert sorted(outcomes) == sorted([Outcome.FAILED, Outcome.OK])


async def test_what_does_not_finish_in_time_is_told(bench: Bench) -> None:
    bench.files.held["a"] = os.urandom(20_000)
    client, _ = await started(bench, "a")
    begun = time.monotonic()
    await bench.server.stop(0.1)
    assert time.monotonic() - begun < 5
    packet = await client.receive()
    assert (packet.opcode, packet.number, packet.data) == (ERROR, 0, b"server is shutting down")
    assert (await bench.event()).outcome is Outcome.FAILED
    await bench.server.stop(0)  # twice is once


async def test_stopping_without_transfers_takes_no_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        begun = time.monotonic()
        await bench.server.stop(30)
        assert time.monotonic() - begun < 2
        assert bench.server.addresses == []


# Sockets


async def test_sockets_that_are_handed_down_are_used_and_closed(tmp_path: Path) -> None:
    socks = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        socks.append(socket.socket(family, socket.SOCK_DGRAM))
        socks[-1].bind((address, 0))
    names = [sock.getsockname()[:2] for sock in socks]
    async with serving(tmp_path, sockets=tuple(socks), bind=(("203.0.113.1", 1),)) as bench:
        bench.files.held["a"] = data = os.urandom(2000)
        for name in names:
            client = Client(name)
            assert await client.fetch("a") == data
            client.close()
    assert all(sock.fileno() == -1 for sock in socks)


async def test_a_socket_of_another_kind_is_refused(tmp_path: Path) -> None:
    for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)):
        sock = socket.socket(family, kind)
        server = TftpServer(FolderFiles(tmp_path), lambda _: None, TftpSettings(sockets=(sock,)))
        with pytest.raises(HostError, match="not UDP"):
            await server.start()
        assert sock.fileno() == -1


async def test_a_port_in_use_is_named_with_the_option_that_moves_it(tmp_path: Path) -> None:
    for address in ("127.0.0.1", "::1"):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
            port = sock.getsockname()[1]
            bind = (("127.0.0.3", 0), (address, port))
            server = TftpServer(FolderFiles(tmp_path), lambda _: None, TftpSettings(bind=bind))
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(HostError) as caught:
                await server.start()
            assert str(port) in str(caught.value)
            assert "--tftp-port" in caught.value.hint
            assert caught.value.exit_status == 4
            assert len(os.listdir("/proc/self/fd")) == before


async def test_data_ports_that_another_program_has_are_passed_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with serving(tmp_path, data_ports=(port, port)) as bench:
            bench.files.held["a"] = b"a"
            client = bench.client()
            client.request("a")
            packet = await client.receive()
            assert (packet.opcode, packet.number) == (ERROR, 0)
            assert (await bench.event()).outcome is Outcome.FAILED


# Advice


async def test_a_file_too_large_for_older_firmware_is_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with (bench.files.root / "initrd.img").open("wb") as stream:
        os.truncate(stream.fileno(), 65_536 * 1024)
    client = bench.client()
    client.request("1a2b3c4d/initrd.img", tsize=0, blksize=1024)
    await client.receive()
    client.error(0)
    event = await bench.event()
    for text in (event.detail, caplog.text):
        assert "initrd.img has 65,537 blocks of 1024 bytes" in text
        assert "update the bootloader" in text
    assert "1a2b3c4d: initrd.img" in caplog.text


async def test_a_transfer_too_slow_for_firmware_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(advice, "_JUDGED_AFTER", 0.05)
    async with serving(tmp_path) as bench:
        bench.files.held["initrd.img"] = bytes(60_000_000)
        client, _ = await started(bench, "1a2b3c4d/initrd.img", timeout=9)
        client.ack(1)
        await client.receive()
        await asyncio.sleep(0.1)
        client.error(0, "time out")
        event = await bench.event()
        assert (event.outcome, event.node) == (Outcome.ABORTED, "1a2b3c4d")
        for text in (event.detail, caplog.text):
            assert "a Pi gives up after 30 s" in text


async def test_the_same_advice_is_not_repeated_without_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with serving(tmp_path) as bench:
        bench.files.held["a"] = bytes(600_000)
        for number in range(1, 61):
            client = bench.client()
            client.request("a", blksize=8, tsize=0)
            await client.receive()
            client.error(0)
            await bench.event(number)
        assert 1 <= len(caplog.records) < 40
