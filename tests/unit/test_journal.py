"""The replay of a journal, judged by e2fsck's: every block but the journal's own has to read as e2fsck leaves it.

debugfs writes the journals, e2fsck replays them in a copy, and the product must see the same without writing anything.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c
import pytest

from netbootd.errors import FormatError
from netbootd.formats.ext4 import Ext4
from tests.support.ext4_images import make, opened, read_image
from tests.support.processes import run

MAGIC = bytes.fromhex("c03b3998")
JOURNAL = 8  # its inode's number

KINDS = {
    "plain": ((), "jo"),
    "v2": ((), "jo -c -v 2"),
    "v3": ((), "jo -c -v 3"),
    "plain, 32 bits": (("-O", "^64bit"), "jo"),
    "v2, 32 bits": (("-O", "^64bit"), "jo -c -v 2"),
    "v3, 32 bits": (("-O", "^64bit"), "jo -c -v 3"),
    "v3, 4K": (("-b", "4096", "-I", "256"), "jo -c -v 3"),
    "plain, 4K, ext3": (("-b", "4096", "-t", "ext3", "-I", "256"), "jo"),
}
Maker = Callable[..., "Journaled"]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Images with an empty journal, each made once."""
    folder = tmp_path_factory.mktemp("bases")
    source = folder / "source"
    (source / "sub").mkdir(parents=True)
    for number in range(30):
        (source / f"file-{number}").write_bytes(b"%d\n" % number * 600)

    @functools.cache
    def base(kind: str) -> Path:
        options = KINDS[kind][0]
        large = "-b" in options
        shape = ("-J", "size=4") if large else ("-b", "1024", "-J", "size=1")
        return make(folder / f"{kind}.img", source, *shape, *options, size="16M" if large else "6M")

    return base


@pytest.fixture
def journaled(bases: Callable[[str], Path], tmp_path: Path) -> Maker:
    """Makes an image of one of the KINDS."""
    return lambda kind="v3": Journaled(shutil.copy(bases(kind), tmp_path / "image"), KINDS[kind][1])


