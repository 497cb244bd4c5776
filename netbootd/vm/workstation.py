"""The computer that `netbootd vm` runs on: which system, whose home, where Multipass lies, and what tells it apart."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from netbootd.errors import HostError
from netbootd.model.identity import MacAddress

System = Literal["linux", "macos", "windows"]

ENVIRONMENT = "NETBOOTD_MULTIPASS"
"""Names the multipass program where it lies elsewhere."""

_ELSEWHERE = {
    "linux": ("/snap/bin/multipass",),
    "macos": ("/usr/local/bin/multipass", "/Library/Application Support/com.canonical.multipass/bin/multipass"),
    "windows": ("C:\\Program Files\\Multipass\\bin\\multipass.exe",),
}
"""Where the installers put it, for a shell that was opened before (docs/how-to-guides/install-multipass.md)."""

_HOW_TO_GET = {
    "linux": "Install it with: sudo snap install multipass",
    "macos": "Install it with: brew install --cask multipass, or from https://canonical.com/multipass/download/macos",
    "windows": "Install it with: winget install Canonical.Multipass, or from "
    "https://canonical.com/multipass/download/windows; it needs Hyper-V (Windows Pro) or VirtualBox",
}

_ZONE = re.compile(r"zoneinfo[^/]*/(?:posix/|right/)?(.+)\Z")


@dataclass(frozen=True, slots=True)
class Workstation:
    """What the rest of this package needs to know of it.

    :param machine: the processor as Python calls it: ``x86_64``, ``AMD64``, ``arm64``, ``aarch64``
    :param terminal: whether a person can be asked
    """

    system: System
    machine: str
    home: Path
    terminal: bool

    @classmethod
    def this(cls, *, terminal: bool | None = None) -> Workstation:
        """The computer that we run on."""
        systems: dict[str, System] = {"darwin": "macos", "win32": "windows"}
        asked = sys.stdin.isatty() and sys.stdout.isatty() if terminal is None else terminal
        return cls(systems.get(sys.platform, "linux"), platform.machine(), Path.home(), asked)

    def multipass(self) -> str:
        """The path of the multipass program.

        :raises HostError: it is not installed; the hint says how to get it here
        """
        named = os.environ.get(ENVIRONMENT)
        found = named or shutil.which("multipass")
        found = found or next((path for path in _ELSEWHERE[self.system] if Path(path).exists()), None)
        if found is None:
            raise HostError(
                "Looking for Multipass, which runs the virtual machine: it is not installed here.",
                hint=f"{_HOW_TO_GET[self.system]}; then run the command again.",
            )
        return found


def time_zone() -> str:
    """This computer's time zone by its IANA name; "" where only Multipass can tell (it gives the VM its own idea)."""
    named = os.environ.get("TZ", "").lstrip(":")
    if re.fullmatch(r"[A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+", named):
        return named
    try:
        match = _ZONE.search(Path("/etc/localtime").readlink().as_posix())
    except (OSError, NotImplementedError):
        return ""
    return match[1] if match else ""


def derived_mac(name: str, identity: str) -> MacAddress:
    """A MAC address for the VM's bridged card: the same whenever this workstation makes a VM of this name.

    Below 52:54:00, as QEMU and Multipass choose theirs (src/utils/utils.cpp, generate_mac_address).
    """
    digest = hashlib.sha256(f"netbootd-vm\0{identity}\0{name}".encode()).digest()
    return MacAddress.parse("52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3]))


def identity() -> str:
    """What tells this installation of an operating system from every other; the host name where it keeps none."""
    for read in (_linux_identity, _windows_identity, _macos_identity):
        try:
            if found := read():
                return found
        except (OSError, ImportError, subprocess.SubprocessError):
            continue
    return f"{platform.node()} {uuid.getnode():012x}"


def _linux_identity() -> str:
    return Path("/etc/machine-id").read_text().strip()  # machine-id(5)


def _windows_identity() -> str:
    import winreg

    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, "SOFTWARE\\Microsoft\\Cryptography") as key:  # type: ignore[attr-defined,unused-ignore]
        return str(winreg.QueryValueEx(key, "MachineGuid")[0])  # type: ignore[attr-defined,unused-ignore]


def _macos_identity() -> str:
    command = ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    match = re.search(r'"IOPlatformUUID" = "([^"]+)"', said)
    return match[1] if match else ""
