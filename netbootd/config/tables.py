"""Reads the tables of a TOML document key by key, and collects every fault instead of stopping at the first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from netbootd.config.values import Reader, quoted, shown, visible

T = TypeVar("T")
D = TypeVar("D")


KEY_SHOWN = 64
"""Characters of a key that are shown."""
LINE_SHOWN = 600
"""Characters of a fault that are shown: a path may be long."""
_SUGGESTIONS = 200
"""Faults after which no near word is looked for any more: that many are no slips of the pen, and looking takes time."""


class Faults:
    """The faults found so far, one line each: where, key, value, what is expected."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, where: str, key: str, problem: str) -> None:
        """Note one."""
        key = key if len(key) <= KEY_SHOWN else key[:KEY_SHOWN] + "…"
        line = visible(": ".join(part for part in (where, key, problem) if part))
        self.lines.append(line if len(line) <= LINE_SHOWN else line[:LINE_SHOWN] + "…")

    def suggestion(self, word: str, known: Iterable[str]) -> str:
        """See `suggestion`."""
        return suggestion(word, known) if len(self.lines) < _SUGGESTIONS else ""


class Table:
    """One table whose keys are asked for one by one; what nobody asked for is unknown.

    :param where: how the operator finds the table: ``[tftp]``, ``[[node]] 2 (valar-0)``
    """

    def __init__(self, values: dict[str, Any], where: str, faults: Faults) -> None:
        self._values = values
        self._where = where
        self._faults = faults
        self._asked: list[str] = []

    @property
    def where(self) -> str:
        """How the operator finds the table."""
        return self._where

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def says(self, key: str) -> bool:
        """Whether `key` is there and not the empty text, which stands for its default."""
        return key in self._values and self._values[key] != ""

    def get(self, key: str, read: Reader[T], default: D) -> T | D:
        """The value of `key`; the default where it is missing or faulty."""
        self._asked.append(key)
        if key not in self._values:
            return default
        value = self._values[key]
        try:
            return read(value)
        except ValueError as error:
            self._faults.add(self._where, key, f"{shown(value)} {error}")
            return default

    def fault(self, key: str, problem: str) -> None:
        """Note a fault of one key (or of the table, where `key` is empty)."""
        self._faults.add(self._where, key, problem)

    def finish(self) -> None:
        """Note the keys that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                self.fault(key, f"unknown key{self._faults.suggestion(key, self._asked)}")


class Document:
    """The whole file: its tables by name.

    :param known: the keys of each table, to say where a misplaced key belongs
    """

    def __init__(self, values: dict[str, Any], faults: Faults, known: dict[str, tuple[str, ...]]) -> None:
        self._values = values
        self._faults = faults
        self._known = known
        self._asked: list[str] = []

    def table(self, name: str) -> Table:
        """The table ``[name]``, empty where it is missing."""
        self._asked.append(name)
        value = self._values.get(name, {})
        if not isinstance(value, dict):
            said = f"[[{name}]]" if isinstance(value, list) else f"{name} = …"
            self._faults.add("", name, f"{said} is not a table; write [{name}]")
            value = {}
        return Table(value, f"[{name}]", self._faults)

    def tables(self, name: str) -> Iterator[Table]:
        """Each ``[[name]]`` in order, told apart by number and, where it has one, by its name."""
        self._asked.append(name)
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            said = f"[{name}]" if isinstance(value, dict) else f"{name} = …"
            self._faults.add("", name, f"{said} is not a list of tables; write [[{name}]] above each")
            return
        for number, item in enumerate(value, 1):
            title = item.get("name")
            label = f" ({title})" if isinstance(title, str) and title.isprintable() and 0 < len(title) <= 64 else ""
            yield Table(item, f"[[{name}]] {number}{label}", self._faults)

    def finish(self) -> None:
        """Note what is neither a table nor a key that we know."""
        for key, value in self._values.items():
            if key in self._asked:
                continue
            homes = [quoted_table(name) for name in self._asked if key in self._known.get(name, ())]
            if homes and not isinstance(value, dict | list):
                self._faults.add("", key, f"belongs into a table: {' or '.join(homes)}")
            elif isinstance(value, dict | list):
                self._faults.add("", f"[{key}]", f"unknown table{self._faults.suggestion(key, self._asked)}")
            else:
                self._faults.add("", key, f"unknown key{self._faults.suggestion(key, self._asked)}")


def quoted_table(name: str) -> str:
    """A table as TOML writes it."""
    return f"[[{name}]]" if name in ("image", "node") else f"[{name}]"


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean "port"?``, or nothing where no known word is near."""
    if len(word) > KEY_SHOWN:
        return ""
    near = difflib.get_close_matches(word.lower().replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"; did you mean {quoted(near[0])}?" if near else ""
