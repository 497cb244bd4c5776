"""The export of an ext4 file system against the kernel's own mount of it, entry for entry; needs root, no namespace.

Journals are the kernel's too: a file system is changed while mounted, and its image copied without an unmount, as a
power cut would leave it. The kernel then replays a copy, and the export of the other one has to show the same.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from netbootd.errors import FormatError
from netbootd.images.export import export_ext4
from netbootd.images.target import check_target
from tests.support.ext4_images import FEATURES, make, opened, read_folder, source_tree
from tests.support.imageparts.loop import loop_mounted


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_tree(tmp_path_factory.mktemp("source") / "tree")


def exported(image: Path, folder: Path) -> Path:
    folder.mkdir()
    check_target(folder)
    with opened(image) as fs:
        export_ext4(fs, folder, progress=lambda count: None)
    return folder


def rows(folder: Path) -> dict[bytes, dict[str, Any]]:
    """All that can be told of a tree, lost+found left out."""
    found = read_folder(folder)
    for path, row in found.items():
        status = os.lstat(os.fsencode(folder) + path)
        if row["kind"] == "file":
            row["inode"] = status.st_ino
            row["holes"] = status.st_blocks * 512 + 4096 <= status.st_size
    return found


def same(found: dict[bytes, dict[str, Any]], truth: dict[bytes, dict[str, Any]]) -> None:
    """Compare; inode numbers may differ, but not which names share one, and unwritten blocks may become holes."""
    assert found.keys() == truth.keys()
    assert groups(found) == groups(truth)
    for path, row in truth.items():
        have, want = dict(found[path]), dict(row)
        have.pop("inode", None)
        want.pop("inode", None)
        if not want.get("holes"):
            have.pop("holes", None)
            want.pop("holes", None)
        assert have == want, path


def groups(rows: dict[bytes, dict[str, Any]]) -> set[frozenset[bytes]]:
    by_inode: dict[int, set[bytes]] = {}
    for path, row in rows.items():
        if "inode" in row:
            by_inode.setdefault(row["inode"], set()).add(path)
    return {frozenset(paths) for paths in by_inode.values() if len(paths) > 1}


def names_in(folder: Path) -> list[bytes]:
    top = os.fsencode(folder)
    found = [os.path.join(base, name) for base, dirs, files in os.walk(top) for name in dirs + files]
    return [b".", *(os.path.relpath(name, top) for name in found)]


def statuses(folder: Path, names: list[bytes]) -> dict[bytes, tuple[int, int, int]]:
    """The time of the last reading, mode and owner; nothing is read, as that would change the first."""
    found = {name: os.lstat(os.path.join(os.fsencode(folder), name)) for name in names}
    return {name: (each.st_atime_ns, each.st_mode, each.st_uid) for name, each in found.items()}


@pytest.mark.parametrize("name", [name for name in FEATURES if name not in ("64K",)])
def test_the_export_is_the_kernels_mount(name: str, source: Path, tmp_path: Path) -> None:
    """All but 64 KiB blocks, which no kernel with pages of 4 KiB mounts: debugfs judges those in the unit tests."""
    image = make(tmp_path / "image", source, *FEATURES[name])
    with loop_mounted(image, tmp_path / "mnt", "ro,noload") as mount:
        names = names_in(mount)
        first, truth = statuses(mount, names), rows(mount)
    tree = exported(image, tmp_path / "tree")
    assert statuses(tree, names) == first
    same(rows(tree), truth)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ((), "rw"),
        ((), "rw,data=journal"),
        (("-b", "1024", "-O", "^64bit"), "rw"),
        (("-O", "^metadata_csum"), "rw,journal_checksum"),
        (("-O", "^metadata_csum"), "rw,journal_checksum,journal_async_commit,data=writeback"),
        (("-t", "ext3", "-I", "256"), "rw"),
        (("-O", "inline_data"), "rw"),
    ],
    ids=["ordered", "data=journal", "1K, 32 bits", "checksum v1", "async", "ext3", "inline"],
)
def test_what_only_the_journal_has_is_read(options: tuple[str, ...], how: str, source: Path, tmp_path: Path) -> None:
    image, cut = crashed(source, tmp_path, options, how)
    before = cut.read_bytes()
    tree = exported(cut, tmp_path / "tree")
    assert cut.read_bytes() == before
    shutil.copy(cut, image)
    with loop_mounted(image, tmp_path / "mnt", "rw"):
        pass  # the kernel replays it, and ends it cleanly
    with loop_mounted(image, tmp_path / "mnt", "ro") as mount:
        truth = rows(mount)
    assert {b"/new/file", b"/new/escaped", b"/etc/renamed"} <= truth.keys() and b"/etc/size-1" not in truth
    same(rows(tree), truth)


def crashed(source: Path, tmp_path: Path, options: tuple[str, ...], how: str) -> tuple[Path, Path]:
    """An image, and a copy of it from the midst of its use, with a journal to replay."""
    image, cut = make(tmp_path / "image", source, *options), tmp_path / "cut"
    with loop_mounted(image, tmp_path / "mnt", how) as mount:
        (mount / "new").mkdir()
        for number in range(300):
            (mount / "new" / f"name-{number}").write_bytes(b"%d" % number * number)
        (mount / "new" / "file").write_bytes(os.urandom(300_000))
        (mount / "new" / "escaped").write_bytes(bytes.fromhex("c03b3998") * 5000)
        os.sync()
        (mount / "etc" / "size-0").rename(mount / "etc" / "renamed")
        (mount / "etc" / "size-1").unlink()
        shutil.rmtree(mount / "usr" / "many")  # its blocks are revoked
        (mount / "etc" / "size-70000").chmod(0o600)
        for number in range(100, 200):
            (mount / "new" / f"name-{number}").unlink()
        os.sync()
        shutil.copy(image, cut)
    with opened(cut) as fs:
        assert fs.replayed
    return image, cut


def test_fast_commits_are_refused_by_name_or_there_is_nothing_in_them(source: Path, tmp_path: Path) -> None:
    """A file that was synced by itself is told of in a fast commit."""
    image, cut = make(tmp_path / "image", source, "-O", "fast_commit"), tmp_path / "cut"
    with loop_mounted(image, tmp_path / "mnt", "rw") as mount:
        (mount / "one").write_bytes(b"1")
        os.sync()
        fd = os.open(mount / "two", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"2" * 10_000)
        os.fsync(fd)
        os.close(fd)
        shutil.copy(image, cut)
    with pytest.raises(FormatError, match="has fast commits"), opened(cut):
        pass
