"""The FAT writer, judged by mtools, fsck.fat and the kernel's rule that what was not written stays the same."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbootd.errors import FormatError
from netbootd.formats.draft import Draft, Edit
from netbootd.formats.fat import Fat
from netbootd.formats.fatwrite import put_files
from netbootd.formats.window import Window
from tests.support.handmade_fat import HandMadeFat, folder_record, long_records, record

MTOOLS = {**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
MIB = 1 << 20
SEED = ("user-data", "meta-data", "network-config", "vendor-data")


def run(*argv: object) -> str:
    done = subprocess.run([str(a) for a in argv], env=MTOOLS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def make(image: Path, bits: int, size: int, *options: object) -> None:
    with image.open("wb") as stream:
        stream.truncate(size)
    run("mkfs.vfat", "-F", bits, "-i", "0badcafe", *options, image)


def put(image: Path, files: Mapping[str, bytes]) -> list[Edit]:
    """Plan and write; the plan must be the same whenever it is made."""
    with image.open("r+b") as stream:
        window = Window.whole(stream.fileno())
        edits = put_files(window, files)
        assert put_files(window, files) == edits
        for edit in edits:
            os.pwrite(stream.fileno(), edit.data, edit.offset)
    return edits


def contents(image: Path, folder: Path) -> dict[str, bytes]:
    """Every file as mtools reads it."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run("mcopy", "-s", "-m", "-Q", "-n", "-i", image, "::*", name)
        return {str(p.relative_to(name)): p.read_bytes() for p in Path(name).rglob("*") if p.is_file()}


def sound(image: Path) -> None:
    assert "differ" not in run("fsck.fat", "-n", image)


FORMATS = {
    "fat12": (12, 2 * MIB, "-s", 2),
    "fat16": (16, 24 * MIB, "-s", 4),
    "fat32": (32, 40 * MIB, "-s", 1),
    "fat32-4096-byte-sectors": (32, 300 * MIB, "-s", 1, "-S", 4096),
    "fat16-one-table": (16, 24 * MIB, "-f", 1),
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def card(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A boot partition as published: firmware files in folders, and a seed of the publisher's."""
    image, source = tmp_path / "fat.img", tmp_path / "source"
    make(image, *request.param, "-n", "system-boot")
    source.mkdir()
    files = {"config.txt": b"arm_64bit=1\n", "start4.elf": os.urandom(90_000), "user-data": b"#cloud-config\n" * 900}
    files |= {"meta-data": b"instance-id: publisher\n", "network-config": b"", "a long name.dtb": os.urandom(3000)}
    for name, data in files.items():
        (source / name).write_bytes(data)
        os.utime(source / name, (1_700_000_000,) * 2)
        run("mcopy", "-m", "-i", image, source / name, "::")
    run("mmd", "-i", image, "::overlays")
    run("mcopy", "-i", image, source / "a long name.dtb", "::overlays/")
    run("mdel", "-i", image, "::a long name.dtb")
    return image


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096, 70_000])
def test_replaces_and_adds(card: Path, tmp_path: Path, size: int) -> None:
    before = contents(card, tmp_path)
    files = {name: bytes([65 + number]) * (size + number) for number, name in enumerate(SEED)} | {"SSH": b""}
    put(card, files)
    sound(card)
    assert contents(card, tmp_path) == {**before, "SSH": b"", **files}


def test_what_is_there_already_makes_no_edit(card: Path) -> None:
    files = dict.fromkeys(SEED, b"#cloud-config\nhostname: valar-0\n")
    assert put(card, files)
    assert put(card, files) == []


