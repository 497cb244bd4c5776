"""How a long job tells how far it is; the command line shows it as a bar or as plain lines."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told in order: a step, its total where one is known, then the advances. Called from one thread at a time."""

    def step(self, title: str) -> None:
        """A new step begins, the one before is done; nothing of the new one has been worked off."""

    def total(self, amount: int | None) -> None:
        """The step's whole amount in bytes, None where it is not known. May be said again when better known."""

    def advance(self, amount: int) -> None:
        """`amount` more bytes are done; negative where work was lost and is done again."""

    def note(self, text: str) -> None:
        """One sentence that a person should see, now."""


class Silent:
    """A `Progress` that tells nobody."""

    __slots__ = ()

    def step(self, title: str) -> None:
        """See `Progress`."""

    def total(self, amount: int | None) -> None:
        """See `Progress`."""

    def advance(self, amount: int) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""
