"""Exports: what lands in the folder, that nothing lands elsewhere, and what is left when one is stopped.

That the trees are those of the kernel's own mount is tested as root, in tests/netns/test_ext4_by_the_kernel.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netbootd.errors import FormatError, HostError
from netbootd.formats.ext4 import Ext4
from netbootd.formats.fat import Fat
from netbootd.formats.window import Window
from netbootd.images import target
from netbootd.images.export import Counts, export_ext4, export_fat
from netbootd.images.target import check_attributes, check_target
from tests.support.ext4_images import make, opened
from tests.support.processes import run

OWNED = ("-E", f"root_owner={os.geteuid()}:{os.getegid()}")


def ignore(count: int) -> None:
    assert count >= 0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree that a plain user can make, and make again."""
    folder = tmp_path / "source"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "file").write_bytes(b"content\n" * 1000)
    (folder / "etc" / "large").write_bytes(os.urandom(3_000_001))
    (folder / "etc" / "read-only").write_bytes(b"r")
    (folder / "etc" / "read-only").chmod(0o444)
    (folder / "link").symlink_to("etc/file")
    (folder / "etc" / "second").hardlink_to(folder / "etc" / "file")
    os.mkfifo(folder / "fifo", 0o640)
    with (folder / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"island")
        file.truncate(3 << 20)
    (folder / "etc").chmod(0o2750)
    return folder


@pytest.fixture
def image(source: Path, tmp_path: Path) -> Path:
    path = make(tmp_path / "image", source, "-b", "4096", *OWNED, size="16M")
    run(["debugfs", "-w", "-R", "rmdir lost+found", path])  # it is root's
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_what_is_exported_is_counted_and_told(image: Path, source: Path, out: Path) -> None:
    told: list[int] = []
    with opened(image) as fs:
        counts = export_ext4(fs, out, progress=told.append)
    assert counts == Counts(files=4, folders=1, symlinks=1, hard_links=1, nodes=1, bytes=sum(told))
    assert sum(told) == 8000 + 3_000_001 + 1 + 4096  # of the sparse file one block
    for path in ("etc/file", "etc/large", "etc/read-only", "sparse"):
        assert (out / path).read_bytes() == (source / path).read_bytes()
    assert (out / "etc" / "second").samefile(out / "etc" / "file")
    assert os.readlink(out / "link") == "etc/file"
    assert stat.S_ISFIFO((out / "fifo").lstat().st_mode)
    assert (out / "sparse").stat().st_blocks * 512 < 1 << 20
    assert stat.S_IMODE((out / "etc").stat().st_mode) == 0o2750


def test_the_folder_has_to_be_empty_and_nothing_in_it_is_followed(image: Path, out: Path, tmp_path: Path) -> None:
    """Links that lie in wait where a folder or a file will be made; each is left as it is, and so is where it leads."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (out / "etc").symlink_to(outside)
    with pytest.raises(OSError, match=r"etc.*File exists"), opened(image) as fs:
        export_ext4(fs, out, progress=ignore)
    assert list(outside.iterdir()) == []
    (out / "etc").unlink()
    for left in out.iterdir():
        left.unlink()
    (outside / "file").write_bytes(b"untouched")
    (out / "sparse").symlink_to(outside / "file")
    with pytest.raises(OSError, match=r"sparse.*File exists"), opened(image) as fs:
        export_ext4(fs, out, progress=ignore)
    assert (outside / "file").read_bytes() == b"untouched"


def test_a_link_for_a_target_is_refused(image: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(OSError), opened(image) as fs:
        export_ext4(fs, tmp_path / "link", progress=ignore)
    assert list(out.iterdir()) == []


class _StopError(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_stopped_by_its_progress_it_leaves_nothing_open(after: int, image: Path, out: Path) -> None:
    calls = 0

    def stop(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise _StopError

    before = descriptors()
    with opened(image) as fs:
        with pytest.raises(_StopError):
            export_ext4(fs, out, progress=stop)
        assert len(descriptors()) == len(before) + 1  # the image


def test_damage_in_the_middle_leaves_nothing_open(image: Path, out: Path) -> None:
    run(["debugfs", "-w", "-R", "sif /etc/large mode 0", image])
    before = descriptors()
    with pytest.raises(FormatError, match="unknown type"), opened(image) as fs:
        export_ext4(fs, out, progress=ignore)
    assert descriptors() == before


def test_the_bytes_are_right_where_the_kernel_does_not_copy(
    image: Path, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores and kernels differ: copy_file_range may refuse (EXDEV), or give nothing at all."""
    calls: list[int] = []

    def refuse(*args: object) -> int:
        calls.append(1)
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with opened(image) as fs:
        export_ext4(fs, out, progress=ignore)
    assert len(calls) == 1  # it isn't asked again
    assert (out / "etc" / "large").read_bytes() == (source / "etc" / "large").read_bytes()


