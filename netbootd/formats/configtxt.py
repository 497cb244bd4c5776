"""Reads and extends config.txt, the configuration of Raspberry Pi firmware.

After the vendor's documentation (config_txt.adoc: what is config.txt, boot options, conditional filters): one setting a
line of at most 98 characters, filters in brackets that combine by kind, `include`, `initramfs` without an equals sign,
`os_prefix` for the files of the operating system. What the firmware can only know on the spot (GPIO levels, monitors,
OTP rows) counts as not met and is named in `Settings.undecided`. Left out: everything that does not decide which files
are booted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from netbootd.errors import ConfigError, FormatError

LINE_LIMIT = 98
"""Characters of a line that the firmware reads; it ignores the rest."""

BOARDS: dict[str, tuple[frozenset[str], int]] = {
    # board: (filters that it meets, board type of its revision code)
    "pi2": (frozenset({"pi2"}), 0x04),
    "pi3": (frozenset({"pi3"}), 0x08),
    "pi3+": (frozenset({"pi3", "pi3+"}), 0x0D),
    "cm3": (frozenset({"pi3"}), 0x0A),
    "pi02": (frozenset({"pi0", "pi0w", "pi02"}), 0x12),
    "pi4": (frozenset({"pi4"}), 0x11),
    "pi400": (frozenset({"pi4", "pi400"}), 0x13),
    "cm4": (frozenset({"pi4", "cm4"}), 0x14),
    "cm4s": (frozenset({"pi4", "cm4s"}), 0x15),
    "pi5": (frozenset({"pi5"}), 0x17),
    "pi500": (frozenset({"pi5", "pi500"}), 0x19),
    "cm5": (frozenset({"pi5", "cm5"}), 0x18),
}
"""Every board that can boot over the network."""

_MODEL = re.compile(r"(pi|cm)\d")
_FOREIGN = re.compile(r"(gpio\d+=|edid=|.*[<>&|])")  # GPIO levels, monitors, expressions on OTP rows
_MAX_INCLUDES = 8  # of files in files
_MAX_FILES = 64
_MAX_TEXT = 128 << 10  # characters of all of them together, ten times the longest that are published
_MARK = "# --- added by netbootd prepare ---"


@dataclass(frozen=True, slots=True)
class Settings:
    """What one board takes from config.txt. File names are as written there: without `os_prefix`.

    `kernels` are the names in the order in which the firmware tries them, `initramfs` those that are loaded one behind
    the other. With `auto_initramfs` the initramfs is named after the kernel. `undecided` lists the filters that only
    the board itself can decide.
    """

    board: str
    values: dict[str, str]
    kernels: tuple[str, ...]
    initramfs: tuple[str, ...] = ()
    overlays: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()

    @property
    def os_prefix(self) -> str:
        """What stands before the names of kernel, initramfs, command line, device trees and overlays."""
        return self.values.get("os_prefix", "upstream/" if self.values.get("upstream_kernel") == "1" else "")

    @property
    def overlay_prefix(self) -> str:
        """Where overlays lie, below `os_prefix` if that has a README there."""
        return self.values.get("overlay_prefix", "overlays/")

    @property
    def cmdline(self) -> str:
        """The name of the file with the kernel's command line."""
        return self.values.get("cmdline", "cmdline.txt")

    @property
    def auto_initramfs(self) -> bool:
        """Whether the firmware looks for an initramfs that is named after the kernel."""
        return self.values.get("auto_initramfs") == "1"

    def boot_files(self, exists: Callable[[str], bool]) -> BootFiles:
        """The files that the board loads, where `exists` tells of a path below the boot folder whether it is there.

        The firmware drops an `os_prefix` under which it finds no kernel.
        """
        for prefix in dict.fromkeys((self.os_prefix, "")):
            for kernel in self.kernels:
                if exists(path := _join(prefix, kernel)):
                    return BootFiles(prefix, path, self._initramfs_of(kernel, prefix, exists), self._cmdline(prefix))
        return BootFiles(self.os_prefix, "", (), self._cmdline(self.os_prefix))

    def _cmdline(self, prefix: str) -> str:
        return _join(prefix, self.cmdline)

    def _initramfs_of(self, kernel: str, prefix: str, exists: Callable[[str], bool]) -> tuple[str, ...]:
        if self.initramfs:
            return tuple(_join(prefix, name) for name in self.initramfs)
        if self.auto_initramfs and (name := auto_initramfs_name(kernel)) and exists(path := _join(prefix, name)):
            return (path,)
        return ()


@dataclass(frozen=True, slots=True)
class BootFiles:
    """The files that one board loads, as paths below the boot folder. `kernel` is empty where none was found."""

    os_prefix: str
    kernel: str
    initramfs: tuple[str, ...]
    cmdline: str


def _join(prefix: str, name: str) -> str:
    """A name with its prefix, which is stuck in front as it is; a leading slash goes around it."""
    return name.lstrip("/") if name.startswith("/") else prefix + name


def auto_initramfs_name(kernel: str) -> str:
    """``kernel_2712.img`` -> ``initramfs_2712``; empty for a kernel of another name."""
    folder, slash, name = kernel.rpartition("/")
    if not name.startswith("kernel"):
        return ""
    return folder + slash + "initramfs" + name.removeprefix("kernel").removesuffix(".img")


# ---------------------------------------------------------------- reading


