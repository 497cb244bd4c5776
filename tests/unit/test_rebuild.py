"""An image that is prepared with other options: made of the generation before, and the same as one from the archive."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from netbootd.images import originals
from tests.support.ext4_images import read_folder
from tests.support.little_trees import OVERLAYROOT, initramfs, root_tree
from tests.support.small_image import small_image

CONFIG = """
[[image]]
name = "noble"
source = "SOURCE"
cmdline_append = "APPEND"
"""
BOOT = {
    "config.txt": b"arm_64bit=1\nkernel=vmlinuz\ncmdline=cmdline.txt\ninitramfs initrd.img followkernel\n",
    "cmdline.txt": b"console=tty1 root=LABEL=writable rootfstype=ext4 rootwait fixrtc\n",
    "vmlinuz": bytes(range(256)) * 999,
}
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, perm, ident)
    for tag, perm, ident in ((1, 7, -1 % 2**32), (4, 5, -1 % 2**32), (32, 5, -1 % 2**32))
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An image with what could get lost, and a folder that patches empty."""
    folder = tmp_path_factory.mktemp("source")
    tree = root_tree(folder / "tree")
    (tree / "etc/hard").hardlink_to(tree / "etc/fstab")  # a file that is patched has another name
    (tree / "usr/lib/setuid").write_bytes(b"#!")
    (tree / "usr/lib/setuid").chmod(0o4711)
    os.mkfifo(tree / "usr/fifo")
    (tree / "usr/folder/empty").mkdir(parents=True, mode=0o1750)
    if os.geteuid() == 0:
        os.mknod(tree / "usr/null", 0o20666, os.makedev(1, 3))
        os.chown(tree / "usr/folder", 1234, 5678)
        os.setxattr(tree / "usr/folder", "system.posix_acl_default", ACL)
        os.setxattr(tree / "usr/lib/setuid", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    for path in (tree / "usr/folder", tree / "etc", tree / "etc/fstab"):
        os.utime(path, (1_000_000_001, 1_000_000_002))
    boot = {**BOOT, "initrd.img": initramfs(folder / "initramfs", OVERLAYROOT)}
    return small_image(folder / "image.img", boot, tree)


class Images:
    """The image ``noble``, prepared in an empty folder again and again."""

    def __init__(self, netbootd, source, *options):
        self._netbootd = netbootd
        self._options = options
        self.source = source

    def prepare(self, append, *options):
        """Prepare with this on the kernel's command line; the generation's folder, and what stood on stderr."""
        text = CONFIG.replace("SOURCE", str(self.source)).replace("APPEND", append)
        Path("netbootd.toml").write_text(text, encoding="utf-8")
        words = ("prepare", "noble", "--advertise", "192.0.2.1", *self._options, *options)
        code, _, err = self._netbootd("--config", "netbootd.toml", *words)
        assert code == 0, err
        return Path("state/images/noble/current").resolve(), err


def everything(generation):
    """All of a generation that a node or an operator sees; how many generations share a file does not count."""
    manifest = json.loads((generation / "image.json").read_text())
    del manifest["created"], manifest["generation"]
    seen = {}
    for name in ("boot", "root"):
        for path, row in read_folder(generation / name).items():
            row.pop("nlink", None)
            status = os.lstat(os.fsencode(generation / name) + path)
            seen[name, path] = (row, status.st_mtime_ns)
    record = generation / "attributes"
    return manifest, seen, record.read_bytes() if record.exists() else b""


@pytest.fixture(params=["privileged", "unprivileged"])
def images(netbootd, source, request):
    return Images(netbootd, source, *(["--unprivileged"] if request.param == "unprivileged" else []))


def test_other_options_take_no_second_look_at_the_image(images):
    first, _ = images.prepare("first=1")
    before = everything(first)
    shutil.rmtree("state/downloads", ignore_errors=True)
    second, err = images.prepare("second=2")
    assert second != first
    assert f"Taking over generation {first.name}" in err
    assert "Decompressing" not in err
    assert "second=2" in (second / "boot/cmdline.txt").read_text()
    assert "first=1" not in (second / "boot/cmdline.txt").read_text()
    assert everything(first) == before
    assert (second / "root/etc/hard").read_bytes() != (second / "root/etc/fstab").read_bytes()

    linked = everything(second)
    shutil.rmtree("state")
    again, err = images.prepare("second=2")
    assert again == second
    assert "Taking over" not in err
    assert linked == everything(again)


def test_only_what_patches_touch_is_there_twice(images):
    first, _ = images.prepare("first=1")
    second, _ = images.prepare("second=2")
    patched = {patch["path"] for patch in json.loads((second / "image.json").read_text())["patches"]}
    shared = 0
    for path in [*(first / "boot").rglob("*"), *(first / "root").rglob("*")]:
        name = path.relative_to(first)
        if path.is_symlink() or not path.is_file():
            continue
        assert path.samefile(second / name) is (str(name) not in patched)
        shared += path.samefile(second / name)
    assert shared > 10
    assert (first / "original").stat().st_mode & 0o777 == 0o700


def test_a_chain_of_generations_whose_first_ones_are_gone(images, netbootd):
    first, _ = images.prepare("first=1")
    images.prepare("second=2")
    assert netbootd("images", "prune", "--keep", "1")[0] == 0
    assert not first.exists()
    third, err = images.prepare("third=3")
    assert "Decompressing" not in err
    linked = everything(third)
    shutil.rmtree("state")
    assert linked == everything(images.prepare("third=3")[0])


@pytest.mark.parametrize("gone", ["root/etc/hostname", "original/0", "boot/vmlinuz", "image.json"])
def test_a_generation_that_is_not_whole_is_of_no_use(images, gone):
    first, _ = images.prepare("first=1")
    whole = everything(first)
    (first / gone).unlink()
    second, err = images.prepare("second=2")
    assert f"Generation {first.name} is not whole" in err
    assert everything(second)[1].keys() == whole[1].keys()


def test_force_reads_the_image(images):
    images.prepare("first=1")
    _, err = images.prepare("second=2", "--force")
    assert "Taking over" not in err


@pytest.mark.parametrize("index", [None, b"", b"[]", b"{", b"\xff", b'{"revision": 1}', b'{"inputs": {}}'])
def test_an_index_that_is_none_makes_a_generation_unusable(tmp_path, index):
    (tmp_path / "original").mkdir()
    if index is not None:
        (tmp_path / "original/index.json").write_bytes(index)
    assert not originals.usable(tmp_path, {})


def test_other_inputs_or_another_revision_make_a_generation_unusable(tmp_path):
    with originals.Originals(tmp_path / "original") as kept:
        kept.finish({"archive": "1"}, None)
    assert originals.usable(tmp_path, {"archive": "1"})
    assert not originals.usable(tmp_path, {"archive": "2"})
    index = tmp_path / "original/index.json"
    index.write_text(index.read_text().replace(f'"revision": {originals.REVISION}', '"revision": 0'))
    assert not originals.usable(tmp_path, {"archive": "1"})
