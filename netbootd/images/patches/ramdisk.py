"""The initramfs of an image: whether it can mount a root over NFS and put a writable layer on it, and what it gets.

What it lacks comes as a cpio archive of ours behind it, in the same file: the firmware loads one file, and the kernel
unpacks archives one after the other, the later over the former (Documentation/driver-api/early-userspace).

Two generators are known. initramfs-tools: /init runs the scripts of a folder as its ORDER lists them, klibc's nfsmount
mounts. dracut: hooks are sourced; its nfs module mounts, or hooks of ours do in an initramfs without (`netroot`). What
no generator is known for stays as it is: it knows itself what it does.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

from netbootd.formats import cpio, initramfs
from netbootd.formats.cpio import Member
from netbootd.formats.initramfs import Contents
from netbootd.images.patches import modules, netroot
from netbootd.images.patches.tree import Tree

OVERLAYROOT = "overlayroot=tmpfs:recurse=0"
"""The writable layer by the package of that name; fstab's other file systems stay as they are."""

OWN_OVERLAY = "netbootd.overlay=tmpfs"
"""The writable layer by the hook that we add."""

INITRAMFS_TOOLS, DRACUT = "initramfs-tools", "dracut"

_KEPT = 4 << 20
_ADDED = 48 << 20  # bytes of the image's own files; modules and programs come to a third of it
_ORDER = "scripts/init-bottom/ORDER"
_SCRIPT = "scripts/init-bottom/netbootd-overlay"
_HOOK = "pre-pivot/10-netbootd-overlay.sh"
_DHCPCD = "etc/dhcpcd.conf"
_PROTOCOLS = "etc/protocols"
_USERS = ("etc/passwd", "etc/group")

_LAYER = """\
    modprobe -q overlay
    mkdir -p /run/netbootd/lower /run/netbootd/upper
    {mount_lower} &&
        mount -t tmpfs -o mode=0755 netbootd-upper /run/netbootd/upper &&
        mkdir -p /run/netbootd/upper/data /run/netbootd/upper/work &&
        mount -t overlay -o {options} netbootd-root "{root}" ||
        {fail} "netbootd: no writable layer could be put over the root"
"""
_OPTIONS = "lowerdir=/run/netbootd/lower,upperdir=/run/netbootd/upper/data,workdir=/run/netbootd/upper/work"

_INITRAMFS_TOOLS_SCRIPT = (
    """\
#!/bin/sh
# Added by netbootd: a writable layer in memory over the read-only root.
case "$1" in
prereqs) exit 0 ;;
esac
. /scripts/functions
case " $(cat /proc/cmdline) " in
*" netbootd.overlay=tmpfs "*)
"""
    + _LAYER.format(
        mount_lower='mount -n -o move "${rootmnt}" /run/netbootd/lower',
        options=_OPTIONS,
        root="${rootmnt}",
        fail="panic",
    )
    + """\
    ;;
esac
"""
)
_DRACUT_HOOK = (
    """\
#!/bin/sh
# Added by netbootd: a writable layer in memory over the read-only root.
read -r netbootd_line < /proc/cmdline
case " $netbootd_line " in
*" netbootd.overlay=tmpfs "*)
"""
    + _LAYER.format(
        mount_lower='mount --bind "$NEWROOT" /run/netbootd/lower', options=_OPTIONS, root="$NEWROOT", fail="die"
    )
    + """\
    ;;
esac
"""
)


@dataclass(frozen=True, slots=True)
class Ramdisk:
    """One initramfs. `generator` is empty where it is unknown; `unread` tells why a part could not be looked into."""

    path: str
    generator: str = ""
    overlayroot: bool = False
    unread: str = ""
    contents: Contents = field(default_factory=lambda: Contents({}), repr=False)


def look(tree: Tree, path: str) -> Ramdisk:
    """What kind of initramfs lies at this path of the boot partition.

    :raises FormatError: it is larger than any that can be booted
    """
    with tree.opened(path) as fd, open(fd, "rb", closefd=False) as file:
        contents = initramfs.look(file.read, _wanted)
    generator = ""
    if contents.get("scripts/functions") and contents.get("conf/initramfs.conf"):
        generator = INITRAMFS_TOOLS
    elif _hooks(contents):
        generator = DRACUT
    # Its script fails under klibc's shell. Under dracut several packages do the same, each in its own way: ours does.
    needed = ("scripts/init-bottom/overlayroot", "bin/busybox")
    overlayroot = generator == INITRAMFS_TOOLS and all(contents.get(name) for name in needed)
    return Ramdisk(path, generator, overlayroot, contents.unread, contents)


def overlay_of(ramdisks: Iterable[Ramdisk], root: Tree) -> tuple[str, ...]:
    """The kernel arguments that put a writable layer over the root, the same for every board."""
    known = [ramdisk for ramdisk in ramdisks if ramdisk.generator]
    if known and not all(ramdisk.overlayroot for ramdisk in known):
        return (OWN_OVERLAY,)
    # One that can't be looked into is taken to have what the root has the package of.
    return (OVERLAYROOT,) if known or root.is_file("/etc/overlayroot.conf") else ()


