"""RFC 2349: the timeout and tsize options."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.tftp_wire import DATA, OACK, WAYS, Bench, serving


@pytest.fixture(params=WAYS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path, request.param) as bench:
        yield bench


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 70_000, 5_000_000])
async def test_tsize_is_exact_from_memory_and_from_disk(bench: Bench, size: int) -> None:
    bench.files.held["held"] = bytes(size)
    with (bench.files.root / "lying").open("wb") as stream:
        os.truncate(stream.fileno(), size)
    for name in ("held", "lying"):
        for said in ("0", "12345"):
            client = bench.client()
            client.request(name, tsize=said)
            packet = await client.receive()
            assert (packet.opcode, packet.options) == (OACK, {"tsize": str(size)})
            client.error(0)


async def test_tsize_counts_the_octets_of_netascii(bench: Bench) -> None:
    bench.files.held["text"] = b"a\nb\r\n"
    (bench.files.root / "long").write_bytes(b"line\n" * 40_000)
    for name, size in (("text", 8), ("long", 240_000)):
        client = bench.client()
        client.request(name, "netascii", tsize=0)
        assert (await client.receive()).options == {"tsize": str(size)}
        client.error(0)


@pytest.mark.parametrize("seconds", ["1", "2", "255"])
async def test_timeout_is_echoed(bench: Bench, seconds: str) -> None:
    bench.files.held["a"] = b"a"
    client = bench.client()
    client.request("a", timeout=seconds)
    assert (await client.receive()).options == {"timeout": seconds}
    client.error(0)


@pytest.mark.parametrize("seconds", ["0", "256", "-1", "1.5", "abc", ""])
async def test_an_impossible_timeout_is_never_acknowledged(bench: Bench, seconds: str) -> None:
    bench.files.held["a"] = b"a"
    client = bench.client()
    client.request("a", timeout=seconds)
    assert (await client.receive()).opcode == DATA


async def test_the_agreed_timeout_is_when_a_packet_comes_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        bench.files.held["a"] = bytes(2000)
        client = bench.client()
        client.request("a", timeout=1)
        oack = await client.datagram()
        begun = time.monotonic()
        assert await client.datagram() == oack
        assert 0.9 < time.monotonic() - begun < 3
        client.ack(0)
        block = await client.datagram()
        begun = time.monotonic()
        await client.silence(0.7)  # the timer of our own would have fired three times
        assert await client.datagram() == block
        assert 0.9 < time.monotonic() - begun < 3


async def test_without_it_a_lost_packet_costs_much_less_than_a_second(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        bench.files.held["a"] = bytes(20_000)
        client = bench.client()
        client.request("a")
        for block in range(1, 10):
            await client.receive()
            client.ack(block)
        await client.receive()
        begun = time.monotonic()
        assert (await client.receive()).number == 10
        assert 0.02 < time.monotonic() - begun < 0.9
