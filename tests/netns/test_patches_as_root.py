"""What only root can make and keep: owners, capabilities, access lists, devices. Needs root; it needs no namespace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netbootd.errors import FormatError
from netbootd.images import patches
from netbootd.model.network import ServerAddress
from tests.support.little_trees import fill, root_tree

PARAMETERS = patches.Parameters(ServerAddress("192.0.2.1"), "/state/root")


def patch(tmp_path: Path, root: Path) -> None:
    boot = fill(tmp_path / "boot", {"kernel8.img": "k", "cmdline.txt": "root=/dev/mmcblk0p2\n"})
    patches.apply(boot, root, patches.survey(boot, root), PARAMETERS)


def test_a_replaced_file_keeps_owner_attributes_and_access_list(tmp_path: Path) -> None:
    root = root_tree(tmp_path / "root")
    fstab = root / "etc/fstab"
    fstab.chmod(0o4755)
    os.chown(fstab, 12, 34)
    fstab.chmod(0o4755)  # chown has taken the bit away
    os.setxattr(fstab, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    os.setxattr(fstab, "user.note", b"kept")
    # user::rwx, user:7:r--, group::r-x, mask::r-x, other::r-x
    access = "0200000001000700ffffffff020004000700000004000500ffffffff10000500ffffffff20000500ffffffff"
    os.setxattr(fstab, "system.posix_acl_access", bytes.fromhex(access))
    shown = {name: os.getxattr(fstab, name) for name in os.listxattr(fstab)}
    assert len(shown) == 3
    before = fstab.stat()
    patch(tmp_path, root)
    after = fstab.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (12, 34, before.st_mode)
    assert {name: os.getxattr(fstab, name) for name in os.listxattr(fstab)} == shown


def test_what_is_new_belongs_to_root(tmp_path: Path) -> None:
    root = root_tree(tmp_path / "root")
    os.chown(root / "etc/systemd/system", 1000, 1000)
    patch(tmp_path, root)
    made = [root / "etc/systemd/journald.conf.d", root / "etc/systemd/system/multi-user.target.wants"]
    assert {(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) for path in made} == {(0, 0, 0o755)}


def test_a_device_where_a_file_should_be(tmp_path: Path) -> None:
    root = root_tree(tmp_path / "root")
    (root / "etc/fstab").unlink()
    os.mknod(root / "etc/fstab", 0o020666, os.makedev(1, 5))
    with pytest.raises(FormatError, match="is a character device, not a file"):
        patch(tmp_path, root)
