"""``netbootd serve``: the servers in the foreground."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import click

from netbootd.cli.common import Program, pass_program

PORT = click.IntRange(0, 65535)


def address(text: str) -> str:
    """An option's IP address."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not an IP address.") from None


def port_or_off(text: str) -> int | str:
    """An option's port number, or ``off``."""
    if text == "off":
        return text
    if not text.isdigit() or int(text) > 65535:
        raise click.BadParameter(f"{text!r} is neither a port number nor off.")
    return int(text)


def port_range(text: str) -> tuple[int, int]:
    """An option's range of ports, ``5000-5100``."""
    low, dash, high = text.partition("-")
    if not (dash and low.isdigit() and high.isdigit() and 1 <= int(low) <= int(high) <= 65535):
        raise click.BadParameter(f"{text!r} is no range of ports such as 5000-5100.")
    return int(low), int(high)


@click.command()
@click.option(
    "--bind", "binds", type=address, metavar="ADDR", multiple=True, help="listen here only; repeatable  [every address]"
)
@click.option("--advertise", type=address, metavar="ADDR", help="the address to tell nodes  [the one that they asked]")
@click.option("--tftp-port", type=PORT, metavar="PORT", help="TFTP's port; 0 is any free one, here and below  [69]")
@click.option("--http-port", type=PORT, metavar="PORT", help="HTTP's port  [80]")
@click.option(
    "--nfs",
    type=click.Choice(["auto", "kernel", "embedded", "off"]),
    help="who serves NFS  [auto: the kernel where netbootd-nfs.service runs, else netbootd itself]",
)
@click.option("--nfs-port", type=PORT, metavar="PORT", help="NFS's port  [2049]")
@click.option(
    "--mount-port",
    type=PORT,
    metavar="PORT",
    help="another port for NFS's MOUNT protocol  [the NFS port; with the kernel 20048]",
)
@click.option("--portmap-port", type=port_or_off, metavar="PORT|off", help="the portmapper's port; off: none  [111]")
@click.option(
    "--boot-files",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="a folder laid over the defaults' boot_files; repeatable",
)
@click.option("--tftp-single-port", is_flag=True, help="send TFTP data from the server's port, for firewalls")
@click.option("--tftp-data-ports", type=port_range, metavar="A-B", help="send TFTP data from these ports  [any]")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON with every address and port, written when all is open",
)
@pass_program
def command(program: Program, /, **values: Any) -> None:
    """Run the TFTP, HTTP and NFS servers in the foreground until SIGTERM or SIGINT.

    Open transfers then get [server] drain_seconds; a second signal ends at once. Works without any configuration and
    without any image prepared.
    """
    from netbootd.cli import loops
    from netbootd.service.supervisor import ServeOptions, Service

    options = ServeOptions(
        binds=values["binds"],
        advertise=values["advertise"] or "",
        tftp_port=values["tftp_port"],
        http_port=values["http_port"],
        nfs=values["nfs"],
        nfs_port=values["nfs_port"],
        mount_port=values["mount_port"],
        portmap_port=values["portmap_port"],
        boot_files=tuple(path.absolute() for path in values["boot_files"]),
        single_port=values["tftp_single_port"],
        data_ports=values["tftp_data_ports"],
        ready_file=values["ready_file"].absolute() if values["ready_file"] else None,
    )
    service = Service(program.config, program.layout, options, program.read_config)
    loops.run(service.run)
