"""``netbootd nodes``: what is configured and known of each node, and where its files come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.output import emit_json, say, table, when

if TYPE_CHECKING:
    from netbootd.service.inspect import Inspector

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


@command.command()
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
    say(table(files, [("path", "FILE"), ("origin", "LAYER"), ("size", "BYTES"), ("detail", "FROM")]))


@command.command()
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
            say(f"{key}:")
            for item in value:
                say(f"  {item}")
        elif "\n" in str(value):
            say(f"{key}:")
            say(str(value).rstrip("\n"))
        else:
            say(f"{key:<10}{value}")


@command.command()
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
    seen = {record.name: record for record in records}
    rows: list[dict[str, Any]] = []
    image = default_image(program.config, program.generations)
    for configured in program.config.nodes:
        node = configured.node(image)
        row: dict[str, Any] = dict.fromkeys(_FIELDS)
        row.update(name=node.name, serial=str(node.serial or ""), mac=str(node.mac or ""), image=node.image)
        record = seen.pop(node.name, None)
        if record is not None:
            row.update({key: getattr(record, key) for key in _FIELDS if getattr(record, key)})
        rows.append(row)
    rows += [{key: getattr(record, key) for key in _FIELDS} for record in seen.values()]
    return rows
