"""``netbootd doctor``: what is wrong with this host and what to do about it; the systemd units of a plain host."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.output import emit_json, say
from netbootd.errors import HostError, UsageError

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("error", "red")}


@click.command()
@click.option("--install-units", is_flag=True, help="install and enable the systemd units (root)")
@click.option("--remove-units", is_flag=True, help="stop them and take them away (root)")
@json_option
@pass_program
def command(program: Program, install_units: bool, remove_units: bool, as_json: bool) -> None:
    """Look at this host: configuration, ports, privileges, NFS, addresses, images, room, clock; each with a remedy.

    Ends with status 4 where something is wrong. --install-units makes netbootd a service of this host, by the program
    and the configuration that are in use now; it is started with: systemctl start netbootd
    """
    if install_units and remove_units:
        raise UsageError("--install-units and --remove-units contradict each other.")
    if install_units or remove_units:
        _units(program, install_units, as_json)
        return
    from netbootd.service.doctor import examine

    findings = examine(program.read_config, program.layout)
    wrong = [finding for finding in findings if finding.level == "error"]
    if as_json:
        emit_json({"ok": not wrong, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            word, colour = _MARKS[finding.level]
            click.echo(f"{click.style(f'{word:8}', fg=colour)}{finding.check}: {finding.message}")
            if finding.remedy:
                click.echo(f"        {finding.remedy}")
    if wrong:
        raise click.exceptions.Exit(HostError.exit_status)


def _units(program: Program, install: bool, as_json: bool) -> None:
    from netbootd.host.kernel import has_nfs_server
    from netbootd.host.units import Ports, Units

    if install:
        config = program.config
        ports = Ports(config.tftp.port, config.http.port, config.nfs.port, config.nfs.portmap_port)
        backend = config.nfs.backend
        if backend == "auto" and has_nfs_server():
            backend = "kernel"
        files = Units().install(ports, backend, _environment(program))
    else:
        files = Units().remove()
    changed = any(file.changed for file in files)
    if as_json:
        rows = [{"path": str(file.path), "changed": file.changed} for file in files]
        emit_json({"units": rows, "changed": changed})
        return
    for file in files:
        if file.changed:
            say(f"{'wrote' if file.path.exists() else 'removed'} {file.path}")
    if not changed:
        say("All as it was.")
    elif install:
        say("Start them with: systemctl restart netbootd")


def _environment(program: Program) -> dict[str, str]:
    """What makes the services see the configuration and the state folder as this call does, ``~`` included."""
    path = program.config.path
    home = os.environ.get("HOME", "")
    if os.environ.get("SUDO_USER"):
        home = str(Path(f"~{os.environ['SUDO_USER']}").expanduser())
    found = {"NETBOOTD_CONFIG": str(path)} if path else {}
    return found | ({"HOME": home} if path and home else {})
