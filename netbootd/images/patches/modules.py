"""Kernel modules: what an initramfs lacks of those that a root over NFS needs, and where the image has them.

By the files that depmod(8) writes: modules.dep has a line a module with all that it needs, modules.builtin lists what
the kernel itself has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from netbootd.errors import FormatError
from netbootd.formats.cpio import Member
from netbootd.formats.initramfs import Contents
from netbootd.images.patches.tree import Tree

REQUIRED = ("nfs", "nfsv3", "overlay")
"""Without these there is no writable root over NFS."""

HELPFUL = (
    *("af_packet", "bcmgenet", "mdio_bcm_unimac", "broadcom", "bcm_phy_lib", "macb", "lan78xx", "smsc95xx"),
    *("microchip", "smsc", "r8152", "fixed_phy"),
)
"""Drivers of the boards' network ports, and raw sockets for DHCP; most kernels for a Pi have them built in."""

DEPMOD = (
    *("modules.dep", "modules.dep.bin", "modules.alias", "modules.alias.bin", "modules.builtin", "modules.builtin.bin"),
    *("modules.builtin.alias.bin", "modules.builtin.modinfo", "modules.order", "modules.softdep", "modules.symbols"),
    "modules.symbols.bin",
)
_DEPMOD_LIMIT = 32 << 20
_MODULE_LIMIT = 64 << 20
_TEXT_LIMIT = 4 << 20  # bytes of modules.dep; the largest have a quarter of it
_SUFFIX = re.compile(r"\.ko(\.(xz|zst|gz))?\Z")


@dataclass(frozen=True, slots=True)
class ModuleIndex:
    """Modules of one kernel by name: their files below the kernel's folder with those of all that they need."""

    files: dict[str, tuple[str, ...]]
    builtin: frozenset[str]


def name_of(path: str) -> str:
    """``kernel/net/packet/af-packet.ko.xz`` -> ``af_packet``."""
    return _SUFFIX.sub("", path.rpartition("/")[2]).replace("-", "_")


def index(dep: str, builtin: str) -> ModuleIndex:
    """From the texts of modules.dep and modules.builtin."""
    files = {}
    for line in dep.splitlines():
        path, colon, needs = line.partition(":")
        if colon:
            files[name_of(path)] = (path.strip(), *needs.split())
    return ModuleIndex(files, frozenset(name_of(line.strip()) for line in builtin.splitlines() if line.strip()))


def versions(contents: Contents) -> list[str]:
    """The kernels that an initramfs has modules of; not every folder there is a kernel's."""
    folder = contents.resolve("lib/modules") + "/"
    names = (name.removeprefix(folder).split("/") for name in contents.below("lib/modules"))
    return sorted(parts[0] for parts in names if len(parts) == 2 and parts[1] == "modules.dep")


def missing(tree: Tree, contents: Contents, path: str) -> list[Member]:
    """What an initramfs has to be given, as entries with the paths that they get in it.

    :param tree: the image's root
    :param path: the initramfs, for messages
    :raises FormatError: the image itself lacks a required module
    """
    added: dict[str, Member] = {}
    for version in versions(contents) or [v for v in tree.names("/lib/modules") if _text(tree, _dep(v))]:
        added |= _of_version(tree, contents, path, version)
    return list(added.values())


def _of_version(tree: Tree, contents: Contents, path: str, version: str) -> dict[str, Member]:
    here, there = f"/lib/modules/{version}", contents.resolve(f"lib/modules/{version}")
    known = index(_text(tree, _dep(version)), _text(tree, f"{here}/modules.builtin"))
    inside = index(contents.text(f"{there}/modules.dep"), contents.text(f"{there}/modules.builtin"))
    builtin = known.builtin | inside.builtin
    present = {name_of(name) for name in contents.below(there) if _SUFFIX.search(name)}
    added: dict[str, Member] = {}
    for name in (*REQUIRED, *HELPFUL):
        if name in builtin or name in present:
            continue
        if name not in known.files:
            if name in REQUIRED and (known.files or inside.files):
                raise FormatError(
                    f"Preparing boot/{path} of the image: neither it nor /lib/modules/{version} has the kernel module"
                    f" {name}, without which there is no root over NFS.",
                    hint="The package linux-modules-extra of the same kernel may have it; install it into the image.",
                )
            continue
        for file in known.files[name]:
            if name_of(file) not in present and name_of(file) not in builtin:
                data = tree.read(f"{here}/{file}", _MODULE_LIMIT)
                if data is None:
                    raise FormatError(
                        f"Preparing boot/{path} of the image: modules.dep names {file!r}, which is missing."
                    )
                added[f"{there}/{file}"] = Member(f"{there}/{file}", 0o100644, data)
    if added:  # modprobe finds what depmod has listed; the image's own list covers all that is in the initramfs
        for name in DEPMOD:
            data = tree.read(f"{here}/{name}", _DEPMOD_LIMIT)
            if data is not None:
                added[f"{there}/{name}"] = Member(f"{there}/{name}", 0o100644, data)
    return added


def _dep(version: str) -> str:
    return f"/lib/modules/{version}/modules.dep"


def _text(tree: Tree, path: str) -> str:
    return (tree.read(path, _TEXT_LIMIT) or b"").decode("utf-8", "replace")
