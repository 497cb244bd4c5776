"""The TFTP server against tftpd-hpa, dnsmasq, atftpd and fbtftp: a rack of Pis, one big window, files that are missing.

    sudo .venv/bin/python -m tests.benchmarks.tftp [--rounds 3] [--sustained 60] [--only netbootd,dnsmasq]

Prints Markdown tables. It moves itself into a network namespace of its own with nothing but loopback (dnsmasq knows no
other port than 69), and what of the peers isn't installed it unpacks from Debian's packages into a temporary folder
(tftpd-hpa and atftpd can't be installed beside each other). Rounds are interleaved: round one of every server, then
round two, so that a drift of the machine meets all alike; the figures are medians.

Between two CPUs a lock-step transfer measures how long it takes to wake the other CPU, so that client and server share
one for it; in the other works both CPUs are everybody's. CPU time is that of a control group. netbootd is ``netbootd
serve`` with its events written to its database.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.setting import describe, version_line
from tests.support.processes import REPOSITORY, Program, read_text, run, wait_until
from tests.support.tftp_load import make_pi_tree

ADDRESS = "127.0.0.1"
PIS = 16
BIG, BIG_SIZE = "f64m", 64 << 20
_LOAD = (sys.executable, "-m", "tests.support.tftp_load")
_GET = ("get", BIG, "--blksize", "1468", "--verify", "end", "--gro", "--tsize")
_FOLDER = "NETBOOTD_BENCHMARK_FOLDER"


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is started on `port`, and what names its version."""

    name: str
    argv: tuple[str, ...]
    port: int
    version: str
    env: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One load: the arguments of tests.support.tftp_load, and the CPU that both sides share (None: all)."""

    name: str
    arguments: tuple[str, ...]
    cpu: int | None = None


WORKS = (
    Work("pis", ("pi", "--clients", str(PIS), "--gro", "--client-timeout", "2", "--max-time", "120")),
    Work("window", (*_GET, "--windowsize", "64", "--max-time", "60")),
    Work("lockstep", (*_GET, "--max-time", "60"), 1),
    Work("misses", ("rate", "no/such/file", "--rate", "2000", "--duration", "3", "--blksize", "1468", "--tsize")),
)


def servers(root: Path, folder: Path) -> list[Server]:
    """Ours and the peers, each serving `root`; what isn't installed is unpacked below `folder`."""
    hpa, atftpd = (_program(folder, name) for name in ("in.tftpd", "atftpd"))
    libraries = [("LD_LIBRARY_PATH", str(found.parent)) for found in folder.glob("usr/lib/*/libwrap.so.0")]
    dnsmasq = ("dnsmasq", "-k", "-C", "/dev/null", "-p", "0", "--enable-tftp", f"--tftp-root={root}", "--tftp-max=300")
    quiet = ("--quiet-tftp", f"--listen-address={ADDRESS}", "--bind-interfaces", "--user=root", "--pid-file=")
    ours = ("serve", "--bind", ADDRESS, "--tftp-port", "7010", "--http-port", "0", "--nfs", "off")
    layers = ("--boot-files", str(root), "--boot-files", str(root / ".pi"))
    daemon = ("--daemon", "--no-fork", "--bind-address", ADDRESS, "--port", "7002", "--verbose=1")
    fbtftp = f"fbtftp {run([sys.executable, '-m', 'pip', 'show', 'fbtftp']).stdout.split()[3]}"
    return [
        Server(
            "netbootd",
            (sys.executable, "-m", "netbootd", "-q", "--state", str(folder / "state"), *ours, *layers),
            7010,
            "",
        ),
        Server(
            "tftpd-hpa",
            (hpa, "-L", "-a", f"{ADDRESS}:7001", "-s", str(root), "-u", "root"),
            7001,
            _package_version("tftpd-hpa"),
            dict(libraries),
        ),
        Server("dnsmasq", (*dnsmasq, *quiet, "--log-facility=-"), 69, version_line(["dnsmasq", "--version"])),
        Server(
            "atftpd",
            (atftpd, *daemon, "--maxthread", "300", "--user", "root.root", "--logfile", "/dev/null", str(root)),
            7002,
            _package_version("atftpd"),
            dict(libraries),
        ),
        Server(
            "fbtftp",
            (sys.executable, "-m", "tests.benchmarks.fbtftp_static", ADDRESS, "7003", str(root)),
            7003,
            fbtftp,
        ),
    ]


