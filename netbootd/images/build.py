"""Builds one image: resolve, download, read, export, patch, publish; the steps in order.

A generation's id is the digest of all that it is made from, so the same inputs give the same generation and nothing
is done twice. Until the last rename nothing of a build is visible; the next one sweeps what an interrupted one left.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from netbootd import __version__
from netbootd.errors import HostError, UsageError
from netbootd.images import patches, pc, trees
from netbootd.images.catalog import resolve
from netbootd.images.catalog.names import arch_of
from netbootd.images.download import fetch
from netbootd.images.export import Counts
from netbootd.images.locations import public
from netbootd.images.originals import ORIGINAL, Originals
from netbootd.images.progress import Progress
from netbootd.images.target import check_target
from netbootd.images.threads import in_thread
from netbootd.model.image import ATTRIBUTES, Generation, ImageSpec, Release
from netbootd.model.network import ServerAddress
from netbootd.store.generations import Generations, remove_tree


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build. `mirror` and `keyring` replace and extend the publisher's; `force` builds what is there again.

    With `unprivileged` the attributes of the root file system lie in a record beside it, not on disk.
    """

    mirror: str | None = None
    keyring: Path | None = None
    skip_verify: bool = False
    force: bool = False
    dry_run: bool = False
    unprivileged: bool = False


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What came of it. `changed` is False where the generation was there and current already."""

    name: str
    generation: str
    path: Path
    changed: bool


async def build_image(
    spec: ImageSpec, generations: Generations, server: ServerAddress, options: BuildOptions, progress: Progress
) -> BuildResult:
    """Build `spec` and make it current.

    :param server: how nodes reach the server, written into the boot files
    :raises NetbootdError: by the table of the operator's contract; the current generation stays as it was
    """
    with generations.locked(spec.name, f"Building {spec.name}"):
        release = await resolve(
            spec,
            mirror=options.mirror,
            keyring=options.keyring,
            skip_verify=options.skip_verify,
            progress=progress,
        )
        archive = None
        if not release.sha256:  # nobody told it beforehand: it is known once the archive is here
            archive = await fetch(release, generations.layout.downloads, progress)
            release = replace(release, sha256=archive.parent.name)
        salt = datetime.now(UTC).isoformat() if options.force else ""
        recorded = options.unprivileged and not pc.is_iso(release.file_name)  # which has no root file system to keep
        ident = generation_id(spec, release, server, generations.layout.state, salt, recorded=recorded)
        generation = generations.layout.generation(spec.name, ident)
        current = generations.current(spec.name)
        known = generations.find(spec.name, ident) is not None
        changed = current is None or current.id != ident
        result = BuildResult(spec.name, ident, generation.path, changed)
        if options.dry_run:
            return result
        if known:
            vouch(generations, generation, release)
            if changed:  # built before, and another has been current since
                generations.activate(generation)
            return result
        if not pc.is_iso(release.file_name):
            check_target(generations.layout.image(spec.name), recorded=recorded)
        job = _Job(spec, release, generation, generations, server, recorded, progress)
        if options.force or not await in_thread(job.rebuild):
            archive = archive or await fetch(release, generations.layout.downloads, progress)
            await in_thread(lambda stop: job.build(archive, stop))
        return result


def generation_id(
    spec: ImageSpec, release: Release, server: ServerAddress, state: Path, salt: str, *, recorded: bool = False
) -> str:
    """The digest of everything that a build depends on, 16 hex digits.

    :param state: the state folder, whose path is on the kernel's command line
    :param salt: "" unless the build shall differ from every earlier one
    :param recorded: the attributes of the root file system are to lie in a record beside it
    """
    inputs = {
        "tool": [__version__, patches.REVISION],
        "archive": release.sha256,
        "arch": spec.arch,
        "cmdline_append": spec.cmdline_append,
        "config_append": spec.config_append,
        "server": asdict(server),
        "state": str(state),
        "salt": salt,
    }
    if recorded:
        inputs["attributes"] = "recorded"
    if spec.card:
        inputs["card"] = [[name, hashlib.sha256(data).hexdigest()] for name, data in spec.card]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def vouch(generations: Generations, generation: Generation, release: Release) -> None:
    """Note in image.json that what a generation is made of has turned out to be authentic, or by whose key.

    How an archive came to be trusted changes no byte of what is built of it, so it is no part of the id: built with
    --insecure-skip-verify once, it is verified as soon as a run has verified it. What is known is never taken back.

    :raises HostError: image.json can't be written
    """
    manifest = generations.manifest(generation)
    known = manifest.get("source")
    known = known if isinstance(known, dict) else {}
    if (release.verified, bool(release.key)) > (bool(known.get("verified")), bool(known.get("key"))):
        generations.restate(generation, {**manifest, "source": {**known, **_source(release)}})


def _source(release: Release) -> dict[str, Any]:
    return {
        "title": release.title,
        "url": public(release.url),
        "sha256": release.sha256,
        "verified": release.verified,
        "key": release.key,
        **({"extract_sha256": release.extract_sha256} if release.extract_sha256 else {}),
    }


@dataclass(frozen=True, slots=True)
class _Job:
    """One generation to be made. `recorded`: the attributes of its root file system are to lie in a record."""

    spec: ImageSpec
    release: Release
    generation: Generation
    generations: Generations
    server: ServerAddress
    recorded: bool
    progress: Progress

    def rebuild(self, stop: threading.Event) -> bool:
        """Make it of an earlier one of the same archive; False where that can't be done."""
        wanted = trees.inputs(self.spec, self.release, record=self.recorded)
        donor = trees.donor(self.generations, self.spec.name, wanted)
        if donor is None:
            return False
        with self._work() as work:
            taken = trees.from_generation(self.generations, donor, work, progress=self.progress, stop=stop)
            if taken is None:
                self.progress.note(f"Generation {donor.id} is not whole: the image is read again.")
                return False
            self._publish(work, self._patched(taken, work))
        return True

    def build(self, archive: Path, stop: threading.Event) -> None:
        """Make it of the archive."""
        spec, release = self.spec, self.release
        with self._work() as work:
            if pc.is_iso(release.file_name) or pc.holds_iso(archive):
                manifest = _fill_pc(spec, release, archive, self.generation, work, self.progress, stop)
            else:
                read = trees.from_archive(
                    archive, spec, release, work, record=self.recorded, progress=self.progress, stop=stop
                )
                manifest = self._patched(read, work)
            self._publish(work, manifest)

    @contextmanager
    def _work(self) -> Iterator[Path]:
        """An empty folder for it, removed unless it has been published."""
        work = self.generations.begin(self.generation)
        try:
            yield work
        except OSError as error:
            if isinstance(error, HostError):
                raise
            raise HostError(
                f"Building {self.spec.name} in {work}: {error.strerror or error}.",
                hint="Is the disk full? netbootd images prune deletes old generations.",
            ) from error
        finally:
            if work.exists():
                remove_tree(work)

    def _publish(self, work: Path, manifest: dict[str, Any]) -> None:
        self.progress.step("Publishing")
        self.generations.publish(work, self.generation, manifest)

    def _patched(self, read: trees.Trees, work: Path) -> dict[str, Any]:
        """Patch the trees in `work`; returns what image.json says."""
        self.progress.step("Patching")
        spec, record = self.spec, read.record
        boot, root = work / "boot", work / "root"
        facts = replace(patches.survey(boot, root, record), cmdline_append=spec.cmdline_append)
        parameters = patches.Parameters(
            server=self.server,
            root_path=str(self.generation.root),
            cmdline_append=spec.cmdline_append,
            config_append=spec.config_append,
        )
        with Originals(work / ORIGINAL) as originals:
            before = record.encode() if record is not None else None
            made = patches.apply(boot, root, facts, parameters, record, originals)
            originals.finish(trees.inputs(spec, self.release, record=self.recorded), before)
        if record is not None:
            (work / ATTRIBUTES).write_bytes(record.encode())
        return {
            **_heading(spec, self.release, self.generation),
            **({"unprivileged": True} if record is not None else {}),
            "image": {"size": read.size},
            "partitions": read.partitions,
            "patches": [asdict(patch) for patch in made],
            "counts": read.counts,
            "facts": facts.as_dict(),
            **({"card": read.card} if read.card else {}),
            **_ending(),
        }


