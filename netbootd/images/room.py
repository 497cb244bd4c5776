"""Whether a disk has the room that a step will need, told before the step begins."""

from __future__ import annotations

import shutil
from pathlib import Path

from netbootd.errors import HostError


def check_room(folder: Path, needed: int, doing: str) -> None:
    """See whether `needed` bytes fit on the file system of `folder`.

    :param doing: what needs them, as the beginning of a sentence
    :raises HostError: they don't
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HostError(
            f"{doing} needs {needed >> 20} MiB, and {folder} has {free >> 20} MiB free.",
            hint="Free some room (netbootd images prune), or choose another disk with --state.",
        )
