"""Generations of images: built beside, published by rename, never changed afterwards.

A build is made in ``images/<name>/.build-<id>/`` and becomes ``images/<name>/<id>/`` in one rename once everything of
it has reached the disk; ``current`` is a symbolic link, switched by rename too. Whoever reads sees the old or the new.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from netbootd.errors import FormatError, HostError, NotFoundError
from netbootd.model.image import Generation
from netbootd.store.layout import Layout, is_name
from netbootd.store.locks import exclusive

_ID = re.compile(r"[0-9a-f]{8,64}\Z")
_BUILD = ".build-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MANIFEST = "image.json"


class Generations:
    """The images and generations that lie in the state folder."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._unprivileged: dict[Generation, bool] = {}
        self._links: dict[str, Path] = {}
        self._found: dict[tuple[str, str], tuple[Generation, str]] = {}

    # ---------------------------------------------------------------- reading

    def names(self) -> list[str]:
        """Images that have at least one generation, sorted."""
        return [name for name in self.places() if self.all(name)]

    def places(self) -> list[str]:
        """Images that have a folder, be it for a build that has published nothing yet, sorted."""
        try:
            found = sorted(
                entry.name for entry in os.scandir(self.layout.images) if entry.is_dir(follow_symlinks=False)
            )
        except FileNotFoundError:
            return []
        return [name for name in found if is_name(name)]

    def all(self, name: str) -> list[Generation]:
        """The published generations of an image, oldest first."""
        try:
            names = [entry.name for entry in os.scandir(self.layout.image(name)) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        found = [self.layout.generation(name, ident) for ident in names if _ID.match(ident)]
        return sorted(found, key=lambda generation: (self._created(generation), generation.id))

    def find(self, name: str, ident: str) -> Generation | None:
        """A published generation, None where there is none.

        Servers ask for each file of a boot: what was there before costs one access(2), and is looked for all the same,
        since another process may have pruned it.
        """
        known = self._found.get((name, ident))
        if known is not None:
            if os.access(known[1], os.F_OK, effective_ids=True):
                return known[0]
            del self._found[name, ident]
        if not _ID.match(ident) or not is_name(name):
            return None
        generation = self.layout.generation(name, ident)
        manifest = generation.path / MANIFEST
        if not manifest.is_file():
            return None
        self._found[name, ident] = generation, str(manifest)
        return generation

    def get(self, name: str, ident: str) -> Generation:
        """A published generation.

        :raises NotFoundError: there is none of that id
        """
        generation = self.find(name, ident)
        if generation is None:
            have = ", ".join(found.id for found in self.all(name)) or "none"
            raise NotFoundError(f"Image {name} has no generation {ident}.", hint=f"Its generations: {have}.")
        return generation

    def current(self, name: str) -> Generation | None:
        """The generation that new boots get, None where nothing is prepared.

        The link is read each time: another process switches it, and the next boot has to see that.
        """
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = self.layout.current(name)
        try:
            target = str(link.readlink())
        except OSError:
            return None
        return self.find(name, target)

    def manifest(self, generation: Generation) -> dict[str, Any]:
        """What image.json says.

        :raises FormatError: it is missing or no JSON object
        """
        path = generation.path / MANIFEST
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise FormatError(f"Reading {path}: {error}.", hint="Prepare the image again with --force.") from error
        if not isinstance(value, dict):
            raise FormatError(f"{path} holds no JSON object.", hint="Prepare the image again with --force.")
        return value

    def unprivileged(self, generation: Generation) -> bool:
        """Whether the attributes of its root tree lie in a record beside it: the kernel's NFS server can't serve those.

        image.json is read once, since a generation's id tells one kind from the other. A generation that has lost one
        of the two, image.json or the record, still counts.
        """
        if generation not in self._unprivileged:
            try:
                said = self.manifest(generation).get("unprivileged") is True
            except FormatError:
                return os.path.lexists(generation.attributes)
            self._unprivileged[generation] = said or os.path.lexists(generation.attributes)
        return self._unprivileged[generation]

    def _created(self, generation: Generation) -> str:
        try:
            return str(self.manifest(generation).get("created", ""))
        except FormatError:
            return ""

    # ---------------------------------------------------------------- building

    @contextmanager
    def locked(self, name: str, doing: str) -> Iterator[None]:
        """Keep other builds and prunes of this image away.

        :raises BusyError: one is under way
        """
        folder = self.layout.image(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"Making {folder}: {error.strerror or error}.", hint="--state names another state folder."
            ) from error
        with exclusive(folder / ".lock", doing):
            yield

    def begin(self, generation: Generation) -> Path:
        """An empty folder to build `generation` in; what an interrupted build left behind is removed.

        The caller holds the image's lock. Nobody else can enter the folder before it is published.
        """
        folder = generation.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(_BUILD):
                remove_tree(Path(entry.path))
        work = folder / f"{_BUILD}{generation.id}"
        work.mkdir(mode=0o700)
        return work

    def publish(self, work: Path, generation: Generation, manifest: dict[str, Any]) -> None:
        """Make a finished build visible under its id, and current.

        :raises HostError: the disk is full or fails; nothing is published then
        """
        try:
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            work.chmod(0o755)
            sync_file_system(work)
            work.rename(generation.path)
        except OSError as error:
            raise HostError(f"Publishing {generation.path}: {error.strerror or error}.") from error
        self.activate(generation)

    def restate(self, generation: Generation, manifest: dict[str, Any]) -> None:
        """Put another image.json in the place of a published generation's, by rename; the caller holds the lock.

        :raises HostError: it can't be written; the old one stays
        """
        path = generation.path / MANIFEST
        beside = path.with_name(f".{MANIFEST}.part")
        try:
            with beside.open("w") as file:
                file.write(json.dumps(manifest, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            raise HostError(f"Writing {path}: {error.strerror or error}.") from error

    def activate(self, generation: Generation) -> None:
        """Switch ``current`` to `generation`."""
        link = self.layout.current(generation.name)
        beside = link.with_name(f"{_BUILD}current")
        try:
            beside.unlink(missing_ok=True)
            beside.symlink_to(generation.id)
            beside.replace(link)
            fd = os.open(link.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(f"Switching {link} to {generation.id}: {error.strerror or error}.") from error

    def rollback(self, name: str) -> Generation:
        """Make the generation before the current one current.

        :raises NotFoundError: there is no earlier one
        """
        current = self.current(name)
        every = self.all(name)
        if current is None or current not in every or every.index(current) == 0:
            raise NotFoundError(
                f"Image {name} has no generation before the current one.",
                hint=f"netbootd images show {name} lists what there is.",
            )
        earlier = every[every.index(current) - 1]
        self.activate(earlier)
        return earlier

    def prune(self, name: str, keep: int, in_use: Iterable[str]) -> list[Generation]:
        """Delete old generations but the newest `keep`, the current one and those in use; returns what went."""
        current = self.current(name)
        spared = {*in_use, current.id if current else ""}
        every = self.all(name)
        gone = [old for old in every[: max(0, len(every) - keep)] if old.id not in spared]
        for generation in gone:
            aside = generation.path.with_name(f"{_BUILD}old-{generation.id}")
            generation.path.rename(aside)  # out of sight first: nobody meets half a tree
            remove_tree(aside)
        return gone


def remove_tree(path: Path) -> None:
    """Delete a folder and all in it, never following a link, however deep it is.

    Folders within are moved up before they are emptied, so that neither recursion nor open descriptors grow with the
    depth, which an image decides (shutil.rmtree fails at a thousand levels before Python 3.13).

    :raises HostError: something can't be deleted
    """
    try:
        top = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"Deleting {path}: {error.strerror or error}.") from error
    try:
        names = (f".removing-{secrets.token_hex(4)}-{number}" for number in count())
        pending = _empty(top, top, names)
        while pending:
            name = pending.pop()
            folder = os.open(name, _FOLDER, dir_fd=top)
            try:
                pending += _empty(folder, top, names)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)
        path.rmdir()
    except OSError as error:
        raise HostError(f"Deleting {path}: {error.strerror or error}.") from error
    finally:
        os.close(top)


def _empty(folder: int, top: int, names: Iterator[str]) -> list[str]:
    """Delete the files of a folder and move its folders to `top`; returns their names there."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    moved = []
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
            continue
        if os.geteuid() != 0:  # who is not root needs the right to write even for its own
            os.chmod(name, 0o700, dir_fd=folder)
        if folder == top:
            moved.append(name)
        else:
            new = next(names)
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
            moved.append(new)
    return moved


def sync_file_system(path: Path) -> None:
    """Wait until everything written to the file system of `path` is on disk (syncfs(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(fd) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
    finally:
        os.close(fd)
