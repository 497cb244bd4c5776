"""The product as a test uses it: its command line, and ``netbootd serve`` in the lab's server namespace."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.netlab import SERVER, Lab
from tests.support.processes import Argument, Program, read_text, run, wait_until

_SETTLE = 1.0  # seconds: the service writes what it saw in batches, a quarter of a second after the first of them

NETBOOTD = (sys.executable, "-m", "netbootd")


class Netbootd:
    """One state folder and one configuration.

    :param config: the text of netbootd.toml
    """

    def __init__(self, lab: Lab, state: Path, config: str) -> None:
        self.state = state
        self._lab = lab
        self._config = lab.folder / "netbootd.toml"
        self._config.write_text(config)
        self._ready = lab.folder / "ready.json"
        self._starts = 0
        self.program: Program | None = None

    def command(self, *words: Argument, timeout: float = 600) -> str:
        """Run ``netbootd WORDS`` in the server's namespace; its standard output."""
        return run(self._argv(words), namespace=self._lab.server, timeout=timeout).stdout

    def serve(self, *options: Argument) -> None:
        """Start ``netbootd serve`` on the standard ports and wait until everything is open."""
        self._ready.unlink(missing_ok=True)
        self._starts += 1
        argv = self._argv(["serve", "--bind", SERVER, "--ready-file", self._ready, *options])
        self.program = program = self._lab.start(self._lab.server, argv, f"netbootd-serve-{self._starts}")
        wait_until(self._ready.exists, "ready file of netbootd serve", timeout=60, alive=[program])

    def ready(self) -> dict[str, Any]:
        """What the ready file says."""
        ready: dict[str, Any] = json.loads(self._ready.read_text())
        return ready

    def kill(self) -> None:
        """End the server as a power cut would."""
        assert self.program is not None
        self.program.kill()

    def status(self) -> dict[str, dict[str, Any]]:
        """The nodes of ``netbootd status --json``, by serial (by name, where there is none)."""
        time.sleep(_SETTLE)
        nodes = json.loads(self.command("status", "--json"))["nodes"]
        return {node["serial"] or node["name"]: node for node in nodes}

    def events(self, *options: Argument) -> list[dict[str, Any]]:
        """``netbootd events --json``, oldest first."""
        time.sleep(_SETTLE)
        return [json.loads(line) for line in self.command("events", "--json", *options).splitlines()]

    def stages(self, node: str, *, after: int = 0) -> list[str]:
        """The stages that a node reached by events that follow the first `after` ones, each once, in order."""
        reached = [event["stage"] for event in self.events()[after:] if event["node"] == node and event["stage"]]
        return list(dict.fromkeys(reached))

    def log(self) -> str:
        """What all runs of the server have logged."""
        return "".join(read_text(path) for path in sorted(self._lab.folder.glob("netbootd-serve-*.log")))

    def _argv(self, words: Sequence[Argument]) -> list[Argument]:
        return [*NETBOOTD, "-c", self._config, "--state", self.state, *words]
