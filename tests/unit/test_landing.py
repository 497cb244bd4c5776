"""Content that lands: an image that comes in any order reads as it is, and its files are those of the image.

The image as it lies in a file, read by the same reader, is the truth here; that the reader is right is tested against
the kernel and e2fsprogs elsewhere.
"""

from __future__ import annotations

import os
import random
import resource
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from netbootd.errors import FormatError, HostError
from netbootd.formats.ext4 import Ext4, forecast
from netbootd.formats.window import Window
from netbootd.images import room
from netbootd.images.decompress import LIMIT, decompress, landing
from netbootd.images.decompress.landing import LandedWindow, LandingFile
from netbootd.images.export import export_ext4
from netbootd.images.progress import Silent
from tests.support.ext4_images import FEATURES, make, read_folder, source_tree
from tests.support.processes import run

START = 1 << 20
LANDS = ("default", "1K", "no-csum", "gdt-csum", "32bit", "csum-seed", "ea-inode", "128-byte-inodes", "flex-off")
LANDS_NOT = ("ext2", "ext3-1K", "no-extents", "meta-bg")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = source_tree(tmp_path_factory.mktemp("landing") / "source")
    (folder / "usr" / "large").write_bytes(os.urandom(5_000_003))
    return folder


def disk_of(file_system: Path, path: Path) -> Path:
    """A whole disk with one Linux partition, and a little behind it."""
    size = file_system.stat().st_size
    entry = struct.pack("<B3xB3xII", 0, 0x83, START // 512, size // 512)
    with path.open("wb") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.seek(START)
        file.write(file_system.read_bytes())
        file.truncate(START + size + (1 << 20))
    return path


@pytest.fixture(scope="module")
def disks(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("disks")
    return {
        name: disk_of(make(folder / f"{name}.ext4", tree, *FEATURES[name], size="32M"), folder / name)
        for name in ("default", *LANDS[1:], *LANDS_NOT)
    }


def feed(target: LandingFile, image: bytes, order: str) -> None:
    """Write the image in pieces: from front to back, in two halves by turns (as two decoders do), or in disorder."""
    size = 200_003 if order != "halves" else 1 << 20
    pieces = list(range(0, len(image), size))
    if order == "halves":
        half = len(pieces) // 2
        pieces = [piece for pair in zip(pieces[half:], pieces, strict=False) for piece in pair] + (
            pieces[2 * half :] if len(pieces) % 2 else []
        )
    elif order == "disorder":
        random.Random(7).shuffle(pieces)
    for at in dict.fromkeys([*pieces, *range(0, len(image), size)]):
        target.write(at, image[at : at + size])
    target.finish()


def landed(disk: Path, folder: Path, order: str = "front to back") -> LandingFile:
    target = LandingFile(folder, LIMIT, folder / "landing")
    feed(target, disk.read_bytes(), order)
    return target


def window_of(target: LandingFile) -> LandedWindow:
    return LandedWindow(target.fd, 0, target.size, target.landed)


def file_system(window: Window) -> Ext4:
    return Ext4(window.sub(START, window.size - START - (1 << 20)))


def exported(window: Window, out: Path) -> dict[bytes, object]:
    out.mkdir()
    export_ext4(file_system(window), out, progress=lambda _: None)
    return dict(read_folder(out))


def reference(disk: Path, out: Path) -> dict[bytes, object]:
    fd = os.open(disk, os.O_RDONLY)
    try:
        return exported(Window.whole(fd), out)
    finally:
        os.close(fd)


@pytest.mark.parametrize("order", ["front to back", "halves", "disorder"])
@pytest.mark.parametrize("name", [*LANDS, *LANDS_NOT])
def test_the_image_reads_as_it_is_and_gives_its_files(
    disks: dict[str, Path], tmp_path: Path, name: str, order: str
) -> None:
    image = disks[name].read_bytes()
    target = landed(disks[name], tmp_path, order)
    assert target.size == len(image)
    if order == "front to back":
        assert bool(target.landed.size) is (name in LANDS)
    window = window_of(target)
    assert window.read(0, len(image)) == image
    dice = random.Random(11)
    for _ in range(300):
        at, length = dice.randrange(len(image)), dice.choice((1, 511, 4096, 70_000))
        length = min(length, len(image) - at)
        assert window.read(at, length) == image[at : at + length]
    assert exported(window, tmp_path / "out") == reference(disks[name], tmp_path / "reference")
    target.landed.close()
    assert not (tmp_path / "landing").exists()


def test_most_content_is_written_once(disks: dict[str, Path], tmp_path: Path) -> None:
    target = landed(disks["default"], tmp_path)
    content = sum(path.lstat().st_blocks * 512 for path in (tmp_path / "landing").rglob("*") if path.is_file())
    assert content > 4 << 20
    assert os.fstat(target.fd).st_blocks * 512 < 3 << 20  # the tables of the file system


@pytest.mark.parametrize("packing", ["xz", "multi.xz", "zst", "gz"])
def test_from_an_archive(disks: dict[str, Path], tmp_path: Path, packing: str) -> None:
    pack = {
        "xz": "xz -0 -T1 -kc",
        "multi.xz": "xz -0 -T2 --block-size=1MiB -kc",
        "zst": "zstd -qc",
        "gz": "gzip -1c",
    }[packing]
    archive = tmp_path / "archive"
    run(["sh", "-c", f'{pack} "$1" >"$2"', "sh", disks["default"], archive])
    digest = run(["sha256sum", disks["default"]]).stdout.split()[0]
    with decompress(
        archive, tmp_path, landing=tmp_path / "landing", progress=Silent(), extract_sha256=digest, workers=2
    ) as image:
        assert image.landed is not None
        assert image.landed.size > 1 << 20
        assert exported(image.window, tmp_path / "out") == reference(disks["default"], tmp_path / "reference")
    assert not (tmp_path / "landing").exists()


def test_several_threads_write(disks: dict[str, Path], tmp_path: Path) -> None:
    image = disks["default"].read_bytes()
    target = LandingFile(tmp_path, LIMIT, tmp_path / "landing")
    size = 100_000
    turns = [range(start * size, len(image), 3 * size) for start in range(3)]

    def write(turn: range) -> None:
        for at in turn:
            target.write(at, image[at : at + size])

    threads = [threading.Thread(target=write, args=(turn,)) for turn in turns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    target.finish()
    assert window_of(target).read(0, len(image)) == image
    assert exported(window_of(target), tmp_path / "out") == reference(disks["default"], tmp_path / "reference")


# ---------------------------------------------------------------- what the tables say is not true


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file system without checksums, so that inodes can be changed by debugfs at will, with three files."""
    source = tmp_path / "three"
    source.mkdir()
    for name in ("first", "second", "third"):
        (source / name).write_bytes(name.encode() * 20_000)
    return make(tmp_path / "plain.ext4", source, "-O", "^metadata_csum,^64bit", size="8M")


def debugfs(image: Path, *commands: str) -> None:
    for command in commands:
        run(["debugfs", "-w", "-R", command, image])


def block_of(image: Path, name: str) -> str:
    """Where a file's content begins."""
    return run(["debugfs", "-R", f"blocks /{name}", image]).stdout.split()[0]


def test_an_inode_without_a_name_that_claims_the_content_of_another(plain: Path, tmp_path: Path) -> None:
    """It lands with whoever comes first in the table; the file with a name gets it all the same."""
    for name in ("first", "third"):
        debugfs(plain, f"sif {name} block[5] {block_of(plain, 'second')}", f"unlink {name}")
    disk = disk_of(plain, tmp_path / "disk")
    target = landed(disk, tmp_path)
    assert target.landed.size
    out = exported(window_of(target), tmp_path / "out")
    assert out == reference(disk, tmp_path / "reference")
    assert (tmp_path / "out" / "second").read_bytes() == b"second" * 20_000


def test_two_files_with_the_same_blocks_are_refused(plain: Path, tmp_path: Path) -> None:
    debugfs(plain, f"sif first block[5] {block_of(plain, 'second')}")
    target = landed(disk_of(plain, tmp_path / "disk"), tmp_path)
    with pytest.raises(FormatError, match="belong to something else too"):
        exported(window_of(target), tmp_path / "out")


def test_two_stretches_for_the_same_place_in_a_file(plain: Path, tmp_path: Path) -> None:
    """Only one of them can be there, and the image reads as it is all the same."""
    block = int(block_of(plain, "first"))
    fields = {0: 0x2F30A, 4: 2, 5: block, 6: 1, 7: 3, 8: block + 10}  # blocks 0 and 1, blocks 1 to 3
    debugfs(plain, *(f"sif first block[{place}] {value}" for place, value in fields.items()), "unlink first")
    disk = disk_of(plain, tmp_path / "disk")
    target = landed(disk, tmp_path)
    image = disk.read_bytes()
    assert window_of(target).read(0, len(image)) == image
    assert exported(window_of(target), tmp_path / "out") == reference(disk, tmp_path / "reference")


def test_a_directory_in_the_blocks_of_a_file_reads_as_what_it_is(plain: Path, tmp_path: Path) -> None:
    """A nameless inode claims the top directory's block, which is read from where it landed."""
    debugfs(plain, f"sif first block[5] {block_of(plain, '')}", "unlink first")
    disk = disk_of(plain, tmp_path / "disk")
    out = exported(window_of(landed(disk, tmp_path)), tmp_path / "out")
    assert out == reference(disk, tmp_path / "reference")


def test_what_was_taken_nobody_else_can_read(disks: dict[str, Path], tmp_path: Path) -> None:
    target = landed(disks["default"], tmp_path)
    window = window_of(target)
    entry = next(entry for entry in file_system(window).walk() if entry.name == b"size-70000")
    assert entry.extents[0].disk is not None
    where = START + entry.extents[0].disk
    assert len(window.read(where, 4096)) == 4096
    above = os.open(tmp_path, os.O_RDONLY)
    assert target.landed.take(entry.inode.number, entry.extents, b"taken", above) == []
    os.close(above)
    assert (tmp_path / "taken").stat().st_size == 70_000
    with pytest.raises(FormatError, match="have the same blocks"):
        window.read(where, 4096)


def test_a_nameless_inode_whose_content_lies_behind_what_a_file_can_have(plain: Path, tmp_path: Path) -> None:
    """A limit of the process stands in for that of a store; nobody asks for this content."""
    debugfs(plain, "sif first block[3] 0x40000", "sif first size 0xfffff000", "unlink first")
    disk = disk_of(plain, tmp_path / "disk")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, before[1]))
    try:
        target = landed(disk, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert window_of(target).read(0, target.size) == disk.read_bytes()
    assert exported(window_of(target), tmp_path / "out") == reference(disk, tmp_path / "reference")


def test_so_many_stretches_that_nothing_lands(
    disks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing, "_MOST", 10)
    target = landed(disks["default"], tmp_path)
    assert target.landed.size == 0
    assert exported(window_of(target), tmp_path / "out") == reference(disks["default"], tmp_path / "reference")


def test_descriptors_that_lead_to_one_table_again_and_again(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is followed once, and only so many tables are: an image of zeros could have a quarter of a million."""
    found, followed = forecast.inode_tables, []
    monkeypatch.setattr(forecast, "inode_tables", lambda *given: found(*given) * 1000)
    stretches = forecast.stretches
    monkeypatch.setattr(forecast, "stretches", lambda *given: followed.append(given[1]) or stretches(*given))
    disk = disk_of(plain, tmp_path / "disk")
    target = landed(disk, tmp_path)
    assert len(followed) == 1
    assert target.landed.size > 300_000
    image = disk.read_bytes()
    assert window_of(target).read(0, len(image)) == image
    target.landed.close()
    monkeypatch.setattr(landing, "_TABLES", 0)
    assert landed(disk, tmp_path).landed.size == 0


def test_too_little_room_is_told_before_the_content_comes(
    disks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = disks["default"].read_bytes()
    target = LandingFile(tmp_path, LIMIT, tmp_path / "landing")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=70 << 20))
    with pytest.raises(HostError, match=r"needs (?!70)(7|8|9|1\d)\d MiB, and .* has 70 MiB free"):
        target.write(0, image[: 2 << 20])


def test_a_journal_that_is_not_replayed_yet_lets_nothing_land(disks: dict[str, Path], tmp_path: Path) -> None:
    image = bytearray(disks["no-csum"].read_bytes())
    image[START + 1024 + 96] |= 4  # s_feature_incompat: needs_recovery
    disk = tmp_path / "disk"
    disk.write_bytes(image)
    assert landed(disk, tmp_path).landed.size == 0
