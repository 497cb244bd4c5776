"""A file as DATA packets, against the plain way to make them: a header and a slice."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbootd.tftpd.frames import Frames
from netbootd.tftpd.options import Agreement
from netbootd.tftpd.packets import header
from netbootd.tftpd.timing import RoundTrip
from netbootd.tftpd.transfer import Transfer

SIZES = (1, 511, 512, 513, 31 * 512, 32 * 512, 32 * 512 + 1, 300 * 512, 300 * 512 + 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


class File:
    """A file of random octets, open, and what its packets must be."""

    def __init__(self, path: Path, size: int) -> None:
        self.data = random.Random(size).randbytes(size)
        path.write_bytes(self.data)
        self.fd = os.open(path, os.O_RDONLY)

    def packet(self, block: int, blksize: int) -> bytes:
        return header(block) + self.data[(block - 1) * blksize : block * blksize]


@pytest.fixture
def opened(path: Path, request: pytest.FixtureRequest) -> Iterator[File]:
    file = File(path, request.param)
    yield file
    os.close(file.fd)


@pytest.mark.parametrize("opened", SIZES, indirect=True)
@pytest.mark.parametrize("blksize", [8, 512, 1468, 4000, 65464])
def test_every_packet_is_its_header_and_its_slice(opened: File, blksize: int) -> None:
    frames = Frames(opened.fd, len(opened.data), blksize)
    for block in range(1, len(opened.data) // blksize + 2):
        assert bytes(frames.packet(block)) == opened.packet(block, blksize)


@pytest.mark.parametrize("opened", [300 * 512 + 7], indirect=True)
def test_packets_may_be_asked_for_in_any_order(opened: File) -> None:
    frames = Frames(opened.fd, len(opened.data), 512)
    blocks = [random.Random(1).randint(1, 301) for _ in range(500)]
    for block in [301, 300, 1, *blocks, 301, 269]:
        assert bytes(frames.packet(block)) == opened.packet(block, 512)


@pytest.mark.parametrize("opened", [70_000 * 8], indirect=True)
def test_numbers_roll_over_to_0(opened: File) -> None:
    frames = Frames(opened.fd, len(opened.data), 8)
    for block in (65_534, 65_535, 65_536, 65_537, 70_000, 70_001):
        assert bytes(frames.packet(block)) == opened.packet(block, 8)


@pytest.mark.parametrize("opened", [300 * 512], indirect=True)
def test_a_file_that_became_shorter_is_told_and_not_padded(opened: File, path: Path) -> None:
    frames = Frames(opened.fd, len(opened.data), 512)
    assert bytes(frames.packet(40)) == opened.packet(40, 512)
    os.truncate(path, 100 * 512)
    assert bytes(frames.packet(63)) == opened.packet(63, 512)  # was read before
    assert bytes(frames.packet(64)) == opened.packet(64, 512)  # of a group that is still whole
    with pytest.raises(EOFError):
        frames.packet(96)
    with pytest.raises(EOFError):  # and nothing of what was read of it is kept as if it were all
        frames.packet(96)
    with pytest.raises(EOFError):
        frames.packet(97)


@pytest.mark.parametrize(("blksize", "group"), [(8, 32), (512, 32), (1468, 32), (4000, 16), (8192, 8), (65464, 1)])
def test_what_is_held_is_bounded_and_groups_divide_256(blksize: int, group: int) -> None:
    assert Frames(-1, 10, blksize).group == group


@pytest.mark.parametrize("opened", [100 * 512 + 100], indirect=True)
@pytest.mark.parametrize("timeout", [0, 3])
def test_the_hot_path_does_what_the_common_one_does(opened: File, timeout: int) -> None:
    size = len(opened.data)
    agreement = Agreement(512, 1, timeout, {"blksize": "512"})
    quick = Transfer(opened.data, size, agreement, RoundTrip(), frames=Frames(opened.fd, size, 512))
    plain = Transfer(opened.data, size, agreement, RoundTrip())
    now, taken = 50.0, 0
    assert quick.begin(now) == plain.begin(now)
    rnd = random.Random(3)
    numbers = [0]
    while plain.ended is None:
        now += rnd.choice((0.001, 0.0011, 0.3))
        acked = rnd.choice((0, 1, 1, 1, 1))  # now and then one that was acknowledged before
        packet = (4 << 16 | max(plain.last - 1 + acked, 0) & 0xFFFF).to_bytes(4, "big")
        if rnd.random() < 0.05:
            assert _joined(quick.expire(now)) == _joined(plain.expire(now))
        followed = quick.follow(packet, 4, now)
        taken += followed is not None
        mine = [followed, b""] if followed is not None else quick.receive(packet, 4, now)
        assert _joined(mine) == _joined(plain.receive(packet, 4, now))
        numbers.append(plain.last)
        for name in ("acked", "last", "ended", "deadline", "retries", "resent", "sent_at", "silent_since", "postponed"):
            assert getattr(quick, name) == getattr(plain, name), name
        assert quick.round_trip.wait == plain.round_trip.wait
    assert numbers[-1] == 101
    assert taken > 80


def _joined(datagrams: list[bytes | bytearray | memoryview] | None) -> bytes:
    return b"".join(datagrams or [])
