"""Serving NFS by a kernel that has nfsd (Debian's 6.12): installed as a service on a virtual machine of its own.

The machine has the project from wheels, its units as shipped, and a generation on a disk. Clients are the mini client:
a real arm64 kernel that mounts its root by NFSv3, reads it, fetches its seed and phones home.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.collector import URL
from tests.support.debian_server import ADDRESS, ext4, server_image, wheels
from tests.support.image_cache import DiskImage, mini_image
from tests.support.processes import REPOSITORY, wait_until
from tests.support.rack import Board, Rack
from tests.support.server_machine import ServerMachine

pytestmark = pytest.mark.timeout(900)

NODE = Board("node", "10000000a1b2c3f1", "dc:a6:32:00:03:01")
READER = Board("reader", "10000000a1b2c3f2", "dc:a6:32:00:03:02")
KILLED = Board("killed", "10000000a1b2c3f3", "dc:a6:32:00:03:03")
PAYLOAD = "var/lib/random.bin"
CONFIG = f"""
[server]
address = "{ADDRESS}"

[defaults]
image = "noble"

[[image]]
name = "noble"
source = "SOURCE"
cmdline_append = "lab.read={PAYLOAD} lab.report={URL}/report"

[[node]]
name = "valar-0"
serial = "{NODE.serial}"

[[node]]
name = "valar-1"
serial = "{READER.serial}"
cmdline_append = "lab.gate={URL}/gate"

