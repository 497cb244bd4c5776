"""Folders of boot files: nothing outside them is ever served."""

import os

import pytest

from netbootd.boot.layers import Folder
from netbootd.errors import NotFoundError
from netbootd.model.event import Stage
from netbootd.model.resource import BootPath


@pytest.fixture
def folder(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    top = tmp_path / "boot"
    (top / "overlays").mkdir(parents=True)
    (top / "config.txt").write_text("enable_uart=1\n")
    (top / "overlays" / "a.dtbo").write_bytes(b"dtbo")
    (top / "out").symlink_to(secret)
    (top / "up").symlink_to("../secret")
    (top / "updir").symlink_to("..")
    (top / "in").symlink_to("config.txt")
    (top / "indir").symlink_to("overlays")
    (top / "loop").symlink_to("loop")
    os.mkfifo(top / "fifo")
    return Folder(top, "image")


def get(folder, path):
    return folder.find(BootPath(path), Stage.FIRMWARE)


def test_a_file_has_its_size_and_bytes(folder):
    resource = get(folder, "overlays/a.dtbo")
    assert (resource.size, resource.origin, resource.path) == (4, "image", "overlays/a.dtbo")
    source = resource.open()
    assert (source.read(3), source.read(3), source.read(3)) == (b"dtb", b"o", b"")
    source.close()
    source.close()


@pytest.mark.parametrize("path", ["in", "indir/a.dtbo"])
def test_links_inside_are_followed(folder, path):
    assert get(folder, path).size > 0


@pytest.mark.parametrize(
    "path", ["out", "up", "updir/secret", "loop", "fifo", "overlays", "nothing", "config.txt/x", "../secret", "x" * 300]
)
def test_nothing_else_is_there(folder, path):
    assert get(folder, path) is None


def test_a_file_that_went_away_is_not_found_and_a_replaced_one_stays_readable(folder):
    resource = get(folder, "config.txt")
    source = resource.open()
    beside = folder.path / "new"
    beside.write_text("arm_64bit=1 and more\n")
    beside.rename(folder.path / "config.txt")
    assert source.read(100) == b"enable_uart=1\n"
    source.close()
    (folder.path / "config.txt").unlink()
    with pytest.raises(NotFoundError):
        resource.open()


def test_the_etag_changes_with_the_file(folder):
    before = get(folder, "config.txt").etag
    (folder.path / "new").write_text("enable_uart=0\n")
    (folder.path / "new").rename(folder.path / "config.txt")
    assert get(folder, "config.txt").etag != before
