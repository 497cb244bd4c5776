"""Connections that are held for nothing: slow senders, slow readers, idle ones, and a thousand of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from netbootd.httpd.bootfiles import BootFileRoutes
from netbootd.httpd.connections import ConnectionLimits
from netbootd.httpd.progress import ProgressRoutes
from netbootd.httpd.server import HttpServer, HttpSettings
from netbootd.model.event import Outcome
from tests.support.booted import FolderFiles

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    def __init__(self, folder: Path, limits: ConnectionLimits) -> None:
        self.files = FolderFiles(folder)
        self.server = HttpServer(
            HttpSettings((("127.0.0.1", 0),), lambda peer: True, limits=limits),
            BootFileRoutes(self.files, self.files.record),
            ProgressRoutes(self.files, self.files.record),
        )
        self.server.bind()
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await self.server.stop(0.1)

    async def healthy(self) -> bool:
        reader, writer = await self.connect()
        writer.write(HEALTHZ)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        return answer.startswith(b"HTTP/1.1 200")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Callable[..., Site]]:
    made: list[Site] = []

    async def make(**limits: float) -> Site:
        made.append(Site(tmp_path, ConnectionLimits(sweep=0.02, **limits)))  # type: ignore[arg-type]
        await made[-1].server.start()
        return made[-1]

    yield make  # type: ignore[misc]
    for each in made:
        await each.close()


async def ended(reader: asyncio.StreamReader) -> float:
    """Seconds until the server ended the connection."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10)
    return time.monotonic() - began


async def test_a_request_that_never_gets_whole_is_ended(site) -> None:
    here = await site(header=0.3)
    reader, writer = await here.connect()
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    dripping = asyncio.create_task(drip(writer))
    assert 0.2 < await ended(reader) < 5
    dripping.cancel()
    assert here.server.connections.timed_out == 1
    assert len(here.server.connections) == 0


async def drip(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        for number in range(1000):
            writer.write(b"X-%d: y\r\n" % number)
            await asyncio.sleep(0.02)


async def test_a_connection_without_any_request_is_ended(site) -> None:
    here = await site(header=0.3)
    reader, _ = await here.connect()
    assert 0.2 < await ended(reader) < 5


async def test_a_connection_that_is_used_lives_on(site) -> None:
    here = await site(header=0.4)
    reader, writer = await here.connect()
    for _ in range(4):
        writer.write(HEALTHZ)
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.2)
    assert 0.1 < await ended(reader) < 5


async def test_a_body_that_never_gets_whole_is_answered_408(site) -> None:
    here = await site(header=0.3)
    reader, writer = await here.connect()
    writer.write(b"POST /events/1a2b3c4d HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
    assert here.files.events == []


async def test_a_reader_that_takes_nothing_is_ended(site, tmp_path: Path) -> None:
    with (tmp_path / "vmlinuz").open("wb") as file:
        file.truncate(200 << 20)
    here = await site(stalled=0.5)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", here.server.port))
    await loop.sock_sendall(client, b"GET /boot/1a2b3c4d/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")
    deadline = time.monotonic() + 20
    while not here.files.events and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    client.close()
    assert [event.outcome for event in here.files.events] == [Outcome.FAILED]


async def test_a_thousand_idle_connections_leave_room_for_a_node(site) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    try:
        here = await site(total=2048, per_address=2048)
        for _ in range(1000):
            await here.connect()
        assert await here.healthy()
        assert len(here.server.connections) >= 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("limits", [{"total": 16}, {"per_address": 16}])
async def test_who_waits_longest_makes_room(site, limits: dict[str, int]) -> None:
    here = await site(**limits)
    connected = [await here.connect() for _ in range(16)]
    first, second = connected[0], connected[1]
    first[1].write(HEALTHZ)  # the oldest has become the youngest
    await first[0].readuntil(b"ok\n")
    assert await here.healthy()
    assert await ended(second[0]) < 5
    first[1].write(HEALTHZ)
    assert (await first[0].readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")


async def test_a_connection_too_many_is_refused_while_all_are_busy(site) -> None:
    here = await site(per_address=2, header=5)
    busy = [await here.connect() for _ in range(2)]
    for _, writer in busy:
        writer.write(b"POST /events/1a2b3c4d HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
    await asyncio.sleep(0.1)
    reader, _ = await here.connect()
    assert await ended(reader) < 1
    assert here.server.connections.refused == 1


async def test_files_for_many_leave_the_loop_to_others_and_reach_all(site, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "vmlinuz").write_bytes(os.urandom(9 << 20))
    here = await site()
    turns, most = 0, 0
    sendfile = os.sendfile

    def counted(*arguments: int) -> int:
        nonlocal turns
        turns += 1
        return sendfile(*arguments)

    async def others() -> None:
        nonlocal turns, most
        while True:
            most, turns = max(most, turns), 0
            await asyncio.sleep(0)

    monkeypatch.setattr("netbootd.httpd.sendfile.os.sendfile", counted)
    watching = asyncio.create_task(others())
    connected = [await here.connect() for _ in range(24)]
    for _, writer in connected:
        writer.write(b"GET /boot/1a2b3c4d/vmlinuz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answers = await asyncio.gather(*(reader.read() for reader, _ in connected))
    watching.cancel()
    want = (tmp_path / "vmlinuz").read_bytes()
    assert all(answer.partition(b"\r\n\r\n")[2] == want for answer in answers)
    assert 1 <= most <= 4


async def test_a_stop_ends_a_file_that_is_under_way(site, tmp_path: Path) -> None:
    with (tmp_path / "vmlinuz").open("wb") as file:
        file.truncate(200 << 20)
    here = await site()
    reader, writer = await here.connect()
    writer.write(b"GET /boot/1a2b3c4d/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    began = time.monotonic()
    await here.server.stop(0.2)
    assert time.monotonic() - began < 5
    assert [event.outcome for event in here.files.events] == [Outcome.FAILED]
