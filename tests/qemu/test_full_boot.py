"""The main job on real input: two diskless machines boot a whole distribution from us to a usable login, one twice.

Real Pi firmware and a real Debian root (systemd, cloud-init, initramfs-tools, overlayroot) in Ubuntu's 24.04 layout go
through ``netbootd prepare``; a played Pi 4 fetches what a Pi 4 fetches; QEMU starts on just those files. What is known
of the inside comes from the guests: a report that each POSTs when its boot is over, and a login by SSH.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import Report
from tests.support.image_cache import DiskImage, full_image
from tests.support.lab_report import write_report
from tests.support.machine import Machine
from tests.support.manifest import differences
from tests.support.netlab import SERVER
from tests.support.processes import REPOSITORY, run, wait_until
from tests.support.rack import Board, Download, Rack

pytestmark = pytest.mark.timeout(1500)

CONFIGURED = Board("configured", "10000000c0ffee01", "dc:a6:32:00:01:01")
STRANGER = Board("stranger", "10000000c0ffee02", "2c:cf:67:00:01:02")
BOARDS = (CONFIGURED, STRANGER)
BOOTS = ((CONFIGURED, 1), (STRANGER, 1), (CONFIGURED, 2))
LEASE_SECONDS = 120

CONFIG = """
[defaults]
image = "noble"
ssh_authorized_keys = ["KEY.pub"]
cloud_init = ["REPOSITORY/cloud-init/base", "REPOSITORY/cloud-init/overlays/netboot", "report"]

[[node]]
name = "valar-0"
serial = "SERIAL"
mac = "BOARD"
hostname = "aule"
"""


@dataclass(frozen=True, slots=True)
class Boot:
    """What one boot of one board came to."""

    download: Download
    report: Report
    login: str
    events: list[dict[str, Any]]
    status: dict[str, Any]

    def stages(self) -> list[str]:
        """In the order in which they were reached."""
        serial = self.download.board.id
        return list(dict.fromkeys(e["stage"] for e in self.events if e["serial"] == serial and e["stage"]))


@dataclass(frozen=True, slots=True)
class Renewal:
    """What the router and a board said to each other after its boot was over, until a lease's time had passed."""

    messages: list[tuple[str, str]]
    address: str


@dataclass(frozen=True, slots=True)
class Story:
    """All boots, by board and number, and the renewal of the one that stayed on."""

    boots: dict[tuple[Board, int], Boot]
    renewal: Renewal
    generation: Path


@pytest.fixture(scope="module")
def image() -> DiskImage:
    return full_image()


@pytest.fixture(scope="module")
def rack(image: DiskImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    folder = tmp_path_factory.mktemp("full")
    key = folder / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key])
    config = CONFIG.replace("KEY", str(key)).replace("REPOSITORY", str(REPOSITORY))
    with Rack(
        folder,
        config.replace("SERIAL", CONFIGURED.serial).replace("BOARD", CONFIGURED.mac),
        arch="x86_64",
        lease=f"{LEASE_SECONDS}s",
    ) as rack:
        write_report(folder / "report")
        rack.netbootd.command("prepare", "--source", image.path, "--name", "noble", "--advertise", SERVER)
        rack.netbootd.serve()
        yield rack


@pytest.fixture(scope="module")
def story(rack: Rack) -> Story:
    """Both boards boot at the same time. One stays on for longer than a lease, during which the other boots again."""
    boots: dict[tuple[Board, int], Boot] = {}
    downloads = {board: rack.download(board) for board in BOARDS}
    machines = {board: rack.start(downloads[board]) for board in BOARDS}
    for board in BOARDS:
        boots[board, 1] = watch(rack, machines[board], downloads[board], 1, 0)
    began, said = time.monotonic(), len(rack.router.messages(STRANGER.mac))
    machines[CONFIGURED].stop()
    seen = len(rack.netbootd.events())
    again = rack.download(CONFIGURED)
    machines[CONFIGURED] = rack.start(again)
    boots[CONFIGURED, 2] = watch(rack, machines[CONFIGURED], again, 2, seen)
    time.sleep(max(0.0, began + LEASE_SECONDS + 10 - time.monotonic()))
    address = boots[STRANGER, 1].report.address
    assert log_in(rack, address).split()
    renewal = Renewal(rack.router.messages(STRANGER.mac)[said:], address)
    for machine in machines.values():
        machine.stop()
    generation = (rack.netbootd.state / "images" / "noble" / "current").resolve()
    return Story(boots, renewal, generation)


