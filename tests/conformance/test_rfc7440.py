"""RFC 7440: the windowsize option."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netbootd.model.event import Outcome
from netbootd.tftpd import channel
from tests.support.tftp_wire import DATA, WAYS, Bench, Client, serving


@pytest.fixture(params=WAYS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path, request.param) as bench:
        yield bench


async def window(client: Client, first: int, last: int) -> bytes:
    """The blocks `first` to `last`, in order and once."""
    parts = []
    for block in range(first, last + 1):
        packet = await client.receive()
        assert (packet.opcode, packet.number) == (DATA, block & 0xFFFF)
        parts.append(packet.data)
    return b"".join(parts)


async def begin(bench: Bench, blocks: int, windowsize: int, **options: object) -> Client:
    """A client that has its first window yet to read, of a file of `blocks` full blocks and one short one."""
    bench.files.held["a"] = random.Random(blocks).randbytes(512 * blocks + 100)
    client = bench.client()
    client.request("a", windowsize=windowsize, **options)
    assert (await client.receive()).options["windowsize"] == str(windowsize)
    client.ack(0)
    return client


@pytest.mark.parametrize("windowsize", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("size", [0, 511, 512, 16 * 512, 100_000])
async def test_files_arrive_whole_in_windows(bench: Bench, windowsize: int, size: int) -> None:
    data = bench.files.held["held"] = random.Random(size).randbytes(size)
    (bench.files.root / "lying").write_bytes(data)
    for name in ("held", "lying"):
        assert await bench.client().fetch(name, windowsize=windowsize) == data


@pytest.mark.parametrize("blksize", [8, 1468, 8192, 65464])
async def test_windows_of_any_blksize(bench: Bench, blksize: int) -> None:
    data = bench.files.held["a"] = random.Random(blksize).randbytes(20 * blksize + 3)
    assert await bench.client().fetch("a", windowsize=9, blksize=blksize) == data


@pytest.mark.parametrize("value", ["0", "65536", "-1", "abc", ""])
async def test_impossible_values_are_never_acknowledged(bench: Bench, value: str) -> None:
    bench.files.held["a"] = bytes(2000)
    client = bench.client()
    client.request("a", windowsize=value)
    assert (await client.receive()).number == 1
    await client.silence(0.05)


@pytest.mark.parametrize("value", ["65", "65535"])
async def test_a_large_window_is_lowered_to_the_operators(bench: Bench, value: str) -> None:
    bench.files.held["a"] = bytes(2000)
    client = bench.client()
    client.request("a", windowsize=value)
    assert (await client.receive()).options == {"windowsize": "64"}


async def test_the_operator_sets_a_largest_window(tmp_path: Path) -> None:
    async with serving(tmp_path, max_windowsize=4) as bench:
        bench.files.held["a"] = bytes(5000)
        client = bench.client()
        client.request("a", windowsize=16)
        assert (await client.receive()).options == {"windowsize": "4"}
        client.ack(0)
        await window(client, 1, 4)
        await client.silence(0.05)


@pytest.mark.parametrize("got", [1, 2, 3])
async def test_an_ack_inside_the_window_resumes_after_it(bench: Bench, got: int) -> None:
    client = await begin(bench, 20, 4)
    await window(client, 1, 4)
    client.ack(got)
    await window(client, got + 1, got + 4)
    client.ack(got + 4)
    await window(client, got + 5, got + 8)


async def test_an_ack_of_the_window_before_draws_nothing_at_once(bench: Bench) -> None:
    client = await begin(bench, 20, 4, timeout=3)
    await window(client, 1, 4)
    client.ack(4)
    await window(client, 5, 8)
    for block in (4, 3, 0, 4):
        client.ack(block)
    await client.silence(0.15)
    client.ack(8)
    await window(client, 9, 12)


async def test_a_lost_window_comes_again_from_its_beginning(bench: Bench) -> None:
    client = await begin(bench, 20, 4)
    await window(client, 1, 4)
    client.ack(4)
    await window(client, 5, 8)
    await window(client, 5, 8)
    client.ack(6)
    await window(client, 7, 10)


async def test_every_window_acknowledged_twice_still_comes_once(bench: Bench) -> None:
    client = await begin(bench, 40, 8)
    first = 1
    while first <= 41:
        last = min(first + 7, 41)
        await window(client, first, last)
        client.ack(last)
        client.ack(last)
        first = last + 1
    assert (await bench.event()).outcome is Outcome.OK
    assert bench.server.stats["retransmits"] == 0


async def test_a_last_window_may_be_short(bench: Bench) -> None:
    client = await begin(bench, 9, 4)
    for first, last in ((1, 4), (5, 8), (9, 10)):
        data = await window(client, first, last)
        client.ack(last)
    assert len(data) == 512 + 100
    assert (await bench.event()).outcome is Outcome.OK


async def test_windows_without_segmentation_offload_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel or the device has no UDP_SEGMENT, blocks go out one by one."""
    monkeypatch.setattr(channel, "_UDP_SEGMENT", 9999)
    for way in ("ipv4", "single-port"):
        async with serving(tmp_path, way) as bench:
            data = bench.files.held["a"] = random.Random(1).randbytes(100_000)
            assert await bench.client().fetch("a", windowsize=16, blksize=1468) == data
            assert bench.server.stats["retransmits"] == 0
