"""The journal (JBD2) of a file system that was not unmounted: which blocks it holds in newer form, nothing written.

Linux: fs/jbd2/recovery.c (do_one_pass), journal.c (journal_load_superblock) and include/linux/jbd2.h. As there, three
passes: find the last transaction that was committed, gather the revoke records, take the blocks. Tags with 32 and 64
bits and of checksum versions 2 and 3, the whole-transaction checksum of version 1, escaped blocks. Left out, and
refused by name: external journals and fast commits.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from construct import Bytes, Int8ub, Int32ub, Padding, Struct

from netbootd.formats.ext4.checksum import crc32c, stored
from netbootd.formats.ext4.faults import damaged, unsupported

if TYPE_CHECKING:
    from netbootd.formats.ext4.filesystem import Ext4

_MAGIC = 0xC03B3998
MAGIC_BYTES = _MAGIC.to_bytes(4, "big")
_DESCRIPTOR, _COMMIT, _SUPERBLOCK_1, _SUPERBLOCK_2, _REVOKE = 1, 2, 3, 4, 5
_HEADER = struct.Struct(">III")

_COMPAT_CHECKSUM = 0x1
_REVOKES, _WIDE, _ASYNC, _CSUM2, _CSUM3, _FAST = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
_KNOWN = _REVOKES | _WIDE | _ASYNC | _CSUM2 | _CSUM3 | _FAST
_ESCAPED, _SAME_UUID, _LAST = 0x1, 0x2, 0x8
_FAST_BLOCKS = 256  # where the superblock does not say how many
_FAST_HEAD = 9

MAX_LOGGED = 1 << 20  # blocks: the mapping of so many takes 150 MB, and a Pi's journal has 16,384

_SUPERBLOCK = Struct(
    "magic" / Int32ub,
    "blocktype" / Int32ub,
    Padding(4),
    "blocksize" / Int32ub,
    "maxlen" / Int32ub,
    "first" / Int32ub,
    "sequence" / Int32ub,
    "start" / Int32ub,
    Padding(4),
    "compat" / Int32ub,
    "incompat" / Int32ub,
    "ro_compat" / Int32ub,
    "uuid" / Bytes(16),
    Padding(16),
    "checksum_type" / Int8ub,
    Padding(3),
    "fast_blocks" / Int32ub,
    Padding(164),
    "checksum" / Int32ub,
).compile()


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay would write: `places` leads from a block to the block in the journal that holds its newest form.

    Those places that are in `escaped` lack their first four bytes, MAGIC_BYTES, which would have looked like a part of
    the journal.
    """

    places: dict[int, int]
    escaped: frozenset[int]

    def touches(self, first: int, end: int, logged: list[int]) -> bool:
        """Whether blocks from `first` up to `end` are other than they lie; `logged` are the sorted keys of `places`."""
        index = bisect_left(logged, first)
        if index < len(logged) and logged[index] < end:
            return True
        return bool(self.escaped) and any(block in self.escaped for block in range(first, end))


def replay(fs: Ext4) -> Replay:
    """What the journal of `fs`, which asks for recovery, holds.

    :raises FormatError: it is damaged, lies elsewhere, or uses features that can't be read
    """
    sb = fs.superblock
    if not sb.journal_inum:
        raise unsupported(
            "it was not unmounted, and its journal is on another device",
            "Run e2fsck where both are, or make the image of a file system that was unmounted.",
        )
    log = _Log(fs)
    return log.replay() if log.start else Replay({}, frozenset())


class _Record(NamedTuple):
    """A descriptor or revoke block: its kind, place in the log, and transaction, counted from the log's first."""

    kind: int
    at: int
    transaction: int