def watch(rack: Rack, machine: Machine, download: Download, number: int, seen: int) -> Boot:
    """See a boot to its end. `seen`: so many events were there before it began."""
    board = download.board
    report = rack.reports(machine, board.mac, number, timeout=540)[-1]
    login = log_in(rack, report.address)
    wait_until(
        lambda: rack.netbootd.status()[board.id]["stage"] == "ready",
        f"phone-home of {board.name}",
        timeout=60,
        explain=machine.story,
    )
    return Boot(download, report, login, rack.netbootd.events()[seen:], rack.netbootd.status()[board.id])


def log_in(rack: Rack, address: str) -> str:
    """What a login with the operator's key shows: who, where, and that sudo asks for no password."""
    options = [
        "-i",
        str(rack.lab.folder / "key"),
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "StrictHostKeyChecking=no",
    ]
    options += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "-o", "LogLevel=ERROR"]
    return run(
        ["ssh", *options, f"ubuntu@{address}", "echo $(id -un) $(hostname) $(sudo -n id -un)"],
        namespace=rack.lab.server,
        timeout=120,
    ).stdout


each_boot = pytest.mark.parametrize(
    ("board", "number"), BOOTS, ids=[f"{board.name}-{number}" for board, number in BOOTS]
)


@each_boot
def test_the_boot_is_clean(story: Story, board: Board, number: int) -> None:
    report = story.boots[board, number].report
    assert report.field("STATE") == "running", report.body
    assert report.field("FAILED") == "", report.body
    assert report.field("DBUS") == "active"
    assert report.field("MULTI-USER") == "active"
    assert report.field("CLOUD-INIT") == "status: done"


@each_boot
def test_the_root_is_ours_under_an_overlay(story: Story, board: Board, number: int) -> None:
    report = story.boots[board, number].report
    assert report.field("ROOT") == "overlay"
    assert report.field("LOWER").split() == ["nfs", f"{SERVER}:{story.generation}/root"]


@each_boot
def test_the_server_saw_every_stage(story: Story, board: Board, number: int) -> None:
    boot = story.boots[board, number]
    assert boot.stages() == ["firmware", "kernel", "root", "seed", "ready"]
    assert (boot.status["stage"], boot.status["outcome"]) == ("ready", "ok")
    assert (boot.status["image"], boot.status["generation"]) == ("noble", story.generation.name)
    assert boot.status["address"] == boot.download.address
    sent = {event["path"].rpartition("/")[2]: event for event in boot.events if event["serial"] == board.id}
    for file in boot.download.summary["files"]:
        event = sent[file["name"].rpartition("/")[2]]
        assert (event["protocol"], event["outcome"], event["bytes"]) == ("tftp", "ok", file["size"])


def test_a_board_keeps_its_name_and_identity_from_boot_to_boot(story: Story) -> None:
    first, second = (story.boots[CONFIGURED, number] for number in (1, 2))
    for field in ("HOSTNAME", "MACHINE-ID"):
        assert first.report.field(field) == second.report.field(field) != ""
    assert first.download.address == second.download.address


def test_a_board_that_is_configured_by_its_mac_keeps_its_host_keys(story: Story) -> None:
    first, second = (story.boots[CONFIGURED, number].report.field("HOST-KEY") for number in (1, 2))
    assert first == second != ""


def test_boards_on_one_root_stay_apart(story: Story) -> None:
    one, other = (story.boots[board, 1] for board in BOARDS)
    for field in ("HOSTNAME", "MACHINE-ID", "ADDRESSES", "HOST-KEY"):
        assert one.report.field(field) != other.report.field(field)
    assert one.report.field("HOSTNAME") == "aule"
    assert other.report.field("HOSTNAME") == other.status["name"]


@each_boot
def test_the_address_is_the_one_that_the_boot_began_with(story: Story, board: Board, number: int) -> None:
    boot = story.boots[board, number]
    assert boot.report.field("ADDRESSES") == boot.report.address == boot.download.address


def test_the_lease_is_renewed(story: Story) -> None:
    renewal = story.renewal
    assert ("DHCPACK", renewal.address) in renewal.messages
    assert {address for _, address in renewal.messages if address} == {renewal.address}
    assert "DHCPDISCOVER" not in {kind for kind, _ in renewal.messages}


@each_boot
def test_the_operators_key_logs_in_and_no_password_does(story: Story, board: Board, number: int) -> None:
    boot = story.boots[board, number]
    assert boot.login.split() == ["ubuntu", boot.report.field("HOSTNAME"), "root"]
    assert boot.report.field("PASSWORDS") == ""


def test_the_generation_is_the_image_but_for_its_listed_patches(story: Story, image: DiskImage) -> None:
    assert differences(image, story.generation) == []
