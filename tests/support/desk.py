"""A workstation with `netbootd vm` on the lab's wire, and the virtual machine that it brings up there as the server.

Debian stands in for Ubuntu, QEMU for Multipass. Two images are served: one that the virtual machine prepares itself,
whose nodes are mini clients, and one of a whole distribution, prepared outside and put there as a disk, for time.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netbootd.config.loader import load
from netbootd.vm.lifecycle import NETBOOTD, Lifecycle, Talk
from netbootd.vm.multipass import Done
from netbootd.vm.workstation import Workstation
from tests.support.collector import URL
from tests.support.image_cache import DiskImage, full_image, mini_image
from tests.support.lab_report import write_report
from tests.support.netlab import ROUTER
from tests.support.processes import REPOSITORY, run, wait_until
from tests.support.qemu_multipass import QemuMultipass
from tests.support.rack import Board, Rack
from tests.support.server_image import ext4, server_image, wheels

ADDRESS = "192.0.2.10"
"""Of the virtual machine's bridged card."""

PAYLOAD = "var/lib/random.bin"
"""A file of some megabytes in the mini clients' root, which they read."""

NODE = Board("node", "10000000a1b2c3e1", "dc:a6:32:00:02:01")
HELD = tuple(Board(f"held-{number}", f"10000000a1b2c3e{number}", f"dc:a6:32:00:02:0{number}") for number in (2, 3, 4))
"""Boards that wait with a file open until the collector's gate is opened for them."""

WHOLE = tuple(Board(f"whole-{number}", f"10000000a1b2c3d{number}", f"dc:a6:32:00:01:0{number}") for number in (1, 2))
"""Boards whose root is the whole distribution."""

VM = "netbootd"
_FULL = "full"
_CONFIG = f"""
[defaults]
image = "noble"
ssh_authorized_keys = ["~/.ssh/id_ed25519.pub"]
cloud_init = ["cloud-init/base", "cloud-init/overlays/netboot", "report"]

[[image]]
name = "noble"
source = "http://{ROUTER}:8000/IMAGE"
sha256 = "DIGEST"
cmdline_append = "lab.read={PAYLOAD} lab.report={URL}/report"

[vm]
name = "{VM}"
address = "{ADDRESS}/24"

[[node]]
name = "valar-0"
serial = "{NODE.serial}"
"""
_HELD = """
[[node]]
name = "NAME"
serial = "SERIAL"
cmdline_append = "lab.gate=URL/gate"
"""
_WHOLE_IMAGE = """
[[image]]
name = "full"
source = "/elsewhere/full.img"
"""
_WHOLE = """
[[node]]
name = "NAME"
serial = "SERIAL"
mac = "BOARD"
image = "full"
"""


