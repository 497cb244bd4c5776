"""The command line of Multipass, typed: each call a method, its JSON read into values, its failures recognised.

Written to Multipass 1.16 (canonical/multipass): options in src/client/cli/cmd/*.cpp, JSON in
src/client/cli/formatter/json_formatter.cpp.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from netbootd.errors import HostError, NetbootdError
from netbootd.model.identity import MacAddress
from netbootd.vm.failures import recognised
from netbootd.vm.workstation import System

_QUICK = 120.0
_STOP = 300.0
_GRACE = 60.0
_MAX_SAID = 1 << 20


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """A network of the workstation that can be bridged; `kind`: ``ethernet``, ``wifi``, ``bridge``, ``switch``."""

    name: str
    kind: str
    description: str

    @property
    def reaches_the_lan(self) -> bool:
        """Whether nodes can be on it: not a switch or bridge within this computer."""
        said = self.description.lower()
        inside = ("internal networking", "private virtual switch", "empty network bridge")
        return not any(word in said for word in inside) and not self.name.startswith(_VIRTUAL_BRIDGES)


_VIRTUAL_BRIDGES = ("docker", "br-", "lxdbr", "lxcbr", "virbr", "mpbr", "mpqemubr", "incusbr", "podman", "cni", "vmnet")


@dataclass(frozen=True, slots=True)
class Instance:
    """One virtual machine. `state` in Multipass's words: Running, Stopped, Suspended, Deleted, Starting, Unknown …"""

    name: str
    state: str
    addresses: tuple[str, ...]
    release: str


