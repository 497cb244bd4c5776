"""Taking in a changed configuration while serving: what is checked first, and what only a restart can change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from netbootd.cloudinit.check import check
from netbootd.config.schema import Config
from netbootd.errors import ConfigError


def reread(read: Callable[[], Config]) -> Config:
    """The configuration as the file says now, with cloud-init documents that every node can have.

    :raises ConfigError: the file or a document is faulty; all faults
    """
    config = read()
    faults = check(config)
    if faults:
        raise ConfigError(f"The cloud-init documents of {config.path or 'the defaults'} are faulty.", details=faults)
    return config


def needs_restart(old: Config, new: Config) -> list[str]:
    """The keys that differ and that are decided once, when the sockets are opened: ``[tftp] port`` and so on."""
    found = []
    for table in ("tftp", "http", "nfs", "dhcp"):
        before, after = getattr(old, table), getattr(new, table)
        found += [
            f"[{table}] {field.name}"
            for field in dataclasses.fields(before)
            if getattr(before, field.name) != getattr(after, field.name) and (table, field.name) not in _AT_ONCE
        ]
    return found


_AT_ONCE = {("http", "seed_tokens")}
