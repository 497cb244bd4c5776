"""``netbootd``: the options that all commands share, and the exit statuses of the operator's contract.

Commands are found by name and their modules loaded only when called, so that ``--help`` stays quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from netbootd import __version__
from netbootd.cli.output import explain_error
from netbootd.errors import NetbootdError

COMMANDS = {
    "prepare": "Build the images that nodes boot: download, verify, read, export, patch, publish.",
    "serve": "Run the TFTP, HTTP and NFS servers in the foreground.",
    "status": "Show the nodes, how far each has come, and what is wrong.",
    "nodes": "List and explain nodes; write a seed ISO for one.",
    "images": "List generations of images; activate, roll back, prune.",
    "events": "Show boot events, oldest first.",
    "config": "Check and show netbootd.toml.",
}
"""Every command with its one-line help; the module of the same name in this package has the command itself."""

INTERRUPTED = 130


class LazyGroup(click.Group):
    """Knows its commands' names and one-line help, and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the story."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"netbootd.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for ``--help``, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    envvar="NETBOOTD_CONFIG",
    help="netbootd.toml  [./netbootd.toml, else /etc/netbootd/netbootd.toml, else built-in defaults]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="NETBOOTD_STATE",
    help="state folder  [/var/lib/netbootd as root, else $XDG_STATE_HOME/netbootd]",
)
@click.option("-v", "--verbose", count=True, help="say more; may be repeated")
@click.option("-q", "--quiet", is_flag=True, help="say only what is wrong")
@click.option("--log-format", type=click.Choice(["auto", "text", "json", "journal"]), default="auto", show_default=True)
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
    except BrokenPipeError:  # the reader of our output has gone, as in `netbootd events | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
