"""A root over NFS for a dracut initramfs that was made without: two hooks, and what the image has to bring up a link.

dracut's own way needs its modules nfs and network, and one that calls them: hooks that come with network-legacy,
network-manager, connman or (from dracut 104) systemd-networkd. Where one of those is missing, ours do it all: the first
tells dracut that the root is known, so that it waits for no device; the second, which dracut runs until a root is
mounted (dracut.modules(7), "mount"), sees to an address and mounts by the kernel alone. ``mount -i`` passes the options
on as they are, and the kernel asks the server's mount daemon itself (fs/nfs/fs_context.c), so that nothing of
nfs-common is needed.

The address: the kernel may have asked for it already (``ip=dhcp`` with CONFIG_IP_PNP and a driver built in, as in
Raspberry Pi's own kernels). If not, a DHCP client that the image has is brought in, with its libraries. All of them
send the MAC as the client's identity, or none, see `netbootd.images.patches.network`.
"""

from __future__ import annotations

from collections.abc import Iterable

from netbootd.errors import FormatError
from netbootd.formats.cpio import Member
from netbootd.formats.initramfs import Contents
from netbootd.images.patches import network, programs
from netbootd.images.patches.tree import Tree

_KNOWN = "cmdline/92-netbootd-root.sh"  # behind 90-parse-nfsroot.sh, before 95-parse-block.sh
_MOUNT = "mount/50-netbootd-root.sh"
_CALLERS = ("nm-run.sh", "networkd-run.sh", "cm-run.sh")
_FOLDER = "usr/lib/netbootd"
_NETWORKD_UNIT = "usr/lib/systemd/system/systemd-networkd.service"
_NETWORKD_SETTINGS = "etc/systemd/network/05-netbootd.network"
_NETWORKD_USER = "systemd-network"

_KNOWN_TEXT = """\
#!/bin/sh
# Added by netbootd: the root is known, no device is waited for.
read -r netbootd_line < /proc/cmdline
case " $netbootd_line " in
*" root=/dev/nfs "*)
    root=netbootd-nfs
    rootok=1
    unset netroot
    rm -f "$hookdir/initqueue/finished/nfsroot.sh"
    ;;
esac
"""
_MOUNT_TEXT = """\
#!/bin/sh
# Added by netbootd: sees to an address and mounts the root, as the kernel's command line has it.
netbootd_online() {
    while read -r link rest; do
        case "$link" in Iface | lo) ;; *) return 0 ;; esac
    done < /proc/net/route
    return 1
}
netbootd_address() {
%(start)s
    tries=0
    until netbootd_online || [ $tries -ge 60 ]; do
%(ask)s
        sleep 1
        tries=$((tries + 1))
    done
    sleep 1 # for the gateway, which follows the address
}
netbootd_root() (
    set -f
    nfsroot=
    read -r line < /proc/cmdline
    for word in $line; do
        case "$word" in nfsroot=*) nfsroot="${word#nfsroot=}" ;; esac
    done
    server="${nfsroot%%%%:*}"
    path="${nfsroot#*:}"
    options=
    case "$path" in *,*) options=",${path#*,}" ;; esac
    set +f
    client=
    netbootd_online || netbootd_address
    mount -i -t nfs -o "ro,nolock,addr=$server$options" "$server:${path%%%%,*}" "$NEWROOT" ||
        warn "netbootd: could not mount $server:${path%%%%,*}"
    [ -z "$client" ] || kill "$client"
)
read -r netbootd_line < /proc/cmdline
case " $netbootd_line " in
*" root=/dev/nfs "*) netbootd_root ;;
esac
"""
# A client is started once and stays, or asks once and is asked again: udev may not have loaded the driver yet.
_BY_UNIT = "    systemctl start systemd-networkd.service", "        :"
_BY_IPCONFIG = "    :", "        /usr/lib/netbootd/ipconfig -t 10 -c dhcp -d all"
_BY_UDHCPC = (
    "    :",
    """\
        for link in /sys/class/net/*; do
            [ -e "$link/device" ] || continue
            /usr/lib/netbootd/busybox ifconfig "${link##*/}" up
            /usr/lib/netbootd/busybox udhcpc -i "${link##*/}" -n -q -t 5 -s /usr/lib/netbootd/lease
        done""",
)
_LEASE = """\
#!/usr/lib/netbootd/busybox sh
# Added by netbootd: what busybox's DHCP client runs.
[ "$1" = bound ] || exit 0
busybox=/usr/lib/netbootd/busybox
$busybox ifconfig "$interface" "$ip" netmask "$subnet"
for gateway in $router; do
    $busybox route add default gw "$gateway" dev "$interface"
done
"""


