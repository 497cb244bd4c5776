"""``netbootd vm``: the Multipass virtual machine that serves the network for a workstation that can't."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.output import emit_json, note, say, table

if TYPE_CHECKING:
    from netbootd.vm.lifecycle import Lifecycle
    from netbootd.vm.multipass import HostNetwork


@click.group()
def command() -> None:
    """The Multipass virtual machine, from any workstation (Windows, macOS, Linux).

    Sizes, name, network and address are in [vm] of netbootd.toml.
    """


@command.command(short_help="Make it, or bring it up to date.")
@click.option("--rebuild", is_flag=True, help="delete it first, with the images in it")
@click.option("--dry-run", is_flag=True, help="say what would be done, and do nothing")
@json_option
@pass_program
def up(program: Program, rebuild: bool, dry_run: bool, as_json: bool) -> None:
    """Make the virtual machine, or bring it to what netbootd.toml says.

    May be run again and again: it goes on where it stopped, updates, and restarts only what changed.
    """
    report = _lifecycle(program, ask=not as_json).up(rebuild=rebuild, dry_run=dry_run)
    if as_json:
        emit_json(dataclasses.asdict(report))
        return
    if dry_run:
        say(report.cloud_init.rstrip("\n") if report.cloud_init else "Nothing was done.")
        return
    what = ", ".join(report.changed) if report.changed else "nothing had to be"
    say(f"{report.name} serves at {report.address}. Done: {what}.")
    for line in report.next:
        say(f"  {line}")


@command.command(short_help="Shut it down.")
@pass_program
def down(program: Program) -> None:
    """Shut the virtual machine down; nodes that booted from it lose their root."""
    stopped = _lifecycle(program).down()
    say(f"{program.config.vm.name} is stopped." if stopped else f"{program.config.vm.name} was stopped already.")


@command.command(short_help="Show how it is, with its own doctor and status.")
@json_option
@pass_program
def status(program: Program, as_json: bool) -> None:
    """Show the virtual machine: its state, units and address, what its doctor finds, and the nodes."""
    told = _lifecycle(program).status()
    if as_json:
        emit_json(told)
        return
    where = f", serves at {told['address']}" if told["address"] else ""
    say(f"{told['name']}: {told['state']}{where}")
    for unit, state in told["units"].items():
        say(f"  {unit}: {state}")
    for finding in told["doctor"]:
        if finding.get("level") != "ok":
            say(f"  {finding.get('level')}: {finding.get('message')} {finding.get('remedy', '')}".rstrip())
    if told["nodes"]:
        columns = [("name", "NODE"), ("address", "ADDRESS"), ("stage", "STAGE"), ("outcome", "OUTCOME")]
        say(table(told["nodes"], columns))


@command.command(short_help="Open a shell in it.")
@pass_program
def shell(program: Program) -> None:
    """Open a shell in the virtual machine; `sudo netbootd` there is the program that serves."""
    raise click.exceptions.Exit(_lifecycle(program).shell())


@command.command(short_help="Show its log.")
@click.option("-f", "--follow", is_flag=True, help="go on until interrupted")
@click.option("-n", "--lines", type=click.IntRange(1), default=100, show_default=True, help="so many, the latest")
@pass_program
def logs(program: Program, follow: bool, lines: int) -> None:
    """Show what the services in the virtual machine have logged."""
    raise click.exceptions.Exit(_lifecycle(program).logs(lines, follow))


@command.command(short_help="Delete it, with the images in it.")
@click.option("--yes", is_flag=True, help="do not ask")
@pass_program
def delete(program: Program, yes: bool) -> None:
    """Delete the virtual machine for good, with the images and the boot events in it."""
    lifecycle = _lifecycle(program)
    if not yes and lifecycle.terminal:
        click.confirm(f"Delete {program.config.vm.name} with its images?", abort=True, err=True)
    lifecycle.delete()
    say(f"{program.config.vm.name} is gone.")


def _lifecycle(program: Program, *, ask: bool = True) -> Lifecycle:
    from netbootd.vm.lifecycle import Lifecycle, Talk
    from netbootd.vm.multipass import Multipass
    from netbootd.vm.workstation import Workstation

    workstation = Workstation.this(terminal=None if ask else False)
    multipass = Multipass(workstation.multipass(), workstation.system)
    quiet = program.quiet
    talk = Talk((lambda text: None) if quiet else note, _choose if workstation.terminal else None)
    return Lifecycle(program.config, workstation, multipass, talk)


def _choose(networks: Sequence[HostNetwork]) -> str:
    """Ask the person at the terminal."""
    note("Nodes are on one of these networks:")
    for number, network in enumerate(networks, 1):
        note(f"  {number}  {network.name} ({network.kind}: {network.description})")
    chosen: int = click.prompt("Which", type=click.IntRange(1, len(networks)), default=1, err=True)
    note(f'[vm] network = "{networks[chosen - 1].name}" in netbootd.toml spares this question.')
    return networks[chosen - 1].name
