"""``netbootd vm up`` on a real machine: cloud-init, systemd, units active, and diskless clients that boot from it.

Debian trixie stands in for Ubuntu; QEMU for Multipass. The clients are the mini client: a real arm64 kernel that mounts
its root from the machine's kernel, reads it, fetches its seed and phones home.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from netbootd.vm.lifecycle import UNITS, Report
from tests.support.desk import ADDRESS, HELD, NODE, VM, Desk
from tests.support.processes import wait_until
from tests.support.qemu_multipass import NAT_MAC

pytestmark = pytest.mark.timeout(1500)

RESTARTED, REBOOTED = HELD[0], HELD[1]
USED = tuple(unit for unit in UNITS if unit != "netbootd-nfs.socket")  # that is the embedded server's
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

# every entry by path: mode, owner, links, and the kind of what only root can make
LISTING = """
import os, stat
for folder, names, files in sorted(os.walk(".")):
    for name in sorted(names + files):
        path = os.path.join(folder, name)
        s = os.lstat(path)
        device = ("device", s.st_rdev) if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode) else ()
        xattrs = [(key, os.getxattr(path, key, follow_symlinks=False)) for key in
                  sorted(os.listxattr(path, follow_symlinks=False))]
        print(ascii(path), s.st_mode, s.st_uid, s.st_gid, s.st_nlink, *device, xattrs)