def test_only_the_files_own_places_are_touched(card: Path) -> None:
    """What lies outside of the tables, FSInfo, the root folder and the files' own clusters is the publisher's."""
    before = card.read_bytes()
    put(card, {"user-data": b"x" * 20_000, "vendor-data": b"y" * 3000})
    after = card.read_bytes()
    sector, reserved, tables = (int.from_bytes(before[a:b], "little") for a, b in ((11, 13), (14, 16), (16, 17)))
    table = int.from_bytes(before[22:24], "little") or int.from_bytes(before[36:40], "little")
    data = (reserved + tables * table) * sector
    if wide := before[82:87] == b"FAT32":
        assert after[sector : sector + 488] == before[sector : sector + 488]
        assert after[sector + 496 : sector * 2] == before[sector + 496 : sector * 2]
    data += int.from_bytes(before[17:19], "little") * 32
    areas = [(sector, sector * 2)] * wide + [(reserved * sector, data)]
    for path in ("::user-data", "::vendor-data", *(("::",) if wide else ())):
        for first, last in re.findall(r"<(\d+)(?:-(\d+))?>", run("mshowfat", "-i", card, path)):
            start, stop = (data + (int(n) - 2) * before[13] * sector for n in (first, int(last or first) + 1))
            areas.append((start, stop))
    restored = bytearray(after)
    for start, stop in areas:
        restored[start:stop] = before[start:stop]
    assert after != before == restored


def test_names_as_mtools_shows_them(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 16, 24 * MIB)
    names = ["UPPER.TXT", "lower.txt", "Mixed.Txt", "small.TXT", "NOEXT", "a b.c", "two.dots.txt", "x" * 255, "umläut"]
    names += [
        "userdata-1",
        "userdata-2",
        "userdata-3",
        ".hidden",
        "+plus,",
        "exactly-13-ch",
        "exactly-twenty-six-chars-x",
    ]
    put(image, {name: name.encode() for name in names})
    sound(image)
    assert contents(image, tmp_path) == {name: name.encode() for name in names}
    shorts = [line[:12].split() for line in run("mdir", "-i", image, "::").splitlines() if "userdata-" in line]
    assert shorts == [["USERDA~1"], ["USERDA~2"], ["USERDA~3"]]


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "a:b", "what?", "dot.", "blank ", "x" * 256, "nul\0", "\x1b[2J"])
def test_names_that_no_file_can_have(card: Path, name: str) -> None:
    with pytest.raises(ValueError, match="can't be the name"):
        put(card, {name: b""})


def test_a_short_name_that_is_taken(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 16, 24 * MIB)
    run("mcopy", "-i", image, __file__, "::USER-D~1")
    put(image, {"user-data": b"ours"})
    sound(image)
    assert contents(image, tmp_path) == {"USER-D~1": Path(__file__).read_bytes(), "user-data": b"ours"}


def test_a_publishers_file_is_found_whatever_its_case(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 32, 40 * MIB, "-s", 1)
    run("mcopy", "-i", image, __file__, "::User-Data")
    put(image, {"user-data": b"ours"})
    sound(image)
    assert contents(image, tmp_path) == {"User-Data": b"ours"}


def test_the_clock_is_not_read(card: Path) -> None:
    put(card, {"vendor-data": b"x", "user-data": b"y"})
    listing = {line.split()[-1]: line for line in run("mdir", "-i", card, "::").splitlines() if "-data" in line}
    assert "2023-11-14  22:13" in listing["user-data"]  # as published
    newest = max(
        word for line in run("mdir", "-i", card, "::").splitlines() for word in line.split() if "20" in word[:2]
    )
    assert newest[:4] in listing["vendor-data"]


def test_the_root_folder_of_a_fat32_grows(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 32, 40 * MIB, "-s", 1)
    files = {f"a rather long name that takes records {n:03}": b"%d" % n for n in range(60)}
    put(image, files)
    sound(image)
    assert contents(image, tmp_path) == files


