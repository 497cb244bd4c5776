"""What the servers saw, written down: to the log, to the node's state, and in batches to the database."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from netbootd.boot.sessions import Sessions
from netbootd.errors import HostError
from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.store.database import Database, NodeRecord

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.25
QUEUE_LIMIT = 20_000
"""Events that wait for a slow disk at most; beyond it the newest are dropped and counted."""

_SAYS = {
    Stage.FIRMWARE: "%s has read %s",
    Stage.KERNEL: "%s has loaded its kernel %s",
    Stage.ROOT: "%s has mounted its root %s",
    Stage.SEED: "%s has read its cloud-init %s",
    Stage.READY: "%s is ready (%s)",
}


class Recorder:
    """Takes events from every server on the event loop; a task of its own writes them to the database."""

    def __init__(self, sessions: Sessions, database: Database) -> None:
        self._sessions = sessions
        self._database = database
        self._events: list[BootEvent] = []
        self._nodes: dict[str, NodeRecord] = {}
        self._wake = asyncio.Event()
        self._dropped = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.subscribers: list[Callable[[BootEvent], None]] = []

    def record(self, event: BootEvent) -> None:
        """Take in one event. Never raises and never waits."""
        try:
            before = self._sessions.stage_of(event.key)
            state = self._sessions.observe(event)
            self.counts[event.protocol, event.outcome] += 1
            _say(event, reached=state.stage != before)
            for subscriber in self.subscribers:
                subscriber(event)
            self._nodes[event.key] = state
            if len(self._events) < QUEUE_LIMIT:
                self._events.append(event)
            else:
                self._dropped += 1
            self._wake.set()
        except Exception:
            _log.exception("An event could not be recorded")

    async def run(self) -> None:
        """Write to the database until cancelled; what is left is written by `flush`."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Write what has gathered. A disk that fails is logged; the service goes on without its record."""
        self._wake.clear()
        events, self._events = self._events, []
        nodes, self._nodes = self._nodes, {}
        if not events and not nodes:
            return
        try:
            self._database.write(events, nodes.values())
        except HostError as error:
            _log.error("%s Boot events are lost meanwhile.", error)
        if self._dropped:
            _log.warning("%d boot events were dropped: the disk does not keep up", self._dropped)
            self._dropped = 0


def _say(event: BootEvent, *, reached: bool) -> None:
    if event.outcome in (Outcome.FAILED, Outcome.ABORTED):
        tail = f": {event.detail}" if event.detail else ""
        _log.warning(
            "%s: %s of %s %s%s",
            event.node or event.address,
            event.protocol.upper(),
            event.path,
            event.outcome,
            tail,
            extra=_context(event),
        )
    elif reached and event.stage and event.outcome is Outcome.OK:
        what = event.detail if event.stage is Stage.READY else event.path
        _log.info(_SAYS[event.stage], event.node, what, extra=_context(event))
    elif event.outcome is Outcome.OK and event.detail:
        _log.info("%s: %s %s: %s", event.node, event.protocol.upper(), event.path, event.detail, extra=_context(event))
    elif _log.isEnabledFor(logging.DEBUG):
        _log.debug("%s: %s %s %s", event.node, event.protocol.upper(), event.path, event.outcome, extra=_context(event))


def _context(event: BootEvent) -> dict[str, dict[str, object]]:
    """The fields of an event's log record."""
    return {
        "fields": {
            "NODE": event.node,
            "SERIAL": event.serial,
            "PEER": event.address,
            "PATH": event.path,
            "BYTES": event.bytes,
            "DURATION_MS": round(event.seconds * 1000, 1),
            "GENERATION": event.generation,
            "STAGE": event.stage or "",
            "OUTCOME": event.outcome,
            "PROTOCOL": event.protocol,
        }
    }
