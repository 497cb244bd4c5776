"""A small FAT16 file system whose tables and folders a test writes byte by byte: what no tool would make."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

END = 0xFFFF


def short_checksum(name: bytes) -> int:
    """As in Microsoft's specification: rotate right by one, add."""
    total = 0
    for byte in name:
        total = (total // 2 + 128 * (total % 2) + byte) % 256
    return total


def record(
    name: bytes,
    cluster: int = 0,
    size: int = 0,
    *,
    attributes: int = 0x20,
    nt: int = 0,
    time: int = 0,
    date: int = 0x21,
) -> bytes:
    """One 32-byte entry; the name is padded to its 11 bytes."""
    return (
        name.ljust(11)
        + bytes([attributes, nt])
        + bytes(7)
        + (cluster >> 16).to_bytes(2, "little")
        + time.to_bytes(2, "little")
        + date.to_bytes(2, "little")
        + (cluster & 0xFFFF).to_bytes(2, "little")
        + size.to_bytes(4, "little")
    )


def folder_record(name: bytes, cluster: int) -> bytes:
    """The entry of a folder."""
    return record(name, cluster, attributes=0x10)


def long_records(name: str, short: bytes, *, wrong: int = 0) -> bytes:
    """The entries of a long name before that of its short one, their checksum falsified by `wrong`."""
    units = name.encode("utf-16-le", "surrogatepass")
    if len(units) % 26:
        units += b"\0\0"
        units += b"\xff" * (-len(units) % 26)
    total = len(units) // 26
    mark = short_checksum(short.ljust(11)) ^ wrong
    out = b""
    for number in range(total, 0, -1):
        part = units[(number - 1) * 26 : number * 26]
        sequence = number | (0x40 if number == total else 0)
        out += bytes([sequence]) + part[:10] + b"\x0f\0" + bytes([mark]) + part[10:22] + b"\0\0" + part[22:]
    return out


def named(name: str) -> bytes:
    """An empty file with a long name."""
    return long_records(name, b"NAME~1") + record(b"NAME~1")


class HandMadeFat:
    """A FAT16 file system of some 6000 clusters of 512 bytes, with one table and a root folder of 512 entries."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hand.img"
        with self.path.open("wb") as stream:
            stream.truncate(6060 * 512)
        subprocess.run(
            ["mkfs.vfat", "-F", "16", "-s", "1", "-f", "1", "-R", "1", "-r", "512", self.path],
            check=True,
            capture_output=True,
        )
        self.fat = 512
        self.root = 512 + int.from_bytes(self.path.read_bytes()[22:24], "little") * 512
        self.data = self.root + 512 * 32

    def put(self, offset: int, data: bytes) -> None:
        """Overwrite bytes."""
        with self.path.open("r+b") as stream:
            stream.seek(offset)
            stream.write(data)

    def chain(self, *clusters: int) -> HandMadeFat:
        """Link the clusters; the last value goes into the table as it is."""
        for cluster, following in itertools.pairwise(clusters):
            self.put(self.fat + 2 * cluster, following.to_bytes(2, "little"))
        return self

    def folder(self, *records: bytes, cluster: int = 0) -> HandMadeFat:
        """Write a folder (cluster 0: the root), with its end mark."""
        self.put(self.data + (cluster - 2) * 512 if cluster else self.root, b"".join(records) + bytes(32))
        return self
