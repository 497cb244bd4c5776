"""The ext4 reader on every feature that mke2fs can put into an image, judged by the folder that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netbootd.errors import FormatError
from tests.support.ext4_images import FEATURES, ROOT, make, opened, read_folder, read_image, source_tree
from tests.support.processes import run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="module")
def truth(source: Path) -> dict[bytes, dict[str, Any]]:
    return read_folder(source)


@pytest.mark.parametrize("name", FEATURES)
def test_it_reads_what_mke2fs_wrote(
    name: str, source: Path, truth: dict[bytes, dict[str, Any]], tmp_path: Path
) -> None:
    image = make(tmp_path / "image", source, *FEATURES[name])
    with opened(image) as fs:
        found = read_image(fs)
        used = fs.used_bytes
    assert found.keys() == truth.keys()
    for path, want in truth.items():
        have = dict(found[path])
        if (name, path) == ("inline", b"/usr/sparse"):
            continue  # with inline_data mke2fs 1.47 forgets the hole at a file's end
        if not path:
            have["mtime"] = want["mtime"]  # the root directory's is that of its making
        assert have == want, path
    assert 0 < used < image.stat().st_size


def test_the_label_and_uuid_are_told(source: Path, tmp_path: Path) -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    with opened(make(tmp_path / "image", None, "-U", uuid, size="8M")) as fs:
        assert (fs.superblock.label, fs.superblock.uuid) == ("writable", uuid)


def test_a_tree_of_extents_with_several_levels(tmp_path: Path) -> None:
    """Every other block of 1 KiB: 3,000 extents need two levels of blocks above the leaves."""
    folder = tmp_path / "source"
    folder.mkdir()
    with (folder / "comb").open("wb") as file:
        for number in range(3000):
            file.seek(number * 8192)
            file.write(b"%d" % number)
    with opened(make(tmp_path / "image", folder, "-b", "1024")) as fs:
        (comb,) = (entry for entry in fs.inode(ROOT).entries() if entry.name == b"comb")
        inode = fs.inode(comb.inode)
        assert len(inode.extents()) > 2500
        assert inode.read() == (folder / "comb").read_bytes()


def test_large_attributes_in_inodes_of_their_own(tmp_path: Path) -> None:
    """As much as debugfs writes at once, which is more than the inode and a block of 1 KiB have room for."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    image = make(tmp_path / "image", folder, "-O", "ea_inode", "-b", "1024", size="16M")
    value = tmp_path / "value"
    value.write_bytes(bytes(range(256)) * 4)
    run(["debugfs", "-w", "-R", f"ea_set -f {value} /file user.large", image])
    with opened(image) as fs:
        (file,) = (entry for entry in fs.inode(ROOT).entries() if entry.name == b"file")
        assert fs.inode(file.inode).xattrs() == {"user.large": value.read_bytes()}


@pytest.mark.parametrize(
    ("features", "word"),
    [("encrypt", None), ("casefold", None), ("quota", None), ("project,quota", None), ("verity", None)],
)
def test_features_that_change_nothing_for_a_reader(features: str, word: None, source: Path, tmp_path: Path) -> None:
    with opened(make(tmp_path / "image", source, "-O", features)) as fs:
        assert len(read_image(fs)) > 900


def test_unknown_incompatible_features_are_refused_by_name(tmp_path: Path) -> None:
    image = make(tmp_path / "image", None, "-O", "^metadata_csum", size="8M")
    with image.open("r+b") as file:
        file.seek(1024 + 96)
        incompat = int.from_bytes(file.read(4), "little") | 0x1000 | 1 << 30
        file.seek(1024 + 96)
        file.write(incompat.to_bytes(4, "little"))
    with pytest.raises(FormatError, match="dirdata, FEATURE_I30"), opened(image):
        pass


def test_what_debugfs_says_of_times_and_devices(source: Path, tmp_path: Path) -> None:
    image = make(tmp_path / "image", source)
    run(["debugfs", "-w", "-R", "set_inode_field /etc/time-1 mtime 20991231235959", image])
    said = run(["debugfs", "-R", "stat /etc/time-1", image]).stdout
    (line,) = (line for line in said.splitlines() if line.strip().startswith("mtime:"))
    seconds, _, extra = line.split()[1].removeprefix("0x").partition(":")
    with opened(image) as fs:
        found = read_image(fs)[b"/etc/time-1"]["mtime"]
    signed = int.from_bytes(bytes.fromhex(seconds.rjust(8, "0")), "big", signed=True)
    assert found == signed + ((int(extra, 16) & 3) << 32) == 4_102_444_799
