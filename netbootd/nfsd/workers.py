"""Threads for what may wait for a disk; results come back to the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Workers:
    """A few threads beside one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int, name: str) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def run(self, function: Callable[[], T], done: Callable[[T | OSError], None]) -> None:
        """Call `function` in a thread, then `done` in the loop with what it returned, or with the OSError it raised.

        Another exception is a bug: it is logged and given on as an OSError, so that nobody waits for ever.
        """
        self._pool.submit(self._job, function, done)

    def _job(self, function: Callable[[], T], done: Callable[[T | OSError], None]) -> None:
        result: T | OSError
        try:
            result = function()
        except OSError as error:
            result = error
        except Exception as error:
            _log.exception("work for the NFS server failed")
            result = OSError(str(error))
        try:
            self._loop.call_soon_threadsafe(done, result)
        except RuntimeError:  # the loop has ended; nobody waits any more
            _log.debug("a result came after the event loop's end")

    def close(self) -> None:
        """Take no more work, drop what hasn't begun, don't wait for what has."""
        self._pool.shutdown(wait=False, cancel_futures=True)
