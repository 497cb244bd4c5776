"""Kept answers: found by all that was asked, never more than their room."""

from __future__ import annotations

from netbootd.nfsd.listings import Listings


def test_an_answer_is_found_by_all_that_was_asked() -> None:
    listings = Listings()
    assert listings.keep((1, 0, 4096, 32768), b"one") == b"one"
    assert listings.get((1, 0, 4096, 32768)) == b"one"
    for asked in ((2, 0, 4096, 32768), (1, 2, 4096, 32768), (1, 0, 4095, 32768), (1, 0, 4096, 32767)):
        assert listings.get(asked) is None


def test_what_was_not_asked_for_the_longest_makes_room() -> None:
    listings = Listings(300)
    for folder in range(3):
        listings.keep((folder, 0, 0, 0), bytes(100))
    listings.get((0, 0, 0, 0))
    listings.keep((3, 0, 0, 0), bytes(100))
    assert [listings.get((folder, 0, 0, 0)) is not None for folder in range(4)] == [True, False, True, True]
    listings.keep((4, 0, 0, 0), bytes(250))
    assert [listings.get((folder, 0, 0, 0)) is not None for folder in range(5)] == [False, False, False, False, True]


def test_an_answer_larger_than_the_room_is_not_kept() -> None:
    listings = Listings(300)
    listings.keep((0, 0, 0, 0), bytes(100))
    assert listings.keep((1, 0, 0, 0), bytes(301)) == bytes(301)
    assert listings.get((1, 0, 0, 0)) is None
    listings.keep((2, 0, 0, 0), bytes(300))
    assert listings.get((2, 0, 0, 0)) == bytes(300)
