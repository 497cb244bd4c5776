"""Boots of a real arm64 kernel with a small initramfs, five seconds each: every way in which a node can be known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collector import URL
from tests.support.image_cache import DiskImage, mini_image
from tests.support.netlab import SERVER, start_proxy_dhcp
from tests.support.processes import wait_until
from tests.support.rack import Board, Rack

pytestmark = pytest.mark.timeout(600)

BY_SERIAL = Board("serial", "10000000a1b2c3d4", "dc:a6:32:00:00:01")
BY_MAC = Board("mac", "10000000a1b2c3d5", "dc:a6:32:00:00:02")
FLAT = Board("flat", "10000000a1b2c3d6", "dc:a6:32:00:00:03")
STRANGER = Board("stranger", "10000000a1b2c3d7", "2c:cf:67:00:00:04")
REBOOTED = Board("rebooted", "10000000a1b2c3d8", "dc:a6:32:00:00:05")
READER = Board("reader", "10000000a1b2c3d9", "dc:a6:32:00:00:06")
LOOKER = Board("looker", "10000000a1b2c3da", "dc:a6:32:00:00:07")

RACK = [Board(f"rack-{n}", f"10000000a1b2c4{n:02x}", f"dc:a6:32:00:01:{n:02x}") for n in range(10)]

PAYLOAD = "var/lib/random.bin"
KINDS = {1: "fifo", 2: "char", 4: "dir", 6: "block", 8: "file", 10: "link", 12: "sock"}
CONFIG = f"""
[defaults]
image = "noble"

[[image]]
name = "noble"
source = "SOURCE"
cmdline_append = "lab.read={PAYLOAD} lab.report={URL}/report"

[[node]]
name = "valar-serial"
serial = "{BY_SERIAL.serial}"

[[node]]
name = "valar-mac"
mac = "{BY_MAC.mac}"
hostname = "named-by-mac"

[[node]]
name = "valar-flat"
mac = "{FLAT.mac}"

[[node]]
name = "valar-rebooted"
serial = "{REBOOTED.serial}"

[[image]]
name = "recorded"
source = "SOURCE"
cmdline_append = "lab.stat=0,1000,42 lab.report={URL}/report"

[[node]]
name = "valar-looker"
serial = "{LOOKER.serial}"
image = "recorded"

[[node]]
name = "valar-reader"
serial = "{READER.serial}"
cmdline_append = "lab.gate={URL}/gate"
"""


@pytest.fixture(scope="module")
def image() -> DiskImage:
    return mini_image()


@pytest.fixture(scope="module")
def rack(image: DiskImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    config = CONFIG.replace("SOURCE", str(image.path))
    with Rack(tmp_path_factory.mktemp("mini"), config, arch="aarch64") as rack:
        rack.netbootd.command("prepare", "--source", image.path, "--name", "noble", "--advertise", SERVER)
        rack.netbootd.serve()
        yield rack


def check_boot(
    rack: Rack, image: DiskImage, board: Board, node: str, *, hostname: str = "", prefix: str = "serial"
) -> None:
    """Boot once; the root's bytes, the seed's host name and the server's events are what they should be."""
    seen = len(rack.netbootd.events())
    reports = len(rack.collector.reports(board.mac))
    download = rack.download(board, prefix=prefix)
    machine = rack.start(download, memory=512)
    report = rack.reports(machine, board.mac, reports + 1, timeout=120)[-1]
    machine.stop()

    assert report.field("MAC") == board.mac
    assert report.field("ADDRESS") == report.address == download.address
    assert report.field("CMDLINE").startswith(download.summary["cmdline"])
    assert report.field("NFS") == "mounted"
    assert report.field("DIGEST") == image.root_file(PAYLOAD)["sha256"]
    for document in ("meta-data", "user-data", "vendor-data", "network-config"):
        assert f"SEED {document} " in report.body, report.body
    assert f"META local-hostname: {hostname or node}" in report.body, report.body
    assert report.field("PHONE") == "ok"

    stages = ["firmware", "kernel", "root", "seed", "ready"]
    wait_until(
        lambda: rack.netbootd.stages(node, after=seen) == stages,
        f"all stages of {node}",
        timeout=10,
        explain=lambda: str(rack.netbootd.stages(node, after=seen)),
    )


def test_a_node_known_by_its_serial(rack: Rack, image: DiskImage) -> None:
    check_boot(rack, image, BY_SERIAL, "valar-serial")
    status = rack.netbootd.status()[BY_SERIAL.id]
    assert (status["name"], status["image"], status["stage"]) == ("valar-serial", "noble", "ready")


def test_a_node_that_asks_by_its_mac(rack: Rack, image: DiskImage) -> None:
    check_boot(rack, image, BY_MAC, "valar-mac", hostname="named-by-mac", prefix="mac")


def test_a_node_that_asks_without_a_prefix_is_told_by_its_address(rack: Rack, image: DiskImage) -> None:
    check_boot(rack, image, FLAT, "valar-flat", prefix="none")