def extend(boot: Tree, root: Tree, ramdisk: Ramdisk, overlay: tuple[str, ...]) -> None:
    """Append what this initramfs lacks. One that lacks nothing, or of an unknown kind, is left alone.

    :raises FormatError: it lacks something that the image doesn't have, or too much
    """
    if not ramdisk.generator or ramdisk.unread:
        return
    with root.bounded(_ADDED):
        _extend(boot, root, ramdisk, overlay)


def _extend(boot: Tree, root: Tree, ramdisk: Ramdisk, overlay: tuple[str, ...]) -> None:
    contents = ramdisk.contents
    members, reasons = modules.missing(root, contents, ramdisk.path), []
    if members:
        reasons.append("kernel modules for NFS and the layer above it")
    own_mount = ramdisk.generator == DRACUT and not netroot.is_complete(contents, contents.below(_hooks(contents)))
    if own_mount and (hooks := netroot.members(root, contents, _hooks(contents), ramdisk.path)):
        members += hooks
        reasons.append("hooks that get an address by a program of the image and mount the root")
    if overlay == (OWN_OVERLAY,) and (hook := _overlay_hook(ramdisk)):
        members += hook
        reasons.append("a hook that puts a writable layer over the root")
    if (settings := _dhcpcd_settings(contents)) is not None:
        members.append(Member(contents.resolve(_DHCPCD), 0o100644, settings.encode("utf-8", "surrogateescape")))
        reasons.append("the DHCP client's identity, so that the running system renews the same lease")
    if ramdisk.generator == DRACUT and not own_mount and not contents.get(_PROTOCOLS):
        # mount.nfs looks up what tcp is (getprotobyname(3)), and dracut copies the file of an image that has it.
        members.append(Member(contents.resolve(_PROTOCOLS), 0o100644, b"tcp 6 TCP\nudp 17 UDP\n"))
        reasons.append("the numbers of the protocols that mount.nfs asks for by name")
    if members:
        archive = cpio.write([*_folders(contents, members), *members])
        boot.append(ramdisk.path, _padding(boot.size(ramdisk.path)) + archive, f"It gets {', '.join(reasons)}.")


def _wanted(name: str, size: int) -> bool:
    kept = name in (_ORDER, _DHCPCD, *_USERS) or name.rpartition("/")[2] in ("modules.dep", "modules.builtin")
    return kept and size <= _KEPT


def _hooks(contents: Contents) -> str:
    """dracut's folder of hooks, empty where there is none. It moved from /lib to /var/lib in version 108."""
    folders = (
        contents.resolve(folder) for folder in ("var/lib/dracut/hooks", "usr/lib/dracut/hooks", "lib/dracut/hooks")
    )
    return next((folder for folder in folders if contents.below(folder)), "")


def _overlay_hook(ramdisk: Ramdisk) -> list[Member]:
    contents = ramdisk.contents
    if ramdisk.generator == DRACUT:
        name = f"{_hooks(contents)}/{_HOOK}"
        return [] if contents.get(name) else [Member(name, 0o100755, _DRACUT_HOOK.encode())]
    if contents.get(_SCRIPT):
        return []
    # Ours is first: udev's script moves /dev into the root, which has to be the writable one by then.
    order = f'/{_SCRIPT} "$@"\n[ -e /conf/param.conf ] && . /conf/param.conf\n{contents.text(_ORDER)}'
    return [
        Member(_SCRIPT, 0o100755, _INITRAMFS_TOOLS_SCRIPT.encode()),
        Member(_ORDER, 0o100644, order.encode("utf-8", "surrogateescape")),
    ]


def _dhcpcd_settings(contents: Contents) -> str | None:
    """dhcpcd's settings with the MAC as the client's identity; None where there are none, or they say so already.

    Ubuntu's initramfs-tools (since 24.04) asks with a DUID, so that a server takes the running system for another
    client and gives it another address.
    """
    member = contents.get(_DHCPCD)
    if not member or member.data is None:
        return None
    lines = contents.text(_DHCPCD).splitlines()
    kept = [line for line in lines if line.split()[:1] not in (["duid"], ["clientid"])]
    wanted = [*kept, "clientid"]
    return "\n".join(wanted) + "\n" if lines != wanted else None


def _folders(contents: Contents, members: Iterable[Member]) -> list[Member]:
    """The folders that the entries lie in and the initramfs lacks: the kernel makes none by itself."""
    needed: dict[str, None] = {}
    for member in members:
        parts = member.name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            if (folder := "/".join(parts[:depth])) not in contents.members:
                needed[folder] = None
    return [Member(folder, stat.S_IFDIR | 0o755) for folder in needed]


def _padding(size: int) -> bytes:
    """Zeros up to a multiple of four, where the kernel looks for the next archive.

    Four more end an archive that was compressed by lz4, which has no end of its own (lib/decompress_unlz4.c): what
    follows would be taken for a block. Between archives, zeros are passed over.
    """
    return bytes(4 + -size % 4)
