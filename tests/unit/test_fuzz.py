"""A bounded run of the fuzzer: every reader on some hundreds of changed inputs, the same ones each time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz.guard import Finding, attempt
from tests.fuzz.mutate import Mutator
from tests.fuzz.readers import HARNESSES


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", HARNESSES)
def test_a_changed_input_is_refused_or_safe(name: str) -> None:
    harness = HARNESSES[name]
    seeds = harness.made_seeds()
    for seed in seeds:
        harness.read(seed)  # what is right is taken
    mutator = Mutator(seeds, 1)
    for number in range(harness.mutations):
        data = harness.mended(mutator.next())
        try:
            attempt(harness.read, data, harness.allowed)
        except Finding as finding:
            pytest.fail(f"input {number} of {name}: {finding}\nagain: python -m tests.fuzz {name} --blind --number 1")


# ---------------------------------------------------------------- the fuzzer itself


def test_the_same_number_gives_the_same_inputs() -> None:
    seeds = [bytes(range(256)) * 9, b"another seed" * 40]
    one, same, other = (Mutator(seeds, number) for number in (5, 5, 6))
    inputs = [one.next() for _ in range(300)]
    assert inputs == [same.next() for _ in range(300)]
    assert inputs != [other.next() for _ in range(300)]
    assert len(set(inputs)) > 280


def _raises(error: BaseException) -> None:
    raise error


def test_an_exception_that_is_not_allowed_is_a_finding() -> None:
    attempt(lambda _: _raises(KeyError("x")), b"", (LookupError,))
    with pytest.raises(Finding, match="KeyError"):
        attempt(lambda _: _raises(KeyError("x")), b"", (ValueError,))


def test_time_memory_and_descriptors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.guard.MEMORY", 8 << 20)

    def forever(data: bytes) -> None:
        while True:
            try:
                data = data[:1]
            except Exception:  # what a reader takes for a fault of its input is not the time being up
                return

    with monkeypatch.context() as patched, pytest.raises(Finding, match="seconds"):
        patched.setattr("tests.fuzz.guard.SECONDS", 0.05)
        attempt(forever, b"x", ())
    kept: list[Any] = []
    with pytest.raises(Finding, match="MiB of memory"):
        attempt(lambda data: kept.append(data * (64 << 20)), b"x", ())
    kept.clear()
    with pytest.raises(Finding, match="1 descriptors"):
        attempt(lambda _: kept.append(open("/dev/null")), b"", ())  # noqa: SIM115
    kept[0].close()
