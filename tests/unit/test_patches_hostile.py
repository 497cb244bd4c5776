"""Roots made to lead the patcher out of the tree, or to hold it up: refused with a sentence, or harmless."""

from __future__ import annotations

import os
import socket

import pytest

from netbootd.errors import FormatError
from netbootd.images import patches
from netbootd.images.patches.tree import Tree
from netbootd.model.network import ServerAddress
from tests.support import little_trees as trees
from tests.support.little_trees import fill, root_tree, snapshot

PARAMETERS = patches.Parameters(ServerAddress("192.0.2.1"), "/state/root")


@pytest.fixture
def outside(tmp_path):
    """A host: what must never change, with an /etc that a hostile image would like to reach."""
    return fill(
        tmp_path / "host",
        {
            "etc/fstab": "LABEL=host / ext4 defaults 0 1\n",
            "etc/machine-id": "host\n",
            "etc/passwd": "root:x:0:0::/:/bin/sh\n",
            "etc/ssh/ssh_host_ed25519_key": "the host's own",
            "etc/cloud/cloud.cfg.d": None,
            "etc/systemd/system": None,
            "var/lib/cloud/instances/i/user-data": "host",
            "boot/cmdline.txt": "root=/dev/sda1\n",
        },
    )


def patch(tmp_path, root, boot=None):
    boot = boot or fill(tmp_path / "boot", {"kernel8.img": "k", "cmdline.txt": "root=/dev/mmcblk0p2\n"})
    return patches.apply(boot, root, patches.survey(boot, root), PARAMETERS)


@pytest.mark.parametrize("target", ["{host}/etc", "../host/etc", "../../../../../../../../..{host}/etc"])
@pytest.mark.parametrize(
    "name", ["etc", "etc/systemd", "etc/cloud", "etc/ssh", "var/lib/cloud", "etc/fstab", "etc/machine-id"]
)
def test_a_link_out_of_the_root(tmp_path, outside, name, target):
    root = root_tree(tmp_path / "root")
    target = target.format(host=outside)
    move = root / name
    if move.is_dir():
        move.rename(tmp_path / "taken away")
    else:
        move.unlink(missing_ok=True)
        target += "/passwd"
    move.parent.mkdir(parents=True, exist_ok=True)
    move.symlink_to(target)
    before = snapshot(outside)
    try:
        made = patch(tmp_path, root)
    except FormatError as error:
        assert "image" in error.message
    else:
        assert all(not entry.path.startswith("root/..") for entry in made)
    assert snapshot(outside) == before


def test_a_link_to_a_file_of_the_image_gives_way(tmp_path):
    root = fill(root_tree(tmp_path / "root"), {"etc/passwd": "root:x:0:0::/:/bin/sh\n"})
    (root / "etc/fstab").unlink()
    (root / "etc/fstab").symlink_to("../../../../etc/passwd")
    made = {entry.path: entry for entry in patch(tmp_path, root)}
    assert (root / "etc/passwd").read_text() == "root:x:0:0::/:/bin/sh\n"
    assert not (root / "etc/fstab").is_symlink()
    assert made["root/etc/fstab"].before == "-> ../../../../etc/passwd"


def test_links_inside_the_root_are_followed_as_chroot_does(tmp_path):
    root = root_tree(tmp_path / "root")
    (root / "etc/systemd").rename(root / "really")
    (root / "etc/systemd").symlink_to("/../../really")
    made = {entry.path for entry in patch(tmp_path, root)}
    assert "root/really/journald.conf.d/50-netbootd.conf" in made
    assert (root / "really/system/fstrim.timer").is_symlink()


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
@pytest.mark.parametrize("name", ["etc/fstab", "etc/machine-id"])
def test_something_else_than_a_file(tmp_path, monkeypatch, kind, name):
    root = root_tree(tmp_path / "root")
    (root / name).unlink()
    if kind == "folder":
        (root / name).mkdir()
    elif kind == "fifo":
        os.mkfifo(root / name)
    else:
        monkeypatch.chdir((root / name).parent)  # a socket's path has at most 107 bytes
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind((root / name).name)
    with pytest.raises(FormatError, match=f"Patching root/{name} of the image: it is a "):
        patch(tmp_path, root)


@pytest.mark.parametrize("name", ["usr/lib/os-release", "var/lib/dpkg/status", "etc/ssh"])
def test_a_fifo_where_only_a_look_is_taken(tmp_path, name):
    root = root_tree(tmp_path / "root")
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    assert patch(tmp_path, root)


@pytest.mark.parametrize("name", ["etc/fstab", "usr/lib/os-release", "var/lib/dpkg/status"])
def test_a_huge_file(tmp_path, name):
    root = root_tree(tmp_path / "root")
    os.truncate(root / name, 1 << 40)
    with pytest.raises(FormatError, match="1099511627776 bytes"):
        patch(tmp_path, root)


