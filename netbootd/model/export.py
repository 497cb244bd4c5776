"""What NFS offers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Export:
    """One exported folder: its absolute path as clients name it, and an identity that survives a restart.

    `fsid` is 8 bytes derived from the image's name and the generation's id. `image` and `generation` tell which build
    it is, for events. `attributes` is the path of the record of the tree's attributes, where they are not on disk: the
    kernel's server can't serve such a tree.
    """

    path: bytes
    fsid: bytes
    image: str
    generation: str
    attributes: bytes | None = None
