"""NFS by a kernel that has nfsd (Debian's 6.12), as the service manages it: beside the disk, our own server, others."""

from __future__ import annotations

import json

import pytest

from netbootd.vm.lifecycle import NETBOOTD
from tests.support.desk import HELD, Desk
from tests.support.processes import REPOSITORY

pytestmark = pytest.mark.timeout(900)

KILLED = HELD[2]
PROCESSES = ("netbootd-nfs", "netbootd")
# our own server, as another service with the one right that its unit has, beside the kernel's
OWN = """
set -e
mkdir -p /run/own
ln -s /var/lib/netbootd/images /run/own/images
chown netbootd: /run/own
systemd-run --quiet --unit=own --service-type=exec --property=User=netbootd \
    --property=AmbientCapabilities=CAP_DAC_READ_SEARCH \
    /opt/netbootd/bin/netbootd --state /run/own serve --nfs embedded --bind 127.0.0.1 --nfs-port 12049 \
    --portmap-port off --tftp-port 0 --http-port 0 --ready-file /run/own/ready
until test -e /run/own/ready; do sleep 0.2; done
python3 /run/compare/nfs_compare.py ROOT /run/own
systemctl stop own
"""
SECURE = '\n[nfs]\nbackend = "BACKEND"\nsecure = true\n'
READ_SHADOW = """
mkdir -p /run/s
stat -c %U /proc/$(systemctl show --property=MainPID --value netbootd)
[ "$(cat /proc/fs/nfsd/threads)" = 0 ] && echo embedded || echo kernel
v3=ro,vers=3,nolock,proto=tcp,addr=127.0.0.1
mount -i -t nfs -o $v3 127.0.0.1:ROOT /run/s
cat /run/s/etc/shadow > /dev/null; echo root:$?
setpriv --reuid=1000 --regid=1000 --clear-groups cat /run/s/etc/shadow > /dev/null 2>&1; echo user:$?
umount /run/s
mount -i -t nfs -o $v3,noresvport 127.0.0.1:ROOT /run/s && cat /run/s/etc/shadow > /dev/null; echo port:$?
"""
NFS4 = """
v4=ro,vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1
mount -i -t nfs4 -o $v4 127.0.0.1:ROOT /run/s && cat /run/s/etc/shadow > /dev/null; echo root4:$?
umount /run/s
mount -i -t nfs4 -o $v4,noresvport 127.0.0.1:ROOT /run/s && cat /run/s/etc/shadow > /dev/null; echo port4:$?
"""


def test_it_serves_what_our_own_server_does(server: Desk) -> None:
    """File by file and call by call; /etc/shadow to root alone; and on through the death of both processes."""
    for name in ("nfs_compare.py", "nfs_special.py"):
        server.put(REPOSITORY / "tests/support" / name, "/run/compare")
    told = json.loads(server.run(OWN.replace("ROOT", server.root_of("noble")), timeout=400).splitlines()[-1])
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


def test_a_client_goes_on_though_both_processes_are_killed(server: Desk) -> None:
    """In the middle of its boot: the rest of a file, then its seed and phone-home from the ones that come after."""
    rack = server.rack
    machine = rack.start(rack.download(KILLED), memory=512)
    assert rack.reports(machine, KILLED.mac, 1, timeout=240)[-1].body == "WAITING\n"
    before = server.pids(*PROCESSES)
    server.run(f"systemctl kill --kill-whom=main --signal=KILL {' '.join(PROCESSES)}")
    rack.collector.open_gate(KILLED.mac)
    report = rack.reports(machine, KILLED.mac, 2, timeout=240)[-1]
    machine.stop()
    server.check_digest(KILLED, 2)
    assert report.field("PHONE") == "ok"
    server.wait_until_active(*PROCESSES)
    assert not set(server.pids(*PROCESSES)) & set(before)


@pytest.mark.parametrize("backend", ["kernel", "embedded"])
def test_only_root_of_a_node_reads_what_is_root_s(server: Desk, backend: str) -> None:
    """From the service as shipped, with ``secure``: as root, as a user, and from a port that any program can have."""
    configuration, restart = "/srv/netbootd/site/netbootd.toml", "systemctl stop netbootd netbootd-nfs; systemctl start"
    secure = SECURE.replace("BACKEND", backend)
    server.run(f"cp {configuration} /run/before; echo '{secure}' >> {configuration}; {restart} netbootd")
    try:
        script = READ_SHADOW + NFS4 if backend == "kernel" else READ_SHADOW
        told = server.ask(script.replace("ROOT", server.root_of("noble"))).output.split()
    finally:
        server.run(f"cp /run/before {configuration}; {restart} netbootd")
        server.wait_until_active(*PROCESSES)
    expected = ["netbootd", backend, "root:0", "user:1", "port:32"]
    assert told == expected + (["root4:0", "port4:32"] if backend == "kernel" else [])


def test_exports_of_others_stay(server: Desk) -> None:
    """Where the host has an NFS server of its own: ours come beside its exports, and go without touching them."""
    root = server.root_of("noble")
    before = server.run(
        "set -e; systemctl stop netbootd netbootd-nfs netbootd-portmap.socket; cat /proc/fs/nfsd/threads;"
        " mkdir -p /srv/other /run/o /run/r; echo other > /srv/other/file;"
        " echo '/srv/other 127.0.0.1(ro,no_subtree_check)' > /etc/exports; systemctl start nfs-server;"
        " mount -t nfs -o vers=3,nolock 127.0.0.1:/srv/other /run/o; cat /run/o/file"
    )
    assert before.split() == ["0", "other"]  # it had been ended with its unit
    server.run("systemctl start netbootd")
    told = json.loads(server.ask(f"{NETBOOTD} doctor --json").output)
    (nfs,) = [finding for finding in told["findings"] if finding["check"] == "nfs"]
    rest = server.run(
        f"set -e; mount -t nfs -o vers=3,nolock 127.0.0.1:{root} /run/r; ls /run/r; umount /run/r; exportfs -s"
    ).splitlines()
    assert "which others have started" in nfs["message"] and "rpc.mountd's table" in nfs["message"]
    assert "etc" in rest
    assert any(line.startswith("/srv/other") for line in rest) and any(line.startswith(root) for line in rest)
    after = server.run(
        "set -e; systemctl stop netbootd netbootd-nfs; cat /proc/fs/nfsd/threads; exportfs -s;"
        " echo 3 > /proc/sys/vm/drop_caches; cat /run/o/file; umount /run/o; systemctl stop nfs-server"
    ).splitlines()
    assert int(after[0]) > 0
    assert after[-1] == "other"
    assert [line.split()[0] for line in after[1:-1]] == ["/srv/other"]
    server.run("systemctl stop rpcbind rpcbind.socket rpc-statd; systemctl start netbootd-portmap.socket netbootd")
