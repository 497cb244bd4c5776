"""How far a build is: a bar on a terminal, plain lines otherwise; always on stderr."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from netbootd.cli.output import note, size_text
from netbootd.images.progress import Progress, Silent

_REFRESH_SECONDS = 0.1
_LINE_SECONDS = 10.0
_BAR = 24


class _Reporter(ABC):
    """One image's steps. Subclasses show them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._title = ""
        self._total: int | None = None
        self._done = 0
        self._began = self._shown = time.monotonic()

    def step(self, title: str) -> None:
        """See `Progress`."""
        self.finish()
        self._title, self._total, self._done = title, None, 0
        self._began = self._shown = time.monotonic()
        self._begin()

    def total(self, amount: int | None) -> None:
        """See `Progress`."""
        self._total = amount

    def advance(self, amount: int) -> None:
        """See `Progress`."""
        self._done += amount
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self._show(now)

    def note(self, text: str) -> None:
        """See `Progress`."""
        self.clear()
        note(f"{self._name}: {text}")

    def finish(self) -> None:
        """The last step is done."""
        if self._title:
            self._end(time.monotonic() - self._began)
            self._title = ""

    _interval = _LINE_SECONDS

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _show(self, now: float) -> None: ...

    @abstractmethod
    def _end(self, seconds: float) -> None: ...

    @abstractmethod
    def clear(self) -> None:
        """Make room for a line."""

    def _figures(self, now: float) -> str:
        rate = self._done / max(now - self._began, 1e-3)
        text = f"{size_text(self._done)}"
        if self._total:
            text += f" of {size_text(self._total)}"
        text += f", {size_text(rate)}/s"
        if self._total and rate > 0 and self._total > self._done:
            text += f", {(self._total - self._done) / rate:.0f} s left"
        return text


class Lines(_Reporter):
    """A line when a step begins, one every ten seconds, one at its end."""

    def _begin(self) -> None:
        note(f"{self._name}: {self._title}")

    def _show(self, now: float) -> None:
        note(f"{self._name}: {self._title}: {self._figures(now)}")

    def _end(self, seconds: float) -> None:
        if self._done:
            note(f"{self._name}: {self._title}: done, {size_text(self._done)} in {seconds:.1f} s")

    def clear(self) -> None:
        """See `_Reporter`: lines have room already."""


class Bar(_Reporter):
    """One line that is drawn again and again."""

    _interval = _REFRESH_SECONDS

    def _begin(self) -> None:
        self._show(time.monotonic())

    def _show(self, now: float) -> None:
        part = min(1.0, self._done / self._total) if self._total else 0.0
        bar = "#" * round(part * _BAR)
        figures = f"[{bar:<{_BAR}}] {part:4.0%} {self._figures(now)}" if self._total else self._figures(now)
        sys.stderr.write(f"\r\x1b[K{self._name}: {self._title} {figures if self._done else ''}")
        sys.stderr.flush()

    def _end(self, seconds: float) -> None:
        amount = f", {size_text(self._done)}" if self._done else ""
        sys.stderr.write(f"\r\x1b[K{self._name}: {self._title}: {seconds:.1f} s{amount}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """See `_Reporter`."""
        sys.stderr.write("\r\x1b[K")


@contextmanager
def reporter(name: str, *, quiet: bool) -> Iterator[Progress]:
    """A reporter fit for stderr as it is."""
    if quiet:
        yield Silent()
        return
    shown: Lines | Bar = Bar(name) if sys.stderr.isatty() else Lines(name)
    try:
        yield shown
        shown.finish()
    except BaseException:
        shown.clear()
        raise
