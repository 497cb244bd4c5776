"""The ext4 reader on file systems that contradict themselves: each is refused with a sentence, or read safely.

debugfs and plain bytes break images that mke2fs made; random damage follows. Nothing but FormatError may come out.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from netbootd.errors import FormatError
from netbootd.formats.ext4 import Entry
from netbootd.formats.ext4.walk import MAX_DEPTH
from tests.support.ext4_images import make, opened
from tests.support.processes import run

PLAIN = ("-O", "^metadata_csum,^64bit,^has_journal", "-b", "1024", "-I", "256")
SUMMED = ("-b", "1024", "-I", "256", "-J", "size=1")
NAMES = 213  # in each of the sound images, the top directory and lost+found too
SETS = {
    "plain": PLAIN,
    "summed": SUMMED,
    "ext2": ("-t", "ext2", "-b", "1024"),
    "inline": ("-O", "inline_data,^metadata_csum,^has_journal", "-I", "256", "-b", "1024"),
    "4K, large attributes": ("-O", "ea_inode,^metadata_csum,^has_journal", "-I", "256", "-b", "4096"),
}


def consume(image: Path) -> list[Entry]:
    """Read all there is: names, attributes, targets, and up to 64 KiB of each stretch."""
    with opened(image) as fs:
        entries = list(fs.walk())
        for entry in entries:
            for _, length, disk in entry.extents:
                if disk is not None:
                    fs.read(disk, min(length, 1 << 16))
            if entry.inode.inline is None and entry.inode.kind == "file":
                entry.inode.read(0, 100)
        return entries


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tree"
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "big").mkdir()
    for number in range(200):
        (folder / "big" / f"a-longer-name-{number:04}").write_bytes(b"x" * (number % 70))
    (folder / "a" / "one").write_bytes(b"1" * 3000)
    (folder / "a" / "two").write_bytes(b"2" * 3000)
    (folder / "a" / "pair-1").write_bytes(b"pair")
    (folder / "a" / "pair-2").hardlink_to(folder / "a" / "pair-1")
    (folder / "a" / "link").symlink_to("one")
    (folder / "a" / "long-link").symlink_to("x" * 200)
    with (folder / "sparse").open("wb") as file:
        for number in range(40):
            file.seek(number * 8192)
            file.write(b"island")
    return folder


@pytest.fixture(scope="module")
def bases(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("bases")
    images: dict[str, Path] = {}

    def base(kind: str) -> Path:
        if kind not in images:
            images[kind] = make(folder / kind, source, *SETS[kind], size="4M")
            if "attributes" in kind:
                (folder / "value").write_bytes(b"v" * 9000)
                script = f"ea_set -f {folder / 'value'} /a/one user.large\nea_set /a/two user.small x\n"
                (folder / "script").write_text(script)
                run(["debugfs", "-w", "-f", folder / "script", images[kind]])
        return images[kind]

    return base


@pytest.fixture
def image(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A sound one with checksums; debugfs keeps them right."""
    return shutil.copy(bases("summed"), tmp_path / "image")


