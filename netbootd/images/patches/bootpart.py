"""The boot partition: which files which board loads from it, and the command line and config.txt of a network boot.

Layouts are not told by a distribution's version: config.txt is evaluated, with its filters and includes, for every
board that can boot over the network, with and without the one-time flag of an A/B update (``[tryboot]``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from netbootd.errors import FormatError
from netbootd.formats import cmdline, configtxt
from netbootd.formats.configtxt import BootFiles, Settings
from netbootd.images.patches.tree import Tree

CONFIG = "config.txt"
_WHY_CMDLINE = "Root and cloud-init seed come over the network; what led to the local disk is gone."
_MAX_INITRAMFS = 8
_AUTO_INITRAMFS = "auto_initramfs=1"


@dataclass(frozen=True, slots=True)
class BootLayout:
    """What the boards load, as paths below the boot partition.

    `cmdlines` are the files that one board or another reads its command line from, that of most boards first.
    `config_lines` are what config.txt lacks for a network boot.
    """

    cmdlines: tuple[str, ...]
    kernels: tuple[str, ...]
    initramfs: tuple[str, ...]
    config_lines: tuple[str, ...]


def survey(tree: Tree) -> BootLayout:
    """Find out what is booted from this partition.

    :raises FormatError: no board finds a kernel, files include each other, or there are too many to be looked into
    """
    text = tree.text(CONFIG)
    found = _boot_files(tree, text)
    lines: tuple[str, ...] = ()
    if _without_initramfs(tree, text):
        found, lines = _boot_files(tree, configtxt.append(text, [_AUTO_INITRAMFS])), (_AUTO_INITRAMFS,)
    if not found:
        raise FormatError(
            "Looking for a kernel in the image's boot partition: config.txt leads no board to one.",
            hint="Is it an image for a Raspberry Pi? Only those can be booted by its firmware.",
        )
    initramfs = tuple(dict.fromkeys(name for files in found for name in files.initramfs if tree.is_file(name)))
    if len(initramfs) > _MAX_INITRAMFS:
        raise FormatError(
            f"Looking for an initramfs in the image's boot partition: config.txt names {len(initramfs)} of them.",
            hint=f"Up to {_MAX_INITRAMFS} are looked into; a publisher's image has one for each kind of kernel.",
        )
    cmdlines = Counter(files.cmdline for files in found)
    return BootLayout(
        cmdlines=tuple(path for path, _ in cmdlines.most_common()),
        kernels=tuple(dict.fromkeys(files.kernel for files in found)),
        initramfs=initramfs,
        config_lines=lines,
    )


def _boot_files(tree: Tree, text: str) -> list[BootFiles]:
    """What each board loads, for those that find a kernel."""
    every = [settings.boot_files(tree.is_file) for settings in _settings(tree, text)]
    return [files for files in every if files.kernel]


def _without_initramfs(tree: Tree, text: str) -> bool:
    """Whether the partition has an initramfs named after a kernel, and config.txt does not have it loaded.

    Raspberry Pi OS before bookworm: its kernel mounted the root by itself, but it can't put a writable layer over it.
    """
    for settings in _settings(tree, text):
        files = settings.boot_files(tree.is_file)
        if files.kernel and not files.initramfs and not settings.initramfs and not settings.auto_initramfs:
            name = configtxt.auto_initramfs_name(files.kernel)
            if name and tree.is_file(name):
                return True
    return False


def _settings(tree: Tree, text: str) -> list[Settings]:
    def include(name: str) -> str | None:
        return tree.text(name) if tree.is_file(name) else None

    return [
        configtxt.evaluate(text, board, tryboot=tryboot, include=include)
        for tryboot in (False, True)
        for board in configtxt.BOARDS
    ]


def base_of(tree: Tree, path: str) -> str:
    """What a command line of the image keeps, see `netbootd.formats.cmdline.base_of`.

    :raises FormatError: there is no room behind it, whatever is put there
    """
    text = tree.read(path) or b""
    base = cmdline.base_of(text.decode("utf-8", "replace"))
    size = len(base.encode("utf-8", "surrogateescape"))
    if size > cmdline.LINE_LIMIT:
        raise FormatError(
            f"Reading {tree.label}/{path} of the image: its command line has {size} bytes, and the firmware leaves room"
            f" for {cmdline.LINE_LIMIT}.",
            hint="Is the image broken? None could boot with such a line.",
        )
    return base


def apply(tree: Tree, layout: BootLayout, lines: dict[str, str], config_append: str) -> None:
    """Write the command lines, and what config.txt lacks.

    :param lines: the new line (with its end) of each of `layout.cmdlines`
    :param config_append: the operator's lines
    :raises ConfigError: a line that the firmware can't read
    """
    for path, line in lines.items():
        tree.write(path, line, _WHY_CMDLINE)
    added = [*layout.config_lines, *config_append.splitlines()]
    if any(line.strip() for line in added):
        why = "For every board: " + "; ".join(
            ([f"the initramfs is loaded ({_AUTO_INITRAMFS})"] if layout.config_lines else [])
            + (["the operator's config_append"] if config_append.strip() else [])
        )
        tree.write(CONFIG, configtxt.append(tree.text(CONFIG), added), why + ".")
