"""Round-trip estimation: quick on a LAN, slow where the way is slow, never over-eager (RFC 6298)."""

from __future__ import annotations

import pytest

from netbootd.tftpd.timing import INITIAL, MAX_PATIENCE, MAX_WAIT, MIN_PATIENCE, PATIENCE, RoundTrip


def measured(seconds: float, samples: int = 50) -> RoundTrip:
    trip = RoundTrip()
    for _ in range(samples):
        trip.sample(seconds)
    return trip


def test_an_unknown_client_gets_less_than_a_second() -> None:
    trip = RoundTrip()
    assert not trip.measured
    assert trip.wait == INITIAL < 1.0


def test_the_first_sample_counts_as_rfc_6298_says() -> None:
    trip = RoundTrip()
    trip.sample(0.4)
    assert (trip.smoothed, trip.variation) == (0.4, 0.2)


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 0.0003, 0.01, 0.1])
def test_on_a_quick_way_patience_is_the_wait(seconds: float) -> None:
    assert measured(seconds).wait == PATIENCE < 1.0


@pytest.mark.parametrize("seconds", [0.2, 0.4, 0.6])
def test_on_a_slow_way_the_wait_is_longer_than_the_way(seconds: float) -> None:
    trip = RoundTrip()
    for _ in range(100):
        trip.sample(seconds)
        assert seconds < trip.wait <= MAX_WAIT


def test_a_way_that_becomes_slower_is_followed_with_one_sample() -> None:
    trip = measured(0.001)
    trip.sample(0.5)
    assert trip.wait > 0.5


def test_an_ack_that_the_client_repeated_late_is_soon_forgotten() -> None:
    for trip in (RoundTrip(), measured(0.001)):
        trip.sample(0.5)
        assert trip.wait > 0.5
        for _ in range(6):
            trip.sample(0.001)
        assert trip.wait == PATIENCE


def test_the_wait_has_a_ceiling() -> None:
    assert measured(100.0).wait == MAX_WAIT


def test_real_losses_make_it_quicker_and_needless_sendings_slower() -> None:
    trip = measured(0.001)
    trip.lost()
    assert trip.wait == PATIENCE / 2
    for _ in range(10):
        trip.lost()
    assert trip.wait == MIN_PATIENCE
    for _ in range(10):
        trip.spurious()
    assert trip.wait == MAX_PATIENCE < 1.0


def test_what_back_off_has_learnt_is_kept_only_until_there_is_a_sample() -> None:
    trip = RoundTrip()
    trip.unsure()
    assert trip.wait == 2 * INITIAL
    trip.sample(0.001)
    assert trip.wait == PATIENCE
    trip.unsure()
    assert trip.wait == PATIENCE


def test_the_next_transfer_begins_where_the_last_one_ended_and_changes_only_its_own() -> None:
    trip = measured(0.3)
    copy = trip.continued()
    assert (copy.wait, copy.smoothed, copy.variation) == (trip.wait, trip.smoothed, trip.variation)
    for _ in range(50):
        copy.sample(0.001)
    assert trip.wait > 0.3 > copy.wait
