"""What people and programs read: results on stdout, progress on stderr, errors as one paragraph."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from netbootd.logs import printable

_LONGEST = 1000  # characters of a line of an error


def emit_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2))


def emit_json_line(value: Any) -> None:
    """One JSON object a line, flushed, for who follows."""
    print(json.dumps(value), flush=True)


def say(text: str) -> None:
    """A line of a result on stdout."""
    print(text)


def note(text: str) -> None:
    """A line about what goes on, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> str:
    """Rows as text in aligned columns.

    :param columns: (key of the row, heading)
    """
    cells = [[heading for _, heading in columns]]
    cells += [[_cell(row.get(key)) for key, _ in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _cell(value: Any) -> str:
    return "-" if value in (None, "") else str(value)


def when(seconds: float) -> str:
    """Seconds since the epoch as local time; "-" for never."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def size_text(count: float) -> str:
    """Bytes for people: ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def explain_error(message: str, details: Iterable[str], hint: str) -> None:
    """An expected failure, as one short paragraph on stderr."""
    click.secho("netbootd: ", nl=False, err=True, bold=True)
    click.echo(_line(message), err=True)
    for detail in details:
        click.echo(f"  {_line(detail)}", err=True)
    if hint:
        click.echo(hint, err=True)


def _line(text: str) -> str:
    """A line of an error for a terminal: what it quotes of an image may be as long and as odd as its maker likes."""
    text = printable(text).replace("\n", "\\n")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"