"""


def test_a_fresh_machine_serves_and_a_client_boots(server: Desk, first_up: Report) -> None:
    assert first_up.address == ADDRESS
    assert first_up.changed == ("created", "code", "site", "environment", "units", "images")
    status = server.lifecycle.status()
    assert status["units"] == dict.fromkeys(USED, "active")
    assert [finding for finding in status["doctor"] if finding["level"] == "error"] == []
    (nfs,) = [finding for finding in status["doctor"] if finding["check"] == "nfs"]
    assert "by the kernel's server, which netbootd has started" in nfs["message"]
    assert "versions 3, 4.2, managed by netlink" in nfs["message"]
    folders = "/var/lib/netbootd /var/lib/netbootd/images /var/lib/netbootd/db"
    assert server.run(f"stat -c %U {folders}").split() == ["root", "root", "netbootd"]
    assert server.run("stat -c %U /proc/$(systemctl show --property=MainPID --value netbootd)") == "netbootd"
    assert NAT_MAC not in server.run("cat /etc/netbootd-vm /etc/default/netbootd")
    server.check_boot()
    events = [json.loads(line) for line in server.netbootd("events --json --node valar-0").splitlines()]
    assert [event["protocol"] for event in events if event["stage"] == "root"] == ["nfs"]
    # the journal tells one node's boot by its fields
    told = server.run("journalctl --no-pager --output=json --unit=netbootd NODE=valar-0").splitlines()
    assert {json.loads(line).get("SERIAL") for line in told} == {NODE.id}


def test_the_service_is_hardened(server: Desk) -> None:
    said = server.run("systemd-analyze security --no-pager netbootd.service").splitlines()[-1]
    print(said)
    exposure = re.search(r"(\d+\.\d)", said)
    assert exposure and float(exposure[1]) <= 2.0


def test_a_second_run_changes_nothing(server: Desk) -> None:
    before = server.pids("netbootd", "netbootd-nfs")
    assert server.lifecycle.up().changed == ()
    assert server.pids("netbootd", "netbootd-nfs") == before


def test_a_changed_configuration_is_a_reload_and_a_faulty_one_is_refused(server: Desk) -> None:
    before = server.pids("netbootd")
    text = server.config.read_text()
    server.config.write_text(text.replace('name = "valar-3"', 'name = "valar-3"\nhostname = "renamed"'))
    assert server.lifecycle.up().changed == ("site",)
    assert server.pids("netbootd") == before
    url = f"http://{ADDRESS}/nocloud/{HELD[2].id}/meta-data"
    ask = f"python3 -c 'import urllib.request as r; print(r.urlopen(\"{url}\", timeout=20).read().decode())'"
    wait_until(lambda: "renamed" in server.run(ask), "the new name", timeout=60, explain=server.story)
    server.run("echo '[tfpt]' >> /srv/netbootd/site/netbootd.toml; systemctl reload netbootd")
    wait_until(lambda: "stays as it was" in server.story(), "the refusal", timeout=60, explain=server.story)
    assert "renamed" in server.run(ask)
    server.run("sed -i '$d' /srv/netbootd/site/netbootd.toml; systemctl reload netbootd")


def test_an_image_is_built_by_its_unit(server: Desk) -> None:
    """In the sandbox of netbootd-prepare@.service the same tree comes out: devices, owners, capabilities and all."""
    site = "/srv/netbootd/site/netbootd.toml"
    again = '/name = "noble"/,/cmdline_append/ { s/"noble"/"again"/; p }'
    server.run(f"cp {site} /run/before; (echo '[[image]]'; sed -n '{again}' /run/before) >> {site}")
    try:
        server.run("systemctl start netbootd-prepare@again.service", timeout=300)
    finally:
        server.run(f"cp /run/before {site}")
    trees = [server.root_of(name) for name in ("noble", "again")]
    noble, again = (server.run(f"cd {tree} && python3 -c '{LISTING}'") for tree in trees)
    assert noble == again
    assert "security.capability" in again and "device" in again
    server.run("rm -r /var/lib/netbootd/images/again")
    assert "netbootd-prepare@noble.timer" not in server.run("systemctl list-timers --all --no-pager")


def test_a_restart_in_the_middle_of_transfers_goes_unnoticed(server: Desk, tmp_path: Path) -> None:
    """Of the service: a file by TFTP, and the root of a client that reads on, fetches its seed and phones home."""
    rack = server.rack
    machine = rack.start(rack.download(RESTARTED), memory=512)
    assert rack.reports(machine, RESTARTED.mac, 1, timeout=240)[-1].body == "WAITING\n"
    gate = tmp_path / "gate"
    argv = [sys.executable, "-c", SLOW_TFTP, ADDRESS, f"/{RESTARTED.id}/initrd.img", gate]
    slow = rack.lab.start(rack.lab.host("tftp", "192.0.2.20"), argv, "slow-tftp")
    wait_until(lambda: "WAITING" in slow.output(), "the first block", timeout=60, alive=[slow])
    before = server.pids("netbootd")
    server.run("systemctl --no-block restart netbootd.service")
    time.sleep(2)
    gate.touch()
    assert slow.wait(120) == 0, slow.output()
    assert int(slow.output().split()[-1]) > 100_000
    server.wait_until_active("netbootd.service")
    assert server.pids("netbootd") != before
    rack.collector.open_gate(RESTARTED.mac)
    report = rack.reports(machine, RESTARTED.mac, 2, timeout=240)[-1]
    machine.stop()
    server.check_digest(RESTARTED, 2)
    assert report.field("PHONE") == "ok"


def test_a_hang_is_ended_by_the_watchdog(server: Desk) -> None:
    drop_in = "/run/systemd/system/netbootd.service.d"
    server.run(
        f"mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=8\\n' > {drop_in}/quick.conf; systemctl daemon-reload;"
        " systemctl restart netbootd.service"
    )
    restarts = "systemctl show --value --property=NRestarts netbootd.service"
    assert server.run(restarts) == "0"
    server.run("systemctl kill --kill-whom=main --signal=STOP netbootd.service")
    wait_until(lambda: server.run(restarts) == "1", "the watchdog", timeout=60, explain=server.story)
    server.wait_until_active("netbootd.service", timeout=40)
    server.run(f"rm -r {drop_in}; systemctl daemon-reload")


def test_after_a_reboot_everything_is_back(server: Desk) -> None:
    """A client that has its root from it goes on, and another boots."""
    rack = server.rack
    machine = rack.start(rack.download(REBOOTED), memory=512)
    assert rack.reports(machine, REBOOTED.mac, 1, timeout=240)[-1].body == "WAITING\n"
    server.multipass.reboot(VM)
    server.wait_until_active(*USED)
    rack.collector.open_gate(REBOOTED.mac)
    rack.reports(machine, REBOOTED.mac, 2, timeout=240)
    machine.stop()
    server.check_digest(REBOOTED, 2)
    server.check_boot()
