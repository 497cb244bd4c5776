"""Reads FAT12, FAT16 and FAT32 file systems with long names.

Microsoft's "FAT: General Overview of On-Disk Format" 1.03 and, where that is silent, what Linux does (fs/fat). The
lower-case bits of short names (NTRes) are honoured; short names are in code page 437, the kernel's default. Deleted
entries and volume labels are left out of the listing, long names without their short entry are ignored as everywhere.
Left out: writing, exFAT, the dirty flag.

Images come from strangers: clusters that are used twice, chains that loop or leave the file system, sizes beyond a
chain, and names that could not be told apart or could lead out of a folder are refused. `Fat.walk` checks each entry
before it yields it, so what it has yielded can be read without surprises.
"""

from __future__ import annotations

import os
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from construct import Bytes, Int8ul, Int16ul, Int32ul, Struct

from netbootd.errors import FormatError
from netbootd.formats.filesystems import is_fat_boot_sector
from netbootd.formats.window import Window

_DAMAGED = "The boot partition is damaged; fetch the image again."

_MAX_CLUSTERS = 1 << 26  # one byte of memory each; 32 GiB even at 512 bytes a cluster
_MAX_FOLDER = 2 << 20  # bytes: 65,536 entries, the specification's limit
_MAX_ENTRIES = 50_000  # of all folders: a Pi's boot partition has some 400
_MAX_DEPTH = 64
_MAX_NAME = 255  # bytes in UTF-8: what every file system that we export to can hold
_CHUNK = 1 << 20
_PAGE = 1 << 14  # FAT32 entries read at once

_LONG = 0x0F
_VOLUME = 0x08
_FOLDER = 0x10
_LOWER_BASE = 0x08
_LOWER_EXTENSION = 0x10

_BOOT_SECTOR = Struct(
    "jump" / Bytes(3),
    "oem" / Bytes(8),
    "sector_size" / Int16ul,
    "cluster_sectors" / Int8ul,
    "reserved_sectors" / Int16ul,
    "fat_count" / Int8ul,
    "root_entries" / Int16ul,
    "sectors_16" / Int16ul,
    "media" / Int8ul,
    "fat_sectors_16" / Int16ul,
    "geometry" / Bytes(8),
    "sectors_32" / Int32ul,
    # FAT32 only from here
    "fat_sectors_32" / Int32ul,
    "flags" / Int16ul,
    "version" / Int16ul,
    "root_cluster" / Int32ul,
).compile()
_BOOT_SECTOR_SIZE = 48


