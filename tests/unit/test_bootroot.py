"""The boot and root partitions are told by what is in them, whatever their numbers; and refusals name what is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netbootd.errors import FormatError
from netbootd.formats.bootroot import find_boot_and_root
from netbootd.formats.partitions import Partition, read_table
from netbootd.formats.window import Window
from tests.support.processes import run

MIB = 1 << 20
Maker = Callable[[Path], None]
Find = Callable[..., tuple[int, int]]


def fat(**files: str) -> Maker:
    """A FAT file system; a file's name is written with ``_`` for the dot and ``__`` for the slash."""

    def make(path: Path) -> None:
        run(["mkfs.vfat", path])
        for name, text in files.items():
            folder, _, file = name.rpartition("__")
            if folder:
                run(["mmd", "-i", path, f"::{folder}"])
            source = path.with_name("content")
            source.write_text(text)
            run(["mcopy", "-i", path, source, f"::{folder}/{file.replace('_', '.')}"])

    return make


def ext(*folders: str, options: tuple[str, ...] = ()) -> Maker:
    def make(path: Path) -> None:
        source = path.with_name(f"{path.name}-source")
        for folder in ("", *folders):
            (source / folder).mkdir()
        run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", source, *options, path])

    return make


def magic(offset: int, text: bytes) -> Maker:
    """No file system, but what tells one."""

    def make(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(text)

    return make


ROOT = ext("etc", "usr")
BOOT = fat(config_txt="[all]\n", cmdline_txt="root=LABEL=writable\n")
ESP = fat(EFI__grub_cfg="")
SWAP = magic(4096 - 10, b"SWAPSPACE2")
BTRFS = magic(65536 + 64, b"_BHRfS_M")
F2FS = magic(1024, b"\x10\x20\xf5\xf2")
LUKS = magic(0, b"LUKS\xba\xbe\0\1")
EMPTY = magic(0, b"\0")


@pytest.fixture
def find(tmp_path: Path) -> Iterator[Find]:
    """Puts partitions of 4 MiB on a disk and gives the numbers of those that were found."""
    image = tmp_path / "disk.img"
    fds: list[int] = []

    def look(*makers: Maker, gpt: bool = False) -> tuple[int, int]:
        with image.open("wb") as file:
            file.truncate((len(makers) * 4 + 2) * MIB)
        lines = "".join(f"start={(1 + number * 4) * 2048}, size={4 * 2048}\n" for number in range(len(makers)))
        label = "label: gpt\n" if gpt else "label: dos\nlabel-id: 0x12345678\n"
        run(["sfdisk", "-q", "--no-reread", "--no-tell-kernel", image], stdin=label + lines)
        for number, make in enumerate(makers):
            part = tmp_path / f"part-{number}"
            with part.open("wb") as file:
                file.truncate(4 * MIB)
            make(part)
            with image.open("r+b") as file:
                file.seek((1 + number * 4) * MIB)
                file.write(part.read_bytes())
        fds.append(os.open(image, os.O_RDONLY))
        window = Window.whole(fds[-1])
        found: tuple[Partition, Partition] = find_boot_and_root(window, read_table(window))
        return found[0].number, found[1].number

    yield look
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("makers", "numbers"),
    [
        ((BOOT, ROOT), (1, 2)),
        ((ROOT, BOOT), (2, 1)),
        ((ESP, BOOT, ROOT), (2, 3)),
        ((BOOT, ext("vmlinuz", "grub"), ROOT), (1, 3)),
        ((BOOT, ext("home"), ROOT, SWAP), (1, 3)),
        ((BOOT, ext("etc", "sbin")), (1, 2)),
        ((fat(bootcode_bin="x"), ROOT), (1, 2)),
        ((fat(start4_elf="x"), ROOT), (1, 2)),
        ((fat(CONFIG_TXT="x"), ROOT, EMPTY, BTRFS), (1, 2)),
    ],
    ids=["plain", "turned", "esp before", "ext boot", "data", "sbin", "bootcode", "start4", "capitals"],
)
@pytest.mark.parametrize("gpt", [False, True], ids=["mbr", "gpt"])
def test_told_by_content(makers: tuple[Maker, ...], numbers: tuple[int, int], gpt: bool, find: Find) -> None:
    if not gpt and len(makers) > 4:
        makers = makers[:4]
    assert find(*makers, gpt=gpt) == numbers


def test_autoboot_txt_leads_to_one_of_two_boot_partitions(find: Find) -> None:
    lead = fat(autoboot_txt="[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=2\n")
    assert find(lead, BOOT, BOOT, ROOT) == (3, 4)


@pytest.mark.parametrize(
    "argument",
    ["PARTUUID=12345678-03", "LABEL=second", "UUID=01234567-89ab-cdef-0123-456789abcdef", "/dev/mmcblk0p3"],
)
@pytest.mark.parametrize("place", ["cmdline_txt", "current__cmdline_txt"])
def test_the_command_line_tells_which_of_two_roots(argument: str, place: str, find: Find) -> None:
    boot = fat(**{"config_txt": "", place: f"console=tty1 root={argument} rootwait\n"})
    second = ext("etc", "usr", options=("-L", "second", "-U", "01234567-89ab-cdef-0123-456789abcdef"))
    assert find(boot, ROOT, second) == (1, 3)


def test_a_damaged_data_partition_does_not_matter(find: Find) -> None:
    damaged = magic(1024 + 56, b"\x53\xef")
    assert find(BOOT, damaged, ROOT) == (1, 3)


@pytest.mark.parametrize(
    ("makers", "match"),
    [
        ((ROOT, SWAP), "boot partition: there is no FAT file system; the image has ext4 in partition 1, swap"),
        ((ESP, ROOT), "no FAT file system has the firmware's files"),
        ((BOOT, BTRFS), "the image has btrfs in partition 2, which can't be read"),
        ((BOOT, F2FS), "the image has f2fs in partition 2, which can't be read"),
        ((BOOT, LUKS), "the image has LUKS in partition 2, which can't be read"),
        ((BOOT, SWAP), "there is no ext4 file system; the image has FAT in partition 1, swap in partition 2"),
        ((BOOT, EMPTY), "something unknown in partition 2"),
        ((BOOT, ext("home")), "no ext4 file system has /etc and /usr"),
        ((BOOT, ROOT, ROOT), "root file system: partitions 2 and 3 could each be it"),
        ((BOOT, BOOT, ROOT), "boot partition: partitions 1 and 2 could each be it"),
        ((BOOT, magic(1024 + 56, b"\x53\xef")), "reading the ext4 file system"),
    ],
)
def test_refused_by_name(makers: tuple[Maker, ...], match: str, find: Find) -> None:
    with pytest.raises(FormatError, match=match) as caught:
        find(*makers)
    assert caught.value.hint
