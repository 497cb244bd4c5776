"""The embedded NFS server against nfs-ganesha, a user-space NFS server in C: reads, metadata, memory.

    sudo .venv/bin/python -m tests.benchmarks.nfs [--rounds 3]

Prints one Markdown table. It moves itself into a network namespace of its own, with a /run of its own, where both
servers export the same folder by NFSv3 over TCP, in turn (ganesha with an rpcbind beside it). A file of 300 MB is
read by libnfs (nfs-cat) twice; metadata, LOOKUP, GETATTR and ACCESS in turn, and READDIRPLUS of a folder of 2,000
names are asked for by a client of the tests' own that keeps 64 calls under way, the same for both. Servers are pinned
to CPU 0, clients to CPU 1; a server's CPU time is the scheduler's, of all its threads. Memory is the proportional set
size after all that: of netbootd the whole process, TFTP and HTTP included; the line below the table tells what NFS
adds to a `netbootd serve --nfs off`. Needs root, and Debian's nfs-ganesha, nfs-ganesha-vfs, rpcbind, libnfs-utils.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.setting import describe, version_line
from tests.support import nfs_wire
from tests.support.processes import REPOSITORY, Program, run, wait_until

FILE_MB = 300
NAMES = 2000
SECONDS = 3.0
UNDER_WAY = 64
LISTING = 32768
NFS_PORT = 2049
_INSIDE = "NETBOOTD_BENCHMARK_INSIDE"
GENERATION = "0123456789abcdef"

GANESHA = """
NFS_CORE_PARAM {{ NFS_Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }}
EXPORT_DEFAULTS {{ Squash = No_Root_Squash; SecType = sys, none; Protocols = 3; Transports = TCP; }}
EXPORT {{ Export_Id = 1; Path = {root}; Pseudo = /bench; Access_Type = RO; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = WARN; }}
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one round: MB/s, MB per CPU second, operations a second and per CPU second; `memory` is bytes."""

    read_wall: float
    read_cpu: float
    metadata_wall: float
    metadata_cpu: float
    names_wall: float
    names_cpu: float
    memory: int


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, as the scheduler has it: to the nanosecond, where times in clock ticks tell nothing."""
    return sum(int(stat.read_text().split()[0]) for stat in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def proportional_set_size(pid: int) -> int:
    match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10


def measure(pid: int, root: Path) -> Figures:
    """Use the server whose process is `pid`."""
    url = f"nfs://127.0.0.1{root}/large"
    client = ["taskset", "-c", "1"]
    run([*client, "sh", "-c", f"nfs-cat '{url}' >/dev/null"])  # opens it, warms the cache
    began, before = time.monotonic(), cpu_seconds(pid)
    run([*client, "sh", "-c", f"nfs-cat '{url}' >/dev/null && nfs-cat '{url}' >/dev/null"], timeout=120)
    wall, cpu = time.monotonic() - began, cpu_seconds(pid) - before
    size = 2 * FILE_MB * 1e6
    said = run(
        [*client, sys.executable, "-m", "tests.benchmarks.nfs", "--client", str(root), str(pid)], timeout=120
    ).stdout
    meta = json.loads(said)
    return Figures(size / wall / 1e6, size / cpu / 1e6, *meta, proportional_set_size(pid))


# ---------------------------------------------------------------- the client


async def client(root: str, pid: int) -> list[float]:
    """Metadata operations and names listed: of each how many a second, and how many for a CPU second of `pid`."""
    async with await nfs_wire.Client.connect(await mount_port()) as mount:
        top = await mount.mount(os.fsencode(root))
    async with await nfs_wire.Client.connect(NFS_PORT) as nfs:
        many = await nfs.lookup(top, b"many")
        handles = [await nfs.lookup(many, b"name-%05d" % number) for number in range(UNDER_WAY)]
        pages, cookie, verifier, eof = [], 0, bytes(8), False
        while not eof:
            room = nfs_wire.u32(LISTING, LISTING)
            pages.append((nfs_wire.READDIRPLUS, nfs_wire.opaque(many) + nfs_wire.u64(cookie) + verifier + room))
            listing = await nfs.readdirplus(many, cookie, verifier, LISTING, LISTING)
            cookie, verifier, eof = listing.entries[-1].cookie, listing.verifier, listing.eof
    operations = []
    for number, handle in enumerate(handles):
        name = nfs_wire.opaque(b"name-%05d" % (number * 31 % NAMES))
        operations += [
            (nfs_wire.LOOKUP, nfs_wire.opaque(many) + name),
            (nfs_wire.GETATTR, nfs_wire.opaque(handle)),
            (nfs_wire.ACCESS, nfs_wire.opaque(handle) + nfs_wire.u32(0x3F)),
        ]
    results: list[float] = []
    for calls, worth in ((operations, len(operations)), (pages, NAMES)):
        began, before, count = time.monotonic(), cpu_seconds(pid), 0
        with socket.create_connection(("127.0.0.1", NFS_PORT)) as sock:
            while time.monotonic() - began < SECONDS:
                ask(sock, calls)
                count += worth
        wall, cpu = time.monotonic() - began, cpu_seconds(pid) - before
        results += [count / wall, count / cpu]
    return results


def ask(sock: socket.socket, calls: Sequence[tuple[int, bytes]]) -> None:
    """Make calls of NFSv3, at most UNDER_WAY at a time, and see that all are answered with NFS3_OK."""
    for start in range(0, len(calls), UNDER_WAY):
        batch = [nfs_wire.call_record(nfs_wire.NFS, 3, *call) for call in calls[start : start + UNDER_WAY]]
        sock.sendall(b"".join(map(nfs_wire.marked, batch)))
        buffer, answered = b"", 0
        while answered < len(batch):
            data = sock.recv(1 << 20)
            assert data, "the server has gone"
            buffer, position = buffer + data, 0
            while len(buffer) - position >= 4:
                end = position + 4 + (int.from_bytes(buffer[position : position + 4], "big") & 0x7FFFFFFF)
                if end > len(buffer):
                    break
                # behind the mark: transaction, REPLY, MSG_ACCEPTED, an empty verifier, SUCCESS, NFS3_OK
                assert buffer[position + 8 : position + 32] == nfs_wire.u32(1, 0, 0, 0, 0, 0)
                position, answered = end, answered + 1
            buffer = buffer[position:]


async def mount_port() -> int:
    """What the port mapper says."""
    async with await nfs_wire.Client.connect(111) as portmap:
        args = nfs_wire.u32(nfs_wire.MOUNT, 3, nfs_wire.TCP, 0)
        outcome = await portmap.outcome(nfs_wire.call_record(nfs_wire.PORTMAP, 2, 3, args, nfs_wire.auth_none()))
        assert isinstance(outcome, nfs_wire.Accepted)
        return nfs_wire.Unpacker(outcome.body).u32()


# ---------------------------------------------------------------- the servers


@contextmanager
def netbootd(folder: Path, *options: str) -> Iterator[int]:
    ready = folder / "ready.json"
    argv = ["taskset", "-c", "0", sys.executable, "-m", "netbootd", "-q", "--state", folder / "state", "serve"]
    argv += ["--bind", "127.0.0.1", "--ready-file", ready, *options]
    with Program(argv, folder / "netbootd.log") as program:
        wait_until(ready.exists, "ready file", alive=[program])
        yield json.loads(ready.read_text())["pid"]
    ready.unlink(missing_ok=True)


@contextmanager
def ganesha(folder: Path, root: Path) -> Iterator[int]:
    configuration, pid = folder / "ganesha.conf", folder / "ganesha.pid"
    configuration.write_text(GANESHA.format(root=root))
    (folder / "ganesha.log").unlink(missing_ok=True)
    argv = ["taskset", "-c", "0", "ganesha.nfsd", "-F", "-f", configuration, "-L", folder / "ganesha.log", "-p", pid]
    with Program(["rpcbind", "-f", "-w"], folder / "rpcbind.log") as rpcbind:
        wait_until(lambda: registered() is not None, "rpcbind", alive=[rpcbind])
        with Program(argv, folder / "ganesha.out") as program:
            wait_until(
                lambda: {"nfs", "mountd"} <= (registered() or set()),
                "ganesha",
                alive=[program, rpcbind],
                explain=lambda: (folder / "ganesha.log").read_text(),
            )
            yield program.pid
    pid.unlink(missing_ok=True)


def registered() -> set[str] | None:
    """The services that rpcbind knows of, None where it doesn't answer."""
    asked = run(["rpcinfo", "-p", "127.0.0.1"], check=False)
    return None if asked.returncode else {line.split()[-1] for line in asked.stdout.splitlines()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        print(json.dumps(asyncio.run(client(arguments.client[0], int(arguments.client[1])))))
        return
    if _INSIDE not in os.environ:
        alone = ["unshare", "--net", "--mount", "sh", "-c"]
        alone += ['mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"', "sh"]
        again = [*alone, sys.executable, "-m", "tests.benchmarks.nfs", *sys.argv[1:]]
        sys.exit(subprocess.run(again, env={**os.environ, _INSIDE: "1"}, cwd=REPOSITORY).returncode)
    runs: dict[str, list[Figures]] = {"netbootd": [], "nfs-ganesha": []}
    with tempfile.TemporaryDirectory(prefix="bench-nfs-", dir="/var/tmp") as text:
        folder = Path(text)
        root = make_export(folder)
        with netbootd(folder, "--nfs", "off") as pid:
            without = proportional_set_size(pid)
        for _ in range(arguments.rounds):
            with netbootd(folder) as pid:
                runs["netbootd"].append(measure(pid, root))
            with ganesha(folder, root) as pid:
                runs["nfs-ganesha"].append(measure(pid, root))
    report(runs, without)


def make_export(folder: Path) -> Path:
    """A state folder with one generation, whose root has a large file and many small ones."""
    generation = folder / "state" / "images" / "bench" / GENERATION
    root = generation / "root"
    (root / "many").mkdir(parents=True)
    block = os.urandom(1_000_000)
    with (root / "large").open("wb") as file:
        for _ in range(FILE_MB):
            file.write(block)
    for number in range(NAMES):
        (root / "many" / f"name-{number:05}").write_bytes(b"x")
    (generation / "boot").mkdir()
    (generation / "image.json").write_text("{}")
    (generation.parent / "current").symlink_to(GENERATION)
    return root


def report(runs: dict[str, list[Figures]], without: int) -> None:
    print(describe("python -m tests.benchmarks.nfs", [version_line(["ganesha.nfsd", "-v"]), "libnfs's nfs-cat"]))
    print()
    print("| server | read MB/s | MB per CPU s | metadata operations/s | per CPU s | names listed/s | per CPU s | MB |")
    print("| --- " * 8 + "|")
    medians: dict[str, list[float]] = {}
    for name, rounds in runs.items():
        keys = Figures.__slots__
        medians[name] = [statistics.median(getattr(figures, key) for figures in rounds) for key in keys]
        shown = [f"{value:,.0f}" for value in medians[name][:-1]]
        print(f"| {name} | {' | '.join(shown)} | {medians[name][-1] / 1e6:.0f} |")
    mine, theirs = medians["netbootd"], medians["nfs-ganesha"]
    print(
        f"\nRead per CPU second {mine[1] / theirs[1]:.2f} × ganesha; metadata operations a second "
        f"{mine[2] / theirs[2]:.2f} ×, per CPU second {mine[3] / theirs[3]:.2f} ×; names listed a second "
        f"{mine[4] / theirs[4]:.2f} ×, per CPU second {mine[5] / theirs[5]:.2f} ×. "
        f"NFS adds {(mine[-1] - without) / 1e6:.0f} MB to a server that has it off ({without / 1e6:.0f} MB)."
    )


if __name__ == "__main__":
    main()
