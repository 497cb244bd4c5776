"""Feeds a reader with broken and hostile input until it does what it must not. See tests/README.md."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.guard import Finding, attempt, backstop
from tests.fuzz.mutate import Mutator
from tests.fuzz.readers import HARNESSES, Harness


def main(arguments: Sequence[str]) -> int:
    """Run as the command line says; 0 if nothing was found, 1 if something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("reader", choices=[*HARNESSES, "all"])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader (default 60)")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="inputs that were worth keeping, read and added to")
    parser.add_argument("--findings", type=Path, metavar="DIR", default=Path("findings"), help="default: findings")
    parser.add_argument("--number", type=int, default=0, help="of the stream of mutations (default 0)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input alone")
    parser.add_argument("--plain", action="store_true", help="mutate blindly, also where atheris is installed")
    given = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    if given.replay is not None:
        return _replay(HARNESSES[given.reader], given.replay)
    guided = importlib.util.find_spec("atheris") is not None and not given.plain
    found = 0
    for name in HARNESSES if given.reader == "all" else [given.reader]:
        if guided and given.reader != "all":
            return _guided(name, given)
        found += _blind(name, given.seconds, given.number, given.findings)
    return 1 if found else 0


def _replay(harness: Harness, path: Path) -> int:
    try:
        with backstop():
            attempt(harness.read, path.read_bytes(), harness.allowed)
    except Finding as finding:
        print(finding)
        return 1
    print("nothing found")
    return 0


def seeds_of(harness: Harness) -> list[bytes]:
    """Its seeds, made in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="netbootd-seeds-") as folder:
        return harness.seeds(Path(folder))


def _blind(name: str, seconds: float, number: int, findings: Path) -> int:
    """Mutate until the time is over; each kind of finding is kept once. Gives their number."""
    harness = HARNESSES[name]
    mutator = Mutator(seeds_of(harness), number)
    kinds: set[str] = set()
    tried, end = 0, time.monotonic() + seconds
    with backstop():
        while time.monotonic() < end:
            data = mutator.next()
            data = harness.mend(data) if harness.mend else data
            tried += 1
            try:
                attempt(harness.read, data, harness.allowed)
            except Finding as finding:
                kind = _kind(str(finding))
                if kind not in kinds:
                    kinds.add(kind)
                    print(f"{name}: {_keep(findings, name, data)}\n{finding}", flush=True)
    print(f"{name}: {tried} inputs, {len(kinds)} kinds of finding", flush=True)
    return len(kinds)


def _kind(report: str) -> str:
    """Where it came from: the last place in a file, or the whole report."""
    places = [line for line in report.splitlines() if line.lstrip().startswith("File ")]
    return places[-1] if places else report


def _keep(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def _guided(name: str, given: argparse.Namespace) -> int:
    """Let atheris choose the inputs by what of netbootd they reach; it ends the process itself.

    The modules are here already when it comes: their functions are instrumented one by one.
    """
    import atheris

    harness = HARNESSES[name]
    for module in [module for key, module in sorted(sys.modules.items()) if key.startswith("netbootd.")]:
        for value in list(vars(module).values()):
            if getattr(value, "__module__", None) == module.__name__:
                _instrument(atheris, value)
    corpus = given.corpus or Path(tempfile.mkdtemp(prefix="netbootd-corpus-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds_of(harness):
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def one(data: bytes) -> None:
        data = harness.mend(data) if harness.mend else data
        try:
            attempt(harness.read, data, harness.allowed)
        except Finding as finding:
            print(f"{name}: {_keep(given.findings, name, data)}\n{finding}", flush=True)
            os._exit(1)

    limits = [f"-max_total_time={given.seconds:.0f}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=4194304"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
    atheris.Fuzz()
    return 0


def _instrument(atheris: object, value: object) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
