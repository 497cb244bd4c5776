"""Starts and ends the programs of a test, here or in a network namespace, so that none outlives it.

Every child is started with ``setpriv --pdeathsig``: it gets SIGTERM even when the test run itself is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parents[2]

Argument = str | os.PathLike[str]
T = TypeVar("T")


def in_namespace(namespace: str, argv: Sequence[Argument]) -> list[str]:
    """The command line that runs `argv` in a network namespace ("" is here)."""
    words = [os.fspath(word) for word in argv]
    return ["ip", "netns", "exec", namespace, *words] if namespace else words


def run(
    argv: Sequence[Argument],
    *,
    namespace: str = "",
    check: bool = True,
    timeout: float = 120,
    cwd: Path = REPOSITORY,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. With `check`, a failure raises AssertionError with all that it printed."""
    done = subprocess.run(
        in_namespace(namespace, argv),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **env} if env else None,
        input=stdin or "",
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(done.args)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Program:
    """A program that runs beside the test; what it prints (both streams) goes to `log`. A context manager."""

    def __init__(
        self,
        argv: Sequence[Argument],
        log: Path,
        *,
        namespace: str = "",
        cwd: Path = REPOSITORY,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.name = os.path.basename(os.fspath(argv[0]))
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *in_namespace(namespace, argv)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=cwd,
                env={**os.environ, **env} if env else None,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        return read_text(self.log)

    def wait(self, timeout: float) -> int:
        """The exit status; AssertionError with the log where it doesn't end in time."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout:.0f} s:\n{self.output()[-4000:]}") from None

    def signal(self, number: int) -> None:
        if self.poll() is None:
            self._process.send_signal(number)

    def stop(self, patience: float = 10) -> int:
        """SIGTERM, then SIGKILL after `patience` seconds; the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL, as a power cut would; the exit status."""
        self.signal(signal.SIGKILL)
        return self._process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def read_text(path: Path) -> str:
    """The file's text, "" where there is none (yet)."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def wait_until(
    condition: Callable[[], T],
    what: str,
    *,
    timeout: float = 30,
    explain: Callable[[], str] = str,
    alive: Sequence[Program] = (),
) -> T:
    """Poll until `condition` gives something true, and return that.

    AssertionError with `what` and `explain()` after `timeout` seconds, or as soon as a program of `alive` has ended.
    """
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        ended = [program for program in alive if program.poll() is not None]
        if ended and not (value := condition()):
            reason = "; ".join(f"{p.name} ended with status {p.poll()}:\n{p.output()[-4000:]}" for p in ended)
            raise AssertionError(f"waited for {what}, but {reason}\n{explain()}")
        if ended:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {timeout:.0f} s\n{explain()}")
        time.sleep(0.1)
