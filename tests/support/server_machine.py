"""A server in a virtual machine on the lab's wire: installed, spoken to over SSH, restarted with the disk it has."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from tests.support.debian_server import ADDRESS, ServerImage
from tests.support.netlab import Lab
from tests.support.processes import Argument, Program, in_namespace, read_text, run, wait_until

_CPU = ("qemu-system-x86_64", "-M", "q35", "-cpu", "Nehalem,-cx16", "-accel", "tcg,thread=multi", "-smp", "2")
_MAC = "52:54:00:00:00:0a"
_BOOT_SECONDS = 240.0


class ServerMachine:
    """From power on to the lab's end.

    :param disks: file systems that the machine mounts by their labels; they are written to
    """

    def __init__(self, lab: Lab, image: ServerImage, disks: list[Path]) -> None:
        self._lab, self._image = lab, image
        self._namespace = lab.client("server-vm")
        disk = lab.folder / "server.img"
        run(["cp", "--sparse=always", "--reflink=auto", image.disk, disk])
        self._console = lab.folder / "server-vm.console"
        argv: list[Argument] = [*_CPU, "-m", "1024", "-nodefaults", "-display", "none", "-device", "virtio-rng-pci"]
        argv += ["-serial", f"file:{self._console}", "-kernel", image.kernel, "-initrd", image.initramfs]
        argv += ["-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 net.ifnames=0 panic=-1"]
        for path in (disk, *disks):
            argv += ["-drive", f"file={path},format=raw,if=virtio,cache=unsafe"]
        argv += ["-netdev", "tap,ifname=tap0,script=no,downscript=no,id=n0"]
        argv += ["-device", f"virtio-net-pci,netdev=n0,mac={_MAC},romfile="]
        self._program: Program = lab.start(self._namespace, argv, "server-vm.qemu")
        self._up("")

    def run(self, command: str, *, timeout: float = 240, check: bool = True) -> str:
        """What a shell command prints there, as root."""
        done = self._ssh(command, timeout)
        if check and done.returncode:
            raise AssertionError(f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}\n{self.story()}")
        return done.stdout

    def put(self, text: str, path: str) -> None:
        """Write a file there."""
        done = self._ssh(f"mkdir -p {shlex.quote(str(Path(path).parent))}; cat > {shlex.quote(path)}", 60, text)
        assert done.returncode == 0, done.stderr

    def reboot(self) -> None:
        """Restart it from within, and wait until it answers again."""
        before = self.run("cat /proc/sys/kernel/random/boot_id").strip()
        self.run("systemctl reboot", check=False)
        self._up(before)

    def _up(self, before: str) -> None:
        def again() -> bool:
            try:
                said = self._ssh("cat /proc/sys/kernel/random/boot_id", 20).stdout.strip()
            except subprocess.TimeoutExpired:
                return False
            return said not in ("", before)

        wait_until(again, "the server's SSH", timeout=_BOOT_SECONDS, explain=self.story, alive=[self._program])

    def _ssh(self, command: str, timeout: float, stdin: str = "") -> subprocess.CompletedProcess[str]:
        words = ["ssh", "-q", "-i", str(self._image.key), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
        words += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", f"root@{ADDRESS}", command]
        argv = in_namespace(self._lab.server, words)
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, errors="replace")

    def story(self) -> str:
        """For a failed test."""
        return f"{read_text(self._console)[-3000:]}\n{self._program.output()[-1000:]}"
