"""The FAT reader against mtools."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netbootd.formats.fat import Fat
from netbootd.formats.window import Window
from tests.support.image_cache import tiny_image

MTOOLS = {**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
MIB = 1 << 20


def run(*argv: object) -> None:
    done = subprocess.run([str(a) for a in argv], env=MTOOLS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"


@contextmanager
def opened(image: Path, offset: int = 0) -> Iterator[Fat]:
    fd = os.open(image, os.O_RDONLY)
    try:
        whole = Window.whole(fd)
        yield Fat(whole.sub(offset, whole.size - offset))
    finally:
        os.close(fd)


def listing(image: Path, offset: int = 0) -> dict[str, tuple[bool, int, int, str]]:
    """What our reader says: path -> (folder?, size, seconds, sha256)."""
    with opened(image, offset) as fat:
        rows = {}
        for entry in fat.walk():
            digest = hashlib.sha256()
            for chunk in () if entry.is_dir else fat.chunks(entry):
                digest.update(chunk)
            assert entry.path not in rows
            rows[entry.path] = (
                entry.is_dir,
                entry.size,
                entry.mtime_ns // 10**9,
                "" if entry.is_dir else digest.hexdigest(),
            )
        return rows


def mtools_listing(image: Path, to: Path) -> dict[str, tuple[bool, int, int, str]]:
    """What mtools says of the same image (it keeps no times of folders)."""
    to.mkdir()
    run("mcopy", "-s", "-m", "-Q", "-i", image, "::*", to)
    rows = {}
    for path in sorted(to.rglob("*")):
        stat = path.stat()
        is_dir = path.is_dir()
        digest = "" if is_dir else hashlib.sha256(path.read_bytes()).hexdigest()
        rows[str(path.relative_to(to))] = (is_dir, 0 if is_dir else stat.st_size, int(stat.st_mtime), digest)
    return rows


def same(ours: dict[str, tuple[bool, int, int, str]], theirs: dict[str, tuple[bool, int, int, str]]) -> None:
    assert sorted(ours) == sorted(theirs)
    for path, row in theirs.items():
        assert ours[path][:2] == row[:2], path
        if not row[0]:
            assert ours[path][2:] == row[2:], path


FORMATS = [
    pytest.param((12, 2 * MIB, ["-s", "2"]), id="fat12"),
    pytest.param((16, 24 * MIB, ["-s", "2"]), id="fat16"),
    pytest.param((32, 48 * MIB, ["-s", "1"]), id="fat32"),
    pytest.param((32, 300 * MIB, ["-s", "1", "-S", "4096"]), id="fat32-4096-byte-sectors"),
    pytest.param((16, 200 * MIB, ["-s", "64"]), id="fat16-32k-clusters"),
]


@pytest.fixture(params=FORMATS)
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """A file system of each width with awkward names, holes in its folders and fragmented files."""
    bits, size, options = request.param
    image, source = tmp_path / "fat.img", tmp_path / "source"
    with image.open("wb") as stream:
        stream.truncate(size)
    run("mkfs.vfat", "-F", bits, *options, "-n", "system-boot", image)
    source.mkdir()
    names = [
        *("config.txt", "README", "lower.TXT", "UPPER.txt", "Mixed.Txt", "empty", ".hidden", "dots.in.the.name"),
        *("a-long-overlay-name-that-needs-lfn-entries.dtbo", "umlaut-äöü.txt", "日本語.txt", "bcm2711-rpi-4-b.dtb"),
        *("trailing~1", "exactly-13-ch", "exactly-twenty-six-chars-x", "with space.txt", "x" * 120 + ".bin"),
    ]
    for number, name in enumerate(names):
        path = source / name
        path.write_bytes(b"" if name == "empty" else os.urandom(1 + 3001 * number))
        os.utime(path, (1_000_000_000 + 86_400 * 371 * number + 2 * number,) * 2)
        run("mcopy", "-m", "-i", image, path, "::")
    run("mmd", "-i", image, "::overlays", "::overlays/Deep Folder", "::void")
    for number in range(40):
        (source / "many").write_bytes(b"%d" % number * 600)
        run("mcopy", "-i", image, source / "many", f"::overlays/Deep Folder/file number {number:03}.dtbo")
    run("mdel", "-i", image, *(f"::overlays/Deep Folder/file number {n:03}.dtbo" for n in range(0, 40, 3)))
    (source / "many").write_bytes(os.urandom(20_000))  # into the holes that the deleted ones left
    run("mcopy", "-i", image, source / "many", "::overlays/Deep Folder/fragmented")
    return bits, image


def test_reads_what_mtools_reads(filled: tuple[int, Path], tmp_path: Path) -> None:
    bits, image = filled
    with opened(image) as fat:
        assert fat.bits == bits
    theirs = mtools_listing(image, tmp_path / "mtools")
    assert len(theirs) > 40
    same(listing(image), theirs)


def test_streams_into_a_descriptor(filled: tuple[int, Path], tmp_path: Path) -> None:
    _, image = filled
    with opened(image) as fat, (tmp_path / "out").open("w+b") as out:
        entry = fat.find("CONFIG.TXT")
        assert entry is not None and entry.path == "config.txt"
        out.write(b"before")
        out.flush()
        fat.read_into(entry, out.fileno())
        out.seek(0)
        assert out.read() == b"before" + fat.read(entry)
        assert fat.find("no-such-file") is None


def test_reads_the_image_makers_boot_partition_as_its_manifest_has_it() -> None:
    image = tiny_image()
    offset = json.loads(image.path.with_name(image.path.name + ".layout.json").read_text())["p1"][0]
    rows = [json.loads(line) for line in image.boot_manifest.read_text().splitlines()]
    theirs = {r["path"]: (r["type"] == "dir", r.get("size", 0), r.get("mtime", 0), r.get("sha256", "")) for r in rows}
    assert "config.txt" in theirs and "overlays" in theirs
    same(listing(image.path, offset), theirs)


def test_mformat_makes_what_we_read(tmp_path: Path) -> None:
    image = tmp_path / "floppy.img"
    run("mformat", "-C", "-f", "1440", "-v", "LABEL", "-i", image, "::")
    (tmp_path / "a.txt").write_bytes(b"floppy")
    run("mcopy", "-m", "-i", image, tmp_path / "a.txt", "::")
    same(listing(image), mtools_listing(image, tmp_path / "mtools"))