def test_the_root_folder_of_a_fat16_is_full(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 16, 24 * MIB, "-s", 1, "-r", 32)
    before = image.read_bytes()
    put(image, {f"FILE{n}": b"" for n in range(31)})
    with pytest.raises(FormatError, match=r"root folder is full \(32 entries\)"):
        put(image, {"user-data": b"x"})
    put(image, {"LAST": b"x"})
    sound(image)
    assert len(before) == image.stat().st_size


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_no_room(tmp_path: Path, bits: int) -> None:
    image, big = tmp_path / "fat.img", tmp_path / "big"
    make(image, bits, {12: MIB, 16: 5 * MIB, 32: 36 * MIB}[bits], "-s", 1)
    free = int(re.sub(r"\s", "", re.search(r"([\d ]+) bytes free", run("mdir", "-i", image, "::"))[1]))  # type: ignore[index]
    big.write_bytes(b"b" * (free - 8 * 512))
    run("mcopy", "-i", image, big, "::big")
    before = image.read_bytes()
    with pytest.raises(FormatError, match="no room left"):
        put(image, {"user-data": b"x" * (9 * 512)})
    assert image.read_bytes() == before
    put(image, {"USERDATA": b"x" * (8 * 512)})
    sound(image)
    assert contents(image, tmp_path)["USERDATA"] == b"x" * (8 * 512)


def test_what_a_shrunk_file_frees_is_used_again(card: Path, tmp_path: Path) -> None:
    for size in (300_000, 10, 400_000, 0, 5):
        put(card, {"user-data": b"u" * size})
        sound(card)
        assert contents(card, tmp_path)["user-data"] == b"u" * size


def test_a_count_of_free_clusters_that_is_unknown_stays_unknown(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 32, 40 * MIB, "-s", 1)
    with image.open("r+b") as stream:
        stream.seek(512 + 488)
        stream.write(b"\xff" * 8)
    put(image, {"user-data": b"x"})
    assert image.read_bytes()[1000:1008] == b"\xff" * 8


def test_only_the_active_table_is_written_where_there_is_no_mirroring(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 32, 40 * MIB, "-s", 1)
    with image.open("r+b") as stream:
        stream.seek(40)
        stream.write(b"\x81\0")
    before = image.read_bytes()
    put(image, {"user-data": b"x" * 5000})
    after = image.read_bytes()
    reserved, table = int.from_bytes(before[14:16], "little") * 512, int.from_bytes(before[36:40], "little") * 512
    assert after[reserved : reserved + table] == before[reserved : reserved + table]
    assert after[reserved + table : reserved + 2 * table] != before[reserved + table : reserved + 2 * table]


