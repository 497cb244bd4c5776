"""A disk image of 17 MiB, made in a tenth of a second: a FAT partition, an ext4 one, and something behind them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import run

MIB = 1 << 20
FAT, ROOT = (1 * MIB, 8 * MIB), (9 * MIB, 6 * MIB)
"""Offset and size of the partitions in bytes."""

SIZE = 17 * MIB


def small_image(image: Path, boot: Mapping[str, bytes], tree: Path) -> Path:
    """Make the image of a Raspberry Pi's card.

    :param boot: the boot partition's files, all of them at its top
    :param tree: what the root file system holds
    """
    with image.open("wb") as stream:
        stream.truncate(SIZE)
        stream.seek(SIZE - 100)
        stream.write(b"behind the partitions")
    table = "".join(f"start={o // 512}, size={s // 512}, type={t}\n" for (o, s), t in ((FAT, "c"), (ROOT, "83")))
    run(["sfdisk", "-q", image], stdin=f"label: dos\n{table}")
    for name, argv, (offset, size) in (
        ("fat", ["mkfs.vfat", "-F", "16", "-s", "1", "-n", "system-boot"], FAT),
        ("root", ["mke2fs", "-q", "-t", "ext4", "-L", "writable", "-d", tree], ROOT),
    ):
        part = image.with_name(f"{image.name}.{name}")
        part.write_bytes(b"")
        os.truncate(part, size)
        run([*argv, part])
        if name == "fat":
            for file, data in boot.items():
                source = image.with_name(f"{image.name}.file")
                source.write_bytes(data)
                run(["mcopy", "-i", part, source, f"::{file}"], env={"MTOOLS_SKIP_CHECK": "1"})
                source.unlink()
        with image.open("r+b") as stream:
            stream.seek(offset)
            stream.write(part.read_bytes())
        part.unlink()
    return image
