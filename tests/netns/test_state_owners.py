"""What systemd does to the state folder: root trees keep owners, modes and capabilities, db/ becomes the service's."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from tests.support.processes import REPOSITORY, run

SYSTEMD = REPOSITORY / "systemd"
# one capability: cap_net_raw=ep, as ping has it (linux/capability.h, struct vfs_cap_data)
CAPABILITY = bytes.fromhex("01000002" + "00200000" + "00000000" + "00000000" + "00000000")


def facts(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Owner, mode, device and extended attributes of everything below a folder."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        attributes = {} if path.is_symlink() else {name: os.getxattr(path, name) for name in os.listxattr(path)}
        kind = (status.st_uid, status.st_gid, status.st_mode, status.st_rdev, status.st_mtime_ns)
        found[str(path.relative_to(folder))] = (*kind, tuple(attributes.items()))
    return found


def test_systemd_leaves_root_trees_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "host"
    state = root / "var/lib/netbootd"
    tree = state / "images/noble/1/root"
    for folder in ("etc", "usr/bin", "home/pi", "var/mail"):
        (tree / folder).mkdir(parents=True)
    ping, sudo, file = (tree / name for name in ("usr/bin/ping", "usr/bin/sudo", "home/pi/file"))
    for path in (ping, sudo, file):
        path.write_bytes(b"x")
    os.setxattr(ping, "security.capability", CAPABILITY)
    os.chown(tree / "home/pi", 1000, 1000)
    os.chown(file, 1000, 1000)
    os.chown(tree / "var/mail", 0, 8)
    (tree / "var/mail").chmod(0o2775)
    sudo.chmod(0o4755)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (state / "db/host-keys").mkdir(parents=True, mode=0o700)
    (state / "db/netbootd.db").write_bytes(b"written by root's serve")
    (root / "etc").mkdir()
    before = facts(state / "images")
    assert any(attributes for *_, attributes in before.values())

    run(["systemd-sysusers", f"--root={root}", SYSTEMD / "netbootd.sysusers.conf"])
    for _ in range(2):  # each boot does it again
        run(["systemd-tmpfiles", "--create", f"--root={root}", SYSTEMD / "netbootd.tmpfiles.conf"])

    assert facts(state / "images") == before
    user = next(
        line.split(":") for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("netbootd")
    )
    uid, gid = int(user[2]), int(user[3])
    assert uid != 0
    owners = {path: facts(path)["."][:2] for path in (state, state / "images", state / "downloads", state / "db")}
    assert [*owners.values()] == [(0, 0), (0, 0), (0, 0), (uid, gid)]
    assert {row[:2] for row in facts(state / "db").values()} == {(uid, gid)}
    assert (state / "db").stat().st_mode & 0o777 == 0o750
    assert (state / "db/host-keys").stat().st_mode & 0o777 == 0o700
