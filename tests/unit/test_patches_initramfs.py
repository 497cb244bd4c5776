"""What an initramfs lacks for a root over NFS comes behind it, as an archive that GNU cpio reads, too."""

from __future__ import annotations

import gzip
import io
import os
import subprocess

import pytest

from netbootd.errors import FormatError
from netbootd.formats import initramfs
from netbootd.images import patches
from netbootd.model.network import ServerAddress
from tests.support import little_trees as trees
from tests.support.little_trees import fill, root_tree

PARAMETERS = patches.Parameters(ServerAddress("192.0.2.1"), "/state/root")
MODULES = f"usr/lib/modules/{trees.VERSION}"


def without(files, *names):
    return {name: content for name, content in files.items() if not any(part in name for part in names)}


@pytest.fixture
def prepared(tmp_path):
    """Prepare an image with an initramfs of these files; its facts, the initramfs before and after, the patches."""

    def prepare(files, *, root=None):
        packed = trees.initramfs(tmp_path / "initrd", files)
        boot = fill(tmp_path / "boot", {"config.txt": trees.NOBLE_CONFIG, "cmdline.txt": trees.NOBLE_CMDLINE})
        fill(boot, {"vmlinuz": "k", "initrd.img": packed})
        tree = root_tree(tmp_path / "root", more=root)
        facts = patches.survey(boot, tree)
        made = patches.apply(boot, tree, facts, PARAMETERS)
        assert patches.apply(boot, tree, facts, PARAMETERS) == []
        return facts, packed, (boot / "initrd.img").read_bytes(), {patch.path: patch for patch in made}

    return prepare


def contents_of(data):
    return initramfs.look(io.BytesIO(data).read, lambda name, size: True)


def test_overlayroot_with_all_modules_lacks_nothing(prepared):
    facts, before, after, made = prepared(trees.OVERLAYROOT)
    assert facts.overlay == ("overlayroot=tmpfs:recurse=0",)
    assert after == before
    assert "boot/initrd.img" not in made


@pytest.mark.parametrize("files", [trees.INITRAMFS_TOOLS, without(trees.OVERLAYROOT, "busybox")])
def test_a_layer_of_our_own_for_initramfs_tools(prepared, tmp_path, files):
    facts, before, after, made = prepared(files)
    assert facts.overlay == ("netbootd.overlay=tmpfs",)
    assert after.startswith(before)
    assert made["boot/initrd.img"].before == f"({len(before)} bytes)"
    assert made["boot/initrd.img"].after == f"({len(after)} bytes)"
    added = trees.unpack(after[len(before) :].lstrip(b"\0"), tmp_path / "added")
    script = added / "scripts/init-bottom/netbootd-overlay"
    assert script.stat().st_mode & 0o111 == 0o111
    subprocess.run(["sh", "-n", script], check=True)
    order = (added / "scripts/init-bottom/ORDER").read_text()
    assert order.startswith('/scripts/init-bottom/netbootd-overlay "$@"\n')
    assert order.endswith(trees.INITRAMFS_TOOLS["scripts/init-bottom/ORDER"])


def test_a_layer_of_our_own_for_dracut(prepared, tmp_path):
    facts, before, after, _ = prepared(trees.DRACUT)
    assert (facts.overlay, facts.initramfs_generator) == (("netbootd.overlay=tmpfs",), "dracut")
    added = trees.unpack(after[len(before) :].lstrip(b"\0"), tmp_path / "added")
    hook = added / "usr/lib/dracut/hooks/pre-pivot/10-netbootd-overlay.sh"
    subprocess.run(["sh", "-n", hook], check=True)
    assert "tcp 6 TCP" in (added / "etc/protocols").read_text().splitlines()
    # A folder that the initramfs has as a link must not come as a folder: the kernel would remove the link.
    assert not (added / "lib").exists()


