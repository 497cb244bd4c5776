"""Which partition the firmware boots from, and which holds the root file system: told by what is in them.

Numbers and types are the publisher's habit, not a promise: Raspberry Pi OS and Ubuntu have two partitions, others an
EFI partition before them, a recovery or data partition behind, or two systems of which one is in use. Where several
would do, the firmware's and the kernel's own pointers decide: autoboot.txt's ``boot_partition`` (Raspberry Pi
documentation, "The autoboot.txt file") and ``root=`` in cmdline.txt.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from netbootd.errors import FormatError
from netbootd.formats.ext4 import Ext4
from netbootd.formats.fat import Fat
from netbootd.formats.filesystems import EXT, FAT, identify
from netbootd.formats.partitions import Partition, Table
from netbootd.formats.window import Window

_FIRMWARE = ("config.txt", "bootcode.bin", "start4.elf", "start.elf", "cmdline.txt")
"""Each of them makes a FAT the firmware's; an EFI or data partition has none."""

_CMDLINES = ("cmdline.txt", "current/cmdline.txt")
_ROOT_NAMES = ({b"etc", b"usr"}, {b"etc", b"sbin"})
_CONTAINERS = ("LUKS", "LVM2", "BitLocker")
_NOT_ROOTS = ("swap", FAT, EXT, "exFAT", "NTFS", "ISO 9660", "")


def find_boot_and_root(window: Window, table: Table) -> tuple[Partition, Partition]:
    """The firmware's partition and the root file system's.

    :raises FormatError: one of them is missing, damaged, of a kind that is not supported, or not the only one
    """
    kinds = {part: identify(window.sub(part.offset, part.size)) for part in table.partitions}
    boot = _find_boot(window, kinds)
    return boot, _find_root(window, kinds, boot)


def _find_boot(window: Window, kinds: dict[Partition, str]) -> Partition:
    candidates = [part for part, kind in kinds.items() if kind == FAT]
    found, faults = _fitting(candidates, lambda part: _has_firmware(_fat(window, part)))
    if len(found) > 1:
        numbers = {number for part in candidates if (number := _autoboot(window, part))}
        found = [part for part in found if part.number in numbers] or found
    if len(found) == 1:
        return found[0]
    if not found and faults:
        raise faults[0]
    if not found:
        raise FormatError(
            "looking for the boot partition: "
            + (
                f"no FAT file system has the firmware's files ({', '.join(_FIRMWARE[:3])})"
                if candidates
                else "there is no FAT file system"
            )
            + f"; the image has {_listing(kinds)}",
            hint="Is it an image for a Raspberry Pi? Its boot partition is a FAT file system with config.txt.",
        )
    raise _several("boot partition", found)


def _find_root(window: Window, kinds: dict[Partition, str], boot: Partition) -> Partition:
    candidates = [part for part, kind in kinds.items() if kind == EXT]
    found, faults = _fitting(candidates, lambda part: _is_root(_ext4(window, part)))
    if len(found) > 1:
        wanted = _root_argument(_fat(window, boot))
        found = [part for part in found if wanted in _names_of(part, _ext4(window, part))] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise _several("root file system", found)
    if faults:
        raise faults[0]
    others = {part: kind for part, kind in kinds.items() if kind not in _NOT_ROOTS}
    if others:
        raise FormatError(
            f"looking for the root file system: the image has {_listing(others)}, which can't be read",
            hint="Decrypt or unpack it first: the root has to be an ext4 file system in a partition of its own."
            if any(kind in _CONTAINERS for kind in others.values())
            else "ext2, ext3 and ext4 can be; choose the publisher's image with such a root.",
        )
    raise FormatError(
        "looking for the root file system: "
        + ("no ext4 file system has /etc and /usr" if candidates else "there is no ext4 file system")
        + f"; the image has {_listing(kinds)}",
        hint="An image for the Raspberry Pi has a FAT partition with its firmware, and an ext4 root.",
    )


def _fitting(
    candidates: list[Partition], fits: Callable[[Partition], bool]
) -> tuple[list[Partition], list[FormatError]]:
    """The partitions that fit, and what is wrong with those that can't be read: of no matter where others do."""
    found: list[Partition] = []
    faults: list[FormatError] = []
    for part in candidates:
        try:
            if fits(part):
                found.append(part)
        except FormatError as error:
            faults.append(error)
    return found, faults


def _several(what: str, found: list[Partition]) -> FormatError:
    numbers = " and ".join(str(part.number) for part in found)
    return FormatError(
        f"looking for the {what}: partitions {numbers} could each be it", hint="Give an image with one system in it."
    )


def _listing(kinds: dict[Partition, str]) -> str:
    return ", ".join(f"{kind or 'something unknown'} in partition {part.number}" for part, kind in kinds.items())


# ---------------------------------------------------------------- a look inside


def _fat(window: Window, part: Partition) -> Fat:
    return Fat(window.sub(part.offset, part.size))


def _ext4(window: Window, part: Partition) -> Ext4:
    return Ext4(window.sub(part.offset, part.size))


def _has_firmware(fat: Fat) -> bool:
    return any((entry := fat.find(name)) is not None and not entry.is_dir for name in _FIRMWARE)


def _autoboot(window: Window, part: Partition) -> int:
    """The partition that an autoboot.txt there leads to in an ordinary boot; 0 for none."""
    number, ordinary = 0, True
    for line in _text(_fat(window, part), "autoboot.txt").splitlines():
        line = line.strip().lower()
        if line.startswith("["):
            ordinary = line != "[tryboot]"
        elif ordinary and (match := re.fullmatch(r"boot_partition\s*=\s*(\d{1,3})", line)):
            number = int(match[1])
    return number


def _text(fat: Fat, path: str) -> str:
    entry = next((entry for entry in fat.walk() if entry.path.lower() == path), None)
    return "" if entry is None or entry.is_dir else fat.read(entry).decode("latin-1")


def _is_root(ext4: Ext4) -> bool:
    names = {entry.name for entry in ext4.root().entries()}
    return any(names >= wanted for wanted in _ROOT_NAMES)


def _root_argument(fat: Fat) -> str:
    """What ``root=`` says on the boot partition's command line; empty where nothing does."""
    for path in _CMDLINES:
        for word in _text(fat, path).split():
            if word.startswith("root="):
                return word.removeprefix("root=").lower()
    return ""


def _names_of(part: Partition, ext4: Ext4) -> set[str]:
    """All that ``root=`` may call a partition, in lower case."""
    names = {f"partuuid={part.uuid}", f"uuid={ext4.superblock.uuid}", f"/dev/mmcblk0p{part.number}"}
    if ext4.superblock.label:
        names.add(f"label={ext4.superblock.label}")
    if part.name:
        names.add(f"partlabel={part.name}")
    return {name.lower() for name in names}
