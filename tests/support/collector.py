"""The test's own HTTP server on the lab's wire: guests POST their reports to it and ask it whether they may go on.

``POST /report/<name>`` adds a JSON line {"name", "address", "seconds", "body"} to the log; ``GET /gate/<name>`` is 200
once the file ``<gates>/<name>`` exists, else 404. Runs as a program of its own, since it lives in a namespace:
``python -m tests.support.collector LOG GATES --bind ADDR --port PORT``.
"""

from __future__ import annotations

import argparse
import http.server
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.netlab import SERVER, Lab
from tests.support.processes import Program, read_text, wait_until

PORT = 8080
URL = f"http://{SERVER}:{PORT}"


@dataclass(frozen=True, slots=True)
class Report:
    """One POST of a guest. `seconds`: the monotonic clock."""

    name: str
    address: str
    seconds: float
    body: str

    def field(self, key: str) -> str:
        """The rest of the one line that begins with `key` and a blank."""
        lines = [line for line in self.body.splitlines() if line.split(" ", 1)[0] == key]
        assert len(lines) == 1, f"{len(lines)} lines {key} in the report of {self.name}:\n{self.body}"
        return lines[0][len(key) :].strip()


class Collector:
    """The handle that a test has on the running program."""

    def __init__(self, lab: Lab) -> None:
        self._log, self._gates = lab.folder / "reports.jsonl", lab.folder / "gates"
        self._gates.mkdir()
        argv = [sys.executable, "-m", __name__, str(self._log), str(self._gates), "--bind", SERVER, "--port", str(PORT)]
        self.program: Program = lab.start(lab.server, argv, "collector")
        wait_until(lambda: "listening" in self.program.output(), "collector", alive=[self.program])

    def reports(self, name: str) -> list[Report]:
        """All that was POSTed to ``/report/<name>``, oldest first."""
        lines = read_text(self._log).split("\n")[:-1]
        return [report for line in lines if (report := Report(**json.loads(line))).name == name]

    def open_gate(self, name: str) -> None:
        (self._gates / name).touch()


class _Handler(http.server.BaseHTTPRequestHandler):
    log: Path
    gates: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        name = self.path.removeprefix("/report/")
        row = {"name": name, "address": self.client_address[0], "seconds": time.monotonic(), "body": body}
        with self.log.open("ab", buffering=0) as stream:
            stream.write(json.dumps(row).encode() + b"\n")
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200 if (self.gates / Path(self.path).name).exists() else 404)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("gates", type=Path)
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT)
    arguments = parser.parse_args()
    _Handler.log, _Handler.gates = arguments.log, arguments.gates
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = http.server.ThreadingHTTPServer((arguments.bind, arguments.port), _Handler)
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
