"""One timer for all sessions: at the right time, and without entries of sessions that have ended."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from netbootd.tftpd.session import Session
from netbootd.tftpd.timers import Timers


class Transfer:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def postpone(self, now: float, seconds: float) -> bool:
        return False


class Stub:
    """What `Timers` knows of a session."""

    def __init__(self, deadline: float, again: float = 0.0) -> None:
        self.transfer = Transfer(deadline)
        self.due = float("inf")
        self.over = False
        self.expirations: list[float] = []
        self._again = again

    def expired(self, now: float) -> None:
        self.expirations.append(now)
        self.over = not self._again
        self.transfer.deadline = now + self._again


def timers() -> tuple[Timers, Any]:
    made = Timers(asyncio.get_running_loop(), lambda: None)
    return made, lambda stub: made.schedule(cast(Session, stub))


async def test_sessions_expire_in_their_order_and_not_early() -> None:
    made, schedule = timers()
    now = time.monotonic()
    stubs = [Stub(now + 0.03), Stub(now + 0.01), Stub(now + 0.02)]
    for stub in stubs:
        schedule(stub)
    await asyncio.sleep(0.06)
    assert [len(stub.expirations) for stub in stubs] == [1, 1, 1]
    for stub, delay in zip(stubs, (0.03, 0.01, 0.02), strict=True):
        assert stub.expirations[0] >= now + delay
    assert len(made) == 0
    made.close()


async def test_a_deadline_that_has_moved_on_is_kept_and_one_that_came_nearer_too() -> None:
    made, schedule = timers()
    now = time.monotonic()
    later, nearer = Stub(now + 0.01), Stub(now + 60)
    schedule(later)
    later.transfer.deadline = now + 0.03
    schedule(nearer)
    nearer.transfer.deadline = now + 0.02
    schedule(nearer)
    await asyncio.sleep(0.06)
    assert len(later.expirations) == 1
    assert later.expirations[0] >= now + 0.03
    assert len(nearer.expirations) == 1
    made.close()


async def test_ended_sessions_leave_nothing_behind() -> None:
    """With `timeout` 255 their entries would else stay for minutes."""
    made, schedule = timers()
    alive = [Stub(time.monotonic() + 255) for _ in range(10)]
    for stub in alive:
        schedule(stub)
    for _ in range(10_000):
        stub = Stub(time.monotonic() + 255)
        schedule(stub)
        stub.over = True
        assert len(made) < 200
    assert all(any(entry[2] is stub for entry in made._heap) for stub in alive)
    made.close()


async def test_nothing_expires_after_the_end() -> None:
    made, schedule = timers()
    stub = Stub(time.monotonic() + 0.01, again=0.01)
    schedule(stub)
    made.close()
    await asyncio.sleep(0.03)
    assert stub.expirations == []
