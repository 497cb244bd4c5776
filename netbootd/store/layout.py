"""Every path of the state folder, once. The folder's shape is part of the operator's contract."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from netbootd.errors import UsageError
from netbootd.model.image import Generation

NOT_FINISHED = (".part", ".part.json")
"""How the names of a download's files end while it is under way."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")


def default_state() -> Path:
    """``/var/lib/netbootd`` as root, else ``$XDG_STATE_HOME/netbootd`` (``~/.local/state``)."""
    if os.geteuid() == 0:
        return Path("/var/lib/netbootd")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "netbootd"


def is_name(text: str) -> bool:
    """Whether an image can have this name: letters, digits and ``._+-``, at most 64."""
    return bool(_NAME.match(text)) and text != "current"


def check_name(name: str) -> str:
    """An image's name, fit to be a folder's.

    :raises UsageError: anything that is not letters, digits and ``._+-``, or longer than 64
    """
    if not is_name(name):
        raise UsageError(
            f"{name!r} can't be the name of an image.",
            hint="Use letters, digits and . _ + - (at most 64, a letter or digit first).",
        )
    return name


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie below the state folder."""

    state: Path

    @property
    def downloads(self) -> Path:
        """Verified archives by digest, and unfinished ones."""
        return self.state / "downloads"

    @property
    def images(self) -> Path:
        """One folder an image, in it one folder a generation."""
        return self.state / "images"

    @property
    def database(self) -> Path:
        """The SQLite file of what was observed."""
        return self.state / "db" / "netbootd.db"

    @property
    def host_keys(self) -> Path:
        """One folder a node with its SSH host keys; the service's own, as all of ``db``."""
        return self.state / "db" / "host-keys"

    def image(self, name: str) -> Path:
        """The folder of one image."""
        return self.images / check_name(name)

    def current(self, name: str) -> Path:
        """The link to the current generation."""
        return self.image(name) / "current"

    def generation(self, name: str, ident: str) -> Generation:
        """One generation of an image, whether it is there or not."""
        return Generation(name, ident, self.image(name) / ident)
