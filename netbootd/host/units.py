"""The systemd units of a plain host: put where systemd looks for them, enabled, brought up to date, taken away.

What ships in systemd/ names the program as /opt/netbootd/bin/netbootd; what is installed names the one that runs now.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from netbootd import assets
from netbootd.errors import HostError

SHIPPED_PROGRAM = "/opt/netbootd/bin/netbootd"
SYSTEM = Path("/etc")
PORTMAP = "netbootd-portmap.socket"
"""The portmapper is ours with either backend."""
EMBEDDED_NFS = ("netbootd-nfs.socket",)
"""Units of NFS by netbootd's own server; with another backend they would hold its port."""
KERNEL_NFS = ("netbootd-nfs.service",)
"""Units of NFS by the kernel's server."""

_SECONDS = 90
_PLACES = {
    ".service": ("systemd/system", ""),
    ".socket": ("systemd/system", ""),
    ".timer": ("systemd/system", ""),
    ".sysusers.conf": ("sysusers.d", ".conf"),
    ".tmpfiles.conf": ("tmpfiles.d", ".conf"),
}
"""By the ending of a file's name: the folder below /etc, and the ending that it has there ("": the same)."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the configuration; None: no such socket."""

    tftp: int
    http: int
    nfs: int
    portmap: int | None


@dataclass(frozen=True, slots=True)
class Installed:
    """One file below /etc, and whether this call wrote or removed it."""

    path: Path
    changed: bool