def test_an_image_that_ends_within_a_file(image: Path, out: Path) -> None:
    """Behind the reader's back: the bytes are missing only when they are copied."""
    with pytest.raises(FormatError, match="ends early"), opened(image) as fs:
        os.truncate(image, 1 << 20)
        export_ext4(fs, out, progress=ignore)


def test_files_from_the_journal_are_whole(image: Path, out: Path) -> None:
    """A block that only the journal has, and that had to be escaped there."""
    said = run(["debugfs", "-R", "blocks /etc/file", image]).stdout
    content = bytes.fromhex("c03b3998") + os.urandom(4092)
    (out.parent / "data").write_bytes(content)
    script = out.parent / "script"
    script.write_text(f"jo\njw -b {said.split()[0]} {out.parent / 'data'}\njc\n")
    run(["debugfs", "-w", "-f", script, image])
    with opened(image) as fs:
        assert fs.replayed
        export_ext4(fs, out, progress=ignore)
    assert (out / "etc" / "file").read_bytes() == content + (b"content\n" * 1000)[4096:]


def test_a_folder_with_default_acls_gives_none_on(image: Path, out: Path) -> None:
    acl = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + (7).to_bytes(2, "little") + ident.to_bytes(4, "little")
        for tag, ident in ((1, 0xFFFFFFFF), (2, 4242), (4, 0xFFFFFFFF), (16, 0xFFFFFFFF), (32, 0xFFFFFFFF))
    )
    os.setxattr(out, "system.posix_acl_default", acl)
    folder = out / "root"
    folder.mkdir()
    with opened(image) as fs:
        export_ext4(fs, folder, progress=ignore)
    for path in [folder, *folder.rglob("*")]:
        assert [name for name in os.listxattr(path, follow_symlinks=False) if "acl" in name] == [], path


# ---------------------------------------------------------------- FAT


@pytest.fixture
def fat_image(tmp_path: Path) -> Path:
    path = tmp_path / "fat"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    run(["mkfs.vfat", path])
    run(["mmd", "-i", path, "::overlays", "::overlays/deep", "::empty"])
    for name, size in (("config.txt", 10), ("overlays/deep/a.dtbo", 3_000_000), ("overlays/b.dtbo", 0)):
        source = tmp_path / "content"
        source.write_bytes(os.urandom(size))
        os.utime(source, (1_700_000_000, 1_700_000_000))
        run(["mcopy", "-m", "-i", path, source, f"::{name}"], env={"TZ": "UTC"})
    return path


@contextmanager
def opened_fat(path: Path) -> Iterator[Fat]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield Fat(Window.whole(fd))
    finally:
        os.close(fd)


