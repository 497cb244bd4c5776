"""RFC 2347: options of a request, the OACK that answers them, and how a client leaves."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netbootd.model.event import Outcome, Stage
from tests.support.tftp_wire import DATA, ERROR, OACK, RRQ, WAYS, Bench, Packet, serving


@pytest.fixture(params=WAYS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path, request.param) as bench:
        bench.files.held["a"] = bytes(3000)
        yield bench


async def test_the_oack_names_what_was_accepted_in_the_order_of_the_request(bench: Bench) -> None:
    client = bench.client()
    client.request("a", windowsize=2, tsize=0, blksize=1000, timeout=5)
    packet = await client.receive()
    assert packet.opcode == OACK
    assert list(packet.options.items()) == [
        ("windowsize", "2"),
        ("tsize", "3000"),
        ("blksize", "1000"),
        ("timeout", "5"),
    ]
    client.ack(0)
    assert [(await client.receive()).number for _ in range(2)] == [1, 2]


async def test_unknown_options_are_left_out(bench: Bench) -> None:
    client = bench.client()
    client.request("a", multicast="", tsize=0, rollover=0, utimeout=99, xyz="\u00e4")
    assert (await client.receive()).options == {"tsize": "3000"}


async def test_only_unknown_options_draw_data_at_once(bench: Bench) -> None:
    client = bench.client()
    client.request("a", nonsense=1, blksize=7, timeout=0, windowsize=0)
    packet = await client.receive()
    assert (packet.opcode, packet.number, len(packet.data)) == (DATA, 1, 512)


async def test_option_names_may_be_in_any_case(bench: Bench) -> None:
    client = bench.client()
    client.request("a", BLKSIZE=1024, Tsize=0)
    assert (await client.receive()).options == {"BLKSIZE": "1024", "Tsize": "3000"}


async def test_an_option_that_comes_twice_counts_once(bench: Bench) -> None:
    client = bench.client()
    client.raw(struct.pack("!H", RRQ) + b"a\0octet\0blksize\x001000\0blksize\x00500\0", client.server)
    assert await client.datagram() == b"\0\x06blksize\x001000\0"


async def test_a_missing_file_is_an_error_whatever_the_options(bench: Bench) -> None:
    client = bench.client()
    client.request("missing", tsize=0, blksize=1468)
    packet = await client.receive()
    assert (packet.opcode, packet.number) == (ERROR, 1)


async def test_an_unanswered_oack_is_sent_again_unchanged(bench: Bench) -> None:
    client = bench.client()
    client.request("a", tsize=0)
    first = await client.datagram()
    assert await client.datagram() == first
    client.ack(0)
    assert (await client.receive()).number == 1


async def test_a_second_ack_of_the_oack_draws_nothing(bench: Bench) -> None:
    client = bench.client()
    client.request("a", timeout=3)
    await client.receive()
    client.ack(0)
    assert (await client.receive()).number == 1
    client.ack(0)
    client.ack(0)
    await client.silence(0.1)
    client.ack(1)
    assert (await client.receive()).number == 2


async def test_error_8_ends_the_negotiation(bench: Bench) -> None:
    client = bench.client()
    client.request("a", blksize=1000)
    await client.receive()
    client.error(8, "no")
    assert (await bench.event()).outcome is Outcome.ABORTED
    client.ack(0)
    try:
        packet = await client.receive(0.1)
    except (TimeoutError, ConnectionRefusedError):
        packet = Packet(ERROR, 5)
    assert (packet.opcode, packet.number) == (ERROR, 5)


async def test_a_probe_counts_as_one_and_the_next_request_is_answered_at_once(bench: Bench) -> None:
    """Firmware asks for the size, ends with ERROR 0, and asks again from its next port."""
    for number in range(1, 4):
        client = bench.client()
        client.request("a", tsize=0, blksize=1468)
        assert (await client.receive()).options["tsize"] == "3000"
        client.error(0)
        event = await bench.event(number)
        assert (event.outcome, event.stage, event.bytes) == (Outcome.PROBE, Stage.FIRMWARE, 0)
    assert await bench.client().fetch("a", tsize=0, blksize=1468) == bytes(3000)
    assert (await bench.event(4)).outcome is Outcome.OK
    assert bench.server.stats["probes"] == 3


async def test_an_abort_sent_to_the_servers_port_is_understood(bench: Bench) -> None:
    client = bench.client()
    client.request("a", tsize=0)
    await client.receive()
    client.error(0, to=client.server)
    assert (await bench.event()).outcome is Outcome.PROBE


@pytest.mark.parametrize("way", ["ipv4", "ipv6", "range"])
async def test_an_abort_that_never_comes_is_reaped(tmp_path: Path, way: str) -> None:
    """The ERROR went elsewhere, and the client asks again from another port: few packets, then nothing; a probe."""
    async with serving(tmp_path, way) as bench:
        bench.files.held["a"] = bytes(3000)
        lost, elsewhere = bench.client(), bench.client()
        lost.request("a", tsize=0)
        await lost.receive()
        elsewhere.error(0, to=lost.tid)
        assert await bench.client().fetch("a") == bytes(3000)
        lost.close()  # its host tells us with the next packet
        assert set(await bench.outcomes(2)) == {Outcome.OK, Outcome.PROBE}
        assert bench.server.stats.open == 0