def test_a_stranger_is_served_the_default_image(rack: Rack, image: DiskImage) -> None:
    assert STRANGER.id not in rack.netbootd.status()
    download = rack.download(STRANGER)
    machine = rack.start(download, memory=512)
    report = rack.reports(machine, STRANGER.mac, 1, timeout=120)[-1]
    machine.stop()
    assert report.field("DIGEST") == image.root_file(PAYLOAD)["sha256"]
    status = rack.netbootd.status()[STRANGER.id]
    assert status["stage"] == "ready"
    assert f"META local-hostname: {status['name']}" in report.body


def test_a_root_made_without_privileges_is_what_is_in_the_image(rack: Rack, image: DiskImage) -> None:
    """By stat(2) on a real client: types, modes with set-id bits, owners, device numbers, sizes; and who may read."""
    made = rack.netbootd.command("prepare", "recorded", "--unprivileged", "--advertise", SERVER, "--json")
    (built,) = json.loads(made)["images"]
    manifest = json.loads((Path(built["path"]) / "image.json").read_text())
    changed = {patch["path"].removeprefix("root/") for patch in manifest["patches"]}
    machine = rack.start(rack.download(LOOKER), memory=512)
    report = rack.reports(machine, LOOKER.mac, 1, timeout=120)[-1]
    machine.stop()

    assert [report.field(f"SHADOW-{uid}") for uid in (0, 1000, 42)] == ["read", "refused", "read"]
    seen = {}
    for line in report.body.splitlines():
        words = line.split(" ", 7)
        if words[0] == "STAT":
            seen[words[7].removeprefix("/root").removeprefix("/")] = words[1:7]
    compared = set()
    for row in map(json.loads, image.root_manifest.read_text().splitlines()):
        if row["path"] in seen and row["path"] not in changed:
            mode, uid, gid, major, minor, size = seen[row["path"]]
            compared.add(row["type"])
            assert KINDS[int(mode, 16) >> 12] == row["type"], row
            assert f"{int(mode, 16) & 0o7777:04o}" == row["mode"], row
            assert (int(uid), int(gid)) == (row["uid"], row["gid"]), row
            if "rdev" in row:
                assert [int(major, 16), int(minor, 16)] == row["rdev"], row
            if row["type"] == "file":
                assert int(size) == row["size"], row
    assert compared == set(KINDS.values()) and len(seen) > 1000


def test_a_rack_is_switched_on(rack: Rack, image: DiskImage) -> None:
    """Ten at once, from the first DHCP message to phone-home, on the two cores that the server has as well."""
    downloads = rack.download_all(RACK)
    machines = [rack.start(download, memory=256) for download in downloads]
    for board, machine in zip(RACK, machines, strict=True):
        report = rack.reports(machine, board.mac, 1, timeout=300)[-1]
        machine.stop()
        assert report.field("NFS") == "mounted"
        assert report.field("DIGEST") == image.root_file(PAYLOAD)["sha256"]
        assert report.field("PHONE") == "ok"
    status = rack.netbootd.status()
    assert {status[board.id]["stage"] for board in RACK} == {"ready"}
    assert len({status[board.id]["address"] for board in RACK}) == len(RACK)
    sent = [event for event in rack.netbootd.events() if event["serial"] in {board.id for board in RACK}]
    assert {event["outcome"] for event in sent} <= {"ok", "miss", "probe"}


def test_a_proxy_dhcp_beside_a_router_that_knows_nothing(
    image: DiskImage, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = CONFIG.replace("SOURCE", str(image.path))
    with Rack(tmp_path / "rack", config, arch="aarch64", tftp_server="") as rack:
        start_proxy_dhcp(rack.lab)
        rack.netbootd.command("prepare", "--source", image.path, "--name", "noble", "--advertise", SERVER)
        rack.netbootd.serve()
        check_boot(rack, image, BY_SERIAL, "valar-serial")


def test_the_server_is_killed_between_download_and_mount(rack: Rack, image: DiskImage) -> None:
    download = rack.download(REBOOTED)
    rack.netbootd.kill()
    rack.netbootd.serve()
    machine = rack.start(download, memory=512)
    report = rack.reports(machine, REBOOTED.mac, 1, timeout=120)[-1]
    machine.stop()
    assert report.field("DIGEST") == image.root_file(PAYLOAD)["sha256"]
    status = rack.netbootd.status()[REBOOTED.id]
    assert (status["name"], status["stage"]) == ("valar-rebooted", "ready")


def test_the_server_is_killed_while_a_file_is_read(rack: Rack, image: DiskImage) -> None:
    machine = rack.start(rack.download(READER), memory=512)
    assert rack.reports(machine, READER.mac, 1, timeout=120)[-1].body == "WAITING\n"
    rack.netbootd.kill()
    rack.netbootd.serve()
    rack.collector.open_gate(READER.mac)
    report = rack.reports(machine, READER.mac, 2, timeout=240)[-1]
    machine.stop()
    assert report.field("DIGEST") == image.root_file(PAYLOAD)["sha256"]
