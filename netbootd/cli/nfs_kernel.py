"""``netbootd nfs-kernel``: the privileged part of serving NFS by the kernel, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from netbootd.cli.common import Program, pass_program


@click.command()
@click.option(
    "--socket",
    type=click.Path(path_type=Path, dir_okay=False),
    help="where to take requests  [/run/netbootd-nfs/socket]",
)
@click.option("--user", default="netbootd", show_default=True, help="the user that may ask, besides root")
@pass_program
def command(program: Program, /, socket: Path | None, user: str) -> None:
    """Run the privileged part of serving NFS by the kernel's server, until SIGTERM.

    It starts and stops that server, exports the generations of the state folder, and gives file handles to netbootd
    serve, which needs no rights. netbootd-nfs.service runs it; it takes root.
    """
    from netbootd.nfsd.kernel.client import SOCKET
    from netbootd.service.kernelnfs import PrivilegedService

    PrivilegedService(program.read_config, program.layout, socket or SOCKET, user).run()
