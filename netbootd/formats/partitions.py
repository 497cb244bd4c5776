"""Reads partition tables: MBR with extended partitions, and GPT.

MBR: the layout that Linux reads (block/partitions/msdos.c), extended partitions of types 05, 0F and 85. GPT: UEFI
Specification 2.10, section 5.3, header and entry array checked by their CRCs, the backup used where the primary is
broken. Sectors of 512 and of 4096 bytes. Left out: BSD, Solaris, Apple and other nested labels; a GPT without its
protective MBR is no GPT (as for Linux).

Images come from strangers: entries that overlap, loop, are empty or leave the image are refused.
"""

from __future__ import annotations

import itertools
import logging
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from construct import Array, Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from netbootd.errors import FormatError
from netbootd.formats.filesystems import identify, is_fat_boot_sector
from netbootd.formats.window import Window

log = logging.getLogger(__name__)

SECTOR_SIZES = (512, 4096)

_DAMAGED = "The image is damaged, or not the image of a whole disk; fetch it again."
_EXTENDED_TYPES = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MAX_LOGICAL = 256
_MAX_GPT_ARRAY = 4 << 20  # 32,768 entries: far above any real disk's 128, far below what would hurt

_MBR_ENTRY = Struct(
    "status" / Int8ul,
    "first_chs" / Bytes(3),
    "type" / Int8ul,
    "last_chs" / Bytes(3),
    "start" / Int32ul,
    "sectors" / Int32ul,
)
_MBR = Struct(
    "code" / Bytes(440),
    "disk_id" / Int32ul,
    "reserved" / Int16ul,
    "entries" / Array(4, _MBR_ENTRY),
    "signature" / Const(b"\x55\xaa"),
).compile()
_GPT_HEADER = Struct(
    "signature" / Const(b"EFI PART"),
    "revision" / Int32ul,
    "header_size" / Int32ul,
    "header_crc" / Int32ul,
    "reserved" / Int32ul,
    "my_lba" / Int64ul,
    "alternate_lba" / Int64ul,
    "first_usable" / Int64ul,
    "last_usable" / Int64ul,
    "disk_guid" / Bytes(16),
    "entries_lba" / Int64ul,
    "entry_count" / Int32ul,
    "entry_size" / Int32ul,
    "entries_crc" / Int32ul,
).compile()
_GPT_HEADER_SIZE = 92
_GPT_ENTRY = Struct(
    "type" / Bytes(16),
    "guid" / Bytes(16),
    "first" / Int64ul,
    "last" / Int64ul,
    "attributes" / Int64ul,
    "name" / Bytes(72),
).compile()


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition. `offset` and `size` are bytes from the start of the image.

    `type` is two hex digits (MBR) or a lower-case GUID (GPT), `uuid` the PARTUUID as Linux prints it, `name` the
    GPT label (empty with MBR).
    """

    number: int
    offset: int
    size: int
    type: str
    uuid: str
    name: str = ""
    bootable: bool = False

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Table:
    """A partition table: `kind` is ``mbr`` or ``gpt``, `disk_id` what Linux calls the PTUUID."""

    kind: str
    sector_size: int
    disk_id: str
    partitions: tuple[Partition, ...]


def read_table(window: Window) -> Table:
    """Read the partition table of a whole disk's image.

    :raises FormatError: there is none, or it is broken or hostile
    """
    if window.size < 2 * min(SECTOR_SIZES):
        raise FormatError(f"reading the partition table: the image has only {window.size} bytes", hint=_DAMAGED)
    sector = window.read(0, 512)
    if sector[510:] != b"\x55\xaa":
        raise FormatError(
            "reading the partition table: there is none (no boot signature in the first sector)", hint=_DAMAGED
        )
    mbr = _MBR.parse(sector)
    bare_fat = is_fat_boot_sector(sector)  # mkfs.fat puts entries into its boot sector that look like a table's
    if bare_fat or any(entry.status not in (0x00, 0x80) for entry in mbr.entries):
        found = "a bare FAT file system" if bare_fat else "no valid entries"
        raise FormatError(f"reading the partition table: there is none ({found} in the first sector)", hint=_DAMAGED)
    if any(entry.type == _PROTECTIVE for entry in mbr.entries):
        table = _read_gpt(window, mbr)
    else:
        table = _read_mbr(window, mbr)
    if not table.partitions:
        raise FormatError("reading the partition table: it has no partitions", hint=_DAMAGED)
    return table


def _check_layout(partitions: list[Partition], size: int) -> None:
    """Refuse partitions that overlap or leave the image of `size` bytes.

    :raises FormatError: they do
    """
    for partition in partitions:
        if partition.end > size:
            raise FormatError(
                f"reading the partition table: partition {partition.number} ends at byte {partition.end},"
                f" but the image has only {size} bytes",
                hint="The image is truncated or its partition table is damaged; fetch it again.",
            )
    ordered = sorted(partitions, key=lambda each: each.offset)
    for before, after in itertools.pairwise(ordered):
        if after.offset < before.end:
            raise FormatError(
                f"reading the partition table: partitions {before.number} and {after.number} overlap", hint=_DAMAGED
            )


# ---------------------------------------------------------------- MBR


def _read_mbr(window: Window, mbr: Any) -> Table:
    """An MBR does not say how large its sectors are: take the size at which the partitions begin with something."""
    attempts: list[Table | FormatError] = []
    for sector_size in SECTOR_SIZES:
        try:
            table = _mbr_table(window, mbr, sector_size)
        except FormatError as error:
            attempts.append(error)
            continue
        if any(identify(window.sub(each.offset, each.size)) for each in table.partitions):
            return table
        attempts.append(table)
    first = attempts[0]  # nothing is recognised: what 512-byte sectors give is what everybody else would say
    if isinstance(first, FormatError):
        raise first
    return first


def _mbr_table(window: Window, mbr: Any, sector_size: int) -> Table:
    disk_id = f"{mbr.disk_id:08x}"
    partitions: list[Partition] = []
    containers: list[Partition] = []
    for number, entry in enumerate(mbr.entries, 1):
        if entry.type == 0:
            continue
        partition = _mbr_partition(entry, number, 0, sector_size, disk_id)
        (containers if entry.type in _EXTENDED_TYPES else partitions).append(partition)
    _check_layout([*partitions, *containers], window.size)
    number = 5
    for container in containers:
        for entry, base in _logical_entries(window, container, sector_size):
            logical = _mbr_partition(entry, number, base, sector_size, disk_id)
            if logical.end > container.end:
                raise FormatError(
                    f"reading the partition table: partition {number} leaves its extended partition", hint=_DAMAGED
                )
            partitions.append(logical)
            number += 1
    _check_layout(partitions, window.size)
    return Table("mbr", sector_size, disk_id, tuple(partitions))


def _mbr_partition(entry: Any, number: int, base: int, sector_size: int, disk_id: str) -> Partition:
    start, sectors = entry.start, entry.sectors
    if start == 0 or sectors == 0:
        raise FormatError(
            f"reading the partition table: partition {number} begins at sector {start} and has {sectors} sectors",
            hint=_DAMAGED,
        )
    return Partition(
        number=number,
        offset=base + start * sector_size,
        size=sectors * sector_size,
        type=f"{entry.type:02x}",
        uuid=f"{disk_id}-{number:02x}",
        bootable=entry.status == 0x80,
    )


def _logical_entries(window: Window, container: Partition, sector_size: int) -> Iterator[tuple[Any, int]]:
    """Follow the chain of extended boot records: (entry, byte that it counts from) of each logical partition.

    :raises FormatError: the chain loops, leaves its container, or is not one
    """
    where, seen = container.offset, set[int]()
    while True:
        if where in seen or len(seen) >= _MAX_LOGICAL:
            raise FormatError(
                f"reading the partition table: the logical partitions in partition {container.number} loop",
                hint=_DAMAGED,
            )
        seen.add(where)
        sector = window.read(where, 512)
        if sector[510:] != b"\x55\xaa":
            raise FormatError(
                f"reading the partition table: no boot record at byte {where}, where extended partition"
                f" {container.number} has one",
                hint=_DAMAGED,
            )
        record = _MBR.parse(sector)
        data = [entry for entry in record.entries if entry.type and entry.type not in _EXTENDED_TYPES]
        links = [entry for entry in record.entries if entry.type in _EXTENDED_TYPES and entry.sectors]
        if len(data) > 1 or len(links) > 1:
            raise FormatError(
                f"reading the partition table: the extended boot record at byte {where} has too many entries",
                hint=_DAMAGED,
            )
        for entry in data:
            yield entry, where
        if not links:
            return
        where = container.offset + links[0].start * sector_size
        if not container.offset <= where <= container.end - sector_size:
            raise FormatError(
                f"reading the partition table: the logical partitions lead out of partition {container.number}",
                hint=_DAMAGED,
            )


# ---------------------------------------------------------------- GPT


@dataclass(frozen=True, slots=True)
class _Header:
    """A GPT header whose own checksum and that of its entries are right."""

    sector_size: int
    lba: int
    first_usable: int
    last_usable: int
    disk_guid: bytes
    entry_size: int
    entries: bytes


def _read_gpt(window: Window, mbr: Any) -> Table:
    header, reasons = None, []
    for sector_size, lba in _header_places(window, mbr):
        try:
            header = _gpt_header(window, sector_size, lba)
        except FormatError as error:
            reasons.append(str(error))
            continue
        if lba != 1:
            log.warning("The primary GPT is broken; using its backup at sector %d", lba)
        break
    if header is None:
        raise FormatError(
            "reading the partition table: neither the GPT nor its backup is usable", hint=_DAMAGED, details=reasons
        )
    partitions = _gpt_partitions(header)
    _check_layout(partitions, window.size)
    return Table("gpt", header.sector_size, _guid(header.disk_guid), tuple(partitions))


def _header_places(window: Window, mbr: Any) -> Iterator[tuple[int, int]]:
    """Where headers may be, best first: the primaries, then the backups at the disk's end.

    The disk's end is that of the image, or, for an image with something behind, what the protective MBR says.
    """
    for sector_size in SECTOR_SIZES:
        yield sector_size, 1
    for sector_size in SECTOR_SIZES:
        last = window.size // sector_size - 1
        said = [e.start + e.sectors - 1 for e in mbr.entries if e.type == _PROTECTIVE]
        for lba in dict.fromkeys([last, *said]):
            if 1 < lba <= last:
                yield sector_size, lba


def _gpt_header(window: Window, sector_size: int, lba: int) -> _Header:
    where = f"GPT header at sector {lba} of {sector_size} bytes"
    if (lba + 1) * sector_size > window.size:
        raise FormatError(f"{where}: beyond the end of the image")
    sector = window.read(lba * sector_size, sector_size)
    if not sector.startswith(b"EFI PART"):
        raise FormatError(f"{where}: not there")
    header = _GPT_HEADER.parse(sector)
    if not _GPT_HEADER_SIZE <= header.header_size <= sector_size:
        raise FormatError(f"{where}: its size is {header.header_size}")
    if header.revision >> 16 != 1:
        raise FormatError(f"{where}: its revision is {header.revision:#x}")
    summed = sector[:16] + bytes(4) + sector[20 : header.header_size]
    if zlib.crc32(summed) != header.header_crc:
        raise FormatError(f"{where}: its checksum is wrong")
    if header.my_lba != lba:
        raise FormatError(f"{where}: it says that it is at sector {header.my_lba}")
    size = header.entry_count * header.entry_size
    # The specification wants 128 × 2ⁿ bytes an entry.
    if header.entry_size < 128 or header.entry_size.bit_count() != 1 or not 0 < size <= _MAX_GPT_ARRAY:
        raise FormatError(f"{where}: {header.entry_count} entries of {header.entry_size} bytes")
    if header.entries_lba < 2 or header.entries_lba * sector_size + size > window.size:
        raise FormatError(f"{where}: its entries lie beyond the end of the image")
    entries = window.read(header.entries_lba * sector_size, size)
    if zlib.crc32(entries) != header.entries_crc:
        raise FormatError(f"{where}: the checksum of its entries is wrong")
    return _Header(
        sector_size, lba, header.first_usable, header.last_usable, header.disk_guid, header.entry_size, entries
    )


def _gpt_partitions(header: _Header) -> list[Partition]:
    partitions = []
    for number, offset in enumerate(range(0, len(header.entries), header.entry_size), 1):
        entry = _GPT_ENTRY.parse(header.entries[offset : offset + 128])
        if not any(entry.type):
            continue
        if not max(header.first_usable, 2) <= entry.first <= entry.last <= header.last_usable:
            raise FormatError(
                f"reading the partition table: partition {number} spans sectors {entry.first} to {entry.last},"
                f" outside of {header.first_usable} to {header.last_usable}",
                hint=_DAMAGED,
            )
        partitions.append(
            Partition(
                number=number,
                offset=entry.first * header.sector_size,
                size=(entry.last - entry.first + 1) * header.sector_size,
                type=_guid(entry.type),
                uuid=_guid(entry.guid),
                name=entry.name.decode("utf-16-le", "replace").split("\0", 1)[0],
                bootable=bool(entry.attributes & 4),
            )
        )
    return partitions


def _guid(raw: bytes) -> str:
    """A GUID as Linux prints it: the first three fields are little-endian."""
    return str(uuid.UUID(bytes_le=raw))