@dataclass(frozen=True, slots=True)
class FatEntry:
    """A file or folder. `path` is relative, with slashes; `mtime_ns` counts from the epoch, the clock taken as UTC."""

    path: str
    is_dir: bool
    size: int
    mtime_ns: int
    cluster: int = field(repr=False, default=0)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class Fat:
    """A FAT file system in a window. Reading is on demand; nothing is cached but one page of the allocation table.

    :raises FormatError: no FAT, or one whose boot sector is broken
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._page: array[int] = array("I")
        self._page_number = -1
        if window.size < 512 or not is_fat_boot_sector(window.read(0, 512)):
            raise FormatError("reading the boot partition: it holds no FAT file system", hint=_DAMAGED)
        boot = _BOOT_SECTOR.parse(window.read(0, _BOOT_SECTOR_SIZE))
        self._sector: int = boot.sector_size
        self.cluster_size: int = boot.sector_size * boot.cluster_sectors
        self._lay_out(boot)

    def _lay_out(self, boot: Any) -> None:
        """Find the areas, and by the number of clusters the width of the table's entries."""
        fat32 = boot.fat_sectors_16 == 0  # as Linux tells it: mkfs makes small FAT32 file systems too
        fat_sectors = boot.fat_sectors_32 if fat32 else boot.fat_sectors_16
        sectors = boot.sectors_16 or boot.sectors_32
        root_sectors = -(-boot.root_entries * 32 // self._sector)
        data_sector = boot.reserved_sectors + boot.fat_count * fat_sectors + root_sectors
        if sectors * self._sector > self._window.size:
            raise FormatError(
                f"reading the boot partition: its FAT file system has {sectors} sectors of {self._sector} bytes,"
                f" more than the partition's {self._window.size} bytes",
                hint="The image is truncated; fetch it again.",
            )
        if fat_sectors == 0 or data_sector >= sectors or (fat32 and (boot.version or boot.root_entries)):
            raise FormatError("reading the boot partition: the FAT file system's boot sector is broken", hint=_DAMAGED)
        count = (sectors - data_sector) // boot.cluster_sectors
        self.bits = 32 if fat32 else 16 if count > 4084 else 12
        count = min(count, fat_sectors * self._sector * 8 // self.bits - 2)
        if not 0 < count <= min(_MAX_CLUSTERS, {12: 4084, 16: 65524, 32: _MAX_CLUSTERS}[self.bits]):
            raise FormatError(
                f"reading the boot partition: a FAT file system with {count} clusters is not supported", hint=_DAMAGED
            )
        self._end = count + 2  # clusters are numbered from 2
        self._data = data_sector * self._sector
        active = boot.flags & 0x0F if fat32 and boot.flags & 0x80 else 0  # else all copies are the same
        if active >= boot.fat_count:
            raise FormatError("reading the boot partition: the FAT file system has no active table", hint=_DAMAGED)
        self._fat = (boot.reserved_sectors + active * fat_sectors) * self._sector
        self._root_area = (data_sector - root_sectors) * self._sector, boot.root_entries * 32
        self._root_cluster = boot.root_cluster if fat32 else 0
        if not fat32:
            self._page, self._page_number = self._small_table(), 0

    @property
    def used_bytes(self) -> int:
        """What the allocation table says is in use."""
        free = 0
        if self.bits != 32:
            free = self._page[2:].count(0)
        else:
            for first in range(2, self._end, _PAGE):  # the first two entries are of no cluster
                table = array("I")
                table.frombytes(self._window.read(self._fat + first * 4, min(_PAGE, self._end - first) * 4))
                free += table.count(0)
        used: int = self._end - 2 - free
        return used * self.cluster_size

    # ------------------------------------------------------------ the allocation table

    def _small_table(self) -> array[int]:
        """All of a FAT12 or FAT16 (at most 128 KiB)."""
        if self.bits == 16:
            table = array("H")
            table.frombytes(self._window.read(self._fat, self._end * 2))
            return array("I", _little_endian(table))
        raw = self._window.read(self._fat, -(-self._end * 3 // 2)) + b"\0"
        return array(
            "I",
            (
                int.from_bytes(raw[n * 3 // 2 : n * 3 // 2 + 2], "little") >> (4 if n & 1 else 0) & 0xFFF
                for n in range(self._end)
            ),
        )

    def _next(self, cluster: int) -> int:
        """The table's entry for a cluster, without FAT32's reserved high bits."""
        if self.bits != 32:
            return self._page[cluster]
        number, index = divmod(cluster, _PAGE)
        if number != self._page_number:
            first = number * _PAGE
            table = array("I")
            table.frombytes(self._window.read(self._fat + first * 4, min(_PAGE, self._end - first) * 4))
            self._page, self._page_number = _little_endian(table), number
        return self._page[index] & 0x0FFFFFFF

    def _runs(self, first: int, what: str) -> Iterator[tuple[int, int]]:
        """The chain that begins at cluster `first` as (cluster, number of clusters in a row).

        It does not see loops: `_claim` does, on the first pass over a chain.

        :raises FormatError: the chain leaves the file system, or runs into a free or bad cluster
        """
        end_mark, bad = {12: (0xFF8, 0xFF7), 16: (0xFFF8, 0xFFF7), 32: (0x0FFFFFF8, 0x0FFFFFF7)}[self.bits]
        start = cluster = first
        while True:
            if not 2 <= cluster < self._end:
                if cluster in (0, 1):
                    fault = "runs into a free cluster"
                elif cluster == bad:
                    fault = "runs into a bad cluster"
                else:
                    fault = "leaves the file system"
                raise FormatError(f"reading the boot partition: the cluster chain of {what} {fault}", hint=_DAMAGED)
            following = self._next(cluster)
            if following != cluster + 1 or following >= self._end or cluster + 1 - start >= _PAGE:
                yield start, cluster + 1 - start
                start = following
            if following >= end_mark:
                return
            cluster = following

    def _claim(self, claimed: bytearray, first: int, what: str) -> int:
        """Mark the clusters of a chain as used; returns the bytes that they hold.

        :raises FormatError: one is in use already: a loop, or two chains that meet
        """
        clusters = 0
        for start, count in self._runs(first, what):
            if claimed.find(1, start, start + count) >= 0:
                raise FormatError(
                    f"reading the boot partition: {what} uses clusters that are in use already (a loop or a"
                    " cross-link)",
                    hint=_DAMAGED,
                )
            claimed[start : start + count] = b"\1" * count
            clusters += count
        return clusters * self.cluster_size

    # ------------------------------------------------------------ files

    def chunks(self, entry: FatEntry) -> Iterator[bytes]:
        """The contents of a file, front to back, at most 1 MiB at a time.

        :raises FormatError: the chain is broken
        """
        left = entry.size
        if not left:
            return
        for start, count in self._runs(entry.cluster, repr(entry.path)):
            offset = self._data + (start - 2) * self.cluster_size
            stop = offset + min(count * self.cluster_size, left)
            left -= stop - offset
            while offset < stop:
                size = min(_CHUNK, stop - offset)
                yield self._window.read(offset, size)
                offset += size
            if not left:
                return
        raise FormatError(f"reading the boot partition: {entry.path!r} is larger than its cluster chain", hint=_DAMAGED)

    def read(self, entry: FatEntry, limit: int = 1 << 20) -> bytes:
        """The whole contents of a small file.

        :raises FormatError: it is larger than `limit` bytes, or broken
        """
        if entry.size > limit:
            raise FormatError(
                f"reading the boot partition: {entry.path!r} has {entry.size} bytes, at most {limit} were expected"
            )
        return b"".join(self.chunks(entry))

    def read_into(self, entry: FatEntry, fd: int) -> None:
        """Write the contents of a file to an open descriptor, from its present position on."""
        for chunk in self.chunks(entry):
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]

    # ------------------------------------------------------------ folders

    def walk(self) -> Iterator[FatEntry]:
        """Every file and folder, folders before what is in them, in the order in which they lie on disk.

        :raises FormatError: anything that is broken or hostile, before the entry that is concerned is yielded
        """
        claimed = bytearray(self._end)
        if self._root_cluster:
            self._claim(claimed, self._root_cluster, "the root folder")
        pending = [self._listing(None)]
        entries = 0
        while pending:
            for entry in pending[-1]:
                entries += 1
                if entries > _MAX_ENTRIES:  # empty files take no clusters, so that a small archive can hold millions
                    raise FormatError(
                        f"reading the boot partition: it has more than {_MAX_ENTRIES} files and folders", hint=_DAMAGED
                    )
                self._check(entry, claimed)
                yield entry
                if entry.is_dir:
                    if len(pending) >= _MAX_DEPTH:
                        raise FormatError(
                            f"reading the boot partition: {entry.path!r} lies more than {_MAX_DEPTH} folders deep",
                            hint=_DAMAGED,
                        )
                    pending.append(self._listing(entry))
                    break
            else:
                pending.pop()

    def _check(self, entry: FatEntry, claimed: bytearray) -> None:
        """Refuse a file or folder whose clusters are not its own."""
        what = repr(entry.path)
        if entry.cluster == 0:
            if entry.is_dir or entry.size:
                raise FormatError(f"reading the boot partition: {what} has no clusters", hint=_DAMAGED)
            return
        capacity = self._claim(claimed, entry.cluster, what)
        if entry.size > capacity:
            raise FormatError(
                f"reading the boot partition: {what} has {entry.size} bytes, more than its cluster chain's {capacity}",
                hint=_DAMAGED,
            )

    def find(self, name: str) -> FatEntry | None:
        """The entry of that name in the root folder, case not minded; None where there is none."""
        wanted = _upper(name)
        return next((entry for entry in self._listing(None) if _upper(entry.name) == wanted), None)

    def _listing(self, folder: FatEntry | None) -> Iterator[FatEntry]:
        """The entries of a folder (None: the root), `.` and `..` left out.

        :raises FormatError: an entry's name is not one, or stands there twice
        """
        prefix = f"{folder.path}/" if folder else ""
        seen: set[str] = set()
        assembly = _LongName()
        for number, raw in enumerate(self._folder_entries(folder)):
            attributes = raw[11]
            if raw[0] == 0xE5:
                assembly = _LongName()
                continue
            if attributes & 0x3F == _LONG:
                assembly.add(raw)
                continue
            if attributes & _VOLUME:
                assembly = _LongName()
                continue
            if folder and number < 2 and raw[:11] in (b".          ", b"..         "):
                continue
            name = assembly.finish(raw) or _short_name(raw)
            assembly = _LongName()
            _check_name(name, prefix)
            if _upper(name) in seen:
                raise FormatError(f"reading the boot partition: {prefix + name!r} stands there twice", hint=_DAMAGED)
            seen.add(_upper(name))
            is_dir = bool(attributes & _FOLDER)
            cluster = int.from_bytes(raw[26:28], "little")
            if self.bits == 32:
                cluster |= int.from_bytes(raw[20:22], "little") << 16
            size = 0 if is_dir else int.from_bytes(raw[28:32], "little")
            yield FatEntry(prefix + name, is_dir, size, _mtime_ns(raw), cluster)

    def _folder_entries(self, folder: FatEntry | None) -> Iterator[bytes]:
        """The 32-byte records of a folder up to its end mark."""
        if folder is None and not self._root_cluster:
            offset, size = self._root_area
            areas = iter([(offset, size)])
        else:
            first, what = (folder.cluster, repr(folder.path)) if folder else (self._root_cluster, "the root folder")
            areas = (
                (self._data + (start - 2) * self.cluster_size, count * self.cluster_size)
                for start, count in self._runs(first, what)
            )
        total = 0
        for offset, size in areas:
            total += size
            if total > _MAX_FOLDER:
                raise FormatError("reading the boot partition: a folder has more than 65,536 entries", hint=_DAMAGED)
            data = self._window.read(offset, size)
            for at in range(0, size, 32):
                if data[at] == 0:
                    return
                yield data[at : at + 32]


class _LongName:
    """Puts a long name together from the entries before its short one; a broken sequence comes to nothing."""

    __slots__ = ("_checksum", "_expected", "_units")

    def __init__(self) -> None:
        self._expected = 0  # the number that the next entry must have; 0: the short entry must follow
        self._checksum = -1  # of the short name; -1: there is no sequence
        self._units = b""

    def add(self, raw: bytes) -> None:
        number = raw[0] & 0x3F
        if raw[0] & 0x40:
            self._expected, self._checksum, self._units = number, raw[13], b""
        # 20 entries are 260 characters, and names have at most 255.
        if (
            not 0 < number <= 20
            or number != self._expected
            or raw[13] != self._checksum
            or raw[12]
            or raw[26:28] != b"\0\0"
        ):
            self._expected, self._checksum = 0, -1
            return
        self._units = raw[1:11] + raw[14:26] + raw[28:32] + self._units
        self._expected -= 1

    def finish(self, raw: bytes) -> str:
        """The long name of the short entry `raw`; empty where it has none.

        :raises FormatError: it is not Unicode
        """
        if self._checksum < 0 or self._expected or self._checksum != short_checksum(raw[:11]):
            return ""
        units = array("H")
        units.frombytes(self._units)
        length = next((index for index, unit in enumerate(units) if unit == 0), len(units))
        try:
            return self._units[: length * 2].decode("utf-16-le")
        except UnicodeDecodeError as error:
            raise FormatError(
                f"reading the boot partition: the long name of {_short_name(raw)!r} is not Unicode", hint=_DAMAGED
            ) from error


def short_checksum(name: bytes) -> int:
    """The checksum of an 11-byte short name, by which long entries know theirs."""
    total = 0
    for byte in name:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def _short_name(raw: bytes) -> str:
    base = (b"\xe5" + raw[1:8] if raw[0] == 0x05 else raw[:8]).decode("cp437").rstrip(" ")
    extension = raw[8:11].decode("cp437").rstrip(" ")
    if raw[12] & _LOWER_BASE:
        base = base.lower()
    if raw[12] & _LOWER_EXTENSION:
        extension = extension.lower()
    return f"{base}.{extension}" if extension else base


def _check_name(name: str, prefix: str) -> None:
    """Refuse a name that is none on Linux, or that could mislead a path or a terminal."""
    if name in ("", ".", ".."):
        fault = "is not a name"
    elif any(character in "/\\" or unicodedata.category(character) == "Cc" for character in name):
        fault = "has a slash or a control character"
    elif len(name.encode()) > _MAX_NAME:
        fault = f"is longer than {_MAX_NAME} bytes"
    else:
        return
    raise FormatError(f"reading the boot partition: a file name in {'/' + prefix!r} {fault}: {name!r}", hint=_DAMAGED)


def _upper(name: str) -> str:
    """A name as FAT compares it: letter by letter, without those whose capital is two letters."""
    return "".join(upper if len(upper := letter.upper()) == 1 else letter for letter in name)


def _mtime_ns(raw: bytes) -> int:
    """The time of the last write. Values that are none (month 0, day 0) are read as Linux reads them."""
    time, date = int.from_bytes(raw[22:24], "little"), int.from_bytes(raw[24:26], "little")
    year, month, day = 1980 + (date >> 9), max(1, min(12, date >> 5 & 15)), max(1, date & 31)
    # Days from the epoch (civil calendar, years from March on)
    y, m = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * y + y // 4 - y // 100 + y // 400 + (153 * m + 2) // 5 + day - 1 - 719468
    seconds = (time >> 11) * 3600 + (time >> 5 & 63) * 60 + (time & 31) * 2
    return (days * 86400 + seconds) * 10**9


def _little_endian(table: array[int]) -> array[int]:
    """The same array, if this machine is a big-endian one with its bytes swapped."""
    if array("H", [1]).tobytes() != b"\1\0":
        table.byteswap()
    return table