def test_missing_modules_come_with_all_that_they_need(prepared):
    lacking = without(trees.OVERLAYROOT, "nfsv3.ko", "nfs.ko", "lockd", "overlay.ko", "modules.dep")
    _, before, after, _ = prepared(lacking)
    assert after.startswith(before)
    contents = contents_of(after)
    for line in trees.DEP.splitlines():
        assert contents.text(f"{MODULES}/{line.partition(':')[0]}") == "ko"
    assert contents.text(f"{MODULES}/modules.dep") == trees.DEP
    added = contents_of(after[len(before) :].lstrip(b"\0")).members
    assert f"{MODULES}/kernel/net/sunrpc/sunrpc.ko.zst" not in added  # it was there


def test_a_module_that_is_built_in_is_not_missing(prepared):
    builtin = "kernel/fs/nfs/nfs.ko\nkernel/fs/nfs/nfsv3.ko\nkernel/fs/overlayfs/overlay.ko\n"
    lacking = {
        **without(trees.OVERLAYROOT, ".ko.zst"),
        f"{MODULES}/modules.builtin": builtin,
        f"{MODULES}/modules.dep": "",
    }
    _, before, after, _ = prepared(lacking, root={f"{MODULES}/modules.builtin": builtin, f"{MODULES}/modules.dep": ""})
    assert after == before


def test_a_module_that_the_image_does_not_have_either(prepared):
    dep = "\n".join(line for line in trees.DEP.splitlines() if "overlay" not in line)
    with pytest.raises(FormatError, match="kernel module overlay, without which") as caught:
        prepared(without(trees.OVERLAYROOT, "overlay.ko", "modules.dep"), root={f"{MODULES}/modules.dep": dep})
    assert caught.value.exit_status == 7


def test_a_module_that_is_listed_and_missing(prepared, tmp_path):
    lost = root_tree(tmp_path / "root") / f"{MODULES}/kernel/fs/overlayfs/overlay.ko.zst"
    lost.unlink()
    lost.symlink_to("/etc/shadow")
    with pytest.raises(FormatError, match="which is missing"):
        patches_of = without(trees.OVERLAYROOT, "overlay.ko")
        packed = trees.initramfs(tmp_path / "initrd", patches_of)
        boot = fill(tmp_path / "boot", {"config.txt": trees.NOBLE_CONFIG, "vmlinuz": "k", "initrd.img": packed})
        facts = patches.survey(boot, tmp_path / "root")
        patches.apply(boot, tmp_path / "root", facts, PARAMETERS)


def test_modules_that_are_larger_than_memory(prepared, tmp_path):
    names = [f"kernel/big-{number}.ko" for number in range(40)]
    dep = trees.DEP.replace("nfs.ko.zst: ", f"nfs.ko.zst: {' '.join(names)} ", 1)
    for name in names:
        path = tmp_path / "root" / MODULES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, 60 << 20)  # holes cost an image nothing
    with pytest.raises(FormatError, match="more than can be taken in at once"):
        prepared(without(trees.OVERLAYROOT, "usr/lib/modules"), root={f"{MODULES}/modules.dep": dep})


def test_a_list_of_modules_that_is_larger_than_any(prepared):
    dep = trees.DEP + "k/n.ko: " + "a " * (3 << 20)
    with pytest.raises(FormatError, match=r"modules\.dep of the image: it has"):
        prepared(without(trees.OVERLAYROOT, "usr/lib/modules"), root={f"{MODULES}/modules.dep": dep})


def test_what_a_list_of_modules_names_drives_no_terminal(prepared):
    dep = trees.DEP.replace("nfs.ko.zst: ", "nfs.ko.zst: \x1b[31m.ko ", 1)
    with pytest.raises(FormatError, match="which is missing") as caught:
        prepared(without(trees.OVERLAYROOT, "usr/lib/modules"), root={f"{MODULES}/modules.dep": dep})
    assert caught.value.message.isprintable()


def test_more_initramfs_than_any_image_has(tmp_path):
    names = [f"i{number}" for number in range(12)]
    config = f"kernel=vmlinuz\ninitramfs {','.join(names)}\n"
    boot = fill(tmp_path / "boot", {"config.txt": config, "vmlinuz": "k", **dict.fromkeys(names, "x")})
    with pytest.raises(FormatError, match="names 12 of them"):
        patches.survey(boot, root_tree(tmp_path / "root"))


