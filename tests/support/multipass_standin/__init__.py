"""A stand-in of the ``multipass`` command line: its options, JSON, errors and states, kept in a folder between calls.

Written to canonical/multipass 9b0af2ec (1.16, 2026-08); each answer names the file of it that it was taken from. What
is within a virtual machine is a folder, where real shell commands run beside stand-ins of systemctl, netplan and
netbootd.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]

LINUX_NETWORKS = [
    {"name": "eth0", "type": "ethernet", "description": "Ethernet device", "needs_authorization": True},
    {"name": "mpqemubr0", "type": "bridge", "description": "Network bridge for Multipass"},
]
"""src/platform/platform_linux.cpp: get_network; an ethernet device needs a bridge first."""
BRIDGED_LINUX_NETWORKS = [
    {"name": "br0", "type": "bridge", "description": "Network bridge with eth0"},
    {"name": "lxdbr0", "type": "bridge", "description": "Network bridge"},
]
MACOS_NETWORKS = [
    {"name": "bridge0", "type": "bridge", "description": "Empty network bridge"},
    {"name": "en0", "type": "wifi", "description": "Wi-Fi"},
    {"name": "en7", "type": "ethernet", "description": "USB 10/100/1000 LAN"},
]
"""docs/reference/command-line-interface/networks.md."""
WINDOWS_NETWORKS = [
    {"name": "Default Switch", "type": "switch", "description": "Virtual Switch with internal networking"},
    {
        "name": "Intel(R) Ethernet Switch",
        "type": "switch",
        "description": 'Virtual Switch with external networking via "Ethernet"',
    },
    {"name": "PrivSwitch", "type": "switch", "description": "Private virtual switch"},
]
"""docs/reference/command-line-interface/networks.md and hyperv_virtual_machine_factory.cpp: switch_description."""


class Standin:
    """One installation of Multipass, with everything that it remembers below `folder`."""

    def __init__(self, folder: Path, networks: list[dict[str, Any]], **settings: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.program = folder / "multipass"
        package = Path(__file__).parent
        self.program.write_text(
            f"#!/bin/sh\nMULTIPASS_STANDIN='{folder}' exec '{sys.executable}' -E -s -S '{package}/client.py' \"$@\"\n"
        )
        self.program.chmod(0o755)
        self.write(
            {
                "daemon": True,
                "networks": networks,
                "settings": {"local.driver": "qemu", "local.privileged-mounts": "true", **settings},
                "instances": {},
                "faults": {},
                "guest": {},
                "calls": [],
            }
        )

    def read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    def write(self, state: dict[str, Any]) -> None:
        (self.folder / "state.json").write_text(json.dumps(state))

    def change(self, **values: Any) -> None:
        """Set what the daemon knows, such as ``daemon=False`` or ``faults={"launch": "kvm"}``."""
        self.write({**self.read(), **values})

    def calls(self) -> list[list[str]]:
        """The words of every call so far."""
        found: list[list[str]] = self.read()["calls"]
        return found

    def guest(self, name: str) -> Path:
        """The root folder of a virtual machine."""
        return self.folder / "guests" / name

    def journal(self, name: str) -> list[str]:
        """What systemctl, netplan, pip and netbootd were asked in a virtual machine."""
        try:
            return (self.guest(name) / "journal").read_text().splitlines()
        except FileNotFoundError:
            return []