@dataclass(slots=True)
class _Evaluation:
    board: str
    serial: int | None
    tryboot: bool
    partition: int | None
    include: Callable[[str], str | None]
    values: dict[str, str] = field(default_factory=dict)
    initramfs: tuple[str, ...] = ()
    overlays: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    filters: dict[str, bool] = field(default_factory=dict)  # kind of filter -> whether the last one is met
    depth: int = 0
    files: int = 0
    characters: int = 0

    def read(self, text: str) -> None:
        self.files += 1
        self.characters += len(text)
        if self.files > _MAX_FILES or self.characters > _MAX_TEXT:
            raise FormatError(
                f"reading config.txt: with all that it includes it has more than {_MAX_FILES} files or"
                f" {_MAX_TEXT >> 10} KiB",
                hint="Files that include others several times grow beyond all bounds.",
            )
        for raw in text.split("\n"):
            line = raw[:LINE_LIMIT].strip()
            if not line or line.startswith("#"):
                continue
            if line.startswith("[") and "]" in line:
                self._filter(line[1 : line.index("]")].strip().lower())
            elif all(self.filters.values()):
                self._setting(re.split(r"\s#", line, maxsplit=1)[0].rstrip())

    def _filter(self, name: str) -> None:
        if name == "all":
            self.filters.clear()
            return
        if name == "none" or _MODEL.match(name) or name.startswith("board-type="):
            # Filters of one kind replace each other.
            met, kind = BOARDS[self.board][0], "model"
            known = name in met if not name.startswith("board-type=") else _number(name) == BOARDS[self.board][1]
        elif name.startswith("0x"):
            kind, number = "serial", _number(name)
            known = self.serial is not None and number is not None and number & 0xFFFFFFFF == self.serial
        elif name == "tryboot":
            kind, known = "tryboot", self.tryboot
        elif name.startswith(("partition=", "boot_partition=")):
            kind, known = "partition", _number(name) == self.partition
        elif name.startswith("hdmi:"):
            return  # says which port the settings are for, not whether they hold
        else:
            kind = re.split(r"\d*[=<>]", name)[0] if _FOREIGN.match(name) else name
            known = False
            self.undecided.append(name)
        self.filters[kind] = known

    def _setting(self, line: str) -> None:
        words = line.split()
        if words[0] == "include" and len(words) == 2:
            self._include(words[1])
        elif words[0] == "initramfs" and len(words) > 1:
            self.initramfs = _names(words[1])
        elif "=" in line:
            key, _, value = (part.strip() for part in line.partition("="))
            if key == "ramfsfile":
                self.initramfs = _names(value)
            elif key == "dtoverlay":
                if value:  # an empty one only ends the scope of dtparam
                    self.overlays.append(re.split(r"[,:]", value, maxsplit=1)[0].strip())
            else:
                self.values[key] = value

    def _include(self, name: str) -> None:
        if self.depth >= _MAX_INCLUDES:
            raise FormatError(
                f"reading config.txt: {name!r} is included more than {_MAX_INCLUDES} files deep",
                hint="Files that include each other never end.",
            )
        text = self.include(name)
        if text is not None:
            self.depth += 1
            self.read(text)
            self.depth -= 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _number(text: str) -> int | None:
    """The number behind an equals sign, or the whole text; hexadecimal after 0x. None if it is none."""
    try:
        return int(text.rpartition("=")[2], 0)
    except ValueError:
        return None


def evaluate(
    text: str,
    board: str,
    *,
    serial: int | None = None,
    tryboot: bool = False,
    partition: int | None = None,
    include: Callable[[str], str | None] = lambda name: None,
) -> Settings:
    """What `board` (a key of `BOARDS`) takes from a config.txt.

    :param serial: the low 32 bits of the board's serial number; None meets no filter on it
    :param tryboot: whether the one-time reboot flag of the A/B scheme is set
    :param partition: the boot partition's number; None (the network) meets no filter on it
    :param include: gives the text of an included file, None where there is none
    :raises FormatError: files include each other
    """
    evaluation = _Evaluation(board, serial, tryboot, partition, include)
    evaluation.read(text)
    values = evaluation.values
    return Settings(
        board,
        values,
        _kernels(board, values),
        evaluation.initramfs,
        tuple(dict.fromkeys(evaluation.overlays)),
        tuple(dict.fromkeys(evaluation.undecided)),
    )


def _kernels(board: str, values: dict[str, str]) -> tuple[str, ...]:
    """The kernel's file name, or the names that the board's firmware tries by itself."""
    if values.get("kernel"):
        return (values["kernel"],)
    family = BOARDS[board][0]
    if "pi5" in family:
        return ("kernel_2712.img", "kernel8.img")
    wide = ("kernel8.img",) if values.get("arm_64bit", "1" if "pi4" in family else "0") != "0" else ()
    narrow = ("kernel7l.img",) if "pi4" in family else ("kernel7.img",)
    return (*wide, *narrow, "kernel.img")


# ---------------------------------------------------------------- extending


def append(text: str, lines: Iterable[str]) -> str:
    """The text with our lines at its end, under a filter of their own: they hold for every board.

    What an earlier call appended is replaced, so that the same lines give the same text. Order, comments and line
    endings of what was there stay.

    :raises ConfigError: a line is longer than the firmware reads, or is two
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    kept = re.split(rf"^{re.escape(_MARK)}", text, maxsplit=1, flags=re.MULTILINE)[0]
    added = [line.strip() for line in lines if line.strip()]
    for line in added:
        if len(line) > LINE_LIMIT or not line.isprintable():
            raise ConfigError(
                f"adding a line to config.txt: the firmware cannot read {line!r}",
                hint=f"It reads {LINE_LIMIT} printable characters of a line; a dtoverlay= goes on in dtparam= lines.",
            )
    if not added:
        return kept
    if kept and not kept.endswith("\n"):
        kept += newline
    return kept + newline.join([_MARK, "[all]", *added, ""])
