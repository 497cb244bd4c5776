"""``netbootd prepare`` against the pipeline that it replaces: decompress, loop mount, rsync, mcopy.

    sudo .venv/bin/python -m tests.benchmarks.prepare [--rounds 3] [--archives multi.xz,single.xz,zst]

Prints one Markdown table. Both sides start from the same archive on the same disk, in turn, a new target each time;
the clock runs until sync has returned. The pipeline's side is what shell scripts do: ``xz -dk`` (or ``zstd -d``) to a
file, ``mount -o loop,ro``, ``rsync -xar`` of the root, ``mcopy -s`` of the boot partition; it neither verifies nor
patches. Needs root and Debian's rsync, xz-utils, zstd, mtools.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.setting import describe, version_line
from tests.support.image_cache import cache
from tests.support.processes import REPOSITORY, run

NETBOOTD = (sys.executable, "-m", "netbootd")
IMAGE = ("--root", "amd64", "--boot", "debian", "--filler-files", "40000", "--filler-mib", "800")
ARCHIVES = ("--xz", "both", "--also", "zst", "--no-root-manifest")

PIPELINE = """
set -e
cd "$1"
DECOMPRESS
mkdir mnt root boot
mount -o loop,ro,noload,offset=$4 image mnt
trap 'umount mnt' EXIT
rsync -xar mnt/ root/
mcopy -s -n -m -Q -i image@@$3 ::* boot/
rm image
sync -f root
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: seconds, and bytes that were written to the disk (of the process and all that it waited for)."""

    wall: float
    cpu: float
    written: int
    peak: int


def measure(argv: list[str], cwd: Path) -> Figures:
    """Run a program; its figures are the kernel's own accounting of it and its children."""
    script = 'set -e; "$@" >/dev/null 2>&1; cat /proc/$$/io'
    began = time.monotonic()
    process = subprocess.Popen(["bash", "-c", script, "bash", *argv], cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(argv)}")
    counts = dict(line.split(": ") for line in said.splitlines())
    return Figures(wall, usage.ru_utime + usage.ru_stime, int(counts["write_bytes"]), usage.ru_maxrss << 10)


def ours(archive: Path, digest: str, target: Path) -> Figures:
    state = target / "state"
    options = ["--source", str(archive), "--sha256", digest, "--name", "bench", "--advertise", "192.0.2.1"]
    return measure([*NETBOOTD, "-q", "--state", str(state), "prepare", *options], target)


def pipeline(archive: Path, layout: dict[str, list[int]], target: Path) -> Figures:
    decompress = 'zstd -q -d "$2" -o image' if archive.suffix == ".zst" else 'xz -T1 -dc "$2" >image'
    script = PIPELINE.replace("DECOMPRESS", decompress)
    offsets = [str(layout[part][0]) for part in ("p1", "p2")]
    return measure(["bash", "-c", script, "bash", str(target), str(archive), *offsets], target)


def make_archives() -> tuple[dict[str, Path], dict[str, list[int]]]:
    """The archives by what the table calls them, and the image's layout; made once and kept."""
    folder = cache() / "benchmark-prepare"
    if not folder.is_dir():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        maker = [sys.executable, "-m", "tests.support.imagemaker", "--out", part, "--cache", cache() / "imagemaker"]
        run([*maker, *IMAGE, *ARCHIVES], timeout=1800)
        part.rename(folder)
    layout = json.loads(next(folder.rglob("*.layout.json")).read_text())
    found = {}
    for path in sorted(folder.rglob("*.img*")):
        if path.suffix == ".xz":
            blocks = run(["xz", "--robot", "--list", path]).stdout.splitlines()[-1].split("\t")[2]
            found["single.xz" if blocks == "1" else "multi.xz"] = path
        elif path.suffix == ".zst":
            found["zst"] = path
    return found, layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--archives", default="multi.xz,single.xz,zst")
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure on  [the cache's]")
    arguments = parser.parse_args()
    found, layout = make_archives()
    # ext4 leaves inodes unused for minutes after their files were deleted, and searches past them for each new one:
    # nothing is deleted before the last round, lest a round pay for the one before.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.work or cache()) as text:
        rows = [
            compare(name, found[name], layout, arguments.rounds, Path(text)) for name in arguments.archives.split(",")
        ]
    peers = [
        version_line(["xz", "--version"]),
        version_line(["zstd", "--version"]),
        version_line(["rsync", "--version"]),
    ]
    print(describe("python -m tests.benchmarks.prepare", peers))
    print()
    print("| archive | side | wall s | CPU s | written MB | peak MB | wall ratio |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(line for lines in rows for line in lines))


def compare(name: str, archive: Path, layout: dict[str, list[int]], rounds: int, folder: Path) -> list[str]:
    """The rows of one archive; all that is made stays in `folder`."""
    digest = run(["sha256sum", archive]).stdout.split()[0]
    mine, theirs = [], []
    for number in range(rounds):
        for side in (mine, theirs):
            target = folder / f"{name}-{number}-{'mine' if side is mine else 'theirs'}"
            target.mkdir()
            os.sync()
            if side is mine:
                mine.append(ours(archive, digest, target))
            else:
                theirs.append(pipeline(archive, layout, target))
    return row(name, mine, theirs)


def row(name: str, mine: list[Figures], theirs: list[Figures]) -> list[str]:
    ratio = statistics.median(a.wall / b.wall for a, b in zip(mine, theirs, strict=True))
    lines = []
    for side, runs in (("netbootd", mine), ("pipeline", theirs)):
        wall, cpu = (statistics.median(getattr(run, key) for run in runs) for key in ("wall", "cpu"))
        written, peak = (statistics.median(getattr(run, key) for run in runs) / 1e6 for key in ("written", "peak"))
        shown = f"{ratio:.2f}" if side == "netbootd" else ""
        lines.append(f"| {name} | {side} | {wall:.1f} | {cpu:.1f} | {written:.0f} | {peak:.0f} | {shown} |")
    return lines


if __name__ == "__main__":
    if not (REPOSITORY / "setup.cfg").is_file():
        raise SystemExit("run it from a checkout")
    main()
