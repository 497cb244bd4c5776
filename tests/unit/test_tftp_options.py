"""Which options are accepted, and with which values: RFC 2347, 2348, 2349 and 7440."""

from __future__ import annotations

import pytest

from netbootd.tftpd.options import Agreement, negotiate


def agreed(size: int = 1000, max_blksize: int = 1468, max_windowsize: int = 64, **options: str) -> Agreement:
    return negotiate(options, size, max_blksize=max_blksize, max_windowsize=max_windowsize)


def test_without_options_there_is_no_oack() -> None:
    assert agreed() == Agreement(512, 1, 0, {})


def test_a_pi_gets_the_size_and_its_blksize() -> None:
    assert agreed(2_260_000, tsize="0", blksize="1468").accepted == {"tsize": "2260000", "blksize": "1468"}


def test_order_and_spelling_are_the_clients() -> None:
    options = {"WindowSize": "4", "TSIZE": "0", "unknown": "1", "BlkSize": "1024", "timeOut": "3"}
    accepted = negotiate(options, 7, max_blksize=1468, max_windowsize=64).accepted
    assert list(accepted.items()) == [("WindowSize", "4"), ("TSIZE", "7"), ("BlkSize", "1024"), ("timeOut", "3")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("blksize", text) for text in ("7", "0", "-1", "abc", "", " 512", "512 ", "0x200", "1e3", "5_12", "\u0665")),
        *(("timeout", text) for text in ("0", "256", "1.5", "-1", "", "abc")),
        *(("windowsize", text) for text in ("0", "65536", "-1", "abc", "")),
        *(("tsize", text) for text in ("", "abc", "-1")),
        ("blksize", "9" * 21),
        ("tsize", "9" * 5000),
        ("rollover", "0"),
        ("multicast", ""),
        ("utimeout", "1000000"),
        ("", ""),
    ],
)
def test_impossible_values_and_unknown_options_are_left_out(name: str, value: str) -> None:
    assert agreed(**{name: value}) == Agreement()


@pytest.mark.parametrize(
    ("asked", "largest", "got"),
    [("8", 1468, 8), ("512", 1468, 512), ("65464", 1468, 1468), ("65464", 65464, 65464), ("99999", 65535, 65464)],
)
def test_blksize_is_lowered_never_raised(asked: str, largest: int, got: int) -> None:
    agreement = agreed(max_blksize=largest, blksize=asked)
    assert (agreement.blksize, agreement.accepted) == (got, {"blksize": str(got)})


@pytest.mark.parametrize(("asked", "got"), [("1", 1), ("16", 16), ("64", 64), ("65535", 64)])
def test_windowsize_is_lowered_never_raised(asked: str, got: int) -> None:
    agreement = agreed(windowsize=asked)
    assert (agreement.windowsize, agreement.accepted) == (got, {"windowsize": str(got)})


@pytest.mark.parametrize("seconds", ["1", "255"])
def test_timeout_is_echoed_as_it_is(seconds: str) -> None:
    agreement = agreed(timeout=seconds)
    assert (agreement.timeout, agreement.accepted) == (int(seconds), {"timeout": seconds})


def test_tsize_counts_whatever_the_client_said() -> None:
    assert agreed(size=0, tsize="12345").accepted == {"tsize": "0"}
    assert agreed(size=1 << 40, tsize="0").accepted == {"tsize": str(1 << 40)}
