"""The FAT reader on what no tool would make: rare entries, and images that are broken or hostile."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netbootd.errors import FormatError
from netbootd.formats.fat import Fat, FatEntry
from netbootd.formats.window import Window
from tests.support.handmade_fat import END, HandMadeFat, folder_record, long_records, named, record


@contextmanager
def opened(image: Path) -> Iterator[Fat]:
    fd = os.open(image, os.O_RDONLY)
    try:
        yield Fat(Window.whole(fd))
    finally:
        os.close(fd)


def walk(image: HandMadeFat) -> list[FatEntry]:
    with opened(image.path) as fat:
        return list(fat.walk())


def paths(image: HandMadeFat) -> list[str]:
    return [entry.path for entry in walk(image)]


@pytest.fixture
def hand(tmp_path: Path) -> HandMadeFat:
    return HandMadeFat(tmp_path)


def test_lower_case_bits_e5_volume_label_and_code_page(hand: HandMadeFat) -> None:
    hand.folder(
        record(b"CONFIG  TXT", nt=0x18),
        record(b"BASE    TXT", nt=0x08),
        record(b"EXT     TXT", nt=0x10),
        record(b"\x05KANJI"),
        record(b"\xe5ELETED TXT"),
        record(b"VOLUME  LAB", attributes=0x08),
        record(b"\x9aMLAUT  TXT", nt=0x18),
    )
    assert paths(hand) == ["config.txt", "base.TXT", "EXT.txt", "σKANJI", "ümlaut.txt"]
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
    listing = subprocess.run(["mdir", "-b", "-i", hand.path, "::"], env=env, capture_output=True, text=True, check=True)
    assert listing.stdout.split()[:3] == ["::/config.txt", "::/base.TXT", "::/EXT.txt"]


def test_long_names_need_their_checksum_and_may_have_surrogates(hand: HandMadeFat) -> None:
    hand.folder(
        long_records("Pie 🥧 emoji.txt", b"PIEMOJ~1TXT") + record(b"PIEMOJ~1TXT"),
        long_records("not the name of this.txt", b"ORPHAN~1TXT", wrong=1) + record(b"ORPHAN~1TXT"),
        long_records("x" * 255, b"LONGES~1") + record(b"LONGES~1"),
    )
    assert paths(hand) == ["Pie 🥧 emoji.txt", "ORPHAN~1.TXT", "x" * 255]


def test_a_long_name_interrupted_by_a_deleted_entry_is_dropped(hand: HandMadeFat) -> None:
    records = long_records("the long name of thirty chars.txt", b"THELON~1TXT")
    hand.folder(records[:32], record(b"\xe5ONE    TXT"), records[32:], record(b"THELON~1TXT"))
    assert paths(hand) == ["THELON~1.TXT"]


def test_times_are_utc_in_steps_of_two_seconds(hand: HandMadeFat) -> None:
    late = {"time": 23 << 11 | 59 << 5 | 29, "date": (2024 - 1980) << 9 | 2 << 5 | 29}
    hand.folder(record(b"LEAP", **late), record(b"NEVER", date=0))
    leap, never = walk(hand)
    assert leap.mtime_ns == 1709251198 * 10**9  # date -ud '2024-02-29 23:59:58' +%s
    assert never.mtime_ns == 315532800 * 10**9  # 1980-01-01


def test_nothing_behind_the_end_mark(hand: HandMadeFat) -> None:
    hand.folder(record(b"ONE"), bytes(32), record(b"TWO"))
    assert paths(hand) == ["ONE"]


FILE = record(b"FILE", 5, 1024)
SUB = folder_record(b"SUB", 6)

HOSTILE: dict[str, tuple[Callable[[HandMadeFat], object], str]] = {
    "a chain that loops": (lambda h: h.chain(5, 6, 7, 5).folder(FILE), "in use already"),
    "two files on one cluster": (
        lambda h: h.chain(5, 6, END).chain(9, 6).folder(FILE, record(b"B", 9, 600)),
        "in use already",
    ),
    "a chain into a free cluster": (lambda h: h.chain(5, 6, 0).folder(FILE), "free cluster"),
    "a chain into a bad cluster": (lambda h: h.chain(5, 0xFFF7).folder(FILE), "bad cluster"),
    "a chain out of the file system": (lambda h: h.chain(5, 0xEFFF).folder(FILE), "leaves the file system"),
    "a first cluster out of it": (lambda h: h.folder(record(b"FILE", 0xF000, 1)), "leaves the file system"),
    "a size beyond its chain": (lambda h: h.chain(5, END).folder(FILE), "more than its cluster chain"),
    "a size without clusters": (lambda h: h.folder(record(b"FILE", 0, 9)), "has no clusters"),
    "a folder that is the root": (lambda h: h.folder(folder_record(b"SUB", 0)), "has no clusters"),
    "a folder in itself": (lambda h: h.chain(6, END).folder(SUB).folder(SUB, cluster=6), "in use already"),
    "a folder that loops": (lambda h: h.chain(6, 7, 6).folder(SUB), "in use already"),
    "a slash": (lambda h: h.folder(named("../../etc/passwd")), "slash"),
    "a backslash": (lambda h: h.folder(named("..\\up")), "slash"),
    "dot-dot as a long name": (lambda h: h.folder(named("..")), "not a name"),
    "dot-dot as a short name": (lambda h: h.folder(folder_record(b"..", 6)), "not a name"),
    "dot in the root": (lambda h: h.folder(folder_record(b".", 6)), "not a name"),
    "a late dot-dot in a folder": (
        lambda h: h.chain(6, END).folder(SUB).folder(record(b"A"), record(b"B"), folder_record(b"..", 6), cluster=6),
        "not a name",
    ),
    "an empty short name": (lambda h: h.folder(record(b" ")), "not a name"),
    "an escape sequence": (lambda h: h.folder(named("a\x1b[31mb")), "control"),
    "a C1 control character": (lambda h: h.folder(named("a\x9bb")), "control"),
    "a control character in a short name": (lambda h: h.folder(record(b"A\x01B")), "control"),
    "half a surrogate pair": (lambda h: h.folder(named("a\ud83e")), "not Unicode"),
    "a name too long for Linux": (lambda h: h.folder(named("日" * 200)), "longer than 255"),
    "the same name twice": (lambda h: h.folder(record(b"A"), record(b"A")), "twice"),
    "the same name in another case": (lambda h: h.folder(record(b"A"), record(b"A", nt=8)), "twice"),
    "a long name like a short one": (lambda h: h.folder(record(b"NAME"), named("nAmE")), "twice"),
    "more sectors than the partition": (lambda h: h.put(19, b"\x58\x1b"), "more than the partition"),
    "no clusters": (lambda h: h.put(14, b"\xa2\x17"), "boot sector is broken"),
    "no table": (lambda h: h.put(16, b"\0"), "no FAT file system"),
    "clusters of three sectors": (lambda h: h.put(13, b"\3"), "no FAT file system"),
    "zeros": (lambda h: h.put(0, bytes(512)), "no FAT file system"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses(hand: HandMadeFat, case: str) -> None:
    make, says = HOSTILE[case]
    make(hand)
    with pytest.raises(FormatError, match=re.escape(says)) as caught:
        walk(hand)
    assert caught.value.hint and "\n" not in str(caught.value)


def test_refuses_folders_without_end(hand: HandMadeFat) -> None:
    """A chain of folders, each in the last: deeper than any path is."""
    hand.folder(folder_record(b"D", 100))
    for cluster in range(100, 200):
        hand.chain(cluster, END).folder(folder_record(b"D", cluster + 1), cluster=cluster)
    with pytest.raises(FormatError, match="folders deep"):
        walk(hand)


def test_find_ends_in_a_root_folder_that_loops(tmp_path: Path) -> None:
    image = tmp_path / "loop.img"
    with image.open("wb") as stream:
        stream.truncate(40 << 20)
    subprocess.run(["mkfs.vfat", "-F", "32", "-s", "1", image], check=True, capture_output=True)
    raw = image.read_bytes()
    reserved, root = int.from_bytes(raw[14:16], "little"), int.from_bytes(raw[44:48], "little")
    fat_size = int.from_bytes(raw[36:40], "little") * 512
    with image.open("r+b") as stream:
        stream.seek(reserved * 512 + root * 4)
        stream.write(root.to_bytes(4, "little"))
        stream.seek(reserved * 512 + raw[16] * fat_size + (root - 2) * 512)
        stream.write(record(b"\xe5") * 16)
    with opened(image) as fat:
        with pytest.raises(FormatError, match="65,536"):
            fat.find("config.txt")
        with pytest.raises(FormatError, match="in use already"):
            list(fat.walk())


def test_reads_no_more_than_asked(hand: HandMadeFat) -> None:
    hand.chain(5, 6, END).folder(FILE)
    with opened(hand.path) as fat:
        (entry,) = fat.walk()
        assert len(fat.read(entry, 1024)) == 1024
        with pytest.raises(FormatError, match="at most 1023"):
            fat.read(entry, 1023)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_format_error_or_a_listing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes changed at random in the boot sector, the table and the root folder: never another exception."""
    folder = tmp_path_factory.getbasetemp() / "fuzz-fat"
    if not folder.exists():
        folder.mkdir()
        made = HandMadeFat(folder).chain(5, 6, END).chain(7, END)
        made.folder(long_records("a long name.txt", b"FILE"), FILE, folder_record(b"SUB", 7))
        made.folder(folder_record(b".", 7), folder_record(b"..", 0), cluster=7)
        made.path.rename(folder / "clean")
    raw = bytearray((folder / "clean").read_bytes())
    root = 512 + int.from_bytes(raw[22:24], "little") * 512
    places = st.one_of(st.integers(0, 64), st.integers(512, 600), st.integers(root, root + 160))
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)):
        raw[at] = value
    image = folder / "broken.img"
    image.write_bytes(raw)
    try:
        with opened(image) as fat:
            for entry in fat.walk():
                if not entry.is_dir:
                    assert sum(map(len, fat.chunks(entry))) == entry.size
    except FormatError:
        pass


def test_more_files_than_any_boot_partition_has(hand: HandMadeFat) -> None:
    """Empty files take no room but their entries': 16 to a cluster, in folders of 341 clusters here."""
    first, clusters = 3, 341
    folders = [folder_record(b"D%d" % number, first + number * clusters) for number in range(10)]
    hand.folder(*folders)
    for number in range(len(folders)):
        at = first + number * clusters
        hand.chain(*range(at, at + clusters), END)
        records = b"".join(record(b"F%d" % name) for name in range(clusters * 16 - 2))
        hand.put(hand.data + (at - 2) * 512, folder_record(b".", at) + folder_record(b"..", 0) + records)
    with pytest.raises(FormatError, match="more than 50000 files"):
        paths(hand)
    hand.folder(*folders[:9])
    assert len(paths(hand)) == 9 + 9 * (clusters * 16 - 2)
