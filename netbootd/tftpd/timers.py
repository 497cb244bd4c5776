"""One timer of the event loop for all sessions.

A session's entry in the heap may be earlier than its deadline, which moves with every block; the entry moves only when
it is met. Entries of sessions that have ended are cleared out before they are the half: with an agreed `timeout` of
255 s they would else stay for minutes.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable

from netbootd.tftpd.session import Session

_LATE = 0.03  # seconds by which our timer may be late before silence stops to prove anything
_SPARE_ENTRIES = 64


class Timers:
    """Calls `Session.expired` when a session's deadline has passed.

    :param before: run before anything expires: takes in the answers that are already here
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, before: Callable[[], None]) -> None:
        self._loop, self._before = loop, before
        self._heap: list[tuple[float, int, Session]] = []
        self._room = _SPARE_ENTRIES
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = float("inf")

    def __len__(self) -> int:
        """Entries that are kept."""
        return len(self._heap)

    def schedule(self, session: Session) -> None:
        """Look at `session` at its deadline; to be called when that is earlier than `Session.due`."""
        self._push(session)
        if session.due < self._armed_at:
            self._arm(session.due)

    def close(self) -> None:
        """Nothing expires any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._heap.clear()

    def _push(self, session: Session) -> None:
        heap = self._heap
        session.due = session.transfer.deadline
        heapq.heappush(heap, (session.due, next(self._count), session))
        if len(heap) > self._room:
            heap[:] = [entry for entry in heap if not _stale(entry)]
            heapq.heapify(heap)
            self._room = 2 * len(heap) + _SPARE_ENTRIES

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = when
        self._timer = self._loop.call_later(max(when - time.monotonic(), 0.0), self._tick)

    def _tick(self) -> None:
        self._timer, heap = None, self._heap
        late = time.monotonic() - self._armed_at > _LATE
        self._armed_at = float("inf")
        self._before()
        now = time.monotonic()
        while heap and heap[0][0] <= now:
            entry = heapq.heappop(heap)
            if _stale(entry):
                continue
            session = entry[2]
            transfer = session.transfer
            if transfer.deadline <= now and not (late and transfer.postpone(now, _LATE)):
                session.expired(now)
            if not session.over:
                self._push(session)
        if heap and heap[0][0] < self._armed_at:
            self._arm(heap[0][0])


def _stale(entry: tuple[float, int, Session]) -> bool:
    """Whether the session has ended, or has moved to another entry."""
    return entry[2].over or entry[0] != entry[2].due
