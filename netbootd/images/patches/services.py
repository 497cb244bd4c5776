"""Services of an image: which it has, and which can't work on a root that is shared and forgotten at each boot."""

from __future__ import annotations

import re

from netbootd.formats import fstab
from netbootd.images.patches.tree import Tree

_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_MASKED = "/dev/null"

_WHAT = re.compile(r"^What=(.*)$", re.MULTILINE)

USELESS: dict[str, str] = {
    "fstrim.timer": "There is no disk to trim.",
    "e2scrub_all.timer": "There is no ext4 file system to check.",
    "e2scrub_reap.service": "There is no ext4 file system to check.",
    "resize2fs_once.service": "There is no file system to grow to a card's size.",
    "rpi-resize.service": "There is no file system to grow to a card's size.",
    "dphys-swapfile.service": "A swap file would lie in the memory that it is to relieve.",
    "swapfile.swap": "A swap file would lie in the memory that it is to relieve.",
    "apt-daily.timer": "Each node would fetch package lists at each boot, into memory.",
    "apt-daily-upgrade.timer": "Upgrades would go into memory, on each node, at each boot: they belong into the image.",
    "unattended-upgrades.service": "Upgrades would go into memory, on each node: they belong into the image.",
    "dpkg-db-backup.timer": "The package database changes with the image only.",
    "man-db.timer": "The manual pages change with the image only.",
    "motd-news.timer": "It would fetch news for a login that is forgotten at the next boot.",
    "fwupd-refresh.timer": "Firmware is not updated from a root in memory.",
    "rpi-eeprom-update.service": "It stages updates on the boot partition, which is not there.",
    "piboot-try-reboot.service": "It switches boot files on the boot partition, which is not there.",
    "piboot-try-validate.service": "It switches boot files on the boot partition, which is not there.",
    "sshswitch.service": "It looks for a file on the boot partition, which is not there, and fails.",
    "userconfig.service": "It would ask for a user name on the console of each node at each boot.",
}
"""Units that are masked where an image has them, and why."""


def find_unit(tree: Tree, unit: str) -> str:
    """Where a package has put a unit; empty where none has."""
    return next((f"{folder}/{unit}" for folder in _FOLDERS[1:] if tree.is_file(f"{folder}/{unit}")), "")


def unit_exists(tree: Tree, unit: str) -> bool:
    """Whether the image has this unit, native or by its SysV script, and it isn't masked already."""
    if tree.link(f"{_FOLDERS[0]}/{unit}") == _MASKED:
        return False
    if tree.is_file(f"{_FOLDERS[0]}/{unit}") or find_unit(tree, unit):
        return True
    name = unit.removesuffix(".service")
    return name != unit and tree.is_file(f"/etc/init.d/{name}")


def mask(tree: Tree, unit: str, why: str) -> None:
    """Mask a unit that the image has: nothing can start it."""
    if unit_exists(tree, unit):
        tree.symlink(f"{_FOLDERS[0]}/{unit}", _MASKED, why)


def mask_disks(tree: Tree) -> None:
    """Mask the units that mount or swap on a local disk: what fstab(5) is for, written as units."""
    for folder in _FOLDERS:
        for name in tree.names(folder):
            if name.endswith((".mount", ".automount", ".swap")):
                source = _WHAT.findall(tree.text(f"{folder}/{name.replace('.automount', '.mount')}"))
                if source and fstab.is_disk(source[-1].strip()):
                    mask(tree, name, "There is no local disk: the boot would wait for it.")