class Units:
    """Installs and removes.

    :param root: ``/etc``, or another folder, whose systemd is then not spoken with
    """

    def __init__(self, root: Path = SYSTEM) -> None:
        self._root = root

    # ---------------------------------------------------------------- installing

    def install(self, ports: Ports, backend: str, environment: dict[str, str]) -> list[Installed]:
        """Write the units and what they need, and enable them; they are not started.

        :param backend: of NFS: ``auto``, ``embedded``, ``kernel`` or ``off``
        :param environment: for /etc/default/netbootd, which is written only where it is missing
        :raises HostError: this host has no systemd, or we are not root
        """
        self._check()
        written = [self._write(path, text) for path, text in self._files(ports)]
        defaults = self._root / "default" / "netbootd"
        if environment and not defaults.exists():
            lines = ["# What the units of netbootd are told (systemd.exec(5), EnvironmentFile=)."]
            lines += [f"{name}={value}" for name, value in environment.items()]
            written.append(self._write(defaults, "\n".join(lines) + "\n"))
        wanted = {file.path for file in written}
        written += [self._remove(path) for path in self._ours() if path not in wanted and path != defaults]
        if self._root == SYSTEM:
            self._tell("systemd-sysusers", "/etc/sysusers.d/netbootd.conf")
            self._tell("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/netbootd.conf")
            self._tell("systemctl", "daemon-reload")
            self._reopen([file.path.name for file in written if file.changed and file.path.suffix == ".socket"])
            on, off = enabled(self._names(), backend, ports.portmap is not None)
            if off:
                self._tell("systemctl", "disable", "--quiet", *off, check=False)
            self._tell("systemctl", "enable", "--quiet", *on)
        return written

    def _reopen(self, sockets: Sequence[str]) -> None:
        """Let sockets that listen elsewhere now do so; a service that runs has to let go of them first."""
        if sockets and self._active("netbootd.service"):
            self._tell("systemctl", "stop", "netbootd.service", *sockets)
            self._tell("systemctl", "start", "netbootd.service")

    @staticmethod
    def _active(unit: str) -> bool:
        return (
            subprocess.run(["systemctl", "--quiet", "is-active", unit], timeout=_SECONDS, check=False).returncode == 0
        )

    def _files(self, ports: Ports) -> Iterable[tuple[Path, str]]:
        """Every file, with its text as it is installed."""
        program = program_path()
        for source in self._sources():
            place, ending = next(rule for suffix, rule in _PLACES.items() if source.name.endswith(suffix))
            name = source.name if not ending else source.name.split(".")[0] + ending
            text = source.read_text("utf-8").replace(SHIPPED_PROGRAM, program)
            if ending == "" and source.suffix == ".socket":
                text = with_port(source.name, text, ports)
            yield self._root / place / name, text

    @staticmethod
    def _sources() -> list[Path]:
        return sorted(path for path in assets.find("systemd").iterdir() if path.name.endswith(tuple(_PLACES)))

    def _names(self) -> list[str]:
        return [path.name for path in self._sources() if path.suffix != ".conf"]

    # ---------------------------------------------------------------- removing

    def remove(self) -> list[Installed]:
        """Stop, disable and take away what `install` wrote; the state folder, the user and /etc/default stay.

        :raises HostError: this host has no systemd, or we are not root
        """
        self._check()
        ours = self._ours()
        units = [path.name for path in ours if path.parent.name == "system" and "@" not in path.name]
        if self._root == SYSTEM and units:
            self._tell("systemctl", "disable", "--now", "--quiet", *units, check=False)
        removed = [self._remove(path) for path in ours]
        if self._root == SYSTEM:
            self._tell("systemctl", "daemon-reload")
        return removed

    def _ours(self) -> list[Path]:
        """What is installed: files by the names that we give, also those that only an older version had."""
        found = []
        for place in sorted({place for place, _ in _PLACES.values()}):
            found += sorted((self._root / place).glob("netbootd*"))
        return [path for path in found if path.is_file() and not path.is_symlink()]

    # ---------------------------------------------------------------- doing

    def _check(self) -> None:
        if self._root != SYSTEM:
            return
        if not Path("/run/systemd/system").is_dir():  # sd_booted(3)
            raise HostError(
                "Installing systemd units: systemd does not run this host.",
                hint="Run `netbootd serve` under the service manager that it has.",
            )
        if os.geteuid() != 0:
            raise HostError("Installing systemd units takes root.", hint="Run it with sudo.")

    @staticmethod
    def _write(path: Path, text: str) -> Installed:
        try:
            if path.is_file() and path.read_text("utf-8", "replace") == text:
                return Installed(path, False)
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.new")
            beside.write_text(text, "utf-8")
            beside.chmod(0o644)
            beside.replace(path)
        except OSError as error:
            raise HostError(f"Writing {path}: {error.strerror or error}.", hint="Run it with sudo.") from error
        return Installed(path, True)

    @staticmethod
    def _remove(path: Path) -> Installed:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"Removing {path}: {error.strerror or error}.", hint="Run it with sudo.") from error
        return Installed(path, True)

    @staticmethod
    def _tell(*words: str, check: bool = True) -> None:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostError(f"Running {words[0]}: {error}.") from error
        if check and done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise HostError(f"{' '.join(words[:2])} failed with status {done.returncode}.", details=said[:5])


def enabled(names: Sequence[str], backend: str, portmapper: bool) -> tuple[list[str], list[str]]:
    """The units to enable and those to disable. Templates and timers stay as the operator set them."""
    candidates = [name for name in names if "@" not in name and not name.endswith(".timer")]
    off: set[str] = set()
    if backend not in ("auto", "embedded"):
        off |= set(EMBEDDED_NFS)
    if backend == "off":
        off.add(PORTMAP)
    if backend != "kernel":
        off |= set(KERNEL_NFS)
    if not portmapper:
        off.add(PORTMAP)
    return [name for name in candidates if name not in off], [name for name in candidates if name in off]


def with_port(name: str, text: str, ports: Ports) -> str:
    """A socket unit that listens where the configuration says."""
    port = getattr(ports, name.removeprefix("netbootd-").removesuffix(".socket"), None)
    return text if port is None else re.sub(r"(?m)^(Listen(?:Stream|Datagram)=).*$", rf"\g<1>{port}", text)


def program_path() -> str:
    """The program that runs now, as a unit can start it."""
    beside = Path(sys.executable).with_name("netbootd")  # not resolved: a venv's Python is a link out of it
    if beside.is_file():
        return str(beside)
    return shutil.which("netbootd") or f"{sys.executable} -m netbootd"
