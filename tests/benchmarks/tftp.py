"""The TFTP server against its peers: a rack of Pis, one big window, lock-step, files that are missing.

    sudo .venv/bin/python -m tests.benchmarks.tftp [--rounds 3] [--sustained 60] [--only netbootd,dnsmasq]

Prints Markdown tables. It moves itself into a network namespace of its own with nothing but loopback (dnsmasq knows no
other port than 69). The peers are tftpd-hpa, dnsmasq, atftpd and fbtftp of this host's release, and the tftpd-hpa and
dnsmasq of Debian sid, unpacked into a temporary folder. Rounds are interleaved: round one of every server, then
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

from tests.benchmarks.setting import describe
from tests.benchmarks.tftp_peers import ADDRESS, Server, servers, unpack_peers
from tests.support.processes import REPOSITORY, Program, read_text, run, wait_until
from tests.support.tftp_load import make_pi_tree

PIS = 16
BIG, BIG_SIZE = "f64m", 64 << 20
_LOAD = (sys.executable, "-m", "tests.support.tftp_load")
_GET = ("get", BIG, "--blksize", "1468", "--verify", "end", "--gro", "--tsize")
_MISSES = ("--rate", "2000", "--blksize", "1468")
_FOLDER = "NETBOOTD_BENCHMARK_FOLDER"


@dataclass(frozen=True, slots=True)
class Work:
    """One load: the arguments of tests.support.tftp_load, the CPU that both sides share (None: all), times a round."""

    name: str
    arguments: tuple[str, ...]
    cpu: int | None = None
    times: int = 1


Results = dict[str, dict[str, list[dict[str, float]]]]
"""By server and work, one dict of figures a round."""

WORKS = (
    Work("pis", ("pi", "--clients", str(PIS), "--gro", "--client-timeout", "2", "--max-time", "120")),
    Work("window", (*_GET, "--windowsize", "64", "--max-time", "60"), times=3),
    Work("lockstep", (*_GET, "--max-time", "60"), 1),
    Work("misses", ("rate", "no/such/file", *_MISSES, "--duration", "3", "--tsize", "--max-time", "6")),
)


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
    rate = ["rate", target, "no/such/file", *_MISSES, "--duration", str(seconds)]
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


def middle(many: list[dict[str, float]]) -> dict[str, float]:
    """The medians of some figures; failures are added up."""
    found = {name: statistics.median(one.get(name, float("nan")) for one in many) for name in many[0]}
    return {**found, "failed": sum(one["failed"] for one in many)}


def table(results: Results) -> str:
    """The medians of the rounds, a row a server."""
    lines = [
        f"| server | {PIS} Pis: slowest boot s | MB/s | CPU µs/block | window 64: MB/s | CPU µs/block "
        "| lock-step: MB/s | CPU µs/block | 2,000 RRQ/s for nothing: answered/s | p99 ms | CPU µs | failed |",
        "| --- " * 12 + "|",
    ]
    for name, works in results.items():
        pis, window, lockstep, misses = (middle(works[work]) for work in ("pis", "window", "lockstep", "misses"))
        cells = (
            f"{pis.get('slowest', float('nan')):.1f} | {pis['rate']:.0f} | {pis['cpu']:.1f}",
            f"{window['rate']:.0f} | {window['cpu']:.1f}",
            f"{lockstep['rate']:.0f} | {lockstep['cpu']:.1f}",
            f"{misses['answered']:.0f} | {misses.get('p99', float('nan')):.0f} | {misses['cpu']:.0f}",
            f"{sum(one['failed'] for one in (pis, window, lockstep, misses)):.0f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(results: Results) -> str:
    """What the table comes to: medians of the rounds' own ratios, so that a drift of the machine drops out."""

    def ratio(work: str, figure: str, peers: tuple[str, ...]) -> float:
        """Ours by the best peer's: the highest rate, the least of anything else."""
        best = max if figure == "rate" else min
        ours = results["netbootd"][work]
        theirs = (
            best(results[peer][work][number].get(figure, float("nan")) for peer in peers) for number in range(len(ours))
        )
        return statistics.median(mine[figure] / other for mine, other in zip(ours, theirs, strict=True))

    stable, sid = ("tftpd-hpa", "dnsmasq", "atftpd"), ("tftpd-hpa-sid", "dnsmasq-sid")
    everyone = tuple(name for name in results if not name.startswith("netbootd"))
    hpa, fbtftp = ratio("pis", "cpu", ("tftpd-hpa",)), ratio("pis", "cpu", ("fbtftp",))
    return (
        f"netbootd by its peers, medians of the rounds: CPU time for a block of {PIS} Pis {hpa:.2f} × tftpd-hpa, "
        f"{fbtftp:.2f} × fbtftp; slowest of {PIS} Pis {ratio('pis', 'slowest', everyone):.2f} × the best peer's; "
        f"window 64 {ratio('window', 'rate', stable):.2f} × the best of {', '.join(stable)}, "
        f"{ratio('window', 'rate', sid):.2f} × the best of {', '.join(sid)}."
    )


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
    results: Results = defaultdict(lambda: defaultdict(list))
    for number in range(options.rounds):
        for server in chosen:
            with running(server, folder) as under_way:
                for work in WORKS:
                    print(f"round {number + 1}: {server.name}, {work.name}", file=sys.stderr)
                    many = [measure(server, under_way, work, root) for _ in range(work.times)]
                    results[server.name][work.name].append(middle(many))
    command = f"python -m tests.benchmarks.tftp --rounds {options.rounds} --sustained {options.sustained:.0f}"
    print(describe(command, [s.version for s in chosen if s.version]))
    if results:
        print(f"\n{table(results)}")
    if options.rounds and len(chosen) == len(every):
        print(f"\n{ratios(results)}")
    if options.sustained and chosen[0].name == "netbootd":
        with running(chosen[0], folder):
            print(f"\n{sustained(chosen[0], root, options.sustained)}")


if __name__ == "__main__":
    main()