def test_a_fat_is_exported_as_mtools_does(fat_image: Path, out: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    run(["mcopy", "-s", "-m", "-Q", "-i", fat_image, "::*", theirs], env={"TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"})
    told: list[int] = []
    with opened_fat(fat_image) as fat:
        counts = export_fat(fat, out, progress=told.append)
        assert 3_000_010 <= fat.used_bytes < 3_100_000
    assert counts == Counts(files=3, folders=3, bytes=3_000_010)
    assert sum(told) == 3_000_010
    paths = sorted(path.relative_to(theirs) for path in theirs.rglob("*"))
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == paths
    for path in paths:
        ours = (out / path).stat()
        if (theirs / path).is_file():
            assert (out / path).read_bytes() == (theirs / path).read_bytes()
            assert (ours.st_mode & 0o7777, ours.st_mtime) == (0o644, 1_700_000_000)
        else:
            assert ours.st_mode & 0o7777 == 0o755


def test_a_fat_export_that_is_stopped_leaves_nothing_open(fat_image: Path, out: Path) -> None:
    def stop(count: int) -> None:
        raise _StopError

    before = descriptors()
    with pytest.raises(_StopError), opened_fat(fat_image) as fat:
        export_fat(fat, out, progress=stop)
    assert descriptors() == before


# ---------------------------------------------------------------- the store


@pytest.mark.parametrize("what", target._ATTEMPTS)
@pytest.mark.parametrize("how", ["refused", "lost"])
def test_what_a_store_can_not_keep_is_named(what: str, how: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(place: Path) -> bool:
        raise OSError(95, "Operation not supported")

    for name in target._ATTEMPTS:
        monkeypatch.setitem(target._ATTEMPTS, name, lambda place: True)
    check_target(out)
    monkeypatch.setitem(target._ATTEMPTS, what, refused if how == "refused" else lambda place: False)
    with pytest.raises(HostError, match=f"can't keep its {what}\\.") as caught:
        check_target(out)
    assert caught.value.exit_status == 4 and caught.value.hint
    assert list(out.iterdir()) == []


def test_a_plain_user_is_told_that_root_is_needed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What root may do is refused here as the kernel refuses it; everything else is tried for real."""

    def denied(*args: object, **values: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "chown", denied)
    monkeypatch.setattr(os, "mknod", denied)
    with pytest.raises(HostError, match=r"a plain user can't keep its owners, .*device nodes") as caught:
        check_target(out)
    assert "as root" in caught.value.hint
    assert list(out.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="Writing to"):
        check_target(tmp_path / "missing")


def test_a_full_disk_is_no_lack_of_the_store(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(place: Path) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(target._ATTEMPTS, "modes", full)
    with pytest.raises(HostError, match="No space left"):
        check_target(out)
    shutil.rmtree(out)


@pytest.fixture
def large_attribute(source: Path, tmp_path: Path) -> Path:
    """An image in which one file has an attribute of 9,000 bytes, in an inode of its own."""
    path = make(tmp_path / "image", source, "-O", "ea_inode", "-I", "256", *OWNED, size="16M")
    run(["debugfs", "-w", "-R", f"ea_set /etc/file user.large {'v' * 9000}", path])
    return path


def small_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is ext4 without ea_inode, which has a block for an inode's attributes."""
    real = os.setxattr

    def setxattr(path: int | str, name: str, value: bytes, *more: int, **options: bool) -> None:
        if len(value) > 4000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, name, value, *more, **options)

    monkeypatch.setattr(os, "setxattr", setxattr)


def test_an_attribute_too_large_for_the_store_is_refused_before_anything_is_made(
    large_attribute: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_store(monkeypatch)
    with opened(large_attribute) as fs, pytest.raises(HostError, match=r"'/etc/file'.*user\.large \(9000 bytes\)"):
        check_attributes(fs, out)
    assert list(out.iterdir()) == []


def test_images_with_usual_attributes_are_not_gone_through(
    image: Path, large_attribute: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(os, "setxattr", lambda path, name, value: tried.append(name))
    with opened(large_attribute) as fs:
        check_attributes(fs, out)
    assert tried == ["user.large"]
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", image, "16M"])
    with opened(image) as fs:
        monkeypatch.setattr(Ext4, "walk", None)  # it is not gone through at all
        check_attributes(fs, out)
    assert tried == ["user.large", "trusted.netbootd.block", "trusted.netbootd.inode"]


@pytest.mark.parametrize("size", [1024, 2048, 4096])
@pytest.mark.parametrize(("attributes", "fits"), [({"user.a": 900}, 1024), ({"user.a": 1900}, 2048), (40, 4096)])
def test_a_store_with_small_blocks_is_tried_with_what_the_image_has(
    source: Path,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    attributes: dict[str, int] | int,
    fits: int,
) -> None:
    """The store is ext4 with blocks of `size` bytes: one holds an inode's attributes, each with 16 bytes and its name.

    The image's largest value is not in its largest set, which is one of many small ones.
    """
    if isinstance(attributes, int):
        attributes = {f"user.{'n' * 30}-{number}": 40 for number in range(attributes)} | {"user.one": 1}
    path = make(tmp_path / "image", source, "-b", "4096", "-I", "256", *OWNED, size="16M")
    lines = [f"ea_set /etc/file {name} {'v' * value}" for name, value in attributes.items()]
    (tmp_path / "script").write_text("\n".join([*lines, f"ea_set /etc user.single {'v' * 800}", ""]))
    run(["debugfs", "-w", "-f", tmp_path / "script", path])
    taken: dict[Path, int] = {}

    def setxattr(path: Path, name: str, value: bytes) -> None:
        taken[path] = taken.get(path, 36) + 16 + len(name) + len(value)
        if taken[path] > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "setxattr", setxattr)
    with opened(path) as fs:
        if size >= fits:
            check_attributes(fs, out)
        else:
            with pytest.raises(HostError, match=r"'/etc/file'.*can't keep its attribute user\.") as caught:
                check_attributes(fs, out)
            assert caught.value.exit_status == 4
    assert list(out.iterdir()) == []


def test_an_attribute_that_the_store_refuses_ends_the_export(
    large_attribute: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_store(monkeypatch)
    with opened(large_attribute) as fs, pytest.raises(HostError, match=r"can't keep its attribute user\.large"):
        export_ext4(fs, out, progress=ignore)
