"""What was observed: nodes seen and boot events, in SQLite (the only part of the state that the running service owns).

Writers hand in whole batches; readers see a consistent state at any time (write-ahead log). Desired state is never
stored here: that is netbootd.toml's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from netbootd.errors import HostError
from netbootd.model.event import BootEvent, Outcome, Stage

SCHEMA_VERSION = 1
EVENTS_KEPT = 200_000
"""Older events are dropped, so that a rack that reboots for years doesn't fill the disk."""
NODES_KEPT = 20_000
"""Of more nodes those seen longest ago are forgotten: a flood of made-up serials must not fill the disk either."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """How far one machine has come, as `netbootd status` shows it. `last_seen` is seconds since the epoch."""

    key: str
    name: str
    serial: str
    mac: str
    address: str
    image: str
    generation: str
    stage: str
    outcome: str
    last_seen: float
    detail: str
    token: str = ""
    """What this boot's seed address holds where tokens are in use; never shown."""


_NODE_COLUMNS = [field.name for field in fields(NodeRecord)]
_EVENT_COLUMNS = [field.name for field in fields(BootEvent)]

_event_values = attrgetter(*_EVENT_COLUMNS)
_STAGE, _OUTCOME = _EVENT_COLUMNS.index("stage"), _EVENT_COLUMNS.index("outcome")

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS nodes (
    key TEXT PRIMARY KEY, name TEXT, serial TEXT, mac TEXT, address TEXT, image TEXT, generation TEXT,
    stage TEXT, outcome TEXT, last_seen REAL, detail TEXT, token TEXT
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL, protocol TEXT, path TEXT, outcome TEXT, stage TEXT, node TEXT,
    key TEXT, serial TEXT, mac TEXT, address TEXT, image TEXT, generation TEXT, bytes INTEGER, seconds REAL, detail TEXT
);
CREATE INDEX IF NOT EXISTS events_node ON events (node, id);
PRAGMA user_version = {SCHEMA_VERSION};
"""


class Database:
    """One connection. Use one for writing and others, opened with `readonly`, for reading."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Open the database, making it and its folder unless `readonly`.

        :raises HostError: it can't be opened, or was written by a newer version
        """
        self.path = path
        try:
            self._db, version = _open_for_reading(path) if readonly else _open_for_writing(path)
        except (sqlite3.Error, OSError) as error:
            raise HostError(
                f"Opening the database {path}: {error}.",
                hint="Is it readable to you? --state names another state folder.",
            ) from error
        if version > SCHEMA_VERSION:
            self._db.close()
            raise HostError(f"The database {path} was written by a newer netbootd.", hint="Update netbootd.")

    def close(self) -> None:
        """Free the connection."""
        self._db.close()

    # ---------------------------------------------------------------- writing

    def write(self, events: Iterable[BootEvent], nodes: Iterable[NodeRecord]) -> None:
        """Add events and update nodes, all or nothing.

        :raises HostError: the disk is full, or the file can't be written
        """
        try:
            with self._db:
                last = self._insert(events)
                if last % 1000 < 200 and last > EVENTS_KEPT:
                    self._db.execute("DELETE FROM events WHERE id <= ?", (last - EVENTS_KEPT,))
                self._db.executemany(
                    f"INSERT OR REPLACE INTO nodes ({', '.join(_NODE_COLUMNS)}) "  # noqa: S608 -- constant names
                    f"VALUES ({', '.join('?' * len(_NODE_COLUMNS))})",
                    [astuple(node) for node in nodes],
                )
                if self._db.execute("SELECT count(*) FROM nodes").fetchone()[0] > NODES_KEPT:
                    self._db.execute(
                        "DELETE FROM nodes WHERE key IN "
                        "(SELECT key FROM nodes ORDER BY last_seen DESC LIMIT -1 OFFSET ?)",
                        (NODES_KEPT * 9 // 10,),
                    )
        except sqlite3.Error as error:
            raise HostError(f"Writing the database {self.path}: {error}.") from error

    def _insert(self, events: Iterable[BootEvent]) -> int:
        # One call for all: the event loop's thread waits for what is done here a statement at a time.
        self._db.executemany(
            f"INSERT INTO events ({', '.join(_EVENT_COLUMNS)}) "  # noqa: S608 -- constant names
            f"VALUES ({', '.join('?' * len(_EVENT_COLUMNS))})",
            [_event_row(event) for event in events],
        )
        last: int = self._db.execute("SELECT last_insert_rowid()").fetchone()[0]
        return last

    def forget(self, keys: Iterable[str]) -> None:
        """Remove the records of nodes whose identity turned out to be another's."""
        with self._db:
            self._db.executemany("DELETE FROM nodes WHERE key = ?", [(key,) for key in keys])

    # ---------------------------------------------------------------- reading

    def nodes(self) -> list[NodeRecord]:
        """Every node ever seen, by name."""
        rows = self._query(f"SELECT {', '.join(_NODE_COLUMNS)} FROM nodes ORDER BY name", ())  # noqa: S608
        return [NodeRecord(*row) for row in rows]

    def events(self, *, node: str = "", after: int = 0, limit: int = 100_000) -> Iterator[tuple[int, BootEvent]]:
        """Events with their numbers, oldest first, those numbered above `after`, at most the `limit` newest.

        :param node: only those of the node of this name, serial, MAC or key
        """
        where, values = "id > ?", [after]
        parameters: list[object] = list(values)
        if node:
            where += " AND ? IN (node, key, serial, mac)"
            parameters.append(node)
        rows = self._query(
            f"SELECT id, {', '.join(_EVENT_COLUMNS)} FROM events WHERE {where} ORDER BY id DESC LIMIT ?",  # noqa: S608
            (*parameters, limit),
        )
        for ident, *row in reversed(rows):
            values_by_name = dict(zip(_EVENT_COLUMNS, row, strict=True))
            values_by_name["outcome"] = Outcome(values_by_name["outcome"])
            stage = values_by_name["stage"]
            values_by_name["stage"] = Stage(stage) if stage else None
            yield ident, BootEvent(**values_by_name)

    def _query(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise HostError(f"Reading the database {self.path}: {error}.") from error


def _open_for_writing(path: Path) -> tuple[sqlite3.Connection, int]:
    """A connection for any thread, and the version of the file's schema, which is ours where it was older or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=10, check_same_thread=False)
    try:
        version: int = database.execute("PRAGMA user_version").fetchone()[0]
        if version <= SCHEMA_VERSION:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database, version


def _open_for_reading(path: Path) -> tuple[sqlite3.Connection, int]:
    """A connection that never writes, and the version of the file's schema.

    Even reading needs the files of the write-ahead log, which whoever may only read the folder can't make where no
    service runs. Nobody writes then, so the file is read as one that does not change (sqlite.org/wal.html, section 5).
    """
    uri = f"{path.resolve().as_uri()}?mode=ro"
    for extra in ("", "&immutable=1"):
        database = sqlite3.connect(uri + extra, uri=True, timeout=10)
        try:
            return database, database.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            database.close()
            if not isinstance(error, sqlite3.OperationalError) or extra or path.with_name(f"{path.name}-wal").exists():
                raise
    raise AssertionError("unreachable")


def _event_row(event: BootEvent) -> list[object]:
    """An event as the database holds it."""
    row = list(_event_values(event))
    row[_STAGE] = event.stage.value if event.stage else None
    row[_OUTCOME] = event.outcome.value
    return row