@dataclass(frozen=True, slots=True)
class Launch:
    """What a new virtual machine is made of. Its bridged card is left to us (mode=manual): netplan's file says how."""

    name: str
    release: str
    cpus: int
    memory: str
    disk: str
    network: str
    mac: MacAddress
    cloud_init: str
    timeout: int = 1800

    def words(self) -> list[str]:
        """The command line."""
        return [
            *("launch", self.release, "--name", self.name, "--cpus", str(self.cpus)),
            *("--memory", self.memory, "--disk", self.disk),
            *("--network", f"name={self.network},mode=manual,mac={self.mac}"),
            *("--cloud-init", self.cloud_init, "--timeout", str(self.timeout)),
        ]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command within the virtual machine ended."""

    status: int
    output: str
    errors: str


class Multipass:
    """Calls the multipass program.

    :param program: its path
    :param system: what it runs on, for remedies
    """

    def __init__(self, program: str, system: System) -> None:
        self._program = program
        self._system = system

    # ---------------------------------------------------------------- asking

    def versions(self) -> tuple[str, str]:
        """The versions of the program and of its daemon; the second is "" where the daemon does not answer."""
        told = self._json("Asking Multipass for its version", ["version", "--format", "json"])
        return str(told.get("multipass", "")), str(told.get("multipassd", ""))

    def networks(self) -> tuple[HostNetwork, ...]:
        """The networks of this computer that a virtual machine can be bridged to."""
        told = self._json("Asking Multipass for the networks of this computer", ["networks", "--format", "json"])
        rows = told.get("list", [])
        return tuple(HostNetwork(str(row["name"]), str(row["type"]), str(row["description"])) for row in rows)

    def instance(self, name: str) -> Instance | None:
        """The virtual machine of that name, None where there is none."""
        told = self._json("Asking Multipass for its virtual machines", ["list", "--format", "json"])
        for row in told.get("list", []):
            if row["name"] == name:
                return Instance(name, str(row["state"]), tuple(row["ipv4"]), str(row["release"]))
        return None

    def setting(self, key: str) -> str:
        """A setting such as ``local.driver``; "" where it can't be had."""
        done = self._call(["get", key], timeout=_QUICK)
        return done.output.strip() if done.status == 0 else ""

    # ---------------------------------------------------------------- changing

    def launch(self, launch: Launch, *, terminal: bool) -> None:
        """Make a virtual machine and wait until its first boot is done.

        :param terminal: let Multipass speak with the person at it: it asks before it makes a bridge
        """
        doing = f"Launching the virtual machine {launch.name}"
        self._expect(doing, launch.words(), timeout=launch.timeout + _GRACE, terminal=terminal)

    def start(self, name: str) -> None:
        """Start it, or wait until it has started."""
        self._expect(f"Starting the virtual machine {name}", ["start", name, "--timeout", "600"], timeout=600 + _GRACE)

    def stop(self, name: str) -> None:
        """Shut it down."""
        self._expect(f"Stopping the virtual machine {name}", ["stop", name], timeout=_STOP)

    def delete(self, name: str) -> None:
        """Remove it for good."""
        self._expect(f"Deleting the virtual machine {name}", ["delete", "--purge", name], timeout=_STOP)

    def shell(self, name: str) -> int:
        """A shell for the person at the terminal; its exit status."""
        return self._live(["shell", name])

    def follow(self, name: str, command: Sequence[str]) -> int:
        """Run a command that writes to our own output; its exit status."""
        return self._live(["exec", "--no-map-working-directory", name, "--", *command])

    def put(self, name: str, text: str, path: str) -> None:
        """Write text (ASCII, since Windows pipes may translate line ends) to a file in the virtual machine."""
        words = ["transfer", "-", f"{name}:{path}"]
        self._expect(f"Copying to the virtual machine {name}", words, timeout=_STOP, stdin=text)

    # ---------------------------------------------------------------- within it

    def run(
        self, name: str, command: Sequence[str], *, timeout: float = _QUICK, progress: IO[str] | None = None
    ) -> Done:
        """Run a command in the virtual machine.

        :param progress: where what it writes to stderr goes while it runs
        :raises HostError: Multipass could not run it
        """
        words = ["exec", "--no-map-working-directory", name, "--", *command]
        done = self._call(words, timeout=timeout, progress=progress)
        # a command's own status can be any; Multipass's failure begins with its command's name (client_common.cpp)
        if done.status and done.errors.startswith(("exec failed:", "info failed:")):
            raise recognised(f"Running a command in the virtual machine {name}", done.status, done.errors, self._system)
        return done

    # ---------------------------------------------------------------- calling

    def _json(self, doing: str, words: Sequence[str]) -> dict[str, Any]:
        done = self._expect(doing, words, timeout=_QUICK)
        start = done.output.find("{")
        try:
            told = json.loads(done.output[start:]) if start >= 0 else None
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise HostError(
                f"{doing}: its answer is not JSON.", hint="Update Multipass.", details=done.output.splitlines()[:5]
            )
        return told

    def _expect(
        self, doing: str, words: Sequence[str], *, timeout: float, stdin: str = "", terminal: bool = False
    ) -> Done:
        done = self._call(words, timeout=timeout, stdin=stdin, terminal=terminal)
        if done.status:
            raise recognised(doing, done.status, done.errors or done.output, self._system)
        return done

    def _call(
        self,
        words: Sequence[str],
        *,
        timeout: float,
        stdin: str = "",
        terminal: bool = False,
        progress: IO[str] | None = None,
    ) -> Done:
        """Run multipass to its end. With `terminal` it has ours, all but stderr, which is shown and kept."""
        try:
            process = subprocess.Popen(
                [self._program, *words],
                stdin=None if terminal else subprocess.PIPE,
                stdout=None if terminal else subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise self._unusable(error) from error
        try:
            with process:
                if not terminal and progress is None:
                    output, errors = process.communicate(stdin, timeout=timeout)
                    return Done(process.returncode, output, errors)
                return _watched(process, sys.stderr if progress is None else progress, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise HostError(
                f"multipass {words[0]} did not end within {timeout:.0f} seconds.",
                hint="Look whether `multipass list` answers; restarting its daemon often helps.",
            ) from None

    def _live(self, words: Sequence[str]) -> int:
        try:
            return subprocess.call([self._program, *words])
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> NetbootdError:
        return HostError(f"Running {self._program}: {error.strerror or error}.", hint="Install Multipass again.")


def _watched(process: subprocess.Popen[str], progress: IO[str], timeout: float) -> Done:
    """Pass on what a process says to stderr while it runs, and gather both streams."""
    import threading

    said: list[str] = []
    printed: list[str] = []
    killer = threading.Timer(timeout, process.kill)
    killer.daemon = True
    killer.start()
    if process.stdin:
        process.stdin.close()
        process.stdin = None
    reader: threading.Thread | None = None
    if (stdout := process.stdout) is not None:
        reader = threading.Thread(target=lambda: printed.extend(stdout), daemon=True)
        reader.start()
    assert process.stderr is not None
    for line in process.stderr:
        if sum(map(len, said)) < _MAX_SAID:
            said.append(line)
        progress.write(line)
        progress.flush()
    status = process.wait()
    if reader:
        reader.join()
    if not killer.is_alive():
        raise subprocess.TimeoutExpired(process.args, timeout)
    killer.cancel()
    return Done(status, "".join(printed), "".join(said))