@pytest.fixture
def plain(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A sound one without checksums, to be broken byte by byte."""
    return shutil.copy(bases("plain"), tmp_path / "plain")


def debugfs(image: Path, *lines: str) -> str:
    script = image.with_name("script")
    script.write_text("".join(f"{line}\n" for line in lines))
    return run(["debugfs", "-w", "-f", script, image]).stdout


def blocks_of(image: Path, path: str) -> list[int]:
    said = run(["debugfs", "-R", f"blocks {path}", image]).stdout
    return [int(word) for word in said.split()]


def refuse(image: Path, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        consume(image)


def test_the_images_are_sound_to_begin_with(bases: Callable[[str], Path]) -> None:
    for kind in SETS:
        assert len(consume(bases(kind))) == NAMES, kind


# ---------------------------------------------------------------- names and links


def test_a_directory_with_two_parents(image: Path) -> None:
    debugfs(image, "ln /a/b /big/again")
    refuse(image, r"linked from \d+, but its \.\. is|second name: '/(a/b|big/again)'")


def test_a_directory_with_two_names_in_one_parent(image: Path) -> None:
    debugfs(image, "ln /a/b /a/again")
    refuse(image, "has a second name: '/a/(again|b)'")


def test_a_directory_inside_itself(image: Path) -> None:
    debugfs(image, "ln /a /a/b/c/loop")
    refuse(image, r"linked from|second name")


def test_the_top_directory_below_itself(image: Path) -> None:
    debugfs(image, "ln / /a/loop")
    refuse(image, "unusable inode 2")


def test_more_names_than_links(image: Path) -> None:
    debugfs(image, "ln /a/one /a/one-too-many")
    refuse(image, "is one name too many for inode")


def test_more_names_than_two_links(image: Path) -> None:
    debugfs(image, "ln /a/pair-1 /a/pair-3")
    refuse(image, "is one name too many for inode .* which has 2")


def test_fewer_names_than_links_are_no_danger(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    debugfs(image, "sif /a/one links_count 3")
    assert len(consume(image)) == NAMES
    assert "1 files have fewer names" in caplog.text


def test_names_of_one_inode_come_once_with_their_content(image: Path) -> None:
    pair = [entry for entry in consume(image) if entry.name.startswith(b"pair")]
    assert [entry.again for entry in pair] == [False, True]
    assert [bool(entry.extents) for entry in pair] == [True, False]


def test_a_name_for_a_deleted_file(image: Path) -> None:
    debugfs(image, "sif /a/one links_count 0")
    refuse(image, "has a name but is deleted")


def test_a_name_for_an_inode_that_holds_an_attribute(image: Path) -> None:
    debugfs(image, "sif /a/one flags 0x280000")
    refuse(image, "which holds an attribute")


@pytest.mark.parametrize("inode", [1, 8, 5])
def test_a_name_for_an_inode_of_the_file_system_itself(inode: int, image: Path) -> None:
    debugfs(image, f"ln <{inode}> /a/special")
    refuse(image, f"unusable inode {inode}")


def test_an_orphan_is_not_seen(image: Path) -> None:
    debugfs(image, "unlink /a/one")
    assert b"one" not in {entry.name for entry in consume(image)}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (b"o/e", "impossible name"),
        (b"o\0e", "impossible name"),
        (b"two", "'two' twice|b'two' twice"),
    ],
)
def test_impossible_names(name: bytes, match: str, plain: Path) -> None:
    edit(plain, blocks_of(plain, "/a")[0], lambda block: block.replace(b"\x03\x01one", b"\x03\x01" + name))
    refuse(plain, match)


@pytest.mark.parametrize("name", [b"..", b"."])
def test_dots_where_no_dots_are(name: bytes, plain: Path) -> None:
    replacement = bytes([len(name), 1]) + name.ljust(3, b"\0")
    edit(plain, blocks_of(plain, "/a")[0], lambda block: block.replace(b"\x03\x01one", replacement))
    refuse(plain, "impossible name")


@pytest.mark.parametrize("length", [0, 3, 8, 9, 11, 2000, 65535])
def test_entries_of_impossible_length(length: int, plain: Path) -> None:
    def change(block: bytes) -> bytes:
        at = block.index(b"\x03\x01one") - 2
        return block[:at] + length.to_bytes(2, "little") + block[at + 2 :]

    edit(plain, blocks_of(plain, "/a")[0], change)
    refuse(plain, "broken entry")


def test_a_directory_that_does_not_begin_with_itself(plain: Path) -> None:
    edit(plain, blocks_of(plain, "/a")[0], lambda block: b"\x05" + block[1:])
    refuse(plain, "linked from")


def edit(image: Path, block: int, change: Callable[[bytes], bytes]) -> None:
    """Replace a block of 1 KiB by what `change` makes of it."""
    with image.open("r+b") as file:
        file.seek(block * 1024)
        old = file.read(1024)
        new = change(old)
        assert new != old and len(new) == 1024
        file.seek(block * 1024)
        file.write(new)


def test_directories_nested_without_end(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "/".join("d" for _ in range(MAX_DEPTH + 20))).mkdir(parents=True)
    image = make(tmp_path / "image", folder, *PLAIN, size="4M")
    refuse(image, f"more than {MAX_DEPTH} directories deep")


def test_paths_that_nobody_could_open(tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    image = make(tmp_path / "image", None, *PLAIN, size="4M")
    debugfs(image, *(line for _ in range(17) for line in (f"mkdir {'n' * 250}", f"cd {'n' * 250}")))
    refuse(image, "more than 4095 bytes")


# ---------------------------------------------------------------- blocks


def extent_at(image: Path, path: str, block: int) -> None:
    """Let the first extent of a file begin at a block."""
    debugfs(image, f"sif {path} block[5] {block}")


def test_two_files_with_one_block(image: Path) -> None:
    extent_at(image, "/a/two", blocks_of(image, "/a/one")[0])
    refuse(image, "belong to something else too")


def test_a_file_in_the_journal(image: Path) -> None:
    extent_at(image, "/a/two", blocks_of(image, "<8>")[100])
    refuse(image, "belong to something else too")


def test_a_file_in_the_inode_table(image: Path) -> None:
    said = run(["dumpe2fs", image]).stdout
    found = re.search(r"Inode table at (\d+)", said)
    assert found
    extent_at(image, "/a/two", int(found[1]) + 2)
    refuse(image, "belong to something else too")


@pytest.mark.parametrize("block", [0, 4096, 1 << 30])
def test_a_file_outside_of_the_file_system(block: int, image: Path) -> None:
    extent_at(image, "/a/two", block)
    refuse(image, "broken extent")


def test_a_directory_whose_blocks_are_a_files(image: Path) -> None:
    extent_at(image, "/a/b/c", blocks_of(image, "/a/one")[0])
    refuse(image, "ext4 file system")


def test_a_huge_hole_costs_nothing(image: Path) -> None:
    debugfs(image, f"sif /a/one size {15 << 30}")
    (one,) = (entry for entry in consume(image) if entry.name == b"one")
    assert [(extent.offset, extent.disk is None) for extent in one.extents] == [(0, False), (3072, True)]
    with pytest.raises(FormatError, match="where a small file was expected"):
        one.inode.read()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("sif /a/link size 0", "symbolic link in inode .* has 0 bytes"),
        ("sif /a/link size 5000", "symbolic link in inode .* has 5000 bytes"),
        ("sif /a/link size 9", "has a NUL in it"),
        ("sif /a/one mode 0170644", "unknown type"),
        ("sif /a/one mode 0000644", "unknown type"),
        ("sif /a/one flags 0x80800", "encrypted"),
        ("sif /a/one file_acl 3000000", "outside the file system"),
        ("sif /a/one file_acl 60", "is something else"),
        ("sif /a/b size 1000", "not whole blocks"),
        ("sif /a/b size 0", "not whole blocks"),
        ("sif /a/one mode 0040755", "ext4 file system"),
        ("sif <2> mode 0100755", "the top directory is a file"),
        ("sif <2> mode 0", "unknown type"),
    ],
)
def test_inodes_that_contradict_themselves(change: str, match: str, image: Path) -> None:
    debugfs(image, change)
    refuse(image, match)


@pytest.mark.parametrize("size", [0, 100, 1023, 1024, 2047, 2048, 5000, 1 << 20])
def test_images_that_end_early(size: int, image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(size)
    refuse(image, "ext4 file system")


# ---------------------------------------------------------------- random damage


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("seed", range(3))
def test_random_damage(kind: str, seed: int, bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Bytes, words and blocks of the metadata changed by chance; each image takes a moment, whatever it says."""
    chance = random.Random(f"{kind} {seed}")
    image = shutil.copy(bases(kind), tmp_path / "image")
    whole = image.read_bytes()
    places = [at for at in range(0, len(whole), 64) if any(whole[at : at + 64])]
    heads = [at for at in places if at < 256 << 10]
    read = refused = 0
    for _ in range(50):
        changes = {}
        for _ in range(chance.choice([1, 2, 5, 20])):
            at = chance.choice(chance.choice([places, heads, heads])) + chance.randrange(64)
            value = chance.choice([0, 1, 0xFF, 0xFFFF, 0xFFFFFFFF, chance.getrandbits(8), chance.getrandbits(32)])
            changes[at] = value.to_bytes(4, "little")[: chance.choice([1, 2, 4])]
        if survives(image, whole, changes):
            read += 1
        else:
            refused += 1
    assert refused > 5, read


@pytest.mark.parametrize("kind", ["plain", "ext2", "inline"])
def test_random_superblocks(kind: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Every word of the superblock and of a group descriptor, set to what it should not be."""
    image = shutil.copy(bases(kind), tmp_path / "image")
    whole = image.read_bytes()
    chance = random.Random(kind)
    for at in [*range(1024, 1024 + 360, 4), *range(2048, 2048 + 32, 4)]:
        survives(image, whole, {at: chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]).to_bytes(4, "little")})


def survives(image: Path, whole: bytes, changes: dict[int, bytes]) -> bool:
    """Whether the image can be read with its bytes changed, in no more than a moment; it is put right again."""
    with image.open("r+b") as file:
        for at, data in changes.items():
            file.seek(at)
            file.write(data)
    begun = time.process_time()
    try:
        consume(image)
    except FormatError as error:
        assert len(str(error)) > 20
        return False
    else:
        return True
    finally:
        assert time.process_time() - begun < 2, changes
        with image.open("r+b") as file:
            for at in changes:
                file.seek(at)
                file.write(whole[at : at + 4])


def test_more_files_with_several_names_than_any_image_has(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = shutil.copy(bases("plain"), tmp_path / "image")
    debugfs(image, *(f"sif /big/a-longer-name-{number:04} links_count 9" for number in range(20)))
    assert len(consume(image)) == NAMES
    monkeypatch.setattr("netbootd.formats.ext4.walk.MAX_LINKED", 20)  # one pair is in the image already
    refuse(image, "more than 20 files with several names")
