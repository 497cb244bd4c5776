"""A node: one machine that boots from us."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from netbootd.model.identity import MacAddress, Serial


@dataclass(frozen=True, slots=True)
class Node:
    """A machine as the configuration (or, for a stranger, the defaults) has it.

    `configured` is False for a machine that netbootd.toml does not list. `cloud_init` and `boot_files` are the
    node's own folders, in the order in which they are laid over the defaults'.
    """

    name: str
    image: str
    hostname: str
    serial: Serial | None = None
    mac: MacAddress | None = None
    address: str = ""
    configured: bool = False
    cloud_init: tuple[Path, ...] = ()
    boot_files: tuple[Path, ...] = ()
    cmdline_append: str = ""

    @property
    def key(self) -> str:
        """What this machine is filed under: its serial, else its MAC with dashes, else its address, else its name."""
        if self.serial is not None:
            return str(self.serial)
        if self.mac is not None:
            return self.mac.dashed
        return self.address or self.name

    @property
    def id(self) -> str:
        """The ``<id>`` of URLs and TFTP folders: serial, else MAC with dashes, else empty."""
        if self.serial is not None:
            return str(self.serial)
        return self.mac.dashed if self.mac is not None else ""