class Journaled:
    """An image whose journal is written by debugfs."""

    def __init__(self, path: Path, opening: str) -> None:
        self.path = path
        self.folder = path.parent
        self._open = opening
        with opened(self.path) as fs:
            self.block_size = fs.superblock.block_size
            self.free = fs.superblock.blocks_count - 40  # blocks from here on are in no file

    def debugfs(self, *lines: str) -> str:
        script = self.folder / "script"
        script.write_text("".join(f"{line}\n" for line in lines))
        return run(["debugfs", "-w", "-f", script, self.path]).stdout

    def transactions(self, *steps: dict[int, bytes] | set[int] | str) -> Journaled:
        """Write transactions: of blocks with their new content, or of revoked blocks; a str is a line as it is."""
        lines = [self._open]
        for number, step in enumerate(steps):
            if isinstance(step, str):
                lines.append(step)
            elif isinstance(step, set):
                lines.append("jw -r " + ",".join(map(str, sorted(step))))
            else:
                data = self.folder / f"data-{number}"
                data.write_bytes(b"".join(content.ljust(self.block_size, b"\0") for content in step.values()))
                lines.append(f"jw -b {','.join(map(str, step))} {data}")
        self.debugfs(*lines, "jc")
        return self

    def becoming(self, *changes: str) -> dict[int, bytes]:
        """The blocks that differ once debugfs has made `changes` in a copy: what a kernel would have put in the log."""
        copy = self.folder / "changed"
        shutil.copy(self.path, copy)
        script = self.folder / "script"
        script.write_text("".join(f"{line}\n" for line in changes))
        run(["debugfs", "-w", "-f", script, copy])
        size, old, new = self.block_size, self.path.read_bytes(), copy.read_bytes()
        places = [at for at in range(0, len(new), size) if new[at : at + size] != old[at : at + size]]
        return {at // size: new[at : at + size] for at in places}

    def journal_blocks(self) -> list[int]:
        """Where the blocks of the log lie."""
        said = run(["debugfs", "-R", f"blocks <{JOURNAL}>", self.path]).stdout
        places = [int(word) for word in said.split()]
        return places if len(places) == 1024 else places[:12] + places[13:]  # without the indirect block

    def replayed_by_e2fsck(self) -> Path:
        copy, said = self.e2fsck()
        assert "error" not in said
        return copy

    def e2fsck(self) -> tuple[Path, str]:
        """A copy in which e2fsck has replayed the journal, and what it said."""
        copy = self.folder / "replayed"
        shutil.copy(self.path, copy)
        return copy, run(["e2fsck", "-E", "journal_only", "-p", copy], check=False).stdout

    def put(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def block(self, number: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(number * self.block_size)
            return file.read(self.block_size)


def must_read_as_e2fsck_replays(image: Journaled) -> set[int]:
    """Compare block by block; the blocks that the replay changed are returned."""
    before = image.path.read_bytes()
    after = image.replayed_by_e2fsck().read_bytes()
    size = image.block_size
    spared = {*image.journal_blocks(), 1024 // size}  # e2fsck writes the journal's head and its own superblock
    changed = set()
    with opened(image.path) as fs:
        ours = fs.read(0, len(after))
        for at in range(0, len(after), size):
            if at // size in spared:
                continue
            assert ours[at : at + size] == after[at : at + size], at // size
            if before[at : at + size] != after[at : at + size]:
                changed.add(at // size)
                assert fs.block(at // size) == after[at : at + size]
                assert fs.read(at + 3, size) == after[at + 3 : at + 3 + size]
    assert image.path.read_bytes() == before
    return changed


@kinds
def test_changed_names_files_and_attributes(kind: str, journaled: Maker, tmp_path: Path) -> None:
    image = journaled(kind)
    (tmp_path / "new").write_bytes(b"new content\n" * 700)
    blocks = image.becoming(
        f"write {tmp_path / 'new'} sub/new", "rm file-3", "symlink link sub/new", "sif file-5 mode 0100755", "mkdir dir"
    )
    image.transactions(blocks)
    changed = must_read_as_e2fsck_replays(image)
    assert len(changed) > 5
    with opened(image.path) as fs:
        ours = read_image(fs)
    with opened(image.replayed_by_e2fsck()) as fs:
        assert ours == read_image(fs)
    assert {b"/sub/new", b"/link", b"/dir"} <= ours.keys() and b"/file-3" not in ours
    assert ours[b"/file-5"]["mode"] == 0o755


@kinds
def test_later_transactions_win_and_revoked_blocks_stay(kind: str, journaled: Maker) -> None:
    image = journaled(kind)
    at = image.free
    image.transactions(
        {at: b"old", at + 1: b"revoked later", at + 2: b"revoked, then written again", at + 3: b"kept"},
        {at + 1, at + 2},
        {at: b"new", at + 2: b"written again"},
    )
    assert must_read_as_e2fsck_replays(image) == {at, at + 2, at + 3}
    with opened(image.path) as fs:
        assert fs.block(at).startswith(b"new") and fs.block(at + 2).startswith(b"written again")


@kinds
def test_a_block_that_looks_like_the_journal_is_given_back_whole(kind: str, journaled: Maker) -> None:
    """Such blocks are escaped; here both a free one and one of a file's (as with data=journal)."""
    image = journaled(kind)
    (block, *_) = (int(word) for word in run(["debugfs", "-R", "blocks /file-1", image.path]).stdout.split())
    content = MAGIC + b"looks like the journal"
    image.transactions({image.free: MAGIC * 3, block: content, image.free + 1: b"plain"})
    assert must_read_as_e2fsck_replays(image) == {image.free, image.free + 1, block}
    with opened(image.path) as fs:
        inode = next(fs.inode(entry.inode) for entry in fs.root().entries() if entry.name == b"file-1")
        first, *_ = inode.extents()
        assert inode.read(0, len(content)) == content
        assert inode.read(2, 5) == content[2:7]
        assert first.disk != block * image.block_size
        assert fs.read(first.disk, len(content)) == content  # a second way to the same bytes


def test_a_file_half_of_which_is_newer_in_the_journal(journaled: Maker) -> None:
    image = journaled()
    blocks = [int(word) for word in run(["debugfs", "-R", "blocks /file-25", image.path]).stdout.split()]
    assert len(blocks) > 1
    image.transactions({blocks[1]: b"newer"})
    with opened(image.path) as fs:
        inode = next(fs.inode(entry.inode) for entry in fs.root().entries() if entry.name == b"file-25")
        extents = inode.extents()
        content = inode.read()
    whole = (b"25\n" * 600).ljust(2048, b"\0")
    assert content == (whole[:1024] + b"newer".ljust(1024, b"\0"))[: len(content)]
    assert [extent.offset for extent in extents] == [0, 1024]
    assert sum(extent.length for extent in extents) == inode.size


@kinds
def test_a_transaction_without_its_commit_is_left_out(kind: str, journaled: Maker, tmp_path: Path) -> None:
    image = journaled(kind)
    (tmp_path / "lost").write_bytes(b"lost".ljust(image.block_size))
    image.transactions({image.free: b"kept"}, f"jw -b {image.free + 1} -c {tmp_path / 'lost'}")
    assert must_read_as_e2fsck_replays(image) == {image.free}


@pytest.mark.parametrize("kind", ["plain", "v3", "plain, 4K, ext3"])
@pytest.mark.parametrize("shift", [1, 3, 7, -2])
def test_a_log_that_goes_round_its_end(kind: str, shift: int, journaled: Maker) -> None:
    """The same log, turned: it begins near the end of the journal, and goes on at its first block."""
    image = journaled(kind)
    at = image.free
    image.transactions({at: b"one", at + 1: MAGIC}, {at + 1}, {at: b"two", at + 2: MAGIC})
    turn(image, shift)
    assert must_read_as_e2fsck_replays(image) == {at, at + 2}


def turn(image: Journaled, shift: int) -> None:
    """Move every block of the log `shift` places towards the journal's end from a start at its last block."""
    places = image.journal_blocks()
    head = bytearray(image.block(places[0]))
    length, first = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    ring = length - first
    old = [image.block(place) for place in places]
    with image.path.open("r+b") as file:
        for number in range(ring):
            file.seek(places[first + (number - shift) % ring] * image.block_size)
            file.write(old[first + number])
    rewrite_head(image, 28, (first + (-shift) % ring).to_bytes(4, "big"))


def rewrite_head(image: Journaled, offset: int, data: bytes) -> None:
    """Change a field of the journal's superblock, its checksum kept right."""
    place = image.journal_blocks()[0]
    head = bytearray(image.block(place)[:1024])
    head[offset : offset + len(data)] = data
    if int.from_bytes(head[40:44], "big") & 0x18:
        head[252:256] = bytes(4)
        head[252:256] = (google_crc32c.value(bytes(head)) ^ 0xFFFFFFFF).to_bytes(4, "big")
    image.put(place * image.block_size, bytes(head))


def test_the_superblock_itself_may_be_in_the_journal(journaled: Maker) -> None:
    image = journaled()
    blocks = image.becoming("ssv volume_name renamed")
    image.transactions(blocks)
    with opened(image.path) as fs:
        assert fs.superblock.label == "renamed"
        assert fs.replayed


def test_a_journal_with_nothing_in_it_changes_nothing(journaled: Maker) -> None:
    image = journaled()
    with opened(image.path) as fs:
        before = read_image(fs)
    image.debugfs("feature needs_recovery")
    with opened(image.path) as fs:
        assert not fs.replayed
        assert read_image(fs) == before


def test_a_journal_that_nobody_asks_to_replay_is_left_alone(journaled: Maker) -> None:
    image = journaled()
    image.transactions({image.free: b"never"})
    image.debugfs("feature -needs_recovery")
    with opened(image.path) as fs:
        assert not fs.replayed
        assert not fs.block(image.free).startswith(b"never")


# ---------------------------------------------------------------- refused


def two(journaled: Maker, kind: str = "v3") -> Journaled:
    image = journaled(kind)
    return image.transactions({image.free: b"first"}, {image.free + 3}, {image.free + 1: b"second"})


def refuse(image: Journaled, match: str) -> None:
    with pytest.raises(FormatError, match=match), opened(image.path) as fs:
        fs.root()


@pytest.mark.parametrize("kind", ["v2", "v3"])
@pytest.mark.parametrize(
    ("block", "match"),
    [(1, "transaction 1 "), (2, "copy of block"), (3, "transaction 1 "), (4, "transaction 2 "), (5, "transaction 2 ")],
    ids=["descriptor", "data", "commit", "revoke", "commit of the revoke"],
)
def test_a_wrong_checksum(kind: str, block: int, match: str, journaled: Maker) -> None:
    """Of a block of each kind; e2fsck finds fault with the same ones."""
    image = two(journaled, kind)
    place = image.journal_blocks()[block]
    data = bytearray(image.block(place))
    data[20] ^= 1
    image.put(place * image.block_size, bytes(data))
    assert re.search(r"Journal checksum error found|was corrupt", image.e2fsck()[1])
    refuse(image, f"{match}.*checksum")


def test_the_last_transaction_cut_off_by_an_older_log_is_no_damage(journaled: Maker) -> None:
    image = two(journaled)
    image.put(image.journal_blocks()[8] * image.block_size, b"not a block of a log")
    with opened(image.path) as fs:
        assert fs.block(image.free).startswith(b"first")
        assert not fs.block(image.free + 1).startswith(b"second")


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (0, 7, "has no superblock"),
        (4, 9, "has no superblock"),
        (12, 2048, "claims blocks"),
        (16, 1 << 24, "claims blocks"),
        (20, 0, "claims blocks"),
        (20, 1 << 30, "claims blocks"),
        (28, 1 << 20, "begins at block"),
        (40, 0x13 | 1 << 12, "features that can't be read: 0x1000"),
        (44, 1, "features that can't be read"),
        (40, 0x1B, "checksums of two versions"),
        (36, 1, "checksums of two versions"),
        (80, 1 << 24, "checksums of kind 1"),
    ],
)
def test_a_broken_superblock_of_the_journal(offset: int, value: int, match: str, journaled: Maker) -> None:
    image = two(journaled)
    rewrite_head(image, offset, value.to_bytes(4, "big"))
    refuse(image, match)


def test_the_superblock_of_the_journal_has_a_checksum(journaled: Maker) -> None:
    image = two(journaled)
    image.put(image.journal_blocks()[0] * image.block_size + 100, b"\1")
    refuse(image, "superblock of its journal does not match")


def test_an_external_journal(journaled: Maker) -> None:
    image = two(journaled)
    image.debugfs("ssv journal_inum 0")
    refuse(image, "on another device")


@pytest.mark.parametrize("inode", [2, 10])
def test_a_journal_that_is_no_file(inode: int, journaled: Maker) -> None:
    image = two(journaled)
    image.debugfs(f"ssv journal_inum {inode}")
    refuse(image, "ext4 file system")


def handmade(image: Journaled, blocks: Sequence[bytes]) -> None:
    """Put blocks at the log's beginning."""
    for place, data in zip(image.journal_blocks()[1:], blocks, strict=False):
        image.put(place * image.block_size, data.ljust(image.block_size, b"\0"))


def header(kind: int, sequence: int = 1) -> bytes:
    return MAGIC + kind.to_bytes(4, "big") + sequence.to_bytes(4, "big")


def commit(sequence: int = 1) -> bytes:
    return header(2, sequence)


def tag(block: int, flags: int) -> bytes:
    """With 32 bits, without a checksum."""
    return block.to_bytes(4, "big") + bytes(2) + flags.to_bytes(2, "big") + bytes(0 if flags & 2 else 16)


@pytest.fixture
def bare(journaled: Maker) -> Journaled:
    """One whose journal has no checksums and 32 bits, so that it can be written by hand."""
    image = journaled("plain, 32 bits")
    return image.transactions({image.free: b"x"})


def test_a_handmade_log_is_read(bare: Journaled) -> None:
    handmade(bare, [header(1) + tag(bare.free, 0) + tag(bare.free + 1, 10), b"one", b"two", commit()])
    assert must_read_as_e2fsck_replays(bare) == {bare.free, bare.free + 1}


def test_a_log_of_revoke_blocks_only_comes_to_an_end(bare: Journaled) -> None:
    """All of one transaction, all around the ring: a reader that waits for the commit would go round for ever."""
    count = len(bare.journal_blocks())
    handmade(bare, [header(5) + (16).to_bytes(4, "big")] * count)
    with opened(bare.path) as fs:
        assert not fs.replayed


def test_a_block_outside_of_the_file_system(bare: Journaled) -> None:
    handmade(bare, [header(1) + tag(0x7FFFFFFF, 8), b"one", commit()])
    refuse(bare, "block 2147483647, which is not one")


def test_a_block_of_the_journal_itself(bare: Journaled) -> None:
    handmade(bare, [header(1) + tag(bare.journal_blocks()[2], 8), b"one", commit()])
    refuse(bare, "which is not one of the file system's")


def test_a_revoke_block_that_is_longer_than_it_is(bare: Journaled) -> None:
    handmade(bare, [header(5) + (5000).to_bytes(4, "big"), commit()])
    refuse(bare, "revoke block with 5000 bytes")


def test_a_journal_that_makes_it_another_file_system(bare: Journaled) -> None:
    head = bytearray(bare.block(1))
    head[104:120] = b"another uuid...."
    handmade(bare, [header(1) + tag(1, 8), bytes(head), commit()])
    with pytest.raises(FormatError, match=r"superblock"), opened(bare.path):
        pass


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_gives_a_sentence_or_a_file_system(seed: int, journaled: Maker) -> None:
    """Bits flipped in the log's blocks and in its head: nothing but FormatError comes out."""
    chance = random.Random(seed)
    image = two(journaled, chance.choice(["plain", "plain, 32 bits", "v2"]))
    places = image.journal_blocks()[:9]
    whole = image.path.read_bytes()
    refused = 0
    for _ in range(60):
        for _ in range(chance.choice([1, 1, 2, 5])):
            at = chance.choice(places) * image.block_size + chance.choice(
                [chance.randrange(64), chance.randrange(1024)]
            )
            image.put(at, bytes([chance.randrange(256)]))
        try:
            with opened(image.path) as fs:
                list(fs.walk())
        except FormatError as error:
            assert str(error)
            refused += 1
        fd = os.open(image.path, os.O_WRONLY)
        try:
            for place in places:
                at = place * image.block_size
                os.pwrite(fd, whole[at : at + image.block_size], at)
        finally:
            os.close(fd)
    assert 0 < refused < 60
    with opened(image.path) as fs:
        assert isinstance(fs, Ext4) and fs.replayed
