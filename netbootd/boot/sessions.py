"""One boot of each node: when it began, the generation it began with, and how far it has come."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.model.node import Node
from netbootd.store.database import NodeRecord

FIRST_FILES = frozenset({"bootcode.bin", "start4.elf", "start.elf", "config.txt", "autoboot.txt", "boot.ipxe"})
"""What the firmware of one board or another asks for first (Pi 3: bootcode.bin, Pi 4: start4.elf, Pi 5: config.txt; a
PC's iPXE: its script)."""

_PAUSE = 10.0
"""Seconds of silence after which a first file begins a new boot; within one, first files follow each other at once."""
_LONG_PAUSE = 120.0
"""Seconds after which any boot file begins a new boot: firmware gives up long before."""

_RUNNING = frozenset((Stage.ROOT, Stage.SEED, Stage.READY))
"""The firmware's part of the boot is over: whoever asks for its files again has been switched on again."""

_NODES_KEPT = 8192


@dataclass(slots=True)
class _Session:
    generation: str
    asked_at: float
    record: NodeRecord


class Sessions:
    """The boots under way and the last one of each node.

    :param current: the id of an image's current generation, "" without one
    :param exists: whether (image, generation id) is still on disk
    """

    def __init__(
        self,
        current: Callable[[str], str],
        exists: Callable[[str, str], bool],
        records: Iterable[NodeRecord] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._current = current
        self._exists = exists
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        for record in records:  # a boot that was under way when the service stopped goes on
            self._sessions[record.key] = _Session(record.generation, clock() - _PAUSE, record)

    def generation(self, node: Node, path: str = "") -> str:
        """The id of the generation that `node` boots, "" where its image has none.

        With the `path` of a boot file asked for, this is also where a new boot begins and takes up the current
        generation; a boot that has begun keeps its own.
        """
        now = self._clock()
        session = self._sessions.get(node.key)
        if session is None or (path and self._begins(session, path, now)):
            generation = self._current(node.image)
            session = self._keep(node.key, _Session(generation, now, _fresh(node, generation)))
        elif session.record.image != node.image or not self._exists(node.image, session.generation):
            session.generation = self._current(node.image)
        if path:
            session.asked_at = now
            self._sessions.move_to_end(node.key)
        return session.generation

    @staticmethod
    def _begins(session: _Session, path: str, now: float) -> bool:
        pause = now - session.asked_at
        if pause > _LONG_PAUSE or session.record.stage in _RUNNING:
            return True
        return pause > _PAUSE and path in FIRST_FILES

    def observe(self, event: BootEvent) -> NodeRecord:
        """Take in what a server saw; returns the node's state after it."""
        session = self._sessions.get(event.key)
        if session is None:
            record = NodeRecord(
                event.key, "", "", "", "", "", event.generation, Stage.FIRMWARE, Outcome.MISS, event.time, ""
            )
            session = self._keep(event.key, _Session(event.generation, self._clock(), record))
        record = session.record
        stage, outcome, detail = record.stage, record.outcome, record.detail
        if event.outcome is Outcome.OK:
            if event.stage in (Stage.FIRMWARE, Stage.KERNEL):
                session.asked_at = self._clock()  # a large file took its time: the silence begins at its end
            if event.stage and event.stage.rank >= Stage(stage).rank:
                stage, outcome, detail = event.stage, Outcome.OK, event.detail
        elif event.outcome in (Outcome.FAILED, Outcome.ABORTED):
            outcome, detail = event.outcome, f"{event.path}: {event.detail}" if event.detail else event.path
        elif event.outcome is Outcome.MISS and outcome == Outcome.MISS:
            detail = f"{event.path} is missing"
        session.record = NodeRecord(
            key=record.key,
            name=event.node,
            serial=event.serial or record.serial,
            mac=event.mac or record.mac,
            address=event.address or record.address,
            image=event.image,
            generation=session.generation,
            stage=stage,
            outcome=outcome,
            last_seen=event.time,
            detail=detail,
            token=record.token,
        )
        return session.record

    def _keep(self, key: str, session: _Session) -> _Session:
        """Add a node; where there are too many, the one that has asked least lately is forgotten."""
        self._sessions[key] = session
        if len(self._sessions) > _NODES_KEPT:
            self._sessions.popitem(last=False)
        return session

    def token(self, node: Node) -> str:
        """The token of the node's present boot, for the address of its cloud-init documents; "" before its first."""
        session = self._sessions.get(node.key)
        return session.record.token if session else ""

    def stage_of(self, key: str) -> str:
        """The stage that the node of this key has reached and been recorded with, "" for one never recorded."""
        session = self._sessions.get(key)
        return session.record.stage if session and session.record.outcome != Outcome.MISS else ""

    def records(self) -> list[NodeRecord]:
        """The state of every node, by name."""
        return sorted((session.record for session in self._sessions.values()), key=lambda record: record.name)


def _fresh(node: Node, generation: str) -> NodeRecord:
    return NodeRecord(
        key=node.key,
        name=node.name,
        serial=str(node.serial or ""),
        mac=str(node.mac or ""),
        address=node.address,
        image=node.image,
        generation=generation,
        stage=Stage.FIRMWARE,
        outcome=Outcome.MISS,
        last_seen=0.0,
        detail="",
        token=secrets.token_hex(16),
    )
