"""Where a generation's trees come from: out of an archive, or by links to an earlier generation of the same archive."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from netbootd.errors import FormatError
from netbootd.formats.bootroot import find_boot_and_root
from netbootd.formats.ext4 import Ext4
from netbootd.formats.fat import Fat
from netbootd.formats.partitions import read_table
from netbootd.formats.treeattributes import TreeAttributes
from netbootd.images import originals
from netbootd.images.catalog.names import arch_of
from netbootd.images.decompress import Stopped, decompress
from netbootd.images.dressing import RecordDressing, StoreDressing
from netbootd.images.export import Counts, export_ext4, export_fat
from netbootd.images.progress import Progress
from netbootd.images.room import check_room
from netbootd.images.sdcard import stage_card
from netbootd.images.target import check_attributes
from netbootd.model.image import CARD, Generation, ImageSpec, Release
from netbootd.store.generations import Generations

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Trees:
    """What a work folder holds before it is patched: boot/ and root/, perhaps a card image.

    `record` keeps the attributes of root/ where the store does not. The rest is for image.json.
    """

    size: int
    partitions: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    card: dict[str, Any] | None
    record: TreeAttributes | None


def inputs(spec: ImageSpec, release: Release, *, record: bool) -> dict[str, Any]:
    """All that decides what trees come out, as JSON."""
    return {
        "archive": release.sha256,
        "extract_sha256": release.extract_sha256,
        "arch": arch_of(spec.arch),
        "record": record,
        "card": [[name, hashlib.sha256(data).hexdigest()] for name, data in spec.card],
    }


def from_archive(
    archive: Path,
    spec: ImageSpec,
    release: Release,
    work: Path,
    *,
    record: bool,
    progress: Progress,
    stop: threading.Event,
) -> Trees:
    """Read the image in an archive.

    :param work: an empty folder on the file system where the trees shall stay
    :param record: keep the attributes of root/ in a record
    :raises NetbootdError: the archive or the image is not what it should be, or the store can't keep it
    :raises OSError: the disk is full, or fails
    """
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
        table = read_table(image.window)
        boot_partition, root_partition = find_boot_and_root(image.window, table)
        fat = Fat(image.window.sub(boot_partition.offset, boot_partition.size))
        ext4 = Ext4(image.window.sub(root_partition.offset, root_partition.size))
        check_room(
            work, fat.used_bytes + ext4.used_bytes - (image.landed.size if image.landed else 0), "Exporting the image"
        )
        if not record:
            check_attributes(ext4, work)
        boot, root = work / "boot", work / "root"
        boot.mkdir()
        root.mkdir()
        advance = _stoppable(progress, stop)
        progress.step("Reading the boot partition")
        progress.total(fat.used_bytes)
        counts = {"boot": export_fat(fat, boot, progress=advance)}
        progress.step("Reading the root file system")
        progress.total(ext4.used_bytes)  # its tables too, so that the end comes a little early
        attributes = TreeAttributes() if record else None
        dressing = StoreDressing() if attributes is None else RecordDressing(attributes)
        counts["root"] = export_ext4(ext4, root, progress=advance, dressing=dressing)
        card = stage_card(image.window, dict(spec.card), work, progress, stop) if spec.card else None
        return Trees(
            size=image.window.size,
            partitions=[asdict(partition) for partition in table.partitions],
            counts={part: count.as_dict() for part, count in counts.items()},
            card={"file": CARD, **asdict(card)} if card else None,
            record=attributes,
        )


def donor(generations: Generations, name: str, wanted: Mapping[str, Any]) -> Generation | None:
    """The newest generation of an image that was made of the same `inputs`, patched however."""
    found = (generation for generation in reversed(generations.all(name)) if originals.usable(generation.path, wanted))
    return next(found, None)


def from_generation(
    generations: Generations, generation: Generation, work: Path, *, progress: Progress, stop: threading.Event
) -> Trees | None:
    """The same by links to an earlier generation's files, as they were before its patches.

    :param work: an empty folder on the same file system
    :returns: None where it can't be had, or something of it is gone; then `work` is not empty
    :raises OSError: the disk is full
    """
    progress.step(f"Taking over generation {generation.id}")
    try:
        manifest = generations.manifest(generation)
        expected = {part: Counts(**count).names for part, count in manifest["counts"].items()}
        progress.total(sum(expected.values()))
        made = originals.clone(generation.path, work, _stoppable(progress, stop))
        record = originals.recorded(generation.path) if manifest.get("unprivileged") else None
        if card := manifest.get("card"):
            (work / CARD).hardlink_to(generation.path / CARD)
        trees = Trees(manifest["image"]["size"], manifest["partitions"], manifest["counts"], card, record)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        return None
    except (FormatError, ValueError, KeyError, TypeError, AttributeError):  # somebody has edited its files
        return None
    return trees if made == expected else None


def _stoppable(progress: Progress, stop: threading.Event) -> Callable[[int], None]:
    def advance(amount: int) -> None:
        if stop.is_set():
            raise Stopped
        progress.advance(amount)

    return advance
