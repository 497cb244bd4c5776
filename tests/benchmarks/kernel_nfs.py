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
from tests.support.desk import desk

GENERATION = "0123456789abcdef"
ROOT = f"/var/lib/netbootd/images/bench/{GENERATION}/root"
FILES = f"""
set -e
mkdir -p {ROOT}/many {ROOT}/../boot
head -c 100000000 /dev/urandom > {ROOT}/large
for number in $(seq 0 999); do echo x > {ROOT}/many/$number; done
echo '{{}}' > {ROOT}/../image.json
ln -s {GENERATION} {ROOT}/../../current
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
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as text, desk(Path(text)) as place:
        place.lifecycle.up()
        place.run(FILES)
        (Path(text) / "measure.py").write_text(MEASURE)
        place.put(Path(text) / "measure.py", "/root")
        kernel = place.run("uname -r")
        utils = place.run("dpkg-query -Wf '${Version}' nfs-kernel-server")
        for _ in range(rounds):
            for name, setup in (("nfs-utils", PLAIN), ("netbootd", OURS)):
                place.ask(setup)
                told = place.run(f"python3 /root/measure.py {ROOT}", timeout=600)
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


if __name__ == "__main__":
    main()
