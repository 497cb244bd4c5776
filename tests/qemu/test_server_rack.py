"""A rack is switched on: ten mini clients and two whole distributions boot at once from the machine's kernel."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.support.collector import Report
from tests.support.desk import ADDRESS, WHOLE, Desk
from tests.support.processes import wait_until
from tests.support.rack import Board

pytestmark = pytest.mark.timeout(1500)

TEN = tuple(Board(f"mini-{n}", f"10000000a1b2c4{n:02x}", f"dc:a6:32:00:04:{n:02x}") for n in range(10))


@dataclass(frozen=True, slots=True)
class Evening:
    """What the boards have reported, and how the server saw them."""

    reports: dict[Board, Report]
    nodes: dict[str, dict[str, str]]
    root: str


@pytest.fixture(scope="module")
def evening(server: Desk) -> Evening:
    rack = server.rack
    server.add_the_whole()
    boards = (*WHOLE, *TEN)
    machines = {}
    # A machine that is emulated sends some megabytes a second, and boot ROMs give a file 30 s: not all of it at once.
    for download in (*map(rack.download, WHOLE), *rack.download_all(TEN)):
        whole = download.board in WHOLE
        arch, memory = ("x86_64", 768) if whole else ("aarch64", 512)
        machines[download.board] = rack.start(download, memory=memory, arch=arch)
    reports = {}
    for board in reversed(boards):  # the minis are the first to be done
        reports[board] = rack.reports(machines[board], board.mac, 1, timeout=900)[-1]
        if board in TEN:
            machines[board].stop()

    def seen() -> dict[str, dict[str, str]]:
        return {node["serial"]: node for node in json.loads(server.netbootd("status --json"))["nodes"]}

    wait_until(lambda: all(seen()[board.id]["stage"] == "ready" for board in boards), "phone-home", timeout=120)
    for board in WHOLE:
        machines[board].stop()
    return Evening(reports, seen(), server.root_of("full"))


def test_every_mini_client_has_read_its_root(server: Desk, evening: Evening) -> None:
    for board in TEN:
        server.check_digest(board, 1)
        assert evening.nodes[board.id]["image"] == "noble"


@pytest.mark.parametrize("board", WHOLE, ids=lambda board: board.name)
def test_a_whole_distribution_boots_to_the_end_of_cloud_init(evening: Evening, board: Board) -> None:
    report = evening.reports[board]
    assert report.field("STATE") == "running", report.body
    assert report.field("FAILED") == "", report.body
    assert report.field("CLOUD-INIT") == "status: done"
    assert report.field("HOSTNAME") == board.name
    assert report.field("ROOT") == "overlay"
    assert report.field("LOWER").split() == ["nfs", f"{ADDRESS}:{evening.root}"]
    assert evening.nodes[board.id]["generation"] == evening.root.split("/")[-2]


def test_the_units_can_be_taken_away(server: Desk, evening: Evening) -> None:
    """The state stays, and nothing else: no unit, no port."""
    assert evening.root
    server.run("/usr/local/bin/netbootd doctor --remove-units")
    assert (
        server.run("systemctl list-unit-files --no-legend 'netbootd*'; ls /etc/systemd/system | grep netbootd; true")
        == ""
    )
    assert (
        server.run("cat /proc/fs/nfsd/threads; test -d /var/lib/netbootd/images/noble; pgrep -c netbootd; true")
        == "0\n0"
    )
