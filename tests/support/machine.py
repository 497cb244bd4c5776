"""A virtual machine of a test: QEMU without KVM (TCG), started on a kernel and an initramfs, console to a file.

``-cx16``: QEMU 7.2's TCG gets cmpxchg16b wrong, and Linux 6.12 dies of it. One CPU and one thread are the steadiest.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.netlab import Lab
from tests.support.processes import Argument, read_text

_MACHINES = {
    "x86_64": (("qemu-system-x86_64", "-M", "q35", "-cpu", "Nehalem,-cx16"), "ttyS0"),
    "aarch64": (("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72"), "ttyAMA0"),
}
_MILESTONES = {
    "kernel": r"Linux version|Booting (?:the kernel|Linux)|\[    0\.0",
    "initramfs mounts the root": r"nfs-premount|Begin: Mounting root|nfsmount",
    "overlayroot": r"overlayroot: configuring",
    "systemd": r"systemd\[1\]|Welcome to",
    "cloud-init": r"Cloud-init v\. \S+ running 'init'",
    "login prompt": r" login:",
}
_TROUBLE = re.compile(r"Kernel panic[^\n]*|\(initramfs\)|Unable to mount root[^\n]*|end Kernel panic")


@dataclass(frozen=True, slots=True)
class Payload:
    """What a boot ROM hands to the kernel: the files as served, and the command line as served."""

    kernel: Path
    initramfs: Path | None
    cmdline: str


class Machine:
    """One run of a machine, from power on to `stop`. It ends with the lab at the latest."""

    def __init__(
        self,
        lab: Lab,
        namespace: str,
        name: str,
        payload: Payload,
        *,
        arch: str,
        mac: str,
        memory: int = 768,
        disk: Path | None = None,
    ) -> None:
        """Switch it on, with its network card on ``tap0`` of `namespace`. `memory` in MiB; `disk` is a raw image."""
        self.name = name
        self.console = lab.folder / f"{name}.console"
        self.console.unlink(missing_ok=True)
        self._milestones: dict[str, float] = {}
        qemu, console = _MACHINES[arch]
        argv: list[Argument] = [*qemu, "-accel", "tcg,thread=single", "-smp", "1", "-m", str(memory)]
        argv += ["-nodefaults", "-display", "none", "-no-reboot", "-device", "virtio-rng-pci"]
        argv += ["-serial", f"file:{self.console}"]
        argv += ["-netdev", "tap,ifname=tap0,script=no,downscript=no,id=n0"]
        argv += ["-device", f"virtio-net-pci,netdev=n0,mac={mac},romfile="]
        if disk:
            argv += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
        argv += ["-kernel", payload.kernel, "-append", f"{payload.cmdline} console={console} panic=-1"]
        if payload.initramfs:
            argv += ["-initrd", payload.initramfs]
        self._start = time.monotonic()
        self.program = lab.start(namespace, argv, f"{name}.qemu")

    def trouble(self) -> str:
        """What the console shows of a boot that can't go on; "" while all is well."""
        match = _TROUBLE.search(read_text(self.console))
        return match[0] if match else ""

    def milestones(self) -> dict[str, float]:
        """Seconds since power on at which each milestone was first noticed (by calling this)."""
        text = read_text(self.console)
        for name, pattern in _MILESTONES.items():
            if name not in self._milestones and re.search(pattern, text):
                self._milestones[name] = round(time.monotonic() - self._start, 1)
        return self._milestones

    def uptime(self) -> float:
        """Seconds since power on."""
        return time.monotonic() - self._start

    def stop(self) -> None:
        """Pull the plug."""
        self.program.kill()

    def story(self) -> str:
        """For a failed test: how far it came, and the end of its console."""
        return (
            f"--- {self.name}: {self.milestones()}, {self.uptime():.0f} s after power on; the end of its console:\n"
            f"{read_text(self.console)[-6000:]}\n{self.program.output()[-2000:]}"
        )