def is_complete(contents: Contents, hooks: Iterable[str]) -> bool:
    """Whether a dracut initramfs can mount a root over NFS by itself.

    :param hooks: the names of its hooks
    """
    names = {name.rpartition("/")[2].partition("-")[2] for name in hooks}
    by_hand = contents.get("sbin/ifup") is not None  # network-legacy: udev's rules call it
    return "parse-nfsroot.sh" in names and (by_hand or not names.isdisjoint(_CALLERS))


def members(tree: Tree, contents: Contents, folder: str, path: str) -> list[Member]:
    """The hooks, and the program that gets an address; nothing where they have been added already.

    :param tree: the image's root
    :param folder: where dracut's hooks are in this initramfs
    :param path: the initramfs, for messages
    :raises FormatError: nothing in the image can bring up a link
    """
    if contents.get(f"{folder}/{_MOUNT}"):
        return []
    found = _networkd(tree, contents) or _ipconfig(tree, contents) or _udhcpc(tree, contents)
    if found is None:
        raise FormatError(
            f"Preparing boot/{path} of the image: it was made by dracut without what it takes to mount a root over NFS,"
            " and the image has nothing that could get an address there: neither systemd-networkd, nor klibc's"
            " ipconfig, nor a busybox with udhcpc.",
            hint="Install one of them (busybox is the smallest) into the image.",
        )
    (start, ask), brought = found
    hook = _MOUNT_TEXT % {"start": start, "ask": ask}
    return [
        Member(f"{folder}/{_KNOWN}", 0o100755, _KNOWN_TEXT.encode()),
        Member(f"{folder}/{_MOUNT}", 0o100755, hook.encode()),
        *brought,
    ]


_Client = tuple[tuple[str, str], list[Member]]


def _networkd(tree: Tree, contents: Contents) -> _Client | None:
    settings = Member(contents.resolve(_NETWORKD_SETTINGS), 0o100644, network.INITRAMFS_SETTINGS.encode())
    if contents.get(_NETWORKD_UNIT):
        return _BY_UNIT, [settings]
    program = programs.find(tree, "/usr/lib/systemd/systemd-networkd", "/lib/systemd/systemd-networkd")
    brought = programs.with_libraries(tree, contents, program, program) if program else None
    if brought is None:
        return None
    # It gives up root's rights, and so needs to know to whom.
    for file in ("etc/passwd", "etc/group"):
        here, there = contents.text(file), tree.text(f"/{file}")
        if line := _line_of(there, _NETWORKD_USER):
            if not _line_of(here, _NETWORKD_USER):
                text = here + ("\n" if here and not here.endswith("\n") else "") + line + "\n"
                brought.append(Member(contents.resolve(file), 0o100644, text.encode("utf-8", "surrogateescape")))
        else:
            return None
    return (f"    {program} &\n    client=$!", "        :"), [*brought, settings]


def _ipconfig(tree: Tree, contents: Contents) -> _Client | None:
    program = programs.find(tree, "/usr/lib/klibc/bin/ipconfig")
    brought = programs.with_libraries(tree, contents, program, f"{_FOLDER}/ipconfig") if program else None
    return None if brought is None else (_BY_IPCONFIG, brought)


def _udhcpc(tree: Tree, contents: Contents) -> _Client | None:
    program = programs.find(tree, "/usr/bin/busybox", "/bin/busybox")
    brought = programs.with_libraries(tree, contents, program, f"{_FOLDER}/busybox") if program else None
    if brought is None or b"udhcpc" not in (brought[0].data or b""):
        return None
    lease = Member(f"{_FOLDER}/lease", 0o100755, _LEASE.encode())
    return _BY_UDHCPC, [*brought, lease]


def _line_of(text: str, user: str) -> str:
    return next((line for line in text.splitlines() if line.startswith(f"{user}:")), "")
