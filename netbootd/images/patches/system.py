"""What a root file system has to lose or learn before several machines can run on one read-only copy of it."""

from __future__ import annotations

import re

from netbootd.formats import fstab
from netbootd.images.patches.services import USELESS, mask, mask_disks, unit_exists
from netbootd.images.patches.tree import Tree

_FSTAB = "/etc/fstab"
_MACHINE_ID = "/etc/machine-id"
_DBUS_ID = "/var/lib/dbus/machine-id"

_JOURNAL = """\
[Journal]
Storage=volatile
RuntimeMaxUse=32M
"""
_CLOUD = """\
# Written by netbootd: the seed comes from the address on the kernel's command line, and from nowhere else.
datasource_list: [NoCloud, None]
datasource:
  NoCloud:
    seedfrom: null
    fs_label: null
# The root is mounted over the network that the initramfs has configured: nothing may configure it again.
network:
  config: disabled
# There is no partition to grow and no file system to resize.
growpart:
  mode: 'off'
resize_rootfs: false
"""
_SWAP = """\
# Written by netbootd: compressed memory alone, without the file of up to 2 GiB behind it.
[Main]
Mechanism=zram
"""
_HOST_KEYS = """\
# Written by netbootd: host keys of this machine's own, for this boot.
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
"""

_UNIQUE = {
    "/var/lib/systemd/random-seed": "Random numbers that all nodes would start from.",
    "/var/lib/systemd/credential.secret": "A key that all nodes would share.",
    "/var/lib/urandom/random-seed": "Random numbers that all nodes would start from.",
    "/var/lib/NetworkManager/secret_key": "An identity that all nodes would share; NetworkManager makes a new one.",
    "/etc/NetworkManager/system-connections/preconfigured.nmconnection": "A password for somebody's Wi-Fi.",
}
_STATE = {
    "/var/lib/cloud/instance": "cloud-init ran on the image; each node is an instance of its own.",
    "/var/lib/cloud/instances": "cloud-init ran on the image; each node is an instance of its own.",
    "/var/lib/cloud/data": "cloud-init ran on the image; each node is an instance of its own.",
    "/var/lib/cloud/sem": "cloud-init ran on the image; each node is an instance of its own.",
    "/var/lib/cloud/seed/nocloud": "A seed in the image would be taken before the node's own.",
    "/var/lib/cloud/seed/nocloud-net": "A seed in the image would be taken before the node's own.",
    "/etc/cloud/cloud-init.disabled": "cloud-init is what makes a node one's own.",
}
_LEASES = ("/var/lib/dhcp", "/var/lib/dhcpcd", "/var/lib/dhcpcd5", "/var/lib/NetworkManager")
_LEASE = re.compile(r".*\.leases?\d?\Z")
_HOST_KEY = re.compile(r"ssh_host_[a-z0-9]+_key(\.pub)?\Z")
_CLOUD_ID = re.compile(r"_VERSION\s*=\s*[\"'](\d+\.\d+[^\"']*)|__VERSION__\s*=\s*[\"'](\d+\.\d+[^\"']*)")
_PACKAGES = "/var/lib/dpkg/status"
_PACKAGES_LIMIT = 64 << 20


def os_release(tree: Tree) -> dict[str, str]:
    """The settings of os-release(5), unquoted."""
    text = tree.text("/etc/os-release") or tree.text("/usr/lib/os-release")
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def cloud_init_version(tree: Tree) -> str:
    """The version of the image's cloud-init, as its package has it; empty where there is none."""
    status = (tree.read(_PACKAGES, _PACKAGES_LIMIT) or b"").decode("utf-8", "replace")
    # Since 24.3 the program is in a package of its own.
    for package in ("cloud-init-base", "cloud-init"):
        found = re.search(rf"^Package: {package}\n(?:.+\n)*?Version: (?:\d+:)?(\S+)$", status, re.MULTILINE)
        if found and re.search(rf"^Package: {package}\nStatus: \S+ \S+ installed$", status, re.MULTILINE):
            return found[1]
    for folder in ("/usr/lib/python3/dist-packages", "/usr/lib/python3/site-packages"):
        if found := _CLOUD_ID.search(tree.text(f"{folder}/cloudinit/version.py")):
            return found[1] or found[2]
    return ""


def apply(tree: Tree, *, cloud_init: bool) -> None:
    """Make the root fit to be shared.

    :param cloud_init: the image has cloud-init
    :raises FormatError: something else than a file stands where an operating system has one
    """
    _file_systems(tree)
    _identity(tree)
    _host_keys(tree, cloud_init)
    if cloud_init:
        why = "The seed comes over HTTP only; the network and the disk layout are not cloud-init's business here."
        tree.write("/etc/cloud/cloud.cfg.d/zz-netbootd.cfg", _CLOUD, why)
    for path, why in _STATE.items():
        tree.remove(path, why)
    if tree.is_folder("/etc/systemd"):
        why = "The journal goes into memory once, and bounded; it would go there twice through the overlay."
        tree.write("/etc/systemd/journald.conf.d/50-netbootd.conf", _JOURNAL, why)
    if tree.is_file("/usr/lib/systemd/system-generators/rpi-swap-generator"):
        # Raspberry Pi OS since trixie; swap.conf(5) of rpi-swap
        why = "A swap file would lie in the memory that it is to relieve."
        tree.write("/etc/rpi/swap.conf.d/90-netbootd.conf", _SWAP, why)
    for unit, why in USELESS.items():
        mask(tree, unit, why)


def _file_systems(tree: Tree) -> None:
    if tree.is_there(_FSTAB):
        why = "There is no local disk: the boot would wait for its partitions."
        tree.write(_FSTAB, fstab.without_disks(tree.text(_FSTAB)), why)
    mask_disks(tree)


def _identity(tree: Tree) -> None:
    why = "Empty, so that each node takes the machine id from its own command line (machine-id(5))."
    tree.write(_MACHINE_ID, "", why, mode=0o444, secret=True)
    if tree.is_there(_DBUS_ID) and not tree.link(_DBUS_ID):
        tree.symlink(_DBUS_ID, _MACHINE_ID, "D-Bus has the node's machine id, not the image's.", secret=True)
    for path, why in _UNIQUE.items():
        tree.remove(path, why, secret=True)
    for folder in _LEASES:
        for name in tree.names(folder):
            if _LEASE.match(name):
                tree.remove(f"{folder}/{name}", "A lease of the machine that the image was made on.", secret=True)


def _host_keys(tree: Tree, cloud_init: bool) -> None:
    for name in tree.names("/etc/ssh"):
        if _HOST_KEY.match(name):
            why = "Host keys of the image would be every node's, and everybody's who has the image."
            tree.remove(f"/etc/ssh/{name}", why, secret=True)
    makes_keys = cloud_init or unit_exists(tree, "regenerate_ssh_host_keys.service")
    if not makes_keys and unit_exists(tree, "ssh.service"):
        why = "Each node makes host keys of its own before its SSH server starts."
        tree.write("/etc/systemd/system/ssh.service.d/50-netbootd.conf", _HOST_KEYS, why)
