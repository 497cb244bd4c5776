"""The HTTP server against nginx: a large boot file by 64 clients at once, and NoCloud documents a second.

    .venv/bin/python -m tests.benchmarks.http [--rounds 9] [--seconds 5]

Prints one Markdown table. Each server is pinned to CPU 0 and the client (wrk) to CPU 1; the two servers take turns.
What counts for a file is bytes per CPU second of the server, since the client's CPU is the limit of the other figure.
nginx has sendfile and tcp_nopush on and its access log off. Needs Debian's nginx-light and wrk; only loopback is used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.setting import describe, version_line
from tests.support.processes import Program, run, wait_until

SIZE = 60_000_000
FILE = "vmlinuz"
DOCUMENT = "nocloud/1a2b3c4d/user-data"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; types {{ }} default_type application/octet-stream;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    server {{ listen 127.0.0.1:{port}; root {folder}/www; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run: bytes and requests a second of wall time and of the server's CPU time."""

    bytes_wall: float
    bytes_cpu: float
    requests_wall: float
    requests_cpu: float


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads, and of its children that still run (nginx's worker)."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    threads = [task for each in pids for task in Path(f"/proc/{each}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9


def load(url: str, pid: int, connections: int, seconds: int) -> Figures:
    before = cpu_seconds(pid)
    said = run(
        ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", url]
    ).stdout
    cpu = cpu_seconds(pid) - before
    total = re.search(r"(\d+) requests in ([\d.]+)s, ([\d.]+)([KMG]?)B read", said)
    if total is None or "Non-2xx" in said:
        raise SystemExit(f"wrk did not get what it asked for:\n{said}")
    wall, count = float(total[2]), int(total[1])
    size = float(total[3]) * _UNITS[total[4]]
    return Figures(size / wall, size / cpu, count / wall, count / cpu)


@contextmanager
def netbootd(folder: Path) -> Iterator[tuple[str, int]]:
    ready = folder / "ready.json"
    options = ["--bind", "127.0.0.1", "--tftp-port", "0", "--http-port", "0", "--nfs", "off"]
    argv = [sys.executable, "-m", "netbootd", "-q", "--state", folder / "state", "serve", *options]
    argv += ["--boot-files", folder / "www", "--ready-file", ready]
    with Program(["taskset", "-c", "0", *argv], folder / "netbootd.log") as program:
        wait_until(ready.exists, "ready file", alive=[program])
        told = json.loads(ready.read_text())
        yield f"http://{told['http'][0]}", told["pid"]
    ready.unlink(missing_ok=True)


@contextmanager
def nginx(folder: Path) -> Iterator[tuple[str, int]]:
    port = 18080
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, port=port))
    with Program(["taskset", "-c", "0", "nginx", "-c", configuration], folder / "nginx.log") as program:
        wait_until((folder / "nginx.pid").exists, "nginx", alive=[program])
        yield f"http://127.0.0.1:{port}", int((folder / "nginx.pid").read_text())
    (folder / "nginx.pid").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=5)
    arguments = parser.parse_args()
    runs: dict[str, list[Figures]] = {"netbootd file": [], "nginx file": [], "netbootd document": []}
    with tempfile.TemporaryDirectory(prefix="bench-http-") as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "www").mkdir()
        (folder / "www" / FILE).write_bytes(os.urandom(SIZE))
        with netbootd(folder) as (ours, our_pid), nginx(folder) as (theirs, their_pid):
            for _ in range(arguments.rounds):
                file = load(f"{ours}/boot/1a2b3c4d/{FILE}", our_pid, 64, arguments.seconds)
                runs["netbootd file"].append(file)
                runs["nginx file"].append(load(f"{theirs}/{FILE}", their_pid, 64, arguments.seconds))
                runs["netbootd document"].append(load(f"{ours}/{DOCUMENT}", our_pid, 16, arguments.seconds))
    print(
        describe(
            f"python -m tests.benchmarks.http --rounds {arguments.rounds}",
            [version_line(["nginx", "-v"]), version_line(["wrk", "-v"])],
        )
    )
    print()
    print("| what | MB/s | MB per CPU second | requests/s | requests per CPU second |")
    print("|---|---|---|---|---|")
    for name, figures in runs.items():
        keys = ("bytes_wall", "bytes_cpu", "requests_wall", "requests_cpu")
        a, b, c, d = (statistics.median(getattr(each, key) for each in figures) for key in keys)
        print(f"| {name} | {a / 1e6:.0f} | {b / 1e6:.0f} | {c:.0f} | {d:.0f} |")
    pairs = zip(runs["netbootd file"], runs["nginx file"], strict=True)
    ratio = statistics.median(mine.bytes_cpu / theirs.bytes_cpu for mine, theirs in pairs)
    print(f"\nA file of 60 MB, 64 clients at once, per CPU second: {ratio:.2f} × nginx.")


if __name__ == "__main__":
    main()
