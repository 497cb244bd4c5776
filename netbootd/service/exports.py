"""The exports: the root tree of every published generation that has one, as it lies in the state folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence

from netbootd.model.export import Export
from netbootd.model.image import Generation
from netbootd.store.generations import Generations

_SEARCH_SECONDS = 1.0


def export_of(generation: Generation, *, unprivileged: bool = False) -> Export:
    """The export of one generation. Its fsid depends on the names alone, so handles outlive the server.

    :param unprivileged: the attributes of its tree lie in a record beside it
    """
    fsid = hashlib.sha256(f"{generation.name}\0{generation.id}".encode()).digest()[:8]
    attributes = os.fsencode(generation.attributes) if unprivileged else None
    return Export(os.fsencode(generation.root), fsid, generation.name, generation.id, attributes)


def unprivileged_images(generations: Generations) -> list[str]:
    """The images whose current generation was made without privileges, so that the kernel can't serve it."""
    current = [found for name in generations.names() if (found := generations.current(name))]
    return [found.name for found in current if found.root.is_dir() and generations.unprivileged(found)]


class GenerationExports:
    """Looks exports up among the published generations: new ones appear and pruned ones go while the server runs."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._by_fsid: dict[bytes, Export] = {}
        self._searched = -_SEARCH_SECONDS

    def find(self, path: bytes) -> Export | None:
        """The export that a client names by this path, None where there is none."""
        parts = os.fsdecode(path).rstrip("/").split("/")
        if len(parts) < 4 or parts[-1] != "root":
            return None
        generation = self._generations.find(parts[-3], parts[-2])
        if generation is None or str(generation.root) != "/".join(parts) or not generation.root.is_dir():
            return None  # a PC's image has no root tree
        export = self._export(generation)
        self._by_fsid[export.fsid] = export
        return export

    def by_fsid(self, fsid: bytes) -> Export | None:
        """The export with that identity, None where it never was or has been pruned."""
        export = self._by_fsid.get(fsid)
        if export is None:
            # A handle of a client that mounted before a restart, of a pruned generation, or an invented one: the
            # folders are searched, but not as often as somebody can invent handles.
            now = time.monotonic()
            if now - self._searched >= _SEARCH_SECONDS:
                self._searched = now
                self._by_fsid = {found.fsid: found for found in self.all()}
            return self._by_fsid.get(fsid)
        if self._generations.find(export.image, export.generation) is None:
            del self._by_fsid[fsid]
            return None
        return export

    def all(self) -> Sequence[Export]:
        """Every export there is now."""
        names = self._generations.names()
        every = (generation for name in names for generation in self._generations.all(name))
        return [self._export(generation) for generation in every if generation.root.is_dir()]

    def _export(self, generation: Generation) -> Export:
        return export_of(generation, unprivileged=self._generations.unprivileged(generation))
