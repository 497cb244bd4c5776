"""``netbootd vm up`` on a real machine: cloud-init, systemd, units active, and diskless clients that boot from it.

Debian trixie stands in for Ubuntu; QEMU for Multipass. The clients are the mini client: a real arm64 kernel that mounts
its root, reads it, fetches its seed and phones home.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netbootd.config.loader import load
from netbootd.vm.lifecycle import NETBOOTD, UNITS, Lifecycle, Talk
from netbootd.vm.workstation import Workstation
from tests.support.collector import URL
from tests.support.image_cache import DiskImage, mini_image
from tests.support.netlab import ROUTER
from tests.support.processes import REPOSITORY, wait_until
from tests.support.qemu_multipass import NAT_MAC, QemuMultipass
from tests.support.rack import Board, Rack
from tests.support.server_image import server_image, wheels

pytestmark = pytest.mark.timeout(1500)

ADDRESS = "192.0.2.10"
VM = "netbootd"
NODE = Board("node", "10000000a1b2c3e1", "dc:a6:32:00:02:01")
READER = Board("reader", "10000000a1b2c3e2", "dc:a6:32:00:02:02")
PAYLOAD = "var/lib/random.bin"
CONFIG = f"""
[defaults]
image = "noble"
ssh_authorized_keys = ["~/.ssh/id_ed25519.pub"]
cloud_init = ["cloud-init/base", "cloud-init/overlays/netboot"]

[[image]]
name = "noble"
source = "http://{ROUTER}:8000/IMAGE"
sha256 = "DIGEST"
cmdline_append = "lab.read={PAYLOAD} lab.report={URL}/report"

[[node]]
name = "valar-0"
serial = "{NODE.serial}"

[[node]]
name = "valar-1"
serial = "{READER.serial}"
cmdline_append = "lab.gate={URL}/gate"

[vm]
name = "{VM}"
address = "{ADDRESS}/24"
"""
# takes a block, says so, waits for a file, then takes the rest; prints how much it was
SLOW_TFTP = """
import sys, time, pathlib
from tests.conformance.test_serve import Transfer
transfer = Transfer((sys.argv[1], 69), sys.argv[2])
transfer.socket.settimeout(20)
print("WAITING", flush=True)
while not pathlib.Path(sys.argv[3]).exists():
    time.sleep(0.5)
    transfer.acknowledge(); transfer._take(transfer._number + 1)
print(len(transfer.finish()), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Desk:
    """The rack's wire, and a workstation on it with `netbootd vm`."""

    rack: Rack
    multipass: QemuMultipass
    lifecycle: Lifecycle
    image: DiskImage
    workstation: Workstation
    config: Path

    def reread(self) -> Lifecycle:
        """With the configuration as it is now."""
        return Lifecycle(load(self.config), self.workstation, self.multipass, Talk(print, None))

    def stages(self, name: str) -> list[str]:
        nodes = json.loads(self.within("sudo", NETBOOTD, "status", "--json"))["nodes"]
        return [node["stage"] for node in nodes if node["name"] == name]

    def log(self) -> str:
        return self.within("sudo", "journalctl", "--no-pager", "--output=cat", "--unit=netbootd", "--lines=40")

    def within(self, *command: str) -> str:
        return self.multipass.run(VM, command).output.strip()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    image = mini_image()
    home = tmp_path_factory.mktemp("home")
    clone = home / "rack"
    clone.mkdir()
    (clone / "cloud-init").symlink_to(REPOSITORY / "cloud-init")
    digest = hashlib.sha256(image.path.read_bytes()).hexdigest()
    (clone / "netbootd.toml").write_text(CONFIG.replace("IMAGE", image.path.name).replace("DIGEST", digest))
    with pytest.MonkeyPatch.context() as patch, Rack(home / "lab", "", arch="aarch64", tftp_server=ADDRESS) as rack:
        patch.setenv("HOME", str(home))
        lab = rack.lab
        mirror = [sys.executable, "-m", "http.server", "--bind", ROUTER, "--directory", image.path.parent, "8000"]
        lab.start(lab.router, mirror, "mirror")
        multipass = QemuMultipass(lab, lab.client("desk"), server_image(), wheels())
        workstation = Workstation("linux", "x86_64", home, terminal=False)
        began = time.monotonic()
        said = Talk(lambda text: print(f"[after {time.monotonic() - began:.0f} s] {text}"), None)
        config = clone / "netbootd.toml"
        lifecycle = Lifecycle(load(config), workstation, multipass, said)
        yield Desk(rack, multipass, lifecycle, image, workstation, config)


def check_boot(desk: Desk) -> None:
    """Boot the node once: its root's bytes are the image's, and it reached every stage by the machine's own account."""
    reports = len(desk.rack.collector.reports(NODE.mac))
    machine = desk.rack.start(desk.rack.download(NODE), memory=512)
    report = desk.rack.reports(machine, NODE.mac, reports + 1, timeout=240)[-1]
    machine.stop()
    assert report.field("NFS") == "mounted"
    assert report.field("DIGEST") == desk.image.root_file(PAYLOAD)["sha256"]
    assert f"nfsroot={ADDRESS}:" in report.field("CMDLINE")
    assert "META local-hostname: valar-0" in report.body, report.body
    wait_until(lambda: desk.stages("valar-0") == ["ready"], "the node's last stage", timeout=60)


def test_a_fresh_machine_serves_and_a_client_boots(desk: Desk) -> None:
    report = desk.lifecycle.up()
    assert report.address == ADDRESS
    assert report.changed == ("created", "code", "site", "environment", "units", "images")
    status = desk.lifecycle.status()
    assert status["units"] == dict.fromkeys(UNITS, "active")
    assert [finding for finding in status["doctor"] if finding["level"] == "error"] == []
    assert desk.within("ps", "-o", "user=", "-C", "netbootd") in ("netbootd", "")
    owner = desk.within(
        "sudo", "stat", "-c", "%U", "/var/lib/netbootd", "/var/lib/netbootd/images", "/var/lib/netbootd/db"
    )
    assert owner.split() == ["root", "root", "netbootd"]
    assert NAT_MAC not in desk.within("cat", "/etc/netbootd-vm", "/etc/default/netbootd")
    print(desk.within("systemd-analyze", "security", "--no-pager", "netbootd.service").splitlines()[-1])
    check_boot(desk)


def test_a_second_run_changes_nothing(desk: Desk) -> None:
    pid = desk.within("systemctl", "show", "--property=MainPID", "netbootd.service")
    assert desk.lifecycle.up().changed == ()
    assert desk.within("systemctl", "show", "--property=MainPID", "netbootd.service") == pid


def test_a_changed_configuration_is_a_reload(desk: Desk) -> None:
    pid = desk.within("systemctl", "show", "--property=MainPID", "netbootd.service")
    text = desk.config.read_text()
    desk.config.write_text(text.replace('name = "valar-1"', 'name = "valar-1"\nhostname = "renamed"'))
    assert desk.reread().up().changed == ("site",)
    assert desk.within("systemctl", "show", "--property=MainPID", "netbootd.service") == pid
    url = f"http://{ADDRESS}/nocloud/{READER.id}/meta-data"
    ask = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=20).read().decode())"
    wait_until(lambda: "renamed" in desk.within("python3", "-c", ask), "the new name", timeout=60, explain=desk.log)
    desk.within("sudo", "sh", "-c", "echo '[tfpt]' >> /srv/netbootd/site/netbootd.toml; systemctl reload netbootd")
    wait_until(lambda: "stays as it was" in desk.log(), "the refusal", timeout=60, explain=desk.log)
    assert "renamed" in desk.within("python3", "-c", ask)
    desk.within("sudo", "sh", "-c", "sed -i '$d' /srv/netbootd/site/netbootd.toml; systemctl reload netbootd")


