"""Who may ask, and how often; the clock is an argument."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from netbootd.tftpd.limits import Guard, TokenBucket
from netbootd.tftpd.settings import TftpSettings


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(10.0, 5.0, now=100.0)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert [bucket.take(100.125), bucket.take(100.125)] == [True, False]
    assert sum(bucket.take(1000.0) for _ in range(20)) == 5


def test_each_client_has_its_own_rate_and_all_share_one() -> None:
    guard = Guard(TftpSettings(requests_per_second=10, total_requests_per_second=15), now=0.0)
    assert sum(guard.admit("192.0.2.1", 0.0) for _ in range(100)) == 20
    assert sum(guard.admit("192.0.2.2", 0.0) for _ in range(100)) == 10
    assert sum(guard.admit("192.0.2.1", 1.0) for _ in range(100)) == 10


def test_memory_stays_bounded_when_addresses_are_made_up() -> None:
    guard = Guard(TftpSettings(allow=(ip_network("10.0.0.0/8"),)), now=0.0)
    for number in range(20_000):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert guard.allowed(address)
        guard.admit(address, 0.0)
    assert len(guard._clients) <= 4096
    assert len(guard._verdicts) <= 4096


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("192.168.1.7", True),
        ("192.168.2.7", False),
        ("fd00::7", True),
        ("fe80::1", False),
        ("nonsense", False),
        ("", False),
    ],
)
def test_only_the_networks_named_may_ask(address: str, allowed: bool) -> None:
    guard = Guard(TftpSettings(allow=(ip_network("192.168.1.0/24"), ip_network("fd00::/8"))), now=0.0)
    assert guard.allowed(address) is allowed
    assert guard.allowed(address) is allowed  # the second answer is a remembered one


def test_nobody_is_asked_where_everybody_may() -> None:
    assert Guard(TftpSettings(), now=0.0).allowed("203.0.113.1")


def test_a_function_decides_each_time_and_its_failure_means_no(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([True, False])
    guard = Guard(TftpSettings(allow=lambda _: next(answers)), now=0.0)
    assert [guard.allowed("192.0.2.1") for _ in range(3)] == [True, False, False]
    assert "may not" in caplog.text
