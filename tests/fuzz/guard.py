"""Runs a reader on one input within bounds: time, memory, descriptors, and the exceptions that it may raise."""

from __future__ import annotations

import gc
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

SECONDS = 10.0
"""Of one input: of this process's own CPU time, so that a busy machine or disk makes no finding."""

MEMORY = 512 << 20
"""Bytes that one input may take beside what the process has already."""

_BACKSTOP = 2 << 30  # bytes of address space: the machine survives, whatever a reader asks for


class Finding(Exception):
    """What an input does that no input may do: the text is a short report."""


class _TooSlow(BaseException):
    """Not an Exception: no reader may take it for a fault of its input."""


def attempt(run: Callable[[bytes], None], data: bytes, allowed: tuple[type[Exception], ...]) -> None:
    """Run a reader on an input. Call it in the main thread.

    :param allowed: what it may raise
    :raises Finding: it raises something else, or takes too much
    """
    descriptors = _descriptors()
    before = _reset_peak()
    try:
        with _alarm(), suppress(*allowed):
            run(data)
    except _TooSlow as error:
        raise Finding(f"more than {SECONDS:.0f} seconds\n{_shown(error)}") from error
    except Exception as error:
        raise Finding(_shown(error)) from error
    taken = _peak() - before
    if taken > MEMORY:
        raise Finding(f"{taken >> 20} MiB of memory")
    if _descriptors() > descriptors:
        gc.collect()  # an exception's frames may hold an object a little longer
        if (left := _descriptors() - descriptors) > 0:
            raise Finding(f"{left} descriptors are left open")


@contextmanager
def backstop() -> Iterator[None]:
    """Bound the address space of this process, for as long as it lasts."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _BACKSTOP, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _alarm() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _reset_peak() -> int:
    """Let the peak count from now on (proc(5), clear_refs); gives the resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) << 10


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error, limit=-6)).rstrip()
