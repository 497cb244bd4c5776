"""Puts files into the root folder of a FAT12, FAT16 or FAT32 file system, in place, and leaves all else as it is.

Microsoft's "FAT: General Overview of On-Disk Format" 1.03. Every copy of the allocation table that is in use is kept
up, and FSInfo's count of free clusters; a file that is there keeps its entry and as many of its clusters as it needs.
The result depends on the image and the files alone: no clock is read, a new file gets the latest time found in the
folder. What the reader refuses is refused here before anything is planned. Left out: folders other than the root,
deleting, the backup of FSInfo (Linux leaves it alone, too).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from netbootd.errors import FormatError
from netbootd.formats.draft import Draft, Edit
from netbootd.formats.fat import Fat, FatEntry, short_checksum
from netbootd.formats.window import Window

_RECORD = 32
_UNITS = 13  # UTF-16 units of a long name in one record
_MAX_UNITS = 255
_MAX_RECORDS = 65536  # of a folder
_FREE, _END = 0xE5, 0x00
_ARCHIVE, _LONG, _LONG_MASK = 0x20, 0x0F, 0x3F
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_SHORT = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789$%'-_@~`!(){}^#&")
_FORBIDDEN = frozenset('"*/:<>?\\|')
_CLUSTER_MASK = {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFFFFFF}
_UNKNOWN = 0xFFFFFFFF


def put_files(window: Window, files: Mapping[str, bytes]) -> list[Edit]:
    """Plan to write `files`, by name, into the root folder of the file system in `window`.

    :param files: names as of any FAT file, of which none equals another but for its case
    :return: what has to be written where, offsets counted from the window's start
    :raises FormatError: the file system is broken, a folder has the name of a file, or there is no room
    :raises ValueError: a name that no file can have
    """
    draft = Draft(window)
    fat = _WritableFat(draft)
    for _ in fat.walk():  # refuses what is broken: clusters that are used twice would be written twice
        pass
    for name, data in files.items():
        fat.put(name, data)
    fat.finish()
    return draft.edits()


@dataclass(frozen=True, slots=True)
class _Slot:
    """One record of the root folder: where it lies in the window, and its bytes."""

    offset: int
    raw: bytes

    @property
    def is_free(self) -> bool:
        return self.raw[0] in (_FREE, _END)


class _WritableFat(Fat):
    """The file system as a draft has it."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._changed: dict[int, int] = {}  # the allocation table's entries that differ from the image's
        self._copies: tuple[int, ...] = ()
        self._fs_info = 0
        self._search = 2
        self._last_taken = 0
        super().__init__(draft)
        self._free_before = self._end - 2 - self.used_bytes // self.cluster_size
        self._free = self._free_before

    def _lay_out(self, boot: Any) -> None:
        super()._lay_out(boot)
        fat_sectors = boot.fat_sectors_16 or boot.fat_sectors_32
        numbers = range(boot.fat_count)
        if self.bits == 32 and boot.flags & 0x80:  # no mirroring: the others are not in use
            numbers = range(boot.flags & 0x0F, (boot.flags & 0x0F) + 1)
        self._copies = tuple((boot.reserved_sectors + number * fat_sectors) * self._sector for number in numbers)
        if self.bits == 32:
            sector = int.from_bytes(self._draft.read(48, 2), "little")
            self._fs_info = sector * self._sector if 0 < sector < boot.reserved_sectors else 0

    # ------------------------------------------------------------ the allocation table

    def _next(self, cluster: int) -> int:
        return self._changed[cluster] if cluster in self._changed else super()._next(cluster)

    def _link(self, cluster: int, value: int) -> None:
        """Set an entry in every copy; the bits that are not the entry's stay, in each copy its own."""
        mask = _CLUSTER_MASK[self.bits]
        self._free += (value == 0) - (self._next(cluster) == 0)
        self._changed[cluster] = value
        for base in self._copies:
            if self.bits == 12:
                at, size, shift = base + cluster * 3 // 2, 2, 4 * (cluster & 1)
            else:
                at, size, shift = base + cluster * self.bits // 8, self.bits // 8, 0
            old = int.from_bytes(self._draft.read(at, size), "little")
            new = old & ~(mask << shift) | value << shift
            self._draft.write(at, new.to_bytes(size, "little"))

    def _take(self) -> int:
        """A free cluster, the first there is; it ends a chain.

        :raises FormatError: there is none
        """
        end: int = self._end
        for cluster in range(self._search, end):
            if self._next(cluster) == 0:
                self._link(cluster, _CLUSTER_MASK[self.bits])
                self._search, self._last_taken = cluster + 1, cluster
                return cluster
        raise FormatError(
            "writing to the boot partition: it has no room left",
            hint="The cloud-init documents have to become shorter, or the image's boot partition larger.",
        )

    def _release(self, clusters: list[int]) -> None:
        for cluster in clusters:
            self._link(cluster, 0)
            self._search = min(self._search, cluster)

    def _chain(self, first: int, what: str) -> list[int]:
        if not first:
            return []
        return [cluster for start, count in self._runs(first, what) for cluster in range(start, start + count)]

    def _where(self, cluster: int) -> int:
        offset: int = self._data + (cluster - 2) * self.cluster_size
        return offset

    # ------------------------------------------------------------ files

    def put(self, name: str, data: bytes) -> None:
        """Write one file: over the one of that name, or as a new one."""
        _check(name)
        entry = self.find(name)
        if entry is not None and entry.is_dir:
            raise FormatError(
                f"writing to the boot partition: {entry.path!r} is a folder there, not a file",
                hint="Give the publisher's own image.",
            )
        where = self._record_of(entry) if entry is not None else self._new_record(name)
        first = self._store(entry.cluster if entry else 0, data, repr(name))
        record = bytearray(self._draft.read(where, _RECORD))
        record[26:28] = (first & 0xFFFF).to_bytes(2, "little")
        if self.bits == 32:
            record[20:22] = (first >> 16).to_bytes(2, "little")
        record[28:32] = len(data).to_bytes(4, "little")
        self._draft.write(where, bytes(record))

    def _store(self, first: int, data: bytes, what: str) -> int:
        """Write a file's bytes into its chain, made longer or shorter; returns its first cluster, 0 for no bytes."""
        needed = -(-len(data) // self.cluster_size)
        chain = self._chain(first, what)
        self._release(chain[needed:])
        if 0 < needed < len(chain):
            self._link(chain[needed - 1], _CLUSTER_MASK[self.bits])
        del chain[needed:]
        while len(chain) < needed:
            cluster = self._take()
            if chain:
                self._link(chain[-1], cluster)
            chain.append(cluster)
        for number, cluster in enumerate(chain):
            part = data[number * self.cluster_size : (number + 1) * self.cluster_size]
            self._draft.write(self._where(cluster), part.ljust(self.cluster_size, b"\0"))
        return chain[0] if chain else 0

    def finish(self) -> None:
        """Tell FSInfo, where it keeps a count, how many clusters are free now."""
        if not self._fs_info or self._free == self._free_before:
            return
        sector = self._draft.read(self._fs_info, 512)
        if (sector[:4], sector[484:488], sector[510:512]) != (b"RRaA", b"rrAa", b"\x55\xaa"):
            return
        counts = {488: self._free} | ({492: self._last_taken} if self._last_taken else {})
        for at, value in counts.items():
            if int.from_bytes(sector[at : at + 4], "little") != _UNKNOWN:
                self._draft.write(self._fs_info + at, value.to_bytes(4, "little"))

    # ------------------------------------------------------------ the root folder

    def _slots(self) -> Iterator[_Slot]:
        """Every record of the root folder, also those behind its end mark."""
        for offset, size in self._areas():
            data = self._draft.read(offset, size)
            for at in range(0, size, _RECORD):
                yield _Slot(offset + at, data[at : at + _RECORD])

    def _areas(self) -> Iterator[tuple[int, int]]:
        if not self._root_cluster:
            yield self._root_area
            return
        for start, count in self._runs(self._root_cluster, "the root folder"):
            yield self._where(start), count * self.cluster_size

    def _record_of(self, entry: FatEntry) -> int:
        """Where the record of a file of the root folder lies."""
        name = entry.name
        for slot, found in zip(self._short_slots(), self._listing(None), strict=True):
            if found.name == name:
                return slot.offset
        raise AssertionError(f"{name} was there a moment ago")

    def _short_slots(self) -> Iterator[_Slot]:
        """The records that `_listing` makes an entry of, in the same order."""
        for slot in self._slots():
            if slot.raw[0] == _END:
                return
            if slot.raw[0] != _FREE and slot.raw[11] & _LONG_MASK != _LONG and not slot.raw[11] & 0x08:
                yield slot

    def _new_record(self, name: str) -> int:
        """Make the records of a new, empty file; returns where the last one, that of the short name, lies."""
        taken: set[bytes] = set()
        newest = bytes(4)
        for slot in self._slots():
            if slot.raw[0] == _END:
                break
            if slot.raw[0] != _FREE and slot.raw[11] & _LONG_MASK != _LONG:
                taken.add(slot.raw[:11])
                newest = max(newest, slot.raw[22:26], key=lambda raw: (raw[2:4][::-1], raw[:2][::-1]))
        short, lower = _as_short(name)
        long_name: list[bytes] = []
        if short is None or short in taken:
            short, lower = _alias(name, taken), 0
            long_name = _long_records(name, short)
        date = newest[2:4] if any(newest[2:4]) else b"\x21\x00"  # 1980-01-01: a date of zeros is none
        time = newest[:2]
        created = b"\0" + time + date + date  # tenths, time, date; date of the last access
        record = short + bytes([_ARCHIVE, lower]) + created + bytes(2) + time + date + bytes(6)
        places = self._room_for(len(long_name) + 1)
        for where, raw in zip(places, [*long_name, record], strict=True):
            self._draft.write(where, raw)
        return places[-1]

    def _room_for(self, count: int) -> list[int]:
        """Where `count` free records in a row lie; the folder grows for them where it can.

        :raises FormatError: it can't
        """
        while True:
            slots = list(self._slots())
            end = next((number for number, slot in enumerate(slots) if slot.raw[0] == _END), len(slots))
            run = 0
            for number, slot in enumerate(slots):
                run = run + 1 if slot.is_free or number >= end else 0
                if run == count:
                    if end <= number < len(slots) - 1:  # behind the end mark may lie anything: it moves on
                        self._draft.write(slots[number + 1].offset, bytes(_RECORD))
                    return [slot.offset for slot in slots[number + 1 - count : number + 1]]
            if not self._root_cluster or len(slots) + self.cluster_size // _RECORD > _MAX_RECORDS:
                raise FormatError(
                    f"writing to the boot partition: its root folder is full ({len(slots)} entries)",
                    hint="The image has too many files there for more; give one with fewer.",
                )
            if end < len(slots):  # what follows the end mark counts from now on
                for slot in slots[end:]:
                    self._draft.write(slot.offset, bytes(_RECORD))
            last = self._chain(self._root_cluster, "the root folder")[-1]
            cluster = self._take()
            self._draft.write(self._where(cluster), bytes(self.cluster_size))
            self._link(last, cluster)


# ---------------------------------------------------------------- names


def _check(name: str) -> None:
    """:raises ValueError: no file on a FAT file system can be called that"""
    units = len(name.encode("utf-16-le")) // 2
    if not 0 < units <= _MAX_UNITS or name[-1] in " ." or any(c in _FORBIDDEN or not c.isprintable() for c in name):
        raise ValueError(f"{name!r} can't be the name of a file on a FAT file system")


def _as_short(name: str) -> tuple[bytes | None, int]:
    """A name as an 11-byte short one with its lower-case bits; None where it needs a long one."""
    base, dot, extension = name.partition(".")
    if not 0 < len(base) <= 8 or len(extension) > 3 or (dot and not extension):
        return None, 0
    if not all(character in _SHORT for character in f"{base}{extension}".upper()) or not name.isascii():
        return None, 0
    lower = 0
    for part, bit in ((base, _LOWER_BASE), (extension, _LOWER_EXTENSION)):
        if part != part.upper():
            if part != part.lower():
                return None, 0
            lower |= bit
    return (base.ljust(8) + extension.ljust(3)).upper().encode(), lower


def _alias(name: str, taken: set[bytes]) -> bytes:
    """The short name beside a long one: the specification's basis name with a numeric tail that is free."""
    base, _, extension = name.lstrip(".").rpartition(".") if "." in name.lstrip(".") else (name, "", "")
    plain, ending = (_plain(part) for part in (base, extension))
    ending = ending[:3]
    for number in range(1, 1_000_000):
        tail = f"~{number}"
        short = (plain[: 8 - len(tail)] + tail).ljust(8) + ending.ljust(3)
        if short.encode() not in taken:
            return short.encode()
    raise FormatError("writing to the boot partition: its root folder has a million files with similar names")


def _plain(text: str) -> str:
    kept = (character for character in text.upper() if character not in " .")
    return "".join(character if character in _SHORT else "_" for character in kept)


def _long_records(name: str, short: bytes) -> list[bytes]:
    """The records of a long name in the order in which they lie on disk: its end comes first."""
    units = name.encode("utf-16-le")
    count = -(-len(units) // (2 * _UNITS))
    if len(units) < count * 2 * _UNITS:
        units = (units + b"\0\0").ljust(count * 2 * _UNITS, b"\xff")
    mark = bytes([short_checksum(short)])
    records = []
    for number in range(count, 0, -1):
        part = units[(number - 1) * 2 * _UNITS : number * 2 * _UNITS]
        head = bytes([number | (0x40 if number == count else 0)])
        records.append(head + part[:10] + bytes([_LONG, 0]) + mark + part[10:22] + b"\0\0" + part[22:])
    return records