def unpack_peers(folder: Path) -> None:
    """Get those of the peers that aren't installed from Debian's packages, below `folder`."""
    for package, program in (("tftpd-hpa", "in.tftpd"), ("atftpd", "atftpd")):
        if not (Path("/usr/sbin") / program).exists():
            run(["apt-get", "download", "-qq", package, "libwrap0"], cwd=folder)
    for archive in folder.glob("*.deb"):
        run(["dpkg", "-x", archive, folder])


def _program(folder: Path, name: str) -> str:
    installed = Path("/usr/sbin") / name
    return str(installed if installed.exists() else folder / "usr/sbin" / name)


def _package_version(package: str) -> str:
    policy = run(["apt-cache", "policy", package]).stdout.split()
    return f"{package} {policy[policy.index('Candidate:') + 1]}"


def make_files(root: Path) -> None:
    """What is served: a rack's boot files and one big file."""
    make_pi_tree(str(root), PIS)
    (root / BIG).write_bytes(random.Random(2).randbytes(BIG_SIZE))
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for task in Path("/proc", str(pid), "task").glob("*"):
        for child in read_text(task / "children").split():
            found += tree(int(child))
    return found


class Group:
    """A control group (v2, with or without its cpu controller), which counts the CPU time of whoever was in it.

    tftpd-hpa doesn't wait for its children, so that their time would be nobody's.
    """

    def __init__(self, name: str) -> None:
        mounts = [line.split() for line in read_text(Path("/proc/mounts")).splitlines()]
        root = next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")
        self.folder = root / f"netbootd-benchmark-{os.getpid()}-{name}"
        self.folder.mkdir()

    def seconds(self) -> float:
        """CPU time since it was made."""
        return int((self.folder / "cpu.stat").read_text().split()[1]) / 1e6

    def remove(self) -> None:
        """Remove it, once its processes have gone."""
        wait_until(lambda: not read_text(self.folder / "cgroup.procs"), "end of a benchmark's processes")
        self.folder.rmdir()


@contextmanager
def running(server: Server, folder: Path) -> Iterator[tuple[Program, Group]]:
    """The server, once it answers, and the group that it runs in."""
    group = Group(server.name)
    env = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **(server.env or {})}
    inside = ("sh", "-c", f'echo $$ > {group.folder}/cgroup.procs && exec "$@"', "sh", *server.argv)
    with Program(inside, folder / f"{server.name}.log", env=env) as program:
        probe = [*_LOAD, "get", f"{ADDRESS}:{server.port}", "bootcode.bin", "--max-time", "2", "--retries", "1"]
        wait_until(lambda: run(probe, check=False).returncode == 0, f"{server.name} to answer", alive=[program])
        yield program, group
    group.remove()


def measure(server: Server, running: tuple[Program, Group], work: Work, root: Path) -> dict[str, float]:
    """Let one load run; what it came to."""
    program, group = running
    cpus = {work.cpu} if work.cpu is not None else set(range(os.cpu_count() or 1))
    for pid in tree(program.pid):
        for task in Path("/proc", str(pid), "task").glob("*"):
            os.sched_setaffinity(int(task.name), cpus)
    pin = ["taskset", "-c", ",".join(map(str, cpus))]
    command, *arguments = work.arguments
    argv = [*pin, *_LOAD, command, f"{ADDRESS}:{server.port}", *arguments, "--root", str(root)]
    before = group.seconds()
    done = run(argv, check=False, timeout=300)
    spent = group.seconds() - before
    found: dict[str, Any] = json.loads(done.stdout)
    answered = found["ok"] + found["not_found"] + found["aborted"]
    figures = {
        "failed": found["failed"],
        "rate": found["MB_per_s"],
        "cpu": spent * 1e6 / max(found["blocks"] or answered, 1),
        "answered": answered / found["wall_s"],
    }
    if found.get("boot"):
        figures["slowest"] = found["boot"]["max_ms"] / 1000
    if found["latency_small"]:
        figures["p99"] = found["latency_small"]["p99_ms"]
    return figures


