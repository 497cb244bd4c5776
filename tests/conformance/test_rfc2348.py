"""RFC 2348: the blksize option."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.tftp_wire import DATA, OACK, WAYS, Bench, serving


@pytest.fixture(params=WAYS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path, request.param) as bench:
        yield bench


@pytest.mark.parametrize("blksize", [8, 9, 511, 512, 1024, 1428, 1468, 4096, 65464])
async def test_blocks_have_the_size_agreed(bench: Bench, blksize: int) -> None:
    data = bench.files.held["a"] = random.Random(blksize).randbytes(3 * blksize + 5)
    client = bench.client()
    client.request("a", blksize=blksize)
    assert (await client.receive()).options == {"blksize": str(blksize)}
    client.ack(0)
    for block in range(1, 5):
        packet = await client.receive()
        assert (packet.number, packet.data) == (block, data[(block - 1) * blksize : block * blksize])
        client.ack(block)


@pytest.mark.parametrize("blocks", [1, 2, 7])
async def test_a_multiple_of_blksize_ends_with_an_empty_block(bench: Bench, blocks: int) -> None:
    bench.files.held["a"] = bytes(1468 * blocks)
    client = bench.client()
    client.request("a", blksize=1468)
    await client.receive()
    for block in range(blocks + 1):
        client.ack(block)
        assert len((await client.receive()).data) == (1468 if block < blocks else 0)
    client.ack(blocks + 1)
    assert (await bench.event()).bytes == 1468 * blocks


@pytest.mark.parametrize("value", ["7", "0", "-1", "abc", "", "1e3", " 512", "9" * 30])
async def test_impossible_values_are_never_acknowledged(bench: Bench, value: str) -> None:
    bench.files.held["a"] = bytes(600)
    client = bench.client()
    client.request("a", blksize=value)
    packet = await client.receive()
    assert (packet.opcode, packet.number, len(packet.data)) == (DATA, 1, 512)
    client.error(0)
    other = bench.client()
    other.request("a", blksize=value, tsize=0)
    assert (await other.receive()).options == {"tsize": "600"}


async def test_more_than_a_datagram_holds_is_lowered(bench: Bench) -> None:
    bench.files.held["a"] = bytes(10)
    client = bench.client()
    client.request("a", blksize=65535)
    packet = await client.receive()
    assert packet.opcode == OACK
    assert 8 <= int(packet.options["blksize"]) <= 65464


async def test_the_operator_sets_a_largest_blksize(tmp_path: Path) -> None:
    for way in ("ipv4", "ipv6", "single-port"):
        async with serving(tmp_path, way, max_blksize=1024) as bench:
            data = bench.files.held["a"] = random.Random(1).randbytes(5000)
            client = bench.client()
            client.request("a", blksize=1468)
            assert (await client.receive()).options == {"blksize": "1024"}
            assert await bench.client().fetch("a", blksize=1468) == data
            assert await bench.client().fetch("a", blksize=600) == data
