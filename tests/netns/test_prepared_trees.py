"""``netbootd prepare`` against the kernel: its trees are what a read-only mount of the image showed, but for patches.

The image's root has what an ext4 reader must know: sparse files, hard links, devices, ACLs, capabilities, odd names and
times. Needs root, as the kernel's own mount does; it needs no namespace.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.image_cache import DiskImage, tiny_image
from tests.support.manifest import differences
from tests.support.netbootd import NETBOOTD
from tests.support.processes import run


@pytest.fixture(scope="module")
def image() -> DiskImage:
    return tiny_image()


PACKINGS = {"raw": "cat", "zst": "zstd -qc", "multi.xz": "xz -0 -T2 --block-size=4MiB -c", "gz": "gzip -1c"}


@pytest.fixture(scope="module", params=PACKINGS)
def generation(image: DiskImage, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A raw image is read where it lies; of an archive, content lands in its files while it is decoded."""
    state = tmp_path_factory.mktemp("state")
    source = state / "image"
    run(["sh", "-c", f'{PACKINGS[request.param]} "$1" >"$2"', "sh", image.path, source])
    prepare = ["prepare", "--source", source, "--name", "noble", "--advertise", "192.0.2.1", "--json"]
    (made,) = json.loads(run([*NETBOOTD, "--state", state, *prepare], cwd=state).stdout)["images"]
    assert made["changed"] is True
    return Path(made["path"])


def test_the_trees_are_the_image_but_for_the_listed_patches(image: DiskImage, generation: Path) -> None:
    assert differences(image, generation) == []


def test_every_patch_says_why(generation: Path) -> None:
    patches = json.loads((generation / "image.json").read_text())["patches"]
    assert all(patch["path"] and patch["why"] for patch in patches)


def test_a_difference_would_be_found(image: DiskImage, generation: Path, tmp_path: Path) -> None:
    """The comparison itself can fail: content, mode, a hole filled, a name too many."""
    run(["cp", "-a", generation, tmp_path])
    copy = tmp_path / generation.name
    (copy / "root/t/mode/0755").chmod(0o700)
    (copy / "root/t/hard/other/extra").write_bytes(b"")
    with (copy / "root/t/size/0000100").open("r+b") as file:
        file.write(b"?")
    with (copy / "root/t/sparse/all-hole").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 5 << 20)
    changed = {"t/mode/0755", "t/hard/other", "t/hard/other/extra", "t/size/0000100", "t/sparse/all-hole"}
    assert {line.split(" ")[0] for line in differences(image, copy)} == {f"root/{path}" for path in changed}
