"""Images of every layout boot from what `prepare` makes of them, those too whose initramfs can't mount a root over NFS.

A played Pi 4 fetches by config.txt and its filters; QEMU starts on just those files, two boards at a time. The root is
Debian's, small, and reports once it is up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.collector import URL, Report
from tests.support.layout_images import LAYOUTS, assemble
from tests.support.netlab import SERVER
from tests.support.rack import Board, Download, Rack

pytestmark = pytest.mark.timeout(900)

BOARDS = {
    layout: Board(layout, f"10000000da7a00{number:02x}", f"dc:a6:32:00:02:{number:02x}")
    for number, layout in enumerate(LAYOUTS, 1)
}
NODE = """
[[node]]
name = "node-{layout}"
serial = "{serial}"
image = "{layout}"
cmdline_append = "lab.report={url}/report"
"""


@dataclass(frozen=True, slots=True)
class Boot:
    """One board's boot: what it fetched, what it reported, and what `prepare` said of its image's patches."""

    download: Download
    report: Report
    patches: dict[str, Any]
    root: str


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Boot]]:
    folder = tmp_path_factory.mktemp("layouts")
    nodes = "".join(NODE.format(layout=layout, serial=board.serial, url=URL) for layout, board in BOARDS.items())
    with Rack(folder, nodes, arch="x86_64") as rack:
        for layout in LAYOUTS:
            image = assemble(layout, folder / f"{layout}.img")
            rack.netbootd.command("prepare", "--source", image, "--name", layout, "--advertise", SERVER)
            image.unlink()
        rack.netbootd.serve()
        found: dict[str, Boot] = {}
        for pair in (list(LAYOUTS)[:2], list(LAYOUTS)[2:]):
            downloads = {layout: rack.download(BOARDS[layout]) for layout in pair}
            machines = {layout: rack.start(downloads[layout]) for layout in pair}
            for layout, machine in machines.items():
                report = rack.reports(machine, BOARDS[layout].mac, 1, timeout=300)[-1]
                generation = (rack.netbootd.state / "images" / layout / "current").resolve()
                listed = json.loads((generation / "image.json").read_text())["patches"]
                patches = {patch["path"]: patch for patch in listed}
                found[layout] = Boot(downloads[layout], report, patches, f"{SERVER}:{generation}/root")
                machine.stop()
        yield found


each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@each_layout
def test_the_boot_is_clean(boots: dict[str, Boot], layout: str) -> None:
    report = boots[layout].report
    assert report.field("FAILED") == "", report.body
    assert report.field("STATE") == "running", report.body


@each_layout
def test_the_root_is_ours_and_writable_in_memory(boots: dict[str, Boot], layout: str) -> None:
    report = boots[layout].report
    assert report.field("ROOT") == "overlay"
    assert report.field("LOWER") == boots[layout].root
    assert "vers=3" in report.field("OPTIONS").split(",")
    assert report.field("WRITABLE") == "written"


@each_layout
def test_the_command_line_is_the_nodes_own(boots: dict[str, Boot], layout: str) -> None:
    line = boots[layout].report.field("CMDLINE").split()
    assert line[: len(boots[layout].download.cmdline)] == boots[layout].download.cmdline
    for word in ("console=tty1", "root=/dev/nfs", "netbootd.overlay=tmpfs", f"lab.report={URL}/report"):
        assert word in line
    assert not [word for word in line if word.startswith(("root=LABEL", "root=PARTUUID", "init=", "fsck."))]
    assert boots[layout].report.field("NAME") == f"node-{layout}"
    assert boots[layout].report.field("PHONE") == "ok"


@each_layout
def test_the_address_is_the_one_that_the_boot_began_with(boots: dict[str, Boot], layout: str) -> None:
    boot = boots[layout]
    assert boot.report.field("ADDRESSES") == boot.report.address == boot.download.address


@each_layout
def test_each_initramfs_got_what_it_lacked(boots: dict[str, Boot], layout: str) -> None:
    path, parts = {
        "ab": ("boot/current/initrd.img", ["a hook"]),
        "raspios": ("boot/initramfs8", ["a hook"]),
        "plain": ("boot/initrd.img", ["kernel modules", "hooks that get an address", "a hook"]),
        "stripped": ("boot/initrd.img", ["kernel modules", "a hook"]),
    }[layout]
    why = boots[layout].patches[path]["why"]
    said = [part for part in ("kernel modules", "hooks that get an address", "a hook") if part in why]
    assert said == parts, why