class _Log:
    """The log as its superblock describes it."""

    def __init__(self, fs: Ext4) -> None:
        """:raises FormatError: the superblock is damaged, or asks for what can't be read"""
        self._fs = fs
        self._size = fs.superblock.block_size
        self._places = self._map()
        head = self._block(0)[:1024]
        raw: Any = _SUPERBLOCK.parse(head)
        if raw.magic != _MAGIC or raw.blocktype not in (_SUPERBLOCK_1, _SUPERBLOCK_2):
            raise damaged("it needs recovery, but its journal has no superblock")
        new = raw.blocktype == _SUPERBLOCK_2
        self._compat = raw.compat if new else 0
        self._incompat = raw.incompat if new else 0
        self._check_features(raw.ro_compat if new else 0)
        self._csum = bool(self._incompat & (_CSUM2 | _CSUM3))
        if self._csum and raw.checksum_type != 4:
            raise unsupported(f"its journal has checksums of kind {raw.checksum_type}", "Kind 4, crc32c, can be read.")
        if self._csum and stored(crc32c(0, head[:252] + bytes(4) + head[256:])) != raw.checksum:
            raise damaged("the superblock of its journal does not match its checksum")
        self._seed = crc32c(0, raw.uuid)
        fast = (raw.fast_blocks or _FAST_BLOCKS) if self._incompat & _FAST else 0
        self._first: int = raw.first
        self._end: int = raw.maxlen - fast
        self._sequence: int = raw.sequence
        self.start: int = raw.start
        if raw.blocksize != self._size or raw.maxlen > len(self._places) or not 0 < self._first < self._end:
            raise damaged(f"its journal claims blocks {raw.first} to {raw.maxlen} of {raw.blocksize} bytes")
        if self.start and not self._first <= self.start < self._end:
            raise damaged(f"its journal begins at block {self.start} of {self._end}")

    def _map(self) -> list[int]:
        """The blocks of the journal's inode."""
        inode = self._fs.inode(self._fs.superblock.journal_inum)
        if inode.kind != "file" or inode.size > MAX_LOGGED * self._size:
            raise unsupported(
                f"its journal is a {inode.kind} of {inode.size} bytes", f"Up to {MAX_LOGGED} blocks can be read."
            )
        blocks: list[int] = []
        for _, length, disk in inode.extents():
            if disk is None:
                raise damaged("its journal has a hole")
            blocks += range(disk // self._size, (disk + length) // self._size)
        if not blocks:
            raise damaged("it needs recovery, but its journal is empty")
        return blocks

    def _check_features(self, ro_compat: int) -> None:
        unknown = self._incompat & ~_KNOWN
        if unknown or ro_compat:
            raise unsupported(
                f"its journal uses features that can't be read: {unknown:#x} and {ro_compat:#x}",
                "Run e2fsck on the partition, or mount it once with the kernel that wrote it.",
            )
        kinds = [self._incompat & _CSUM2, self._incompat & _CSUM3, self._compat & _COMPAT_CHECKSUM]
        if sum(map(bool, kinds)) > 1:
            raise damaged("its journal claims checksums of two versions")

    def _block(self, at: int) -> bytes:
        return self._fs.window.read(self._places[at] * self._size, self._size)

    def _forward(self, at: int, count: int = 1) -> int:
        """The place `count` blocks further on: behind the last one comes the first."""
        return self._first + (at - self._first + count) % (self._end - self._first)

    # ---------------------------------------------------------------- the three passes

    def replay(self) -> Replay:
        records = self._scan()
        revoked: dict[int, int] = {}
        for record in records:
            if record.kind == _REVOKE:
                for block in self._revocations(record):
                    revoked[block] = record.transaction  # the last one counts
        own = set(self._places)
        total = self._fs.window.size // self._size
        places: dict[int, int] = {}
        escaped: set[int] = set()
        for record in records:
            if record.kind != _DESCRIPTOR:
                continue
            data = self._block(record.at)
            for step, (block, flags, checksum) in enumerate(self._tags(data), start=1):
                if revoked.get(block, -1) >= record.transaction:
                    continue
                at = self._forward(record.at, step)
                self._check_data(record, at, block, checksum)
                if block >= total or block in own:
                    raise damaged(f"its journal has a block {block}, which is not one of the file system's")
                places[block] = self._places[at]
                if flags & _ESCAPED:
                    escaped.add(self._places[at])
        return Replay(places, frozenset(escaped.intersection(places.values())))

    def _scan(self) -> list[_Record]:
        """The descriptor and revoke blocks of all transactions that were committed.

        What lies behind the last commit is an interrupted transaction or an older round of the log. A block whose
        checksum is wrong is that too, unless a later commit follows: commit times tell.
        """
        records: list[_Record] = []
        committed = complete = transaction = 0  # records, and transactions, of which those with a right commit
        broken = False  # an asynchronous commit that was not completed: the end, unless another one follows
        suspect = False
        last_time = 0
        checksum = _Checksum()
        at = self.start
        left = self._end - self._first
        while True:
            data = self._block(at)
            magic, kind, sequence = _HEADER.unpack_from(data)
            if magic != _MAGIC or sequence != self._sequence + transaction & 0xFFFFFFFF:
                break
            steps = 1
            if kind == _DESCRIPTOR:
                suspect = suspect or not self._tail_is_right(data)
                records.append(_Record(kind, at, transaction))
                tags = sum(1 for _ in self._tags(data))
                steps += tags
                if self._compat & _COMPAT_CHECKSUM and steps <= left:
                    checksum.add(data)
                    for step in range(1, steps):
                        checksum.add(self._block(self._forward(at, step)))
            elif kind == _REVOKE:
                suspect = suspect or not self._tail_is_right(data)
                records.append(_Record(kind, at, transaction))
            elif kind == _COMMIT:
                time = int.from_bytes(data[48:56], "big")
                older = time < last_time
                if broken or (suspect and not older):
                    raise damaged(f"transaction {sequence} of its journal does not match its checksum")
                if suspect:
                    break
                if not self._commit_is_right(data, checksum):
                    if older:
                        break
                    if not self._incompat & _ASYNC:
                        raise damaged(f"transaction {sequence} of its journal does not match its checksum")
                    broken = True
                else:
                    committed, complete, last_time = len(records), transaction + 1, time
                checksum = _Checksum()
                transaction += 1
            else:
                break
            left -= steps
            if left <= 0:
                break  # once around: what follows has been read
            at = self._forward(at, steps)
        self._refuse_fast_commits(self._sequence + complete)
        return records[:committed]

    def _refuse_fast_commits(self, sequence: int) -> None:
        """Fast commits behind the last full one tell in ext4's own words what has changed (fs/ext4/fast_commit.c)."""
        if not self._incompat & _FAST or self._end + 1 >= len(self._places):
            return
        tag, length, _, transaction = struct.unpack_from("<HHII", self._block(self._end + 1))
        if tag == _FAST_HEAD and length >= 8 and transaction == sequence & 0xFFFFFFFF:
            raise unsupported(
                "it was not unmounted, and its journal has fast commits",
                "Mount the image once, or run e2fsck on the partition: both write them back.",
            )

    # ---------------------------------------------------------------- blocks of the log

    def _tags(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """(block, flags, checksum) of each block that follows a descriptor."""
        if self._incompat & _CSUM3:
            size = 16
        else:
            size = 8 + (2 if self._csum else 0) + (4 if self._incompat & _WIDE else 0)
        at, end = 12, len(data) - (4 if self._csum else 0)
        while at + size <= end:
            high = 0
            if self._incompat & _CSUM3:
                low, flags, high, checksum = struct.unpack_from(">IIII", data, at)
            else:
                low, checksum, flags = struct.unpack_from(">IHH", data, at)
                if self._incompat & _WIDE:
                    (high,) = struct.unpack_from(">I", data, at + 8)
            yield low | (high << 32 if self._incompat & _WIDE else 0), flags, checksum
            if flags & _LAST:
                return
            at += size if flags & _SAME_UUID else size + 16

    def _revocations(self, record: _Record) -> Iterator[int]:
        data = self._block(record.at)
        (used,) = struct.unpack_from(">I", data, 12)
        if used > len(data) - (4 if self._csum else 0):
            raise damaged(f"its journal has a revoke block with {used} bytes in {len(data)}")
        size = 8 if self._incompat & _WIDE else 4
        for at in range(16, used - size + 1, size):
            yield int.from_bytes(data[at : at + size], "big")

    def _tail_is_right(self, data: bytes) -> bool:
        """The checksum at the end of a descriptor or revoke block."""
        if not self._csum:
            return True
        return stored(crc32c(self._seed, data[:-4] + bytes(4))) == int.from_bytes(data[-4:], "big")

    def _commit_is_right(self, data: bytes, checksum: _Checksum) -> bool:
        given = int.from_bytes(data[16:20], "big")
        if self._compat & _COMPAT_CHECKSUM:
            kind, size = data[12:14]
            return (kind, size, given) in ((0, 0, 0), (1, 4, checksum.value))
        if not self._csum:
            return True
        whole = data[:16] + bytes(4) + data[20:]
        # Some writers sum only the header, as if zeros followed it.
        return given in (stored(crc32c(self._seed, part)) for part in (whole, whole[:60] + bytes(len(whole) - 60)))

    def _check_data(self, record: _Record, at: int, block: int, checksum: int) -> None:
        """Verify a block by its tag; the checksum covers the transaction's number too."""
        if not self._csum:
            return
        sequence = self._sequence + record.transaction & 0xFFFFFFFF
        right = stored(crc32c(crc32c(self._seed, sequence.to_bytes(4, "big")), self._block(at)))
        if checksum != (right if self._incompat & _CSUM3 else right & 0xFFFF):
            raise damaged(f"the journal's copy of block {block} does not match its checksum")


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Checksum:
    """The kernel's crc32_be over the descriptors and blocks of one transaction.

    It is zlib's CRC-32 with the bits of every byte, and of the result, in the other order.
    """

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = 0

    def add(self, data: bytes) -> None:
        self._state = zlib.crc32(data.translate(_REVERSED), self._state)

    @property
    def value(self) -> int:
        return int(f"{self._state ^ 0xFFFFFFFF:032b}"[::-1], 2)
