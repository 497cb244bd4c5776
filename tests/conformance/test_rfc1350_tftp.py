"""RFC 1350: lock-step transfers, transfer IDs, errors; netascii (RFC 764) on the way."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fbtftp.netascii import NetasciiReader

from netbootd.model.event import Outcome, Stage
from netbootd.model.resource import MemorySource
from tests.support.tftp_wire import ACK, DATA, ERROR, OACK, WAYS, WRQ, Bench, Client, Packet, decode, serving

pytestmark = pytest.mark.conformance


@pytest.fixture(params=WAYS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path, request.param) as bench:
        yield bench


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 70_000, 200_000])
async def test_a_file_arrives_whole_and_ends_with_a_short_block(bench: Bench, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (bench.files.root / "file.bin").write_bytes(data)
    assert await bench.client().fetch("file.bin") == data
    event = await bench.event()
    assert (event.outcome, event.path, event.bytes) == (Outcome.OK, "file.bin", size)
    assert (event.protocol, event.generation, event.stage) == ("tftp", "g1", Stage.FIRMWARE)


async def test_files_in_memory_and_on_disk_are_served_alike(bench: Bench) -> None:
    data = random.Random(1).randbytes(100_000)
    bench.files.held["held"] = data
    (bench.files.root / "lying").write_bytes(data)
    assert await bench.client().fetch("held") == data
    assert await bench.client().fetch("lying") == data


async def test_the_kernel_counts_as_a_stage_only_when_sent_whole(bench: Bench) -> None:
    bench.files.held["vmlinuz"] = bytes(2000)
    client = bench.client()
    client.request("vmlinuz")
    await client.receive()
    client.ack(1)
    await client.receive()
    client.error(0)
    assert (await bench.event(1)).stage is Stage.FIRMWARE
    await bench.client().fetch("vmlinuz")
    assert (await bench.event(2)).stage is Stage.KERNEL


async def test_a_missing_file_is_error_1_and_names_no_folder_of_ours(bench: Bench) -> None:
    client = bench.client()
    client.request("1a2b3c4d/no/such/file")
    packet = await client.receive()
    assert (packet.opcode, packet.number) == (ERROR, 1)
    assert str(bench.files.root).encode() not in packet.data
    event = await bench.event()
    assert (event.outcome, event.path, event.serial) == (Outcome.MISS, "no/such/file", "1a2b3c4d")
    assert (event.stage, event.address) == (Stage.FIRMWARE, client.sock.getsockname()[0])
    await client.silence(0.3)


async def test_a_denied_file_is_error_2(bench: Bench) -> None:
    bench.files.denied.add("pieeprom.upd")
    client = bench.client()
    client.request("pieeprom.upd")
    packet = await client.receive()
    assert (packet.opcode, packet.number) == (ERROR, 2)
    assert (await bench.event()).outcome is Outcome.FAILED


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "..\\secret", "/", "", ".", "a\nb", b"\xff\xfe"])
async def test_what_is_no_path_of_a_boot_file_is_refused(bench: Bench, name: str | bytes) -> None:
    (bench.files.root.parent / "secret").write_text("secret")
    client = bench.client()
    client.request(name)
    packet = await client.receive()
    assert (packet.opcode, packet.number) == (ERROR, 2)
    assert (await bench.event()).outcome is Outcome.FAILED


async def test_a_folder_is_no_file(bench: Bench) -> None:
    (bench.files.root / "overlays").mkdir()
    client = bench.client()
    client.request("overlays")
    assert (await client.receive()).number == 1


async def test_leading_and_doubled_slashes_do_not_matter(bench: Bench) -> None:
    (bench.files.root / "overlays").mkdir()
    (bench.files.root / "overlays" / "map.dtb").write_bytes(b"map")
    for name in ("/overlays/map.dtb", "overlays//map.dtb", "./overlays/map.dtb", "overlays\\map.dtb"):
        assert await bench.client().fetch(name) == b"map"


@pytest.mark.parametrize("mode", ["OCTET", "Octet", "oCtEt"])
async def test_the_mode_may_be_in_any_case(bench: Bench, mode: str) -> None:
    bench.files.held["a"] = b"a\nb"
    assert await bench.client().fetch("a", mode) == b"a\nb"


@pytest.mark.parametrize("mode", ["mail", "image", "", "octett"])
async def test_an_unknown_mode_is_error_4(bench: Bench, mode: str) -> None:
    bench.files.held["a"] = b"a"
    client = bench.client()
    client.request("a", mode)
    assert await client.receive() == Packet(ERROR, 4, b"unknown transfer mode")


async def test_writing_is_refused_with_error_2(bench: Bench) -> None:
    client = bench.client()
    client.request("new", opcode=WRQ)
    packet = await client.receive()
    assert (packet.opcode, packet.number) == (ERROR, 2)
    assert not (bench.files.root / "new").exists()


@pytest.mark.parametrize(
    "text",
    [b"", b"\n", b"\r", b"a\nb\r\nc\rd\n", b"\r\n" * 300, bytes(range(256)) * 9, b"x" * 511 + b"\n" + b"y" * 600],
)
async def test_netascii_is_what_fbtftp_makes_of_it(bench: Bench, text: bytes) -> None:
    bench.files.held["text"] = text
    reference = NetasciiReader(MemorySource(text))
    size = reference.size()
    wanted = b"".join(iter(lambda: bytes(reference.read(512)), b""))
    assert await bench.client().fetch("text", "netascii") == wanted
    client = bench.client()
    client.request("text", "NetASCII", tsize=0)
    assert (await client.receive()).options == {"tsize": str(size)}


async def test_a_long_text_is_streamed_as_netascii(bench: Bench) -> None:
    text = b"".join(b"line %d\r and\n" % n for n in range(30_000))
    (bench.files.root / "text").write_bytes(text)
    wanted = text.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")
    assert await bench.client().fetch("text", "netascii", blksize=8192, windowsize=4) == wanted


async def test_each_transfer_has_its_own_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        bench.files.held["a"] = bytes(1000)
        ids = set()
        for _ in range(8):
            client = bench.client()
            client.request("a")
            await client.receive()
            ids.add(client.tid[1])
        assert len(ids) == 8
        assert bench.address[1] not in ids


async def test_single_port_mode_answers_from_the_port_that_was_asked(tmp_path: Path) -> None:
    async with serving(tmp_path, "single-port") as bench:
        bench.files.held["a"] = bytes(1000)
        clients = [bench.client() for _ in range(4)]
        for client in clients:
            client.request("a")
        for client in clients:
            await client.receive()
            assert client.tid[1] == bench.address[1]


async def test_a_range_of_ports_serves_more_transfers_than_it_has_ports(tmp_path: Path) -> None:
    async with serving(tmp_path, "range") as bench:
        bench.files.held["a"] = data = random.Random(2).randbytes(40_000)
        first, last = bench.server._settings.data_ports or (0, 0)
        clients = [bench.client() for _ in range(5 * (last - first + 1))]
        contents = await asyncio.gather(*(client.fetch("a") for client in clients))
        assert contents == [data] * len(clients)
        assert {client.tid[1] for client in clients} == set(range(first, last + 1))


async def test_a_stranger_gets_error_5_and_the_transfer_goes_on(bench: Bench) -> None:
    bench.files.held["a"] = bytes(1500)
    client, stranger = bench.client(), bench.client()
    client.request("a")
    assert (await client.receive()).number == 1
    for datagram in (struct.pack("!HH", ACK, 1), struct.pack("!HH", DATA, 1) + b"x", struct.pack("!H", OACK)):
        stranger.raw(datagram, client.tid)
        assert (await stranger.receive()).number == 5
    stranger.error(0, to=client.tid)  # an ERROR is never answered, and a stranger's ends nothing
    await stranger.silence(0.1)
    client.ack(1)
    assert (await client.receive()).number == 2
    client.ack(2)
    assert (await client.receive()).number == 3
    client.ack(3)
    assert (await bench.event()).outcome is Outcome.OK


async def test_an_error_ends_the_transfer_and_is_not_answered(bench: Bench) -> None:
    bench.files.held["a"] = bytes(5000)
    client = bench.client()
    client.request("a")
    await client.receive()
    client.ack(1)
    await client.receive()
    client.error(3, "disk full")
    event = await bench.event()
    assert (event.outcome, event.bytes) == (Outcome.ABORTED, 512)
    assert "disk full" in event.detail
    client.ack(2)
    try:
        packet = await client.receive(0.5)  # whoever asks a transfer that has ended may hear that it is unknown
    except (TimeoutError, ConnectionRefusedError):
        packet = Packet(ERROR, 5)
    assert (packet.opcode, packet.number) == (ERROR, 5)


async def test_no_sorcerers_apprentice(bench: Bench) -> None:
    """Every ACK comes twice; every DATA still comes once."""
    bench.files.held["a"] = data = random.Random(3).randbytes(20_000)
    client, seen, parts = bench.client(), [], []
    client.request("a")
    while True:
        packet = await client.receive()
        seen.append(packet.number)
        parts.append(packet.data)
        client.ack(packet.number)
        client.ack(packet.number)
        if len(packet.data) < 512:
            break
    assert b"".join(parts) == data
    assert seen == list(range(1, 41))


async def test_old_and_impossible_acks_are_ignored(bench: Bench) -> None:
    bench.files.held["a"] = bytes(5000)
    client = bench.client()
    client.request("a")
    await client.receive()
    client.ack(1)
    assert (await client.receive()).number == 2
    for block in (0, 1, 3, 40_000, 65_535):
        client.ack(block)
    client.raw(struct.pack("!HB", ACK, 0))
    client.raw(b"\0")
    client.raw(b"")
    client.raw(struct.pack("!HH", 9, 9))
    await client.silence(0.1)
    client.ack(2)
    assert (await client.receive()).number == 3


async def test_an_unanswered_block_is_sent_again(bench: Bench) -> None:
    bench.files.held["a"] = data = random.Random(4).randbytes(1000)
    client = bench.client()
    client.request("a")
    first = await client.receive()
    assert await client.receive() == first
    client.ack(1)
    second = await client.receive()
    assert await client.receive() == second
    client.ack(2)
    assert first.data + second.data == data
    event = await bench.event()
    assert event.outcome is Outcome.OK
    assert "2 datagrams sent again" in event.detail
    assert bench.server.stats["retransmits"] == 2


async def test_the_request_once_more_does_not_start_a_second_transfer(bench: Bench) -> None:
    bench.files.held["a"] = bytes(2000)
    client = bench.client()
    client.request("a")
    client.request("a")
    client.request("a")
    first = await client.receive()
    assert first.number == 1
    tid = client.tid
    await client.silence(0.1)
    client.ack(1)
    assert (await client.receive()).number == 2
    client.request("a")
    await client.silence(0.1)
    client.tid = tid
    for block in (2, 3):
        client.ack(block)
        assert (await client.receive()).number == block + 1
        assert client.tid == tid
    client.ack(4)
    assert (await bench.event()).outcome is Outcome.OK
    assert bench.server.stats["requests"] == 1


async def test_another_file_from_the_same_port_replaces_the_transfer(bench: Bench) -> None:
    bench.files.held["a"], bench.files.held["b"] = bytes(2000), b"short"
    client = bench.client()
    client.request("a")
    await client.receive()
    assert await client.fetch("b") == b"short"
    assert await bench.outcomes(2) == [Outcome.ABORTED, Outcome.OK]


@pytest.mark.parametrize(
    "datagram",
    [
        b"\0\1",
        b"\0\1file",
        b"\0\1file\0",
        b"\0\1file\0octet",
        b"\0\1file\0octet\0blksize\0",
        b"\0\1file\0octet\0blksize\x001468",
        b"\0\1" + b"x" * 3000 + b"\0octet\0",
    ],
)
async def test_a_malformed_request_is_error_4(bench: Bench, datagram: bytes) -> None:
    bench.files.held["file"] = b"file"
    client = bench.client()
    client.raw(datagram, client.server)
    packet = await client.receive()
    assert (packet.opcode, packet.number) == (ERROR, 4)
    assert await client.fetch("file") == b"file"


@pytest.mark.parametrize("datagram", [b"", b"\0", b"\0\5", b"\0\5\0\0stop\0", b"\0\7\0\0", b"\0\0\0\0", b"\xff" * 600])
async def test_what_is_no_request_is_dropped(bench: Bench, datagram: bytes) -> None:
    bench.files.held["file"] = b"file"
    client = bench.client()
    client.raw(datagram, client.server)
    assert await client.fetch("file") == b"file"
    assert len(bench.events) <= 1


async def test_an_ack_for_no_transfer_is_error_5(bench: Bench) -> None:
    client = bench.client()
    client.raw(struct.pack("!HH", ACK, 1), client.server)
    assert (await client.receive()).number == 5


async def test_block_numbers_roll_over_to_zero(bench: Bench) -> None:
    data = random.Random(5).randbytes(8 * 65_600 + 3)
    (bench.files.root / "big").write_bytes(data)
    assert await bench.client().fetch("big", blksize=8, windowsize=60) == data
    assert "older Pi firmware stops" in (await bench.event()).detail


async def test_answers_come_from_the_address_that_was_asked(tmp_path: Path) -> None:
    async with serving(tmp_path, "wildcard") as bench:
        bench.files.held["a"] = bytes(1500)
        port = bench.address[1]
        for address in ("127.0.0.1", "127.0.0.2", "127.9.8.7"):
            client = Client((address, port))
            try:
                client.request("a")
                await client.receive()
                assert client.tid[0] == address
                client.ack(1)
                await client.receive()
                assert client.tid[0] == address
                client.error(0)
                client.request("missing")
                await client.receive()
                assert client.tid[0] == address
            finally:
                client.close()
        assert [evidence.local for evidence, _ in bench.files.asked] == [
            name for name in ("127.0.0.1", "127.0.0.2", "127.9.8.7") for _ in range(2)
        ]


async def test_an_ipv6_socket_that_hears_ipv4_serves_it(tmp_path: Path) -> None:
    import socket

    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    port = sock.getsockname()[1]
    async with serving(tmp_path, sockets=(sock,)) as bench:
        bench.files.held["a"] = data = random.Random(6).randbytes(3000)
        for address in ("127.0.0.2", "::1"):
            client = Client((address, port))
            try:
                assert await client.fetch("a", blksize=1000, windowsize=2) == data
                assert client.tid[0] == address
                client.request("missing")
                assert (await client.receive()).number == 1
                assert client.tid[0] == address
            finally:
                client.close()
        assert {event.address for event in bench.events} == {"127.0.0.1", "::1"}


def test_the_codec_of_the_tests_reads_what_the_standard_shows() -> None:
    assert decode(b"\0\3\0\1abc") == Packet(DATA, 1, b"abc")
