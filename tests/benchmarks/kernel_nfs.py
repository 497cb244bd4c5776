"""NFS by the kernel as netbootd manages it, against the same kernel's server as nfs-utils sets it up.

    sudo .venv/bin/python -m tests.benchmarks.kernel_nfs [--rounds 5]

Prints one Markdown table. Both serve one folder of one virtual machine (Debian, QEMU without KVM) to its own NFS client
over loopback, in turn: 100 MB by direct reads of 1 MiB, and the attributes of 1,000 files, each from a fresh mount, by
NFSv3 and by NFSv4.2. Nothing of netbootd is on the way of a READ, so the two should not differ. Needs root and what
tests/run qemu needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.setting import describe
from tests.support.debian_server import ext4, server_image, wheels
from tests.support.netlab import Lab
from tests.support.server_machine import ServerMachine

GENERATION = "0123456789abcdef"
ROOT = f"/var/lib/netbootd/images/bench/{GENERATION}/root"
INSTALL = """
set -e
python3 -m venv --without-pip /opt/netbootd
pip --python /opt/netbootd/bin/python install --quiet --no-index --find-links /wheels --no-compile netbootd
/opt/netbootd/bin/python -c 'import netbootd.service.supervisor, netbootd.service.kernelnfs'
/opt/netbootd/bin/netbootd doctor --install-units
systemctl disable --quiet netbootd netbootd-nfs
printf '[nfsd]\\ngrace-time=1\\nlease-time=10\\n' > /etc/nfs.conf.d/bench.conf  # else NFSv4 waits for 90 s
"""
PLAIN = f"""
systemctl stop netbootd netbootd-nfs netbootd-portmap.socket
systemctl start nfs-server
exportfs -o ro,no_subtree_check,insecure,no_root_squash,fsid=7 127.0.0.1:{ROOT}
"""
OURS = "systemctl stop nfs-server rpcbind rpcbind.socket rpc-statd; systemctl start netbootd-nfs netbootd"
MEASURE = """
import json, os, subprocess, sys, time
root, found = sys.argv[1], []
for kind, options in (("nfs", "vers=3,nolock"), ("nfs4", "vers=4.2")):
    os.makedirs("/run/bench", exist_ok=True)
    for _ in range(20):
        mount = ["mount", "-t", kind, "-o", f"ro,{options}", f"127.0.0.1:{root}", "/run/bench"]
        if subprocess.run(mount).returncode == 0:
            break
        time.sleep(1)
    rates = []
    for _ in range(4):
        began = time.monotonic()
        dd = ["dd", "if=/run/bench/large", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]
        subprocess.run(dd, check=True)
        rates.append(100 / (time.monotonic() - began))
    began = time.monotonic()
    for number in range(1000):
        os.stat(f"/run/bench/many/{number}")
    found += [max(rates), 1000 / (time.monotonic() - began)]
    subprocess.run(["umount", "/run/bench"], check=True)
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    runs: dict[str, list[list[float]]] = {"netbootd": [], "nfs-utils": []}
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as text, Lab(Path(text) / "lab") as lab:
        folder = Path(text)
        make_state(folder / "state")
        ext4(folder / "state", folder / "state.img", "state", "400M")
        server = ServerMachine(lab, server_image(), [wheels(folder), folder / "state.img"])
        server.put('[server]\nallow = ["127.0.0.0/8"]\n', "/etc/netbootd/netbootd.toml")
        server.put(MEASURE, "/root/measure.py")
        server.run(INSTALL, timeout=400)
        kernel = server.run("uname -r").strip()
        utils = server.run("dpkg-query -Wf '${Version}' nfs-kernel-server").strip()
        for _ in range(rounds):
            for name, setup in (("nfs-utils", PLAIN), ("netbootd", OURS)):
                server.run(setup, check=False)
                told = server.run(f"python3 /root/measure.py {ROOT}", timeout=600)
                runs[name].append(json.loads(told.splitlines()[-1]))
                print(name, *(f"{value:.1f}" for value in runs[name][-1]), file=sys.stderr, flush=True)
    print(describe("python -m tests.benchmarks.kernel_nfs", [f"within: Linux {kernel}", f"nfs-kernel-server {utils}"]))
    print()
    print("| set up by | NFSv3 MB/s | GETATTR/s | NFSv4.2 MB/s | GETATTR/s |")
    print("| --- " * 5 + "|")
    medians = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in runs.items()}
    for name, values in medians.items():
        print(f"| {name} | {' | '.join(f'{value:,.0f}' for value in values)} |")
    ratios = [mine / theirs for mine, theirs in zip(medians["netbootd"], medians["nfs-utils"], strict=True)]
    print(f"\nnetbootd: {', '.join(f'{ratio:.2f} ×' for ratio in ratios)}.")


def make_state(state: Path) -> None:
    """A state folder with one generation, whose root has a large file and many small ones."""
    root = state / "images/bench" / GENERATION / "root"
    (root / "many").mkdir(parents=True)
    (root / "large").write_bytes(bytes(range(256)) * (100_000_000 // 256))
    for number in range(1000):
        (root / "many" / str(number)).write_bytes(b"x")
    (root.parent / "boot").mkdir()
    (root.parent / "image.json").write_text("{}")
    (root.parent.parent / "current").symlink_to(GENERATION)


if __name__ == "__main__":
    main()
