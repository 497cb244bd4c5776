"""The partition table reader against sfdisk and partx, and against tables that are broken on purpose."""

from __future__ import annotations

import json
import os
import shlex
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbootd.errors import FormatError
from netbootd.formats.partitions import Table, read_table
from netbootd.formats.window import Window

MIB = 1 << 20
MBR = """label: dos
label-id: 0xcafe1234
start=2048, size=8192, type=c, bootable
start=10240, size=8192, type=83
start=20480, size=40960, type=f
start=22528, size=2048, type=83
start=26624, size=2048, type=82
start=30720, size=2048, type=83
"""
GPT = """label: gpt
label-id: 6F1F2F3A-0F3C-5D5E-9C55-0A7E6F2B7F00
first-lba: 34
start=2048, size=8192, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, uuid=0A7E6F2B-0F3C-5D5E-9C55-6F1F2F3A7F01, name="system-boot"
start=10240, size=8192, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=0A7E6F2B-0F3C-5D5E-9C55-6F1F2F3A7F02, name="Würzel", attrs="LegacyBIOSBootable"
"""  # noqa: E501


def read(image: Path) -> Table:
    fd = os.open(image, os.O_RDONLY)
    try:
        return read_table(Window.whole(fd))
    finally:
        os.close(fd)


UTF8 = {**os.environ, "LC_ALL": "C.UTF-8"}


