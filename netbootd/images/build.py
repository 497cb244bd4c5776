"""Builds one image: resolve, download, read, export, patch, publish; the steps in order.

A generation's id is the digest of all that it is made from, so the same inputs give the same generation and nothing
is done twice. Until the last rename nothing of a build is visible; the next one sweeps what an interrupted one left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from netbootd import __version__
from netbootd.errors import HostError, UsageError
from netbootd.formats.bootroot import find_boot_and_root
from netbootd.formats.ext4 import Ext4
from netbootd.formats.fat import Fat
from netbootd.formats.partitions import read_table
from netbootd.formats.treeattributes import TreeAttributes
from netbootd.images import patches, pc
from netbootd.images.catalog import resolve
from netbootd.images.catalog.names import arch_of
from netbootd.images.decompress import Stopped, decompress
from netbootd.images.download import fetch
from netbootd.images.dressing import RecordDressing, StoreDressing
from netbootd.images.export import Counts, export_ext4, export_fat
from netbootd.images.locations import public
from netbootd.images.progress import Progress
from netbootd.images.sdcard import stage_card
from netbootd.images.target import check_target
from netbootd.images.threads import in_thread
from netbootd.model.image import ATTRIBUTES, CARD, Generation, ImageSpec, Release
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
        archive = archive or await fetch(release, generations.layout.downloads, progress)
        record = TreeAttributes() if recorded else None
        await in_thread(
            lambda stop: _build(spec, release, archive, generation, generations, server, record, progress, stop)
        )
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


def _build(
    spec: ImageSpec,
    release: Release,
    archive: Path,
    generation: Generation,
    generations: Generations,
    server: ServerAddress,
    record: TreeAttributes | None,
    progress: Progress,
    stop: threading.Event,
) -> None:
    work = generations.begin(generation)
    try:
        if pc.is_iso(release.file_name) or pc.holds_iso(archive):
            manifest = _fill_pc(spec, release, archive, generation, work, progress, stop)
        else:
            manifest = _fill(spec, release, archive, generation, work, server, record, progress, stop)
        progress.step("Publishing")
        generations.publish(work, generation, manifest)
    except OSError as error:
        if isinstance(error, HostError):
            raise
        raise HostError(
            f"Building {spec.name} in {work}: {error.strerror or error}.",
            hint="Is the disk full? netbootd images prune deletes old generations.",
        ) from error
    finally:
        if work.exists():
            remove_tree(work)


def _fill(
    spec: ImageSpec,
    release: Release,
    archive: Path,
    generation: Generation,
    work: Path,
    server: ServerAddress,
    record: TreeAttributes | None,
    progress: Progress,
    stop: threading.Event,
) -> dict[str, Any]:
    """Fill `work` with boot/ and root/, and what `record` keeps of root/; returns what image.json says."""
    progress.step("Decompressing")
    with decompress(
        archive,
        work,
        landing=None if spec.card else work / "landing",  # a card is made of the image as a whole
        progress=progress,
        sha256=release.sha256,
        extract_sha256=release.extract_sha256,
        stop=stop,
    ) as image:
        size = image.window.size
        table = read_table(image.window)
        boot_partition, root_partition = find_boot_and_root(image.window, table)
        fat = Fat(image.window.sub(boot_partition.offset, boot_partition.size))
        ext4 = Ext4(image.window.sub(root_partition.offset, root_partition.size))
        _check_room(work, fat, ext4, image.landed.size if image.landed else 0)
        boot, root = work / "boot", work / "root"
        boot.mkdir()
        root.mkdir()

        def advance(amount: int) -> None:
            if stop.is_set():
                raise Stopped
            progress.advance(amount)

        progress.step("Reading the boot partition")
        progress.total(fat.used_bytes)
        counts = {"boot": export_fat(fat, boot, progress=advance)}
        progress.step("Reading the root file system")
        progress.total(ext4.used_bytes)  # its tables too, so that the end comes a little early
        dressing = StoreDressing() if record is None else RecordDressing(record)
        counts["root"] = export_ext4(ext4, root, progress=advance, dressing=dressing)
        card = stage_card(image.window, dict(spec.card), work, progress, stop) if spec.card else None
    progress.step("Patching")
    facts = replace(patches.survey(boot, root, record), cmdline_append=spec.cmdline_append)
    made = patches.apply(
        boot,
        root,
        facts,
        patches.Parameters(
            server=server,
            root_path=str(generation.root),
            cmdline_append=spec.cmdline_append,
            config_append=spec.config_append,
        ),
        record,
    )
    if record is not None:
        (work / ATTRIBUTES).write_bytes(record.encode())
    return {
        **_heading(spec, release, generation),
        **({"unprivileged": True} if record is not None else {}),
        "image": {"size": size},
        "partitions": [asdict(partition) for partition in table.partitions],
        "patches": [asdict(patch) for patch in made],
        "counts": {part: count.as_dict() for part, count in counts.items()},
        "facts": facts.as_dict(),
        **({"card": {"file": CARD, **asdict(card)}} if card else {}),
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
    return {"tool": f"netbootd {__version__}", "created": datetime.now(UTC).isoformat(timespec="seconds")}


def _check_room(work: Path, fat: Fat, ext4: Ext4, there: int) -> None:
    needed = max(0, fat.used_bytes + ext4.used_bytes - there)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise HostError(
            f"Exporting the image needs {needed >> 20} MiB, and {work} has {free >> 20} MiB free.",
            hint="Free some room (netbootd images prune), or choose another disk with --state.",
        )