def test_a_fat32_without_the_marks_of_its_first_two_entries_counts_its_clusters(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(image, 32, 40 * MIB, "-s", 1)
    with image.open("r+b") as stream:
        window = Window.whole(stream.fileno())
        used = Fat(window).used_bytes
        stream.seek(int.from_bytes(window.read(14, 2), "little") * 512)
        stream.write(bytes(8))
        stream.flush()
        assert Fat(window).used_bytes == used == 512


def test_the_reserved_bits_of_a_fat32_entry_stay(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 32, 40 * MIB, "-s", 1)
    reserved = int.from_bytes(image.read_bytes()[14:16], "little") * 512
    table = int.from_bytes(image.read_bytes()[36:40], "little") * 512
    with image.open("r+b") as stream:
        stream.seek(reserved + 3 * 4)
        stream.write(b"\0\0\0\xa0")
    put(image, {"user-data": b"x" * 500})
    assert image.read_bytes()[reserved + 12 : reserved + 16] in (b"\xff\xff\xff\xaf", b"\0\0\0\xa0")
    assert image.read_bytes()[reserved + table + 12 : reserved + table + 16] == b"\xff\xff\xff\x0f"


# ---------------------------------------------------------------- what no tool would make


def test_garbage_behind_the_end_mark_stays_out_of_sight(tmp_path: Path) -> None:
    hand = HandMadeFat(tmp_path).folder(record(b"A       TXT"))
    hand.put(hand.root + 64, b"GARBAGE BIN" + b"\x20" * 21 + record(b"MORE    BIN", 77, 9))
    put(hand.path, {"user-data": b"ours"})
    sound(hand.path)
    assert contents(hand.path, tmp_path) == {"A.TXT": b"", "user-data": b"ours"}


def test_a_hole_of_deleted_entries_is_used_only_if_it_is_large_enough(tmp_path: Path) -> None:
    gone = b"\xe5" + record(b"GONE    TXT")[1:]
    hand = HandMadeFat(tmp_path).folder(gone, record(b"A"), gone, gone, record(b"B"))
    put(hand.path, {"user-data": b"1", "SHORT": b"2"})
    raw = hand.path.read_bytes()[hand.root :]
    assert raw[:11] == b"SHORT      "
    assert raw[64] == 0x41 and raw[96:107] == b"USER-D~1   "
    sound(hand.path)


@pytest.mark.parametrize(
    ("records", "chains", "problem"),
    [
        ((folder_record(b"X", 5), record(b"Y", 5, 9)), [(5, 0xFFFF)], "in use already"),
        ((record(b"USERDATA", 5, 900),), [(5, 6, 5)], "in use already"),
        ((record(b"USERDATA", 5, 900),), [(5, 0)], "free cluster"),
        ((record(b"USERDATA", 5, 900),), [(5, 60000)], "leaves the file system"),
        ((record(b"USERDATA", 5, 9000),), [(5, 0xFFFF)], "more than its cluster chain"),
        ((record(b"USERDATA"), long_records("userdata", b"A~1") + record(b"A~1")), [], "stands there twice"),
        ((folder_record(b"USERDATA", 5),), [(5, 0xFFFF)], "is a folder there"),
    ],
)
def test_refuses_what_is_broken(
    tmp_path: Path, records: tuple[bytes, ...], chains: list[tuple[int, ...]], problem: str
) -> None:
    hand = HandMadeFat(tmp_path).folder(*records)
    for chain in chains:
        hand.chain(*chain)
    before = hand.path.read_bytes()
    with pytest.raises(FormatError, match=problem):
        put(hand.path, {"userdata": b"x" * 3000})
    assert hand.path.read_bytes() == before


# ---------------------------------------------------------------- anything goes


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(12, MIB, 1), (12, MIB, 4), (16, 5 * MIB, 1), (32, 34 * MIB, 1)]),
    rounds=st.lists(
        st.dictionaries(
            st.sampled_from([*SEED, "SHORT.TXT", "lower.txt", "Mixed Case.text"]), st.binary(max_size=9000), min_size=1
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_files_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], rounds: list[dict[str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    image, expected = folder / "fat.img", dict[str, bytes]()
    make(image, shape[0], shape[1], "-s", shape[2])
    for files in rounds:
        put(image, files)
        expected |= files
    sound(image)
    assert contents(image, folder) == expected
    image.unlink()


@settings(max_examples=150, deadline=None)
@given(
    writes=st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=700)), max_size=6),
    start=st.integers(0, 5000),
    length=st.integers(0, 5000),
)
def test_a_draft_reads_as_the_file_would(writes: list[tuple[int, bytes]], start: int, length: int) -> None:
    size = 5003
    original = bytes(range(256)) * 20
    with tempfile.TemporaryFile() as stream:
        stream.write(b"before" + original[:size])
        stream.flush()
        draft = Draft(Window(stream.fileno(), 6, size))
        wanted = bytearray(original[:size])
        for offset, data in writes:
            draft.write(offset, data)
            wanted[offset : offset + len(data)] = data
        length = min(length, size - start)
        assert draft.read(start, length) == wanted[start : start + length]
        made = bytearray(original[:size])
        for edit in draft.edits():
            made[edit.offset : edit.end] = edit.data
        assert made == wanted and len(made) == size


def test_a_draft_has_an_end() -> None:
    with tempfile.TemporaryFile() as stream:
        stream.write(bytes(1000))
        stream.flush()
        with pytest.raises(FormatError, match="beyond the end"):
            Draft(Window(stream.fileno(), 0, 1000)).write(990, bytes(11))