def test_a_huge_command_line(tmp_path):
    boot = fill(tmp_path / "boot", {"kernel8.img": "k", "cmdline.txt": ""})
    os.truncate(boot / "cmdline.txt", 1 << 40)
    with pytest.raises(FormatError, match="bytes"):
        patch(tmp_path, root_tree(tmp_path / "root"), boot)


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\x00\x01", b"quiet \xe4\xf6 root=LABEL=x\r\nmore", b"\0" * 100, b"\xef\xbb\xbfquiet"]
)
def test_a_command_line_that_is_no_text(tmp_path, text):
    boot = fill(tmp_path / "boot", {"kernel8.img": "k", "cmdline.txt": text})
    patch(tmp_path, root_tree(tmp_path / "root"), boot)
    line = (boot / "cmdline.txt").read_bytes()
    assert line.count(b"\n") == 1
    assert b"root=/dev/nfs" in line
    assert b"LABEL" not in line
    assert line.decode("utf-8")


def test_names_in_config_txt_that_lead_out(tmp_path, outside):
    config = "os_prefix=../host/boot/\nkernel=/../../kernel8.img\ncmdline=../../../../host/boot/cmdline.txt\n"
    boot = fill(tmp_path / "boot", {"config.txt": config, "kernel8.img": "k"})
    before = snapshot(outside)
    try:
        patch(tmp_path, root_tree(tmp_path / "root"), boot)
    except FormatError as error:
        assert error.exit_status == 7
    assert snapshot(outside) == before


def test_a_name_in_config_txt_that_no_file_can_have(tmp_path):
    boot = fill(tmp_path / "boot", {"kernel8.img": "k", "config.txt": "[all]\ncmdline=a\0b\n"})
    with pytest.raises(FormatError, match="no file can have such a name"):
        patch(tmp_path, root_tree(tmp_path / "root"), boot)


def test_config_files_that_include_each_other(tmp_path):
    boot = fill(
        tmp_path / "boot", {"config.txt": "include a.txt\n", "a.txt": "include config.txt\n", "kernel8.img": "k"}
    )
    with pytest.raises(FormatError, match="include"):
        patch(tmp_path, root_tree(tmp_path / "root"), boot)


def test_loops_and_long_ways(tmp_path):
    top = fill(tmp_path / "top", {"file": "x", "loop": "-> loop", "one": "-> two", "two": "-> one", "long": None})
    (top / "long/link").symlink_to("../" * 1300 + "file")
    with Tree(top, "root") as tree:
        for name in ("loop", "one/x", "/".join(["d"] * 5000), "x" * 5000, "file/x", "nul\0"):
            assert tree.read(name) is None
            assert not tree.is_there(f"{name}/y")
        assert tree.read("long/link") == tree.read("../../file") == tree.read("long/../.././file") == b"x"
        assert tree.names("..") == ["file", "long", "loop", "one", "two"]


def test_writing_through_what_is_no_folder(tmp_path):
    top = fill(tmp_path / "top", {"file": "x", "dangling": "-> nowhere", "loop": "-> loop"})
    with Tree(top, "root") as tree:
        for name in ("file/a", "file/a/b", "loop/a", "loop/a/b", "../file/x"):
            with pytest.raises(FormatError):
                tree.write(name, "new", "why")
        assert tree.patches == []
        tree.write("../../dangling/folder/file", "new", "why")
    assert (top / "nowhere/folder/file").read_text() == "new"
    assert [patch.path for patch in tree.patches] == ["root/nowhere", "root/nowhere/folder", "root/nowhere/folder/file"]
    assert sorted(os.listdir(top)) == ["dangling", "file", "loop", "nowhere"]


def test_what_an_interrupted_run_left_is_no_hindrance(tmp_path):
    top = fill(tmp_path / "top", {"file": "x", ".netbootd-new": "-> /etc/passwd"})
    with Tree(top, "root") as tree:
        tree.write("file", "new", "why")
    assert os.listdir(top) == ["file"]


def test_folders_that_are_nested_too_deep(tmp_path):
    top = fill(tmp_path / "top", {})
    here = os.open(top, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with Tree(top, "root") as tree, pytest.raises(FormatError, match="too deep"):
        tree.remove("d", "why")


def test_the_layout_of_the_little_trees_is_not_hostile(tmp_path):
    assert trees.UBUNTU_FSTAB.count("\n") == 2
    assert patch(tmp_path, root_tree(tmp_path / "root"))


def test_a_command_line_that_no_firmware_could_read(tmp_path):
    boot = fill(tmp_path / "boot", {"kernel8.img": "k", "cmdline.txt": "console=tty1 " + "a" * 900_000})
    with pytest.raises(FormatError, match=r"boot/cmdline\.txt of the image: its command line has 900013 bytes"):
        patch(tmp_path, root_tree(tmp_path / "root"), boot)
