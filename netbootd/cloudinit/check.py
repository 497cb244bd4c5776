"""Checks the cloud-init documents of every node as the node would get them.

Three looks: our own (YAML, merging, what is filled in), the shape of the keys that go wrong most often, and where
cloud-init is installed its own schema (``cloud-init schema --config-file``), version for version the best judge. That
takes half a second, and is asked once for all nodes that have the same folders: what is filled in for each of them can
change a text, not the shape of a document.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from netbootd.cloudinit.merge import JINJA
from netbootd.cloudinit.seed import Seed, SeedBuilder, Settings
from netbootd.cloudinit.tree import fault_lines
from netbootd.errors import ConfigError
from netbootd.model.identity import Serial
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node

_STRANGER = Node("an unknown node", "noble", "pi-00000000", serial=Serial("00000000"))
_SERVER = ServerAddress("192.0.2.1")  # RFC 5737: an address for documentation
_SCHEMA_SECONDS = 60


class NodeSettings(Protocol):
    """What is read of a ``[[node]]``."""

    def node(self, default_image: str) -> Node:
        """The machine that it describes."""


class CheckSettings(Settings, Protocol):
    """What is read of the configuration."""

    @property
    def nodes(self) -> Sequence[NodeSettings]:
        """The nodes of the file."""


def check(settings: CheckSettings) -> list[str]:
    """The faults in the documents of all nodes, one line each, each fault once."""
    builder = SeedBuilder(settings)
    faults: dict[str, list[str]] = {}
    judged: dict[tuple[Path, ...], list[str]] = {}
    for node in (*(node.node("noble") for node in settings.nodes), _STRANGER):
        try:
            seed = builder.build(node, _SERVER)
        except ConfigError as error:
            faults.update((line, []) for line in fault_lines(error))  # they name file and line
            continue
        found = list(_shape_faults(seed))
        if not found:
            if node.cloud_init not in judged:
                judged[node.cloud_init] = list(_schema_faults(seed))
            found = judged[node.cloud_init]
        for fault in found:
            faults.setdefault(fault, []).append(node.name)
    return [f"{_several(names)}: {fault}" if names else fault for fault, names in faults.items()]


def _several(names: list[str]) -> str:
    """``valar-0, valar-1 and 14 more``."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _shape_faults(seed: Seed) -> Iterator[str]:
    for name, data in seed.documents.items():
        if not data.strip() or data.startswith(JINJA.encode()):
            continue
        if name in ("user-data", "vendor-data") and not data.startswith(b"#cloud-config\n"):
            continue
        try:
            values = yaml.safe_load(data)
        except yaml.YAMLError as error:
            yield f"{name}: {' '.join(str(error).split())}"
            continue
        if name == "network-config":
            yield from _network_faults(values)
        elif name != "meta-data":
            yield from (f"{name}: {fault}" for fault in _cloud_config_faults(values))


def _network_faults(values: dict[str, Any]) -> Iterator[str]:
    """The two forms that cloud-init reads, with or without ``network:`` around them."""
    config = values.get("network", values)
    if config in ("disabled", {"config": "disabled"}):
        return
    if not isinstance(config, dict) or config.get("version") not in (1, 2):
        yield "network-config: needs version: 1 or version: 2 (netplan's form)"


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_commands(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, str) or (isinstance(item, list) and all(isinstance(word, str | int | float) for word in item))
        for item in value
        if item is not None
    )


def _is_files(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and str(item.get("path", "")).startswith("/") for item in value
    )


def _is_host_name(value: object) -> bool:
    return isinstance(value, str) and re.match(r"[A-Za-z0-9.-]{1,253}\Z", value) is not None


_SHAPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "bootcmd": (_is_commands, "a list of commands, each a text or a list of words"),
    "runcmd": (_is_commands, "a list of commands, each a text or a list of words"),
    "write_files": (_is_files, "a list of mappings, each with the absolute path of a file"),
    "packages": (_is_list, "a list"),
    "ssh_authorized_keys": (_is_list, "a list"),
    "mounts": (_is_list, "a list"),
    "hostname": (_is_host_name, "a host name"),
    "fqdn": (_is_host_name, "a host name"),
}
"""Keys of cloud-config whose wrong shape makes a module fail on the node."""


def _cloud_config_faults(values: dict[str, Any]) -> Iterator[str]:
    for key, (fits, expected) in _SHAPES.items():
        if key in values and not fits(values[key]):
            yield f"{key}: {expected} is expected"


def _schema_faults(seed: Seed) -> Iterator[str]:
    """What the installed cloud-init finds; Jinja and documents that are not cloud-config are beyond it."""
    program = shutil.which("cloud-init")
    if program is None:
        return
    for name in ("user-data", "vendor-data"):
        data = seed.documents[name]
        if not data.startswith(b"#cloud-config\n"):
            continue
        with tempfile.TemporaryDirectory(prefix="netbootd-") as folder:  # mode 0700: there may be secrets in it
            path = Path(folder, name)
            path.write_bytes(data)
            command = [program, "schema", "--config-file", str(path)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_SCHEMA_SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                yield f"{name}: cloud-init schema could not be asked: {error}"
                continue
        if done.returncode:
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            yield f"{name}: cloud-init schema: {' '.join(said).replace(folder, '')[:500]}"
