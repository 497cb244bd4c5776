"""What NFS offers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Export:
    """One exported folder: its absolute path as clients name it, and an identity that survives a restart.

    `fsid` is 8 bytes derived from the image's name and the generation's id. `image` and `generation` tell which build
    it is, for events.
    """

    path: bytes
    fsid: bytes
    image: str
    generation: str
