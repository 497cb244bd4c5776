"""``netbootd nodes``: what is configured and known of each node, and where its files come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.output import emit_json, say, table, when

if TYPE_CHECKING:
    from netbootd.model.node import Node
    from netbootd.service.inspect import Inspector
    from netbootd.store.database import NodeRecord

_FIELDS = (
    "name",
    "serial",
    "mac",
    "address",
    "image",
    "generation",
    "stage",
    "outcome",
    "last_seen",
    "detail",
)


@click.group()
def command() -> None:
    """List and explain nodes; write a seed ISO for one."""


@command.command("list")
@json_option
@pass_program
def list_(program: Program, as_json: bool) -> None:
    """List every configured node and every one that was seen."""
    from netbootd.cli.status import render

    rows = node_rows(program)
    if as_json:
        emit_json({"nodes": rows})
    else:
        say(render(rows))


@command.command(short_help="Show one node and every file that it can get.")
@click.argument("node")
@json_option
@pass_program
def show(program: Program, node: str, as_json: bool) -> None:
    """Show one node, by name, serial or MAC, and every file that it can get."""
    inspector = _inspector(program)
    found = inspector.node(node)
    rows = [row for row in node_rows(program) if row["name"] == found.name]
    row = rows[0] if rows else {"name": found.name}
    files = inspector.files(found)
    if as_json:
        emit_json({**row, "files": files})
        return
    for key in _FIELDS:
        value = when(float(row.get(key) or 0)) if key == "last_seen" else row.get(key)
        say(f"{key.replace('_', ' '):<12}{value or '-'}")
    say("")
    if files:
        say(table(files, [("path", "FILE"), ("origin", "LAYER"), ("size", "BYTES"), ("detail", "FROM")]))
    else:
        say("It has no boot files: its image is not prepared (netbootd prepare).")


@command.command(short_help="Tell where one file of a node comes from.")
@click.argument("node")
@click.argument("path")
@json_option
@pass_program
def explain(program: Program, node: str, path: str, as_json: bool) -> None:
    """Tell which layer NODE's file PATH comes from; nocloud/user-data and the other three documents, too."""
    inspector = _inspector(program)
    answer = inspector.explain(inspector.node(node), path)
    if as_json:
        emit_json(answer)
        return
    for key, value in answer.items():
        if isinstance(value, list):
            say(f"{key}:" if value else f"{key:<10}-")
            for item in value:
                say(f"  {item}")
        elif "\n" in str(value):
            say(f"{key}:")
            say(str(value).rstrip("\n"))
        else:
            shown = {True: "yes", False: "no", "": "-"}.get(value, value) if isinstance(value, str | bool) else value
            say(f"{key:<10}{shown}")


@command.command(short_help="Write a node's cloud-init documents as an ISO.")
@click.argument("node")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="the ISO file to write")
@pass_program
def seed(program: Program, node: str, output: Path) -> None:
    """Write NODE's cloud-init documents as a CIDATA ISO, for a machine that can't read them over the network."""
    inspector = _inspector(program)
    found = inspector.node(node)
    inspector.write_seed(found, output)
    say(f"{output}: the cloud-init documents of {found.name}")


def _inspector(program: Program) -> Inspector:
    from netbootd.service.inspect import Inspector

    return Inspector(program.config, program.layout)


def node_rows(program: Program) -> list[dict[str, Any]]:
    """The nodes as the contract's JSON has them: configured ones in their order, then strangers by name."""
    from netbootd.service.defaults import default_image

    database = program.open_database()
    records = []
    if database is not None:
        try:
            records = database.nodes()
        finally:
            database.close()
    seen = {record.key: record for record in records}
    rows: list[dict[str, Any]] = []
    image = default_image(program.config, program.generations)
    for configured in program.config.nodes:
        node = configured.node(image)
        row: dict[str, Any] = dict.fromkeys(_FIELDS)
        row.update(name=node.name, serial=str(node.serial or ""), mac=str(node.mac or ""), image=node.image)
        record = _latest(seen, node)
        if record is not None:  # its name may be that of the stranger that it was when it was seen
            row.update({key: getattr(record, key) for key in _FIELDS if key != "name" and getattr(record, key)})
        rows.append(row)
    rows += [{key: getattr(record, key) for key in _FIELDS} for record in seen.values()]
    return rows


def _latest(seen: dict[str, NodeRecord], node: Node) -> NodeRecord | None:
    """Take what was last seen of a configured node out of `seen`, under whichever of its identities that was."""
    serial, mac = str(node.serial or ""), str(node.mac or "")
    its = [r for r in seen.values() if (r.serial == serial if r.serial and serial else bool(mac) and r.mac == mac)]
    for record in its:
        del seen[record.key]
    return max(its, key=lambda record: record.last_seen, default=None)