[[node]]
name = "valar-2"
serial = "{KILLED.serial}"
cmdline_append = "lab.gate={URL}/gate"
"""
INSTALL = """
set -e
python3 -m venv --without-pip /opt/netbootd
pip --python /opt/netbootd/bin/python install --quiet --no-index --find-links /wheels --no-compile netbootd
# as root, who may keep what is compiled: the service starts three times as fast
/opt/netbootd/bin/python -c 'import netbootd.service.supervisor, netbootd.service.kernelnfs'
/opt/netbootd/bin/netbootd doctor --install-units
systemctl start netbootd
"""
PIDS = "systemctl show --property=MainPID --value netbootd-nfs netbootd"
READ_SHADOW = """
mkdir -p /run/s
stat -c %U /proc/$(systemctl show --property=MainPID --value netbootd)
[ "$(cat /proc/fs/nfsd/threads)" = 0 ] && echo embedded || echo kernel
v3=ro,vers=3,nolock,proto=tcp,addr=127.0.0.1
mount -i -t nfs -o $v3 127.0.0.1:ROOT /run/s
cat /run/s/etc/shadow > /dev/null; echo root:$?
setpriv --reuid=1000 --regid=1000 --clear-groups cat /run/s/etc/shadow > /dev/null 2>&1; echo user:$?
umount /run/s
"""
UNITS = ("netbootd.service", "netbootd-nfs.service", "netbootd-portmap.socket", "netbootd-tftp.socket")


@dataclass(frozen=True, slots=True)
class Place:
    """A rack whose server is a machine of its own."""

    rack: Rack
    server: ServerMachine
    image: DiskImage

    def check_digest(self, board: Board, count: int) -> None:
        """The board's report number `count` shows its root's bytes as the image has them."""
        report = self.rack.collector.reports(board.mac)[count - 1]
        assert report.field("NFS") == "mounted"
        assert f"nfsroot={ADDRESS}:" in report.field("CMDLINE")
        assert report.field("DIGEST") == self.image.root_file(PAYLOAD)["sha256"]

    def wait_for_units(self) -> None:
        def active() -> bool:
            said = self.server.run(f"systemctl is-active {' '.join(UNITS)}", check=False)
            return said.split() == ["active"] * len(UNITS)

        wait_until(active, "the units", timeout=120, explain=self.server.story)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    image = mini_image()
    folder = tmp_path_factory.mktemp("kernel-nfs")
    config = CONFIG.replace("SOURCE", str(image.path))
    with Rack(folder / "rack", config, arch="aarch64", tftp_server=ADDRESS) as rack:
        rack.netbootd.command("prepare", "--source", image.path, "--name", "noble", "--advertise", ADDRESS)
        state = folder / "state.img"
        ext4(rack.netbootd.state, state, "state", "1G")
        server = ServerMachine(rack.lab, server_image(), [wheels(folder), state])
        server.put(config, "/etc/netbootd/netbootd.toml")
        server.run(INSTALL, timeout=400)
        yield Place(rack, server, image)


def test_a_client_boots_from_the_kernels_server(place: Place) -> None:
    place.wait_for_units()
    told = json.loads(place.server.run("/opt/netbootd/bin/netbootd doctor --json", check=False))
    (nfs,) = [finding for finding in told["findings"] if finding["check"] == "nfs"]
    assert "by the kernel's server, which netbootd has started" in nfs["message"]
    assert "versions 3, 4.2, managed by netlink" in nfs["message"]
    assert [finding for finding in told["findings"] if finding["level"] == "error"] == []
    machine = place.rack.start(place.rack.download(NODE), memory=512)
    place.rack.reports(machine, NODE.mac, 1, timeout=120)
    machine.stop()
    place.check_digest(NODE, 1)
    status = json.loads(place.server.run("/opt/netbootd/bin/netbootd status --json"))["nodes"]
    assert [(node["name"], node["stage"]) for node in status if node["serial"] == NODE.id] == [("valar-0", "ready")]
    events = place.server.run("/opt/netbootd/bin/netbootd events --json --node valar-0").splitlines()
    assert [event["protocol"] for event in map(json.loads, events) if event["stage"] == "root"] == ["nfs"]


def test_it_serves_what_our_own_server_does(place: Place) -> None:
    """File by file and call by call; /etc/shadow to root alone; and on through the death of both processes."""
    for name in ("nfs_compare.py", "nfs_special.py"):
        place.server.put((REPOSITORY / "tests/support" / name).read_text(), f"/tmp/{name}")
    current = place.server.run("readlink /var/lib/netbootd/images/noble/current").strip()
    told = json.loads(
        place.server.run(
            "set -e; mkdir /run/own; ln -s /var/lib/netbootd/images /run/own/images; chown netbootd: /run/own;"
            # with the one right that its unit has
            " systemd-run --quiet --unit=own --service-type=exec --property=User=netbootd"
            " --property=AmbientCapabilities=CAP_DAC_READ_SEARCH"
            " /opt/netbootd/bin/netbootd --state /run/own serve --nfs embedded --bind 127.0.0.1 --nfs-port 12049"
            " --portmap-port off --tftp-port 0 --http-port 0 --ready-file /run/own/ready;"
            " until test -e /run/own/ready; do sleep 0.2; done;"
            f" python3 /tmp/nfs_compare.py /var/lib/netbootd/images/noble/{current}/root /run/own; systemctl stop own"
        ).splitlines()[-1]
    )
    assert told["entries"] > 30
    assert told["differences"] == {"kernel, NFSv3": [], "kernel, NFSv4.2": [], "embedded, NFSv3": []}
    for name, found in told["special"].items():
        assert found["differences"] == [], name
        assert set(found["refused"].values()) <= {"EROFS", "EACCES", "EOPNOTSUPP"}, (name, found["refused"])
        assert found["refused"]["make a folder"] == found["refused"]["change a mode"] == "EROFS"
    assert told["special"]["embedded, NFSv3"] == told["special"]["kernel, NFSv3"]
    assert all(statuses == [0, 1] for statuses in told["shadow"].values()), told["shadow"]
    assert len(told["clients"]) == 1 and "minor version: 2" in told["clients"][0]
    assert told["killed"] == {"same": True, "units": "active active"}
    assert told["mounted again"]


def test_a_client_goes_on_though_both_processes_are_killed(place: Place) -> None:
    """In the middle of its boot: the rest of a file, then its seed and phone-home from the ones that come after."""
    machine = place.rack.start(place.rack.download(KILLED), memory=512)
    assert place.rack.reports(machine, KILLED.mac, 1, timeout=120)[-1].body == "WAITING\n"
    before = place.server.run(PIDS)
    place.server.run("systemctl kill --kill-whom=main --signal=KILL netbootd-nfs netbootd")
    place.rack.collector.open_gate(KILLED.mac)
    report = place.rack.reports(machine, KILLED.mac, 2, timeout=240)[-1]
    machine.stop()
    place.check_digest(KILLED, 2)
    assert report.field("PHONE") == "ok"
    place.wait_for_units()
    assert not set(place.server.run(PIDS).split()) & set(before.split())


def test_only_root_of_a_node_reads_what_is_root_s(place: Place) -> None:
    """From the service as shipped, which runs as a plain user."""
    current = place.server.run("readlink /var/lib/netbootd/images/noble/current").strip()
    script = READ_SHADOW.replace("ROOT", f"/var/lib/netbootd/images/noble/{current}/root")
    assert place.server.run(script, check=False).split() == ["netbootd", "kernel", "root:0", "user:1"]


def test_a_client_goes_on_after_the_server_was_restarted(place: Place) -> None:
    machine = place.rack.start(place.rack.download(READER), memory=512)
    assert place.rack.reports(machine, READER.mac, 1, timeout=120)[-1].body == "WAITING\n"
    place.server.reboot()
    place.wait_for_units()
    place.rack.collector.open_gate(READER.mac)
    place.rack.reports(machine, READER.mac, 2, timeout=240)
    machine.stop()
    place.check_digest(READER, 2)


def test_exports_of_others_stay(place: Place) -> None:
    """Where the host has an NFS server of its own: ours come beside its exports, and go without touching them."""
    current = place.server.run("readlink /var/lib/netbootd/images/noble/current").strip()
    root = f"/var/lib/netbootd/images/noble/{current}/root"
    before = place.server.run(
        "set -e; systemctl stop netbootd netbootd-nfs netbootd-portmap.socket; cat /proc/fs/nfsd/threads;"
        " mkdir -p /srv/other /run/o /run/r; echo other > /srv/other/file;"
        " echo '/srv/other 127.0.0.1(ro,no_subtree_check)' > /etc/exports; systemctl start nfs-server;"
        " mount -t nfs -o vers=3,nolock 127.0.0.1:/srv/other /run/o; cat /run/o/file"
    )
    assert before.split() == ["0", "other"]  # it had been ended with its unit
    place.server.run("systemctl start netbootd")
    told = json.loads(place.server.run("/opt/netbootd/bin/netbootd doctor --json", check=False))
    (nfs,) = [finding for finding in told["findings"] if finding["check"] == "nfs"]
    rest = place.server.run(
        f"set -e; mount -t nfs -o vers=3,nolock 127.0.0.1:{root} /run/r; ls /run/r; umount /run/r; exportfs -s"
    ).splitlines()
    assert "which others have started" in nfs["message"] and "rpc.mountd's table" in nfs["message"]
    assert "etc" in rest
    assert any(line.startswith("/srv/other") for line in rest) and any(line.startswith(root) for line in rest)
    after = place.server.run(
        "set -e; systemctl stop netbootd netbootd-nfs; cat /proc/fs/nfsd/threads; exportfs -s;"
        " echo 3 > /proc/sys/vm/drop_caches; cat /run/o/file; umount /run/o; systemctl stop nfs-server"
    ).splitlines()
    assert int(after[0]) > 0
    assert after[-1] == "other"
    assert [line.split()[0] for line in after[1:-1]] == ["/srv/other"]
