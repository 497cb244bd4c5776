"""``netbootd events``: boot events, oldest first."""

from __future__ import annotations

import time

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.nodes import node_rows
from netbootd.cli.output import emit_json_line, say, when
from netbootd.errors import NotFoundError
from netbootd.model.event import BootEvent


@click.command()
@click.option("--follow", is_flag=True, help="go on with new events until interrupted")
@click.option("--node", default="", help="only this node: its name, serial or MAC")
@json_option
@pass_program
def command(program: Program, follow: bool, node: str, as_json: bool) -> None:
    """Show boot events, oldest first: each TFTP file, HTTP document, NFS mount and report of a node."""
    if node and not follow and not _known(program, node):
        raise NotFoundError(
            f"There is no node {node}.", hint="netbootd nodes list shows the configured ones and those that were seen."
        )
    last = 0
    while True:
        database = program.open_database()
        if database is not None:
            try:
                rows = list(database.events(node=_normal(node), after=last))
            finally:
                database.close()
            for last, event in rows:  # noqa: B007 -- the last number is where following goes on
                if as_json:
                    emit_json_line(as_row(event))
                else:
                    say(render(event))
        if not follow:
            return
        time.sleep(0.5)


def _known(program: Program, node: str) -> bool:
    """Whether a node is configured or was seen. One named by serial or MAC may still come, so that is no mistake."""
    from netbootd.boot.contract import parse_id

    named = node.removeprefix("pi-").removeprefix("node-").replace(":", "-")
    return parse_id(named) is not None or any(row["name"] == node for row in node_rows(program))


def _normal(node: str) -> str:
    """A node as it is recorded: a 16 digit serial by its last eight, hex digits in lower case."""
    from netbootd.boot.contract import parse_id

    who = parse_id(node.replace(":", "-"))
    return str(who) if who else node


def as_row(event: BootEvent) -> dict[str, object]:
    """The event as the contract's JSON has it."""
    return {
        "time": event.time,
        "node": event.node,
        "serial": event.serial,
        "protocol": event.protocol,
        "stage": event.stage,
        "path": event.path,
        "bytes": event.bytes,
        "seconds": event.seconds,
        "outcome": event.outcome,
        "detail": event.detail,
    }


def render(event: BootEvent) -> str:
    """The event on one line for people."""
    size = f" {event.bytes} bytes in {event.seconds:.2f} s" if event.bytes else ""
    detail = f" ({event.detail})" if event.detail else ""
    stage = f" {event.stage}" if event.stage else ""
    return f"{when(event.time)} {event.node}{stage} {event.protocol} {event.path} {event.outcome}{size}{detail}"
