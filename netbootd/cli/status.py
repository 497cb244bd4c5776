"""``netbootd status``: the nodes, how far each has come, and what is wrong."""

from __future__ import annotations

import time
from typing import Any

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.nodes import node_rows
from netbootd.cli.output import emit_json, say, table, when

_COLUMNS = [
    ("name", "NODE"),
    ("serial", "SERIAL"),
    ("address", "ADDRESS"),
    ("image", "IMAGE"),
    ("generation", "GENERATION"),
    ("stage", "STAGE"),
    ("outcome", "OUTCOME"),
    ("seen", "LAST SEEN"),
    ("detail", "DETAIL"),
]


@click.command()
@click.option("--watch", is_flag=True, help="show again every two seconds until interrupted")
@json_option
@pass_program
def command(program: Program, watch: bool, as_json: bool) -> None:
    """Show the nodes, how far each has come in its last boot, and what is wrong.

    Stages in order: firmware, kernel (sent whole), root (mounted), seed (meta-data read), ready (phoned home).
    """
    while True:
        rows = node_rows(program)
        if as_json:
            emit_json({"nodes": rows})
        else:
            if watch:
                click.clear()
            say(render(rows))
        if not watch:
            return
        time.sleep(2)


def render(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    if not rows:
        return "No node is configured, and none has been seen."
    shown = [{**row, "seen": when(row["last_seen"] or 0)} for row in rows]
    return table(shown, _COLUMNS)
