"""``netbootd config``: the configuration checked, and as it takes effect; secrets for its documents."""

from __future__ import annotations

from pathlib import Path

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.output import emit_json, note, say


@click.group()
def command() -> None:
    """Check and show netbootd.toml; make secrets for its documents."""


@command.command(short_help="Tell every fault of netbootd.toml and cloud-init.")
@json_option
@pass_program
def check(program: Program, as_json: bool) -> None:
    """Check netbootd.toml and every cloud-init document that it names; all faults are told at once."""
    from netbootd.cloudinit.check import check as check_documents
    from netbootd.config.loader import discover, warnings
    from netbootd.errors import ConfigError

    faults: tuple[str, ...]
    notes: list[str] = []
    try:
        config = program.config
        notes = warnings(config)
        faults = tuple(check_documents(config))
        where = str(config.path or "the built-in defaults")
        message = f"The cloud-init documents of {where} are faulty."
    except ConfigError as error:
        faults, message = error.details or (error.message,), error.message
        where = str(discover(program.config_option) or "the built-in defaults")
    if as_json:
        emit_json({"config": where, "faults": list(faults), "warnings": notes})
        if faults:
            raise click.exceptions.Exit(ConfigError.exit_status)
        return
    for text in notes:
        note(f"warning: {text}")
    if faults:
        raise ConfigError(message, details=() if faults == (message,) else faults)
    say(f"{where}: no faults.")


@command.command()
@json_option
@pass_program
def show(program: Program, as_json: bool) -> None:
    """Show the effective values, defaults included."""
    from netbootd.config.show import as_dict, as_toml

    if as_json:
        emit_json(as_dict(program.config))
    else:
        say(as_toml(program.config).rstrip("\n"))


@command.command(short_help="Make files of random characters, for ${file:…}.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
@pass_program
def secret(program: Program, files: tuple[Path, ...], as_json: bool) -> None:
    """Make each of FILES a secret for ${file:FILE}: 64 random hex digits that only the file's owner can read.

    Relative to netbootd.toml, as in documents. A file that is there stays as it is.
    """
    from netbootd.cloudinit.minting import mint
    from netbootd.config.loader import discover

    config = discover(program.config_option)
    base = config.absolute().parent if config else Path.cwd()
    made = [(base / file.expanduser(), mint(base / file.expanduser())) for file in files]
    if as_json:
        emit_json({"secrets": [{"path": str(path), "changed": new} for path, new in made]})
        return
    for path, new in made:
        say(f"{path}: made." if new else f"{path}: is there already, and stays as it is.")
