"""Feeds a reader with broken and hostile input until it does what it must not. See tests/README.md."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.guard import SECONDS, Finding, attempt, backstop
from tests.fuzz.mutate import Mutator

if TYPE_CHECKING:
    from tests.fuzz.readers import Harness

_KEPT = Path(".cache/fuzz")
_RSS_MIB = 2048
_LONGEST = 4 << 20  # bytes of an input


def main(arguments: Sequence[str]) -> int:
    """Run as the command line says; 0 if nothing was found, 1 if something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("reader", help="one of the readers of tests/fuzz/readers.py, or all")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader (default 60)")
    parser.add_argument("--findings", type=Path, metavar="DIR", default=_KEPT / "findings", help=f"default: {_KEPT}/…")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input alone")
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="DIR",
        default=_KEPT / "corpus",
        help=f"with atheris: where inputs that reach something new are kept, a folder a reader (default: {_KEPT}/…)",
    )
    parser.add_argument("--blind", action="store_true", help="without atheris, also where it is installed")
    parser.add_argument("--number", type=int, default=0, help="of the blind stream of mutations (default 0)")
    given = parser.parse_args(arguments)
    guided = not given.blind and not given.replay and importlib.util.find_spec("atheris") is not None
    harnesses = _harnesses(guided)
    if given.reader not in (*harnesses, "all"):
        parser.error(f"there is no reader {given.reader}; there are {', '.join(harnesses)}, all")
    logging.disable(logging.CRITICAL)
    if given.replay is not None:
        return _replay(harnesses[given.reader], given.replay)
    if given.reader == "all":
        return max(_in_a_process(name, arguments) for name in harnesses)
    if guided:
        _guided(given.reader, harnesses[given.reader], given)
    return _blind(given.reader, harnesses[given.reader], given)


def _harnesses(guided: bool) -> dict[str, Harness]:
    """The readers; with atheris, netbootd's modules are instrumented as they come."""
    if guided:
        import atheris

        with atheris.instrument_imports(include=["netbootd"]):
            from tests.fuzz.readers import HARNESSES
    else:
        from tests.fuzz.readers import HARNESSES
    return HARNESSES


def _in_a_process(name: str, arguments: Sequence[str]) -> int:
    """Run one reader of all: atheris ends its process, and memory is counted from a fresh start."""
    rest = [name if argument == "all" else argument for argument in arguments]
    return os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-m", "tests.fuzz", *rest])


def _replay(harness: Harness, path: Path) -> int:
    try:
        with backstop():
            attempt(harness.read, path.read_bytes(), harness.allowed)
    except Finding as finding:
        print(finding)
        return 1
    print("nothing found")
    return 0


def _blind(name: str, harness: Harness, given: argparse.Namespace) -> int:
    """Mutate until the time is over; each kind of finding is kept once."""
    mutator = Mutator(harness.made_seeds(), given.number)
    kinds: set[str] = set()
    tried, end = 0, time.monotonic() + given.seconds
    with backstop():
        while time.monotonic() < end:
            data = harness.mended(mutator.next())
            tried += 1
            try:
                attempt(harness.read, data, harness.allowed)
            except Finding as finding:
                kind = _kind(str(finding))
                if kind not in kinds:
                    kinds.add(kind)
                    _tell(name, data, finding, given.findings)
    print(f"{name}: {tried} inputs, {len(kinds)} kinds of finding", flush=True)
    return 1 if kinds else 0


def _kind(report: str) -> str:
    """Where it came from: the last place in a file, or the whole report."""
    places = [line for line in report.splitlines() if line.lstrip().startswith("File ")]
    return places[-1] if places else report


def _tell(name: str, data: bytes, finding: Finding, folder: Path) -> None:
    """Keep an input, and say what it does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{name}: {finding}\nagain: python -m tests.fuzz {name} --replay {path}\n", flush=True)


def _guided(name: str, harness: Harness, given: argparse.Namespace) -> None:
    """Let atheris choose the inputs by what of netbootd they reach. It ends the process, at the first finding or so."""
    import atheris

    corpus = given.corpus / name
    corpus.mkdir(parents=True, exist_ok=True)
    for data in harness.made_seeds():
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def one(raw: bytes) -> None:
        data = harness.mended(raw)
        try:
            attempt(harness.read, data, harness.allowed)
        except Finding as finding:
            _tell(name, data, finding, given.findings)
            os._exit(1)

    limits = (f"-max_total_time={given.seconds}", f"-timeout={SECONDS * 2:.0f}", f"-rss_limit_mb={_RSS_MIB}")
    atheris.Setup([sys.argv[0], *limits, f"-max_len={_LONGEST}", "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
