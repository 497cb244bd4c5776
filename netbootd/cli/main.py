"""``netbootd``: the options that all commands share, and the exit statuses of the operator's contract.

Commands are found by name and their modules loaded only when called, so that ``--help`` stays quick.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from netbootd import __version__
from netbootd.cli.output import explain_error
from netbootd.errors import HostError, NetbootdError

COMMANDS = {
    "prepare": "Build the images that nodes boot: download, verify, read, export, patch, publish.",
    "serve": "Run the TFTP, HTTP and NFS servers in the foreground.",
    "status": "Show the nodes, how far each has come, and what is wrong.",
    "nodes": "List and explain nodes; write a seed ISO for one.",
    "images": "List generations of images; activate, roll back, prune.",
    "events": "Show boot events, oldest first.",
    "config": "Check and show netbootd.toml; make secrets for its documents.",
    "doctor": "Look at this host: ports, privileges, addresses, room, clock; install the systemd units.",
    "nfs-kernel": "The privileged part of serving NFS by the kernel; a systemd unit runs it.",
    "vm": "The Multipass virtual machine that serves the network, from any workstation.",
}
"""Every command with its one-line help; the module of the same name in this package has the command itself."""

ANYWHERE = ("vm", "config")
"""The commands that a workstation of any kind has a use for; the others serve, which takes Linux."""

INTERRUPTED = 130
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class LazyGroup(click.Group):
    """Knows its commands' names and one-line help, and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the story."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"netbootd.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and write out what it printed, so that a full disk or a reader that has gone shows here."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # as in `netbootd events | head`
            _drop_output()
            raise click.exceptions.Exit(0) from None
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for ``--help``, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-c",
    "--config",
    # readable: what access(2) says counts no capability, by which the service reads root's files; the loader tells
    type=click.Path(path_type=Path, readable=False),
    envvar="NETBOOTD_CONFIG",
    help="the configuration  [./netbootd.toml, else /etc/netbootd/netbootd.toml, else built-in defaults]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    envvar="NETBOOTD_STATE",
    help="state folder  [/var/lib/netbootd as root, else $XDG_STATE_HOME/netbootd]",
)
@click.option("-v", "--verbose", count=True, help="say more: debug; may be repeated")
@click.option("-q", "--quiet", is_flag=True, help="say only what is wrong")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json", "journal"]),
    default="auto",
    help="how the log is written  [auto: to the journal under systemd, else as text]",
)
@click.version_option(__version__, prog_name="netbootd")
@click.pass_context
def cli(
    ctx: click.Context, config: Path | None, state: Path | None, verbose: int, quiet: bool, log_format: str
) -> None:
    """Boot diskless Raspberry Pis over the network, configured by cloud-init.

    netbootd prepare builds what they boot, netbootd serve serves it, netbootd status tells how far they came.
    """
    from netbootd.cli.common import Program
    from netbootd.logs import setup

    if quiet and verbose:
        raise click.UsageError("-v and -q contradict each other.")
    system: str = sys.platform
    if system != "linux" and ctx.invoked_subcommand not in ANYWHERE:
        raise HostError(
            f"netbootd {ctx.invoked_subcommand} takes Linux, which this computer ({system}) does not run.",
            hint="netbootd vm up makes a virtual machine that does it all.",
        )
    setup(log_format, -1 if quiet else verbose)
    ctx.obj = Program(config, state, quiet)


def main(argv: list[str] | None = None) -> Any:
    """Run the command line and exit with the contract's status."""
    try:
        status = cli.main(args=argv, prog_name="netbootd", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except NetbootdError as error:
        explain_error(error.message, error.details, error.hint)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        _drop_output()
        explain_error(f"Writing the output: {error.strerror}.", (), "Free some room, or write it elsewhere.")
        sys.exit(HostError.exit_status)


def _drop_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter's own flush at the end has nothing to say."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