def test_a_restart_in_the_middle_of_transfers_goes_unnoticed(desk: Desk, tmp_path: Path) -> None:
    lab = desk.rack.lab
    machine = desk.rack.start(desk.rack.download(READER), memory=512)
    assert desk.rack.reports(machine, READER.mac, 1, timeout=240)[-1].body == "WAITING\n"
    host = lab.host("tftp", "192.0.2.20")
    gate = tmp_path / "gate"
    argv = [sys.executable, "-c", SLOW_TFTP, ADDRESS, f"/{READER.id}/initrd.img", gate]
    slow = lab.start(host, argv, "slow-tftp")
    wait_until(lambda: "WAITING" in slow.output(), "the first block", timeout=60, alive=[slow])
    before = desk.within("systemctl", "show", "--property=MainPID", "netbootd.service")
    desk.within("sudo", "systemctl", "--no-block", "restart", "netbootd.service")
    time.sleep(2)
    gate.touch()
    assert slow.wait(120) == 0, slow.output()
    assert int(slow.output().split()[-1]) > 100_000
    wait_until(lambda: desk.within("systemctl", "is-active", "netbootd.service") == "active", "restart", timeout=90)
    assert desk.within("systemctl", "show", "--property=MainPID", "netbootd.service") != before
    desk.rack.collector.open_gate(READER.mac)
    report = desk.rack.reports(machine, READER.mac, 2, timeout=240)[-1]
    machine.stop()
    assert report.field("DIGEST") == desk.image.root_file(PAYLOAD)["sha256"]


def test_a_hang_is_ended_by_the_watchdog(desk: Desk) -> None:
    drop_in = "/run/systemd/system/netbootd.service.d"
    script = (
        f"mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=8\\n' > {drop_in}/quick.conf; systemctl daemon-reload"
    )
    desk.within("sudo", "sh", "-c", f"{script}; systemctl restart netbootd.service")
    show = ("systemctl", "show", "--value", "--property=NRestarts", "netbootd.service")
    assert desk.within(*show) == "0"
    desk.within("sudo", "systemctl", "kill", "--kill-whom=main", "--signal=STOP", "netbootd.service")
    wait_until(lambda: desk.within(*show) == "1", "the watchdog", timeout=60)
    wait_until(lambda: desk.within("systemctl", "is-active", "netbootd.service") == "active", "service", timeout=30)
    desk.within("sudo", "rm", "-r", drop_in)


def test_after_a_reboot_everything_is_back(desk: Desk) -> None:
    desk.multipass.reboot(VM)
    wait_until(
        lambda: desk.within("systemctl", "is-active", *UNITS).split() == ["active"] * len(UNITS), "units", timeout=180
    )
    check_boot(desk)