def _fill_pc(
    spec: ImageSpec,
    release: Release,
    archive: Path,
    generation: Generation,
    work: Path,
    progress: Progress,
    stop: threading.Event,
) -> dict[str, Any]:
    """Fill `work` with the boot/ of an installation medium; returns what image.json says."""
    if spec.card or spec.config_append:
        asked = "sd_image" if spec.card else "config_append"
        raise UsageError(
            f"Building {spec.name}: {asked} is for Raspberry Pis, and {release.file_name} installs PCs.",
            hint=f"Take {asked} out of this [[image]].",
        )
    boot = work / "boot"
    boot.mkdir()
    facts = replace(pc.export(archive, release, boot, progress, stop), cmdline_append=spec.cmdline_append)
    sizes = [path.stat().st_size for path in boot.iterdir()]
    return {
        **_heading(spec, release, generation),
        "partitions": [],
        "patches": [],
        "counts": {"boot": Counts(files=len(sizes), bytes=sum(sizes)).as_dict()},
        "facts": facts.as_dict(),
        **_ending(),
    }


def _heading(spec: ImageSpec, release: Release, generation: Generation) -> dict[str, Any]:
    return {"name": spec.name, "generation": generation.id, "arch": arch_of(spec.arch), "source": _source(release)}


def _ending() -> dict[str, str]:
    return {"tool": f"netbootd {__version__}", "created": datetime.now(UTC).isoformat(timespec="milliseconds")}
