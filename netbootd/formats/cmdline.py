"""Edits and renders the kernel's command line, as it stands in cmdline.txt.

Words are told apart as the kernel does (lib/cmdline.c, next_arg): by white space outside of double quotes; a dash and
an underscore in a name are the same. Firmware reads the first line only. `render` writes what these understand: the
kernel's own nfsroot (Documentation/admin-guide/nfs/nfsroot.rst), klibc's nfsmount in initramfs-tools (options port, v3,
tcp; it knows neither proto= nor mountport=), dracut (dracut.cmdline(7): nfsroot= with root=/dev/nfs), cloud-init's
NoCloud (`ds=`). Left out: a root over IPv6, which neither the kernel nor klibc can mount.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import uuid
from collections.abc import Iterable

from netbootd.errors import ConfigError
from netbootd.model.network import ServerAddress

FIRMWARE_LIMIT = 1024
"""Bytes of a command line that Raspberry Pi firmware handles (start.elf since 2012, raspberrypi/linux#140)."""

FIRMWARE_SHARE = 320
"""Bytes of those that we leave to the firmware, which puts its own arguments (video, MAC address, memory) in front.

A Pi 5 with a display uses 292 (raspberrypi/linux#5743). A line that is too long loses its end, silently.
"""

LINE_LIMIT = FIRMWARE_LIMIT - FIRMWARE_SHARE
"""Bytes of the longest line that `render` returns."""

NFS_PORT = 2049
PORTMAP_PORT = 111

# What ties a system to its own disk, or happens once at its first boot from it. fixrtc sets the clock by the superblock
# of the root's block device (and waits for that device), resize grows the root's partition, boot= chooses how the
# initramfs finds its root.
_LOCAL = {
    *(
        "root",
        "rootfstype",
        "rootflags",
        "rootwait",
        "rootdelay",
        "roottimeout",
        "ro",
        "rw",
        "boot",
        "fixrtc",
        "resize",
    ),
    *("resume", "resume_offset", "noresume", "fastboot", "forcefsck", "fsckfix"),
    # dracut waits for what these name (dracut.cmdline(7)), initramfs-tools for cryptdevice
    *("rd.luks.uuid", "rd.luks.name", "rd.luks.partuuid", "rd.luks.serial", "rd.luks.key", "cryptdevice"),
    *("rd.lvm.vg", "rd.lvm.lv", "rd.md.uuid", "rd.dm.uuid"),
}
# What an earlier preparation (by us or by hand) may have left: ours comes anew.
_NETBOOT = {
    *("ip", "ip6", "bootif", "nfsroot", "netroot", "ds", "systemd.machine_id", "network_config"),
    *("overlayroot", "overlayroot_cfgdisk", "netbootd.overlay", "rd.neednet", "rd.overlay", "nbdroot"),
    "cloud_init",  # ``cloud-init=disabled``: it is what makes a node one's own
}
# Hooks that Raspberry Pi Imager and Raspberry Pi OS put in for the first boot, from the boot partition.
_FIRST_BOOT = {"systemd.run", "systemd.run_success_action", "systemd.run_failure_action"}
_FIRST_BOOT_INIT = re.compile(r"(firstboot|init_resize(\.sh)?)\Z")
_DROPPED_PREFIXES = ("fsck.", "rd.live.overlay")

_ROOT = re.compile(r"/[\w@+./=~-]*\Z", re.ASCII)  # a comma begins the options, a colon the server, %s is the address
_MACHINE_ID = re.compile(r"[0-9a-f]{32}\Z")
_WORD = re.compile(r"(?:[^\s\"]|\"[^\"]*\"?)+", re.ASCII)


def first_line(text: str) -> str:
    """The line that firmware reads of a cmdline.txt, without white space around it."""
    return text.lstrip("\ufeff").partition("\n")[0].replace("\0", " ").strip()


def words(line: str) -> list[str]:
    """The arguments as they are written, quotes and all. An open quote reaches to the end, as in the kernel."""
    return _WORD.findall(line)


def name_of(word: str) -> str:
    """The name of an argument as the kernel compares it: without its value, dashes as underscores, lower case.

    >>> name_of('"systemd.machine-id=1"')
    'systemd.machine_id'
    """
    return word.lstrip('"').partition("=")[0].rstrip('"').replace("-", "_").lower()


def value_of(line: str, name: str) -> str:
    """The last value of an argument, without quotes; empty where it is not there."""
    values = [word.replace('"', "").partition("=")[2] for word in words(line) if name_of(word) == name]
    return values[-1] if values else ""


def base_of(text: str) -> str:
    """What of an image's cmdline.txt holds on any disk or none: its arguments less the local root and one-time hooks.

    Arguments of an earlier network boot go, too. Consoles, cgroups, quirks, `quiet` and everything unknown stay, in
    their order and as they are written, but for a quote that was left open: it is closed, or it would swallow what is
    put behind it. The result of `base_of` is its own base.
    """
    kept, ours = [], True
    for word in words(first_line(text)):
        if word == "--":
            ours = False  # the rest is for init, not for the kernel
        if not ours or not _is_local(word):
            kept.append(word + '"' if word.count('"') % 2 else word)
    return " ".join(kept)


def _is_local(word: str) -> bool:
    name = name_of(word)
    if name == "init":
        return bool(_FIRST_BOOT_INIT.search(word.rstrip('"')))
    if name == "systemd.unit":
        return word.endswith("=kernel-command-line.target")
    return name in _LOCAL | _NETBOOT | _FIRST_BOOT or name.startswith(_DROPPED_PREFIXES)


def render(
    base: str,
    *,
    server: ServerAddress,
    root: str,
    overlay: Iterable[str] = (),
    machine_id: str = "",
    seed: str = "",
    datasource: str = "nocloud",
    append: str = "",
) -> str:
    """The command line of a node, one line without its end.

    :param base: the image's own arguments (see `base_of`)
    :param root: absolute path of the exported root folder, as the server names it
    :param overlay: the arguments that put a writable layer over the root
    :param machine_id: see `machine_id`; empty for a line that several nodes share
    :param seed: URL of the NoCloud documents, with a slash at its end
    :param datasource: ``nocloud`` or ``nocloud-net`` (see `netbootd.model.facts`)
    :param append: further arguments as written by the operator, may be several
    :raises ConfigError: a value cannot stand on the line, or the line is longer than firmware can handle
    """
    try:
        ipaddress.IPv4Address(server.address)
    except ValueError:
        raise ConfigError(
            f"rendering cmdline.txt: a root cannot be mounted from the address {server.address!r}",
            hint="Name an IPv4 address, with --advertise or [server] address: kernels mount no root over IPv6.",
        ) from None
    if not _ROOT.match(root):
        raise ConfigError(
            f"rendering cmdline.txt: the root folder {root!r} has characters that cannot stand on a command line",
            hint="Move the state folder (--state) to a path of letters, digits and -_.+@=~ only.",
        )
    if machine_id and not _MACHINE_ID.match(machine_id):
        raise ConfigError(f"rendering cmdline.txt: {machine_id!r} is no machine id (32 hexadecimal digits)")
    head, init = _split(base)
    parts = [*head, "ip=dhcp", "root=/dev/nfs", f"nfsroot={server.address}:{root},{_nfs_options(server)}"]
    parts += [_one_word(word, "the overlay's argument") for word in overlay]
    if machine_id:
        parts.append(f"systemd.machine_id={machine_id}")
    if seed:
        parts.append(f"ds={_one_word(datasource, 'the datasource')};s={_one_word(seed, 'the seed URL')}")
    try:
        check_appended(append)
    except ValueError as error:
        raise ConfigError(f"rendering cmdline.txt: cmdline_append {append!r} {error}") from None
    parts += [*words(append), *init]
    line = " ".join(parts)
    size = len(line.encode("utf-8", "surrogateescape"))
    if size > LINE_LIMIT:
        raise ConfigError(
            f"rendering cmdline.txt: the line has {size} bytes, {LINE_LIMIT} are possible (the firmware's"
            f" limit of {FIRMWARE_LIMIT}, less {FIRMWARE_SHARE} for what it adds itself)",
            hint="Shorten cmdline_append, or the path of the state folder; settings may also go into the image's /etc.",
        )
    return line


def _split(base: str) -> tuple[list[str], list[str]]:
    """A line's arguments for the kernel, and those for init (behind a lone ``--``), which must stay last."""
    every = words(base)
    at = every.index("--") if "--" in every else len(every)
    return every[:at], every[at:]


def _nfs_options(server: ServerAddress) -> str:
    """The mount options: ports only where the portmapper cannot tell them, for klibc's nfsmount dies of mountport=."""
    options = ["v3", "tcp"]
    asked = server.portmap_port == PORTMAP_PORT
    if server.nfs_port != NFS_PORT or not asked:
        options.append(f"port={server.nfs_port}")
    if not asked:
        options.append(f"mountport={server.mount_port}")
    return ",".join(options)


def _one_word(text: str, what: str) -> str:
    if not text or '"' in text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"rendering cmdline.txt: {what} {text!r} cannot stand on a command line",
            hint="Spaces, quotes and control characters end an argument there.",
        )
    return text


def check_appended(text: str) -> None:
    """Refuse what an operator must not put on the line.

    :raises ValueError: with the rest of a sentence that begins with the text
    """
    if any(ord(c) < 32 or ord(c) == 127 for c in text) or text.count('"') % 2:
        raise ValueError("has a line break, a control character or an open quote; it must be one line")
    for word in words(text):
        if name_of(word) in ("root", "nfsroot") or word == "--":
            raise ValueError(f"must not have {word}, which netbootd itself says")
        if name_of(word) == "ro":
            raise ValueError(
                "must not have ro: the export is read-only anyway, and the layer above it has to be writable"
            )


def machine_id(key: str) -> str:
    """A machine id (machine-id(5)) that is always the same for one key (a serial number or MAC) and differs per key.

    It has the bits of a random UUID (version 4, variant 1), which is what systemd makes and checks for.
    """
    digest = hashlib.sha256(b"netbootd machine-id\0" + key.lower().encode()).digest()
    return uuid.UUID(bytes=digest[:16], version=4).hex
