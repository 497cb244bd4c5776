"""A card image boots: a whole distribution from a virtual card, with the node's cloud-init out of its FAT partition.

Nothing of ours runs meanwhile. The image is Debian in Ubuntu's layout; as in Ubuntu's own images a file in its root
tells cloud-init to look at the partition labelled ``system-boot``. The virtual machine stands in for the board's
firmware: it starts the kernel, initramfs and command line that lie in that partition.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collector import URL, Collector, Report
from tests.support.image_cache import DiskImage, full_image
from tests.support.machine import Machine, Payload
from tests.support.netbootd import Netbootd
from tests.support.netlab import SERVER, Lab, Router
from tests.support.processes import REPOSITORY, run, wait_until

pytestmark = pytest.mark.timeout(600)

MAC = "dc:a6:32:00:0c:a2"
CARD = 3 << 30  # bytes of the card that the image is written to

CONFIG = """
[defaults]
user = "admin"
ssh_authorized_keys = ["key.pub"]
cloud_init = ["REPOSITORY/cloud-init/base", "REPOSITORY/cloud-init/overlays/netboot"]

[[image]]
name = "noble"
source = "IMAGE"

[[node]]
name = "valar-0"
serial = "c0ffee01"
hostname = "aule"
cloud_init = ["report"]
"""

# What Ubuntu's image has in its root file system.
DATASOURCE = "datasource_list: [NoCloud, None]\ndatasource: {NoCloud: {fs_label: system-boot}}\n"

# The publisher's own calls the port optional, and systemd waits for two minutes whether another one comes.
NETWORK = "network: {version: 2, ethernets: {eth0: {dhcp4: true}}}\n"

REPORT = """#cloud-config
locale: C.UTF-8  # nothing to generate, which takes a minute here
write_files:
  - path: /run/report.sh
    content: |
      {
          echo "HOSTNAME $(hostname)"
          echo "INSTANCE $(cat /var/lib/cloud/data/instance-id)"
          echo "SEED $(cat /var/lib/cloud/instance/datasource)"
          echo "ROOT $(findmnt -nbo FSTYPE,SIZE /)"
          echo "BOOT $(findmnt -no FSTYPE,LABEL /boot/firmware)"
          echo "USER $(id -un admin) $(sudo -u admin sudo -n id -un)"
          echo "KEY $(cut -d' ' -f1,2 /home/admin/.ssh/authorized_keys)"
          echo "CMDLINE $(cat /proc/cmdline)"
      } > /run/report.txt 2>&1
runcmd:
  - sh /run/report.sh
  - curl -s --retry 5 --data-binary @/run/report.txt COLLECTOR/report/card
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> DiskImage:
    """The full image, its root told where the seed is."""
    original = full_image()
    copy = tmp_path_factory.mktemp("published") / "image.img"
    run(["cp", "--sparse=always", "--reflink=auto", original.path, copy])
    layout = json.loads(original.path.with_name(original.path.name + ".layout.json").read_text())
    (copy.parent / "seed.cfg").write_text(DATASOURCE)
    edit = f"write {copy.parent}/seed.cfg /etc/cloud/cloud.cfg.d/99-system-boot.cfg"
    run(["debugfs", "-w", "-R", edit, f"{copy}?offset={layout['p2'][0]}"])
    return DiskImage(copy)


@pytest.fixture(scope="module")
def report(image: DiskImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    folder = tmp_path_factory.mktemp("card")
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", folder / "key"])
    (folder / "report").mkdir()
    (folder / "report" / "network-config").write_text(NETWORK)
    (folder / "report" / "user-data").write_text(REPORT.replace("COLLECTOR", URL))
    with Lab(folder) as lab:
        Router(lab)
        collector = Collector(lab)
        config = CONFIG.replace("REPOSITORY", str(REPOSITORY)).replace("IMAGE", str(image.path))
        netbootd = Netbootd(lab, folder / "state", config)
        card = folder / "card.img"
        netbootd.command("prepare", "--target", "sdcard", "--node", "valar-0", "--output", card)
        os.truncate(card, CARD)
        payload = firmware(card, folder)
        machine = Machine(lab, lab.client("card"), "card", payload, arch="x86_64", mac=MAC, disk=card)
        wait_until(
            lambda: machine.milestones() and (collector.reports("card") or machine.trouble()),
            "report of the card",
            timeout=480,
            explain=machine.story,
            alive=[machine.program],
        )
        assert not machine.trouble(), machine.story()
        machine.stop()
        yield collector.reports("card")[0]


def firmware(card: Path, folder: Path) -> Payload:
    """What a board's firmware would read from the card."""
    table = json.loads(run(["sfdisk", "--json", card]).stdout)["partitiontable"]
    partition = f"{card}@@{table['partitions'][0]['start'] * 512}"
    names = ("vmlinuz", "initrd.img", "cmdline.txt")
    for name in names:
        run(["mcopy", "-n", "-i", partition, f"::{name}", folder / name], env={"MTOOLS_SKIP_CHECK": "1"})
    kernel, initramfs, cmdline = (folder / name for name in names)
    return Payload(kernel, initramfs, f"{cmdline.read_text().strip()} net.ifnames=0")


def test_the_nodes_cloud_init_came_from_the_card(report: Report) -> None:
    assert report.field("HOSTNAME") == "aule"
    assert report.field("INSTANCE").startswith("c0ffee01-")
    assert report.field("SEED") == "DataSourceNoCloud: DataSourceNoCloud [seed=/dev/vda1][dsmode=local]"


def test_the_root_is_the_cards_own_and_has_taken_the_whole_card(report: Report) -> None:
    kind, size = report.field("ROOT").split()
    assert kind == "ext4"
    assert int(size) > 2 << 30
    assert report.field("BOOT").split() == ["vfat", "system-boot"]
    assert "root=LABEL=writable" in report.field("CMDLINE").split()
    assert SERVER not in report.field("CMDLINE")


def test_the_user_has_the_operators_key(report: Report, tmp_path: Path) -> None:
    assert report.field("USER").split() == ["admin", "root"]
    assert report.field("KEY").startswith("ssh-ed25519 AAAA")
