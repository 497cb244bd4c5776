"""What several commands need: the configuration and the state folder that the shared options name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from netbootd.config.schema import Config
    from netbootd.store.database import Database
    from netbootd.store.generations import Generations
    from netbootd.store.layout import Layout


@dataclass
class Program:
    """The shared options of this call. What they name is read when it is first needed."""

    config_option: Path | None
    state_option: Path | None
    quiet: bool

    @cached_property
    def config(self) -> Config:
        """The configuration.

        :raises ConfigError: with all its faults
        """
        return self.read_config()

    def read_config(self) -> Config:
        """The configuration as the file says now; $NETBOOTD_INTERFACE stands in for a [server] that names no address.

        :raises ConfigError: with all its faults
        """
        from dataclasses import replace

        from netbootd.config.loader import discover, load

        config = load(discover(self.config_option))
        interface = os.environ.get("NETBOOTD_INTERFACE", "")
        if not interface or config.server.interface:
            return config
        return replace(config, server=replace(config.server, interface=interface))

    @cached_property
    def layout(self) -> Layout:
        """Where things lie below the state folder."""
        from netbootd.store.layout import Layout, default_state

        return Layout((self.state_option or default_state()).absolute())

    @property
    def generations(self) -> Generations:
        """The images of the state folder."""
        from netbootd.store.generations import Generations

        return Generations(self.layout)

    def open_database(self) -> Database | None:
        """The database for reading, None where the service never ran."""
        from netbootd.store.database import Database

        return Database(self.layout.database, readonly=True) if self.layout.database.exists() else None


pass_program = click.make_pass_decorator(Program)

json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")