@dataclass(frozen=True, slots=True)
class Desk:
    """The rack's wire, and a workstation on it. Whatever is asked of the virtual machine, it has to be up."""

    rack: Rack
    multipass: QemuMultipass
    workstation: Workstation
    image: DiskImage
    config: Path

    @property
    def lifecycle(self) -> Lifecycle:
        """`netbootd vm` with the configuration as it is now."""
        began = time.monotonic()
        said = Talk(lambda text: print(f"[after {time.monotonic() - began:.0f} s] {text}"), None)
        return Lifecycle(load(self.config), self.workstation, self.multipass, said)

    def ask(self, script: str, *, timeout: float = 240) -> Done:
        """What a shell script that root runs there ends with and prints."""
        return self.multipass.run(VM, ["sudo", "sh", "-c", script], timeout=timeout)

    def run(self, script: str, *, timeout: float = 240) -> str:
        """What a shell script that root runs there prints, and it has to succeed."""
        done = self.ask(script, timeout=timeout)
        assert done.status == 0, f"{script}: status {done.status}\n{done.output}{done.errors}\n{self.story()}"
        return done.output.strip()

    def netbootd(self, words: str) -> str:
        """What ``netbootd WORDS`` prints there; its status is told by what it prints (doctor's findings)."""
        return self.ask(f"{NETBOOTD} {words}").output.strip()

    def put(self, path: Path, place: str) -> None:
        """Copy a file into the folder `place` there."""
        self.multipass.put(VM, path.read_text(), f"/tmp/{path.name}")
        self.run(f"mkdir -p {place}; cp /tmp/{path.name} {place}/")

    def add_the_whole(self) -> None:
        """Put the image of a whole distribution and the boards of it there, as if it had been prepared there."""
        text = _WHOLE_IMAGE
        for board in WHOLE:
            text += _WHOLE.replace("NAME", board.name).replace("SERIAL", board.serial).replace("BOARD", board.mac)
        self.multipass.put(VM, text, "/tmp/whole.toml")
        place = f"/var/lib/netbootd/images/{_FULL}"
        self.run(f"mkdir -p {place} && mount -o ro LABEL={_FULL} {place}")
        self.run("cat /tmp/whole.toml >> /srv/netbootd/site/netbootd.toml && systemctl reload netbootd")

    def stages(self, name: str) -> list[str]:
        """The stage of each node of that name."""
        return [node["stage"] for node in json.loads(self.netbootd("status --json"))["nodes"] if node["name"] == name]

    def pids(self, *units: str) -> list[str]:
        """The main processes of units."""
        return self.run(f"systemctl show --property=MainPID --value {' '.join(units)}").split()

    def wait_until_active(self, *units: str, timeout: float = 180) -> None:
        """Wait for units to be up."""

        def active() -> bool:
            return self.ask(f"systemctl is-active {' '.join(units)}").output.split() == ["active"] * len(units)

        wait_until(active, "the units", timeout=timeout, explain=self.story)

    def root_of(self, image: str) -> str:
        """The root of an image's current generation there."""
        place = f"/var/lib/netbootd/images/{image}"
        return f"{place}/{self.run(f'readlink {place}/current')}/root"

    def story(self) -> str:
        """For a failed test: what the service has logged, and the end of the console."""
        logged = self.ask("journalctl --no-pager --output=cat --unit=netbootd --unit=netbootd-nfs --lines=60")
        return f"{logged.output}\n{self.multipass.story()}"

    def check_digest(self, board: Board, count: int) -> None:
        """The board's report number `count` shows its root's bytes as the image has them."""
        report = self.rack.collector.reports(board.mac)[count - 1]
        assert report.field("NFS") == "mounted"
        assert f"nfsroot={ADDRESS}:" in report.field("CMDLINE")
        assert report.field("DIGEST") == self.image.root_file(PAYLOAD)["sha256"]

    def check_boot(self) -> None:
        """Boot the node once: its root's bytes are the image's, and the server saw it reach the last stage."""
        reports = len(self.rack.collector.reports(NODE.mac))
        machine = self.rack.start(self.rack.download(NODE), memory=512)
        report = self.rack.reports(machine, NODE.mac, reports + 1, timeout=240)[-1]
        machine.stop()
        self.check_digest(NODE, reports + 1)
        assert "META local-hostname: valar-0" in report.body, report.body
        wait_until(lambda: self.stages("valar-0") == ["ready"], "the node's last stage", timeout=60)


@contextmanager
def desk(home: Path) -> Iterator[Desk]:
    """The workstation, with a clone of netbootd and no virtual machine yet."""
    image = mini_image()
    clone = home / "rack"
    clone.mkdir()
    (clone / "cloud-init").symlink_to(REPOSITORY / "cloud-init")
    write_report(clone / "report")
    (home / ".ssh").mkdir()
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", home / ".ssh" / "id_ed25519"])
    digest = hashlib.sha256(image.path.read_bytes()).hexdigest()
    config = _CONFIG.replace("IMAGE", image.path.name).replace("DIGEST", digest)
    for number, board in enumerate(HELD, 1):
        config += _HELD.replace("NAME", f"valar-{number}").replace("SERIAL", board.serial).replace("URL", URL)
    (clone / "netbootd.toml").write_text(config)
    with pytest.MonkeyPatch.context() as patch, Rack(home / "lab", "", arch="aarch64", tftp_server=ADDRESS) as rack:
        patch.setenv("HOME", str(home))
        lab = rack.lab
        mirror = [sys.executable, "-m", "http.server", "--bind", ROUTER, "--directory", image.path.parent, "8000"]
        lab.start(lab.router, mirror, "mirror")
        whole = _disk_of_the_whole(rack, home)
        multipass = QemuMultipass(lab, lab.client("desk"), server_image(), [wheels(), whole])
        workstation = Workstation("linux", "x86_64", home, terminal=False)
        yield Desk(rack, multipass, workstation, image, clone / "netbootd.toml")


def _disk_of_the_whole(rack: Rack, folder: Path) -> Path:
    """The disk ``full``: what ``netbootd prepare`` makes of the full image."""
    rack.netbootd.command("prepare", "--source", full_image().path, "--name", _FULL, "--advertise", ADDRESS)
    disk = folder / "full.img"
    ext4(rack.netbootd.state / "images" / _FULL, disk, _FULL, "2G")
    return disk