def test_dracut_without_nfs_gets_it(prepared, tmp_path):
    lacking = {**without(trees.DRACUT, "parse-nfsroot", "ko.zst"), "usr/lib/dracut/hooks/cmdline/00-x.sh": ""}
    ipconfig = "usr/lib/klibc/bin/ipconfig"
    facts, before, after, made = prepared(lacking, root={ipconfig: trees.STATIC_PROGRAM})
    assert facts.overlay == ("netbootd.overlay=tmpfs",)
    assert made["boot/initrd.img"].why.startswith("It gets kernel modules for NFS")
    added = trees.unpack(after[len(before) :].lstrip(b"\0"), tmp_path / "added")
    hooks = added / "usr/lib/dracut/hooks"
    assert sorted(str(path.relative_to(hooks)) for path in hooks.rglob("*.sh")) == [
        "cmdline/92-netbootd-root.sh",
        "mount/50-netbootd-root.sh",
        "pre-pivot/10-netbootd-overlay.sh",
    ]
    assert (added / "usr/lib/netbootd/ipconfig").read_bytes() == trees.STATIC_PROGRAM
    assert (added / MODULES / "kernel/fs/nfs/nfsv3.ko.zst").exists()
    assert not (added / "etc/protocols").exists()  # of mount.nfs alone


def test_dracut_without_nfs_in_an_image_without_a_dhcp_client(prepared):
    with pytest.raises(FormatError, match="neither systemd-networkd, nor klibc's ipconfig"):
        prepared({**without(trees.DRACUT, "parse-nfsroot"), "usr/lib/dracut/hooks/cmdline/00-x.sh": ""})


def test_an_archive_by_lz4_is_ended_before_ours(tmp_path):
    """The kernel goes on reading blocks, unless there are four zeros (lib/decompress_unlz4.c)."""
    for size in range(4):
        files = {**trees.INITRAMFS_TOOLS, "x": "y" * 7 * size}
        plain = gzip.decompress(trees.initramfs(tmp_path / f"files{size}", files))
        packed = subprocess.run(["lz4", "-l", "-c"], input=plain, capture_output=True, check=True).stdout
        boot = fill(tmp_path / f"boot{size}", {"config.txt": trees.NOBLE_CONFIG, "vmlinuz": "k", "initrd.img": packed})
        root = root_tree(tmp_path / f"root{size}")
        facts = patches.survey(boot, root)
        assert (facts.initramfs_generator, facts.extra) == ("initramfs-tools", {})
        patches.apply(boot, root, facts, PARAMETERS)
        after = (boot / "initrd.img").read_bytes()
        assert after.startswith(packed + bytes(4))
        assert after.index(b"070701", len(packed)) % 4 == 0
        assert contents_of(after).get("scripts/init-bottom/netbootd-overlay")


def test_the_dhcp_client_of_ubuntus_initramfs_asks_by_its_mac(prepared):
    settings = "# made by a hook\nduid ll\npersistent\nslaac private\n"
    _, _, after, _ = prepared({**trees.OVERLAYROOT, "etc/dhcpcd.conf": settings})
    assert contents_of(after).text("etc/dhcpcd.conf") == "# made by a hook\npersistent\nslaac private\nclientid\n"


@pytest.mark.parametrize("files", [{"init": "#!/bin/sh\n"}, {"nothing": ""}], ids=["own", "empty"])
def test_an_initramfs_of_an_unknown_kind_is_left_alone(prepared, files):
    facts, before, after, _ = prepared(files)
    assert (facts.initramfs_generator, after) == ("", before)


def test_an_initramfs_that_can_not_be_read(tmp_path):
    boot = fill(tmp_path / "boot", {"config.txt": trees.NOBLE_CONFIG, "vmlinuz": "k", "initrd.img": b"unknown"})
    root = root_tree(tmp_path / "root", more={"etc/overlayroot.conf": 'overlayroot=""\n'})
    facts = patches.survey(boot, root)
    assert facts.overlay == ("overlayroot=tmpfs:recurse=0",)
    assert "not compressed in a known way" in facts.extra["unread initrd.img"]
    patches.apply(boot, root, facts, PARAMETERS)
    assert (boot / "initrd.img").read_bytes() == b"unknown"
