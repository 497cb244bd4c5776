"""A rack on the lab's wire: an ordinary router, netbootd, a collector of reports, and boards that are switched on.

A board boots as a Pi does: the player of its boot ROM asks DHCP and fetches over TFTP, then a machine starts on just
the files and the command line that came.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.collector import Collector, Report
from tests.support.machine import Machine, Payload
from tests.support.netbootd import Netbootd
from tests.support.netlab import SERVER, Lab, Router
from tests.support.processes import Argument, read_text, run, wait_until


@dataclass(frozen=True, slots=True)
class Board:
    """A Raspberry Pi 4. `name`: at most 12 letters; `serial`: 16 hex digits."""

    name: str
    serial: str
    mac: str

    @property
    def id(self) -> str:
        """The folder that its boot ROM asks for, and its serial as the product prints it."""
        return self.serial[-8:]


@dataclass(frozen=True, slots=True)
class Download:
    """What a board's boot ROM and firmware fetched: `summary` is that of tests.support.pi_boot."""

    board: Board
    summary: dict[str, Any]

    @property
    def cmdline(self) -> list[str]:
        """The arguments of the kernel, as served."""
        words: str = self.summary["cmdline"]
        return words.split()

    @property
    def address(self) -> str:
        """The address that DHCP gave to the boot ROM."""
        address: str = self.summary["dhcp"]["address"]
        return address

    @property
    def payload(self) -> Payload:
        initramfs = self.summary.get("initramfs")
        return Payload(Path(self.summary["kernel"]), Path(initramfs) if initramfs else None, self.summary["cmdline"])


class Rack:
    """A context manager: leaving it ends everything and removes the namespaces.

    :param config: the text of netbootd.toml
    :param arch: of the machines, x86_64 or aarch64
    """

    def __init__(self, folder: Path, config: str, *, arch: str, lease: str = "1h", tftp_server: str = SERVER) -> None:
        self.arch = arch
        self.lab = Lab(folder)
        try:
            self.router = Router(self.lab, lease=lease, tftp_server=tftp_server)
            self.collector = Collector(self.lab)
            self.netbootd = Netbootd(self.lab, folder / "state", config)
        except BaseException:
            self.lab.close()
            raise
        self._clients: dict[Board, str] = {}
        self._boots: Counter[Board] = Counter()

    def download(self, board: Board, *, prefix: str = "serial") -> Download:
        """Switch a board on and let it fetch all that it boots from. `prefix`: its EEPROM's TFTP_PREFIX."""
        self._plug_in(board)
        return self._fetch(board, prefix)

    def download_all(self, boards: Sequence[Board]) -> list[Download]:
        """Switch boards on at the same time."""
        for board in boards:
            self._plug_in(board)
        with ThreadPoolExecutor(len(boards)) as pool:
            return list(pool.map(self._fetch, boards))

    def _plug_in(self, board: Board) -> None:
        if board not in self._clients:
            self._clients[board] = self.lab.client(board.name)
        self._boots[board] += 1

    def _fetch(self, board: Board, prefix: str = "serial") -> Download:
        out = self.lab.folder / f"{board.name}-{self._boots[board]}"
        argv: list[Argument] = [sys.executable, "-m", "tests.support.pi_boot", out, "--dhcp", "br0", "--prefix", prefix]
        player = [*argv, "--serial", board.serial, "--mac", board.mac]
        self.lab.set_client_mac(self._clients[board], board.mac)
        done = run(player, namespace=self._clients[board], check=False, timeout=180)
        self.lab.set_client_mac(self._clients[board], "")  # it is the virtual machine's now
        summary = json.loads(read_text(out / "summary.json") or "{}")
        if done.returncode != 0:
            said = f"{done.stdout}{done.stderr}\n{self.netbootd.log()[-4000:]}"
            raise AssertionError(f"{board.name} found nothing to boot:\n{said}")
        return Download(board, summary)

    def start(self, download: Download, *, memory: int = 768, arch: str = "") -> Machine:
        """Jump to the kernel that a board has fetched. `arch`: where the board isn't one of the rack's."""
        board = download.board
        name = f"{board.name}-{self._boots[board]}"
        namespace = self._clients[board]
        return Machine(
            self.lab, namespace, name, download.payload, arch=arch or self.arch, mac=board.mac, memory=memory
        )

    def reports(self, machine: Machine, name: str, count: int, *, timeout: float) -> list[Report]:
        """Wait until a running machine has sent `count` reports under `name` since the collector began."""

        def enough() -> list[Report]:
            if trouble := machine.trouble():
                raise AssertionError(f"{machine.name}: {trouble}\n{machine.story()}")
            machine.milestones()
            reports = self.collector.reports(name)
            return reports if len(reports) >= count else []

        what = f"report {count} of {name}"
        return wait_until(enough, what, timeout=timeout, explain=machine.story, alive=[machine.program])

    def __enter__(self) -> Rack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lab.close()