def sustained(server: Server, root: Path, seconds: float) -> str:
    """Misses at 2,000 a second while 16 Pis boot again and again, as a sentence."""
    target, ends = f"{ADDRESS}:{server.port}", time.monotonic() + seconds
    rate = ["rate", target, "no/such/file", "--rate", "2000", "--duration", str(seconds), "--blksize", "1468"]
    argv = [*_LOAD, *rate, "--max-time", str(seconds + 30)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=REPOSITORY) as asking:
        boots, failed = 0, 0
        while time.monotonic() < ends:
            argv = [*_LOAD, "pi", target, "--clients", str(PIS), "--gro", "--client-timeout", "2", "--root", str(root)]
            found = json.loads(run(argv, check=False, timeout=300).stdout)
            boots, failed = boots + found["booted"], failed + found["failed"]
        found = json.loads(asking.communicate()[0])
    small = found["latency_small"]
    return (
        f"{server.name}, 2,000 misses a second for {seconds:.0f} s while {PIS} Pis boot ({boots} boots, {failed} of "
        f"their transfers failed): {found['not_found']:,} answered, "
        f"{found['rrq_retransmits']} asked again, {found['failed']} failed; "
        f"p50 {small['p50_ms']:.1f} ms, p99 {small['p99_ms']:.1f} ms."
    )


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """The medians, a row a server."""
    lines = [
        f"| server | {PIS} Pis: slowest boot s | MB/s | CPU µs/block | window 64: MB/s | CPU µs/block "
        "| lock-step: MB/s | CPU µs/block | 2,000 RRQ/s for nothing: answered/s | p99 ms | CPU µs | failed |",
        "| --- " * 12 + "|",
    ]
    for name, works in results.items():

        def middle(work: str, figure: str, works: dict[str, list[dict[str, float]]] = works) -> float:
            return statistics.median(one.get(figure, float("nan")) for one in works[work])

        failed = sum(one["failed"] for many in works.values() for one in many)
        cells = (
            f"{middle('pis', 'slowest'):.1f} | {middle('pis', 'rate'):.0f} | {middle('pis', 'cpu'):.1f}",
            f"{middle('window', 'rate'):.0f} | {middle('window', 'cpu'):.1f}",
            f"{middle('lockstep', 'rate'):.0f} | {middle('lockstep', 'cpu'):.1f}",
            f"{middle('misses', 'answered'):.0f} | {middle('misses', 'p99'):.0f} | {middle('misses', 'cpu'):.0f}",
            f"{failed:.0f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sustained", type=float, default=60.0, help="seconds of misses beside booting Pis; 0: none")
    parser.add_argument("--only", default="", help="names of servers, joined by commas")
    options = parser.parse_args()
    if _FOLDER not in os.environ:
        with tempfile.TemporaryDirectory(prefix="netbootd-tftp-") as name:
            unpack_peers(Path(name))
            again = [sys.executable, "-m", "tests.benchmarks.tftp", *sys.argv[1:]]
            # tftpd-hpa looks its address up, which fails where no interface has any but loopback's (AI_ADDRCONFIG).
            prepare = 'ip link set lo up && ip addr add 192.0.2.1/32 dev lo && exec "$@"'
            alone = ["unshare", "--net", "sh", "-c", prepare, "sh", *again]
            sys.exit(subprocess.run(alone, env={**os.environ, _FOLDER: name}, cwd=REPOSITORY).returncode)
    compare(options, Path(os.environ[_FOLDER]))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run everything and print the tables."""
    root = folder / "root"
    root.mkdir()
    folder.chmod(0o755)
    make_files(root)
    every = servers(root, folder)
    chosen = [server for server in every if not options.only or server.name in options.only.split(",")]
    results: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for number in range(options.rounds):
        for server in chosen:
            with running(server, folder) as under_way:
                for work in WORKS:
                    print(f"round {number + 1}: {server.name}, {work.name}", file=sys.stderr)
                    results[server.name][work.name].append(measure(server, under_way, work, root))
    command = f"python -m tests.benchmarks.tftp --rounds {options.rounds}"
    print(describe(command, [s.version for s in chosen if s.version]))
    print(f"\n{table(results)}")
    if options.sustained and chosen[0].name == "netbootd":
        with running(chosen[0], folder):
            print(f"\n{sustained(chosen[0], root, options.sustained)}")


if __name__ == "__main__":
    main()
