"""A TFTP client that does exactly what a test says, packet by packet, with a codec of its own (RFC 1350, 2347).

`serving` runs a server of ours in the test's event loop; a `Client` talks to it through a real socket.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netbootd.model.event import BootEvent, Outcome
from netbootd.tftpd.server import TftpServer, TftpSettings
from tests.support.tftp_folder import FolderFiles

RRQ, WRQ, DATA, ACK, ERROR, OACK = range(1, 7)

WAYS = ("ipv4", "ipv6", "single-port", "range", "wildcard")
"""The ways in which a server can be set up; conformance must not depend on them."""


@dataclass(frozen=True)
class Packet:
    """One received packet; `number` is the block or the error code."""

    opcode: int
    number: int = 0
    data: bytes = b""
    options: dict[str, str] = field(default_factory=dict)


def decode(datagram: bytes) -> Packet:
    """Any packet that a server may send."""
    opcode, rest = struct.unpack("!H", datagram[:2])[0], datagram[2:]
    if opcode == OACK:
        assert rest.endswith(b"\0"), datagram
        words = rest[:-1].decode().split("\0")
        assert len(words) % 2 == 0, datagram
        return Packet(OACK, options=dict(zip(words[::2], words[1::2], strict=True)))
    assert opcode in (DATA, ERROR), datagram
    if opcode == ERROR:
        assert datagram.endswith(b"\0"), datagram
        return Packet(ERROR, struct.unpack("!H", rest[:2])[0], rest[2:-1])
    return Packet(DATA, struct.unpack("!H", rest[:2])[0], rest[2:])


class Client:
    """One UDP socket. `server` is where requests go, `tid` where the last packet came from."""

    def __init__(self, server: tuple[str, int], source: str = "") -> None:
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self.server = server
        self.tid: tuple[Any, ...] = server
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.sock.bind((source or ("::1" if family == socket.AF_INET6 else "127.0.0.1"), 0))

    def close(self) -> None:
        self.sock.close()

    def raw(self, datagram: bytes, to: tuple[Any, ...] | None = None) -> None:
        """Send anything, to the transfer's port unless told otherwise."""
        self.sock.sendto(datagram, to or self.tid)

    def request(self, name: str | bytes, mode: str = "octet", opcode: int = RRQ, **options: object) -> None:
        """Send an RRQ (or WRQ)."""
        words = [name if isinstance(name, bytes) else name.encode(), mode.encode()]
        for key, value in options.items():
            words += [key.encode(), str(value).encode()]
        self.raw(struct.pack("!H", opcode) + b"\0".join(words) + b"\0", self.server)

    def ack(self, block: int) -> None:
        self.raw(struct.pack("!HH", ACK, block & 0xFFFF))

    def error(self, code: int, text: str = "Early terminate", to: tuple[Any, ...] | None = None) -> None:
        self.raw(struct.pack("!HH", ERROR, code) + text.encode() + b"\0", to)

    async def datagram(self, seconds: float = 5.0) -> bytes:
        """The next datagram, whatever it is; sets `tid`."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            data, self.tid = await loop.sock_recvfrom(self.sock, 70000)
        return data

    async def receive(self, seconds: float = 5.0) -> Packet:
        return decode(await self.datagram(seconds))

    async def silence(self, seconds: float) -> None:
        """Nothing arrives for that long."""
        try:
            packet = await self.receive(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"unexpected: {packet}")

    async def fetch(self, name: str, mode: str = "octet", **options: object) -> bytes:
        """A whole file, in order and once: any duplicate, gap or error is a failure of the test."""
        self.request(name, mode, **options)
        blksize, window, block = 512, 1, 0
        first = await self.receive()
        assert first.opcode in (OACK, DATA), first
        if first.opcode == OACK:
            blksize = int(first.options.get("blksize", blksize))
            window = int(first.options.get("windowsize", window))
            self.ack(0)
            first = await self.receive()
        packet = first
        parts = []
        while True:
            block += 1
            assert packet.opcode == DATA, packet
            assert packet.number == block & 0xFFFF, (packet.number, block)
            assert len(packet.data) <= blksize
            parts.append(packet.data)
            if len(packet.data) < blksize:
                self.ack(block)
                break
            if block % window == 0:
                self.ack(block)
            packet = await self.receive()
        return b"".join(parts)


class Bench:
    """A running server, its files, what it recorded, and clients for it."""

    def __init__(self, server: TftpServer, files: FolderFiles, events: list[BootEvent], way: str) -> None:
        self.server, self.files, self.events, self._way = server, files, events, way
        self._clients: list[Client] = []

    @property
    def address(self) -> tuple[str, int]:
        """Where requests go."""
        port = int(self.server.addresses[0].rpartition(":")[2])
        return ("::1" if self._way == "ipv6" else "127.0.0.1"), port

    def client(self, source: str = "") -> Client:
        client = Client(self.address, source)
        self._clients.append(client)
        return client

    async def event(self, count: int = 1) -> BootEvent:
        """The last event, once there are `count` of them."""
        async with asyncio.timeout(20):
            while len(self.events) < count:
                await asyncio.sleep(0.005)
        assert len(self.events) == count, self.events
        return self.events[-1]

    async def outcomes(self, count: int) -> list[Outcome]:
        """How the first `count` requests ended."""
        await self.event(count)
        return [event.outcome for event in self.events]

    def close(self) -> None:
        for client in self._clients:
            client.close()


@asynccontextmanager
async def serving(root: Path, way: str = "ipv4", **settings: Any) -> AsyncIterator[Bench]:
    """A server on any free port of loopback, set up in one of `WAYS`."""
    bind = {"ipv6": "::1", "wildcard": "0.0.0.0"}.get(way, "127.0.0.1")
    given: dict[str, Any] = {"bind": ((bind, 0),)}
    if way == "single-port":
        given["single_port"] = True
    if way == "range":
        given["data_ports"] = free_range(3)
    events: list[BootEvent] = []
    files = FolderFiles(root)
    server = TftpServer(files, events.append, TftpSettings(**{**given, **settings}))
    await server.start()
    bench = Bench(server, files, events, way)
    try:
        yield bench
    finally:
        bench.close()
        await server.stop(0)


def free_range(count: int) -> tuple[int, int]:
    """Neighbouring UDP ports that are free just now."""
    for first in range(20000, 30000, count):
        socks = []
        try:
            for port in range(first, first + count):
                socks.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                socks[-1].bind(("127.0.0.1", port))
            return first, first + count - 1
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()
    raise AssertionError("no free ports")