def make(image: Path, script: str, size: int = 64 * MIB) -> Path:
    with image.open("wb") as stream:
        stream.truncate(size)
    command = ["sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(image)]
    subprocess.run(command, input=script.encode(), env=UTF8, check=True, capture_output=True)
    return image


def widen(source: Path, image: Path) -> Path:
    """The table of a disk with 512-byte sectors on one with 4096-byte sectors: the same numbers, other units."""
    raw = bytearray(source.read_bytes())
    with image.open("wb") as stream:
        stream.truncate(len(raw) * 8)
    patch(image, 0, bytes(raw[:512]))
    if raw[512:520] != b"EFI PART":
        return image
    last = len(raw) // 512 - 1
    for lba, entries_lba in ((1, 2), (last, last - 32)):
        header = bytearray(raw[lba * 512 : lba * 512 + 92])
        struct.pack_into("<Q", header, 72, entries_lba)
        struct.pack_into("<I", header, 16, 0)
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        patch(image, lba * 4096, bytes(header))
        patch(image, entries_lba * 4096, bytes(raw[1024 : 1024 + 128 * 128]))
    return image


def said_by_sfdisk(image: Path) -> dict[str, Any]:
    done = subprocess.run(["sfdisk", "-J", str(image)], env=UTF8, check=True, capture_output=True)
    table: dict[str, Any] = json.loads(done.stdout)["partitiontable"]
    return table


def compare_with_partx(image: Path, sector_size: int) -> None:
    """partx reads any sector size; its columns count 512-byte sectors."""
    command = ["partx", "-S", str(sector_size), "-P", "-b", "-o", "NR,START,SIZE,UUID,TYPE", str(image)]
    done = subprocess.run(command, env=UTF8, check=True, capture_output=True, text=True)
    rows = [dict(field.split("=", 1) for field in shlex.split(line)) for line in done.stdout.splitlines()]
    rows = [row for row in rows if row["TYPE"] != "0xf"]
    table = read(image)
    assert table.sector_size == sector_size and rows
    assert [(p.number, p.offset, p.size, p.uuid) for p in table.partitions] == [
        (int(r["NR"]), int(r["START"]) * 512, int(r["SIZE"]), r["UUID"]) for r in rows
    ]


def compare(image: Path) -> None:
    table, theirs = read(image), said_by_sfdisk(image)
    assert table.kind == {"dos": "mbr"}.get(theirs["label"], theirs["label"])
    assert table.sector_size == theirs["sectorsize"] == 512
    assert int(table.disk_id.replace("-", ""), 16) == int(theirs["id"].replace("-", ""), 16)
    rows = [row for row in theirs["partitions"] if row["type"] not in ("5", "f", "85")]
    assert [p.offset for p in table.partitions] == [row["start"] * 512 for row in rows]
    assert [p.size for p in table.partitions] == [row["size"] * 512 for row in rows]
    assert [p.number for p in table.partitions] == [int(row["node"][len(str(image)) :]) for row in rows]
    assert [p.type for p in table.partitions] == [row["type"].lower().zfill(2) for row in rows]
    assert [p.name for p in table.partitions] == [row.get("name", "") for row in rows]
    if table.kind == "gpt":
        assert [p.uuid for p in table.partitions] == [row["uuid"].lower() for row in rows]
        assert [p.bootable for p in table.partitions] == ["LegacyBIOS" in row.get("attrs", "") for row in rows]
    else:
        assert [p.uuid for p in table.partitions] == [f"{table.disk_id}-{p.number:02x}" for p in table.partitions]
        assert [p.bootable for p in table.partitions] == [row.get("bootable", False) for row in rows]


def ext_magic(image: Path, offset: int) -> None:
    """As much of an ext4 file system as tells the sector size of an MBR."""
    with image.open("r+b") as stream:
        stream.seek(offset + 1024 + 56)
        stream.write(b"\x53\xef")


def test_mbr_with_logical_partitions(tmp_path: Path) -> None:
    image = make(tmp_path / "disk", MBR)
    compare(image)
    compare_with_partx(image, 512)
    assert [p.number for p in read(image).partitions] == [1, 2, 5, 6, 7]


def test_mbr_of_4096_byte_sectors_is_told_by_its_contents(tmp_path: Path) -> None:
    image = widen(make(tmp_path / "narrow", MBR), tmp_path / "wide")
    for lba in (20480, 20480 + 4096, 20480 + 8192):  # the chain of extended boot records
        record = (tmp_path / "narrow").read_bytes()[lba * 512 :][:512]
        patch(image, lba * 4096, record)
    with pytest.raises(FormatError):
        read(image)
    ext_magic(image, 10240 * 4096)
    compare_with_partx(image, 4096)
    assert len(read(image).partitions) == 5


def test_gpt(tmp_path: Path) -> None:
    image = make(tmp_path / "disk", GPT)
    compare(image)
    compare_with_partx(image, 512)
    compare_with_partx(widen(image, tmp_path / "wide"), 4096)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("broken", ["header", "entries", "missing"])
def test_gpt_backup_is_used_where_the_primary_is_broken(
    tmp_path: Path, sector_size: int, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = make(tmp_path / "disk", GPT)
    if sector_size != 512:
        image = widen(image, tmp_path / "wide")
    good = read(image)
    assert not caplog.records
    with image.open("r+b") as stream:
        stream.seek({"header": sector_size + 40, "entries": 2 * sector_size + 32, "missing": sector_size}[broken])
        stream.write(bytes(512) if broken == "missing" else b"\xa5")
    assert read(image) == good
    assert "using its backup" in caplog.text


def test_gpt_backup_is_found_before_padding_at_the_end(tmp_path: Path) -> None:
    image = make(tmp_path / "disk", GPT)
    good = read(image)
    with image.open("r+b") as stream:
        stream.seek(512)
        stream.write(bytes(512))
        stream.truncate(70 * MIB)
    assert read(image) == good


def patch(image: Path, offset: int, data: bytes | bytearray) -> None:
    with image.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def mbr_entry(number: int, kind: int, start: int, sectors: int) -> tuple[int, bytes]:
    return 446 + 16 * (number - 1), struct.pack("<B3xB3xII", 0, kind, start, sectors)


def gpt_entry(image: Path, number: int, first: int, last: int) -> None:
    """Change a GPT entry and make the checksums right again, in the primary; the backup is destroyed."""
    raw = bytearray(image.read_bytes()[: 34 * 512])
    struct.pack_into("<QQ", raw, 1024 + 128 * (number - 1) + 32, first, last)
    resign(raw)
    patch(image, 0, bytes(raw))
    patch(image, image.stat().st_size - 512, bytes(512))


def resign(raw: bytearray) -> None:
    count, size = struct.unpack_from("<II", raw, 512 + 80)
    struct.pack_into("<I", raw, 512 + 88, zlib.crc32(raw[1024 : 1024 + count * size]))
    struct.pack_into("<I", raw, 512 + 16, 0)
    struct.pack_into("<I", raw, 512 + 16, zlib.crc32(raw[512 : 512 + 92]))


def gpt_field(image: Path, form: str, offset: int, value: int) -> None:
    raw = bytearray(image.read_bytes()[: 34 * 512])
    struct.pack_into(form, raw, 512 + offset, value)
    struct.pack_into("<I", raw, 512 + 16, 0)
    struct.pack_into("<I", raw, 512 + 16, zlib.crc32(raw[512 : 512 + 92]))
    patch(image, 0, bytes(raw))
    patch(image, image.stat().st_size - 512, bytes(512))


EBR = 20480 * 512


def ebr_entry(number: int, kind: int, start: int, sectors: int, record: int = 0) -> tuple[int, bytes]:
    offset, data = mbr_entry(number, kind, start, sectors)
    return EBR + record * 512 + offset, data


HOSTILE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "zeros": (MBR, lambda i: patch(i, 0, bytes(512)), "there is none"),
    "no entries": (MBR, lambda i: patch(i, 446, bytes(64)), "no partitions"),
    "a bad status": (MBR, lambda i: patch(i, 446, b"\x12"), "there is none"),
    "overlapping": (MBR, lambda i: patch(i, *mbr_entry(2, 0x83, 4096, 8192)), "1 and 2 overlap"),
    "the same twice": (MBR, lambda i: patch(i, *mbr_entry(2, 0x83, 2048, 8192)), "1 and 2 overlap"),
    "over the extended one": (MBR, lambda i: patch(i, *mbr_entry(2, 0x83, 10240, 10241)), "2 and 3 overlap"),
    "out of range": (MBR, lambda i: patch(i, *mbr_entry(2, 0x83, 10240, 0xFFFFFFFF)), "has only 67108864 bytes"),
    "no sectors": (MBR, lambda i: patch(i, *mbr_entry(2, 0x83, 10240, 0)), "0 sectors"),
    "at sector zero": (MBR, lambda i: patch(i, *mbr_entry(1, 0x0C, 0, 100)), "begins at sector 0"),
    "an extended one that links to itself": (MBR, lambda i: patch(i, *ebr_entry(2, 5, 0, 9)), "loop"),
    "an extended one that loops": (MBR, lambda i: patch(i, *ebr_entry(2, 5, 0, 9, 8192)), "loop"),
    "an extended one that leads out": (MBR, lambda i: patch(i, *ebr_entry(2, 5, 90000, 9)), "lead out"),
    "an extended one without a record": (MBR, lambda i: patch(i, EBR, bytes(512)), "no boot record"),
    "a logical one that leaves it": (MBR, lambda i: patch(i, *ebr_entry(1, 0x83, 2048, 60000)), "leaves its extended"),
    "two logical ones in a record": (MBR, lambda i: patch(i, *ebr_entry(3, 0x83, 1, 1)), "too many entries"),
    "gpt: both broken": (GPT, lambda i: (patch(i, 512, b"X"), patch(i, 64 * MIB - 512, b"X")), "nor its backup"),
    "gpt: overlapping": (GPT, lambda i: gpt_entry(i, 2, 4096, 8191), "1 and 2 overlap"),
    "gpt: ends before it begins": (GPT, lambda i: gpt_entry(i, 2, 10240, 10239), "spans sectors"),
    "gpt: over its own entries": (GPT, lambda i: gpt_entry(i, 2, 3, 4), "spans sectors"),
    "gpt: out of range": (GPT, lambda i: gpt_entry(i, 2, 10240, 1 << 60), "spans sectors"),
    "gpt: usable range out of range": (
        GPT,
        lambda i: (gpt_field(i, "<Q", 48, 1 << 60), gpt_entry(i, 2, 10240, 1 << 40)),
        "has only",
    ),
    "gpt: endless entries": (GPT, lambda i: gpt_field(i, "<I", 80, 0xFFFFFFFF), "nor its backup"),
    "gpt: entries of odd size": (GPT, lambda i: gpt_field(i, "<I", 84, 200), "nor its backup"),
    "gpt: entries of no size": (GPT, lambda i: gpt_field(i, "<I", 84, 0), "nor its backup"),
    "gpt: entries nowhere": (GPT, lambda i: gpt_field(i, "<Q", 72, 1 << 50), "nor its backup"),
    "gpt: header of no size": (GPT, lambda i: gpt_field(i, "<I", 12, 0), "nor its backup"),
    "gpt: a header that was elsewhere": (GPT, lambda i: gpt_field(i, "<Q", 24, 7), "nor its backup"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses(tmp_path: Path, case: str) -> None:
    script, damage, says = HOSTILE[case]
    image = make(tmp_path / "disk", script)
    damage(image)
    with pytest.raises(FormatError, match=says) as caught:
        read(image)
    assert caught.value.hint and "\n" not in str(caught.value)


def test_refuses_what_is_no_disk(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    with pytest.raises(FormatError, match="only 0 bytes"):
        read(image)
    with image.open("wb") as stream:
        stream.truncate(2 * MIB)
    with pytest.raises(FormatError, match="there is none"):
        read(image)
    subprocess.run(["mkfs.vfat", image], check=True, capture_output=True)
    with pytest.raises(FormatError, match="a bare FAT file system"):
        read(image)


def test_a_truncated_image_is_named_as_such(tmp_path: Path) -> None:
    image = make(tmp_path / "disk", GPT)
    with image.open("r+b") as stream:
        stream.truncate(8 * MIB)
    with pytest.raises(FormatError, match="ends at byte 9437184") as caught:
        read(image)
    assert "truncated" in caught.value.hint


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from([MBR, GPT]))
def test_any_damage_is_a_format_error_or_a_table_in_range(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    clean = folder / ("mbr" if kind is MBR else "gpt")
    if not clean.exists():
        make(clean, kind)
    with clean.open("rb") as stream:
        before = {start: stream.read(17 * 1024) for start in (0, EBR) if stream.seek(start) == start}
    areas = {start: bytearray(area) for start, area in before.items()}
    places = st.one_of(st.integers(440, 511), st.integers(512, 1300), st.integers(EBR + 446, EBR + 511))
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        areas[EBR if at >= EBR else 0][at % EBR] = value
    if kind is GPT:
        resign(areas[0])
    for start, area in areas.items():
        patch(clean, start, area)
    try:
        table = read(clean)
    except FormatError:
        return
    finally:
        for start, intact in before.items():
            patch(clean, start, intact)
    assert all(p.offset > 0 and p.size > 0 and p.end <= 64 * MIB for p in table.partitions)
