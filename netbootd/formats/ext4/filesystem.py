"""An ext4 file system in a window: where its metadata lies, seen as it is once the journal has been replayed.

A journal that an unclean end left behind is replayed in memory: blocks that it holds in newer form are read from it,
and the image stays as it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from netbootd.formats.ext4 import journal
from netbootd.formats.ext4.claims import BlockClaims
from netbootd.formats.ext4.extents import Extent
from netbootd.formats.ext4.faults import damaged, unsupported
from netbootd.formats.ext4.groups import Groups
from netbootd.formats.ext4.inode import Inode, Kind
from netbootd.formats.ext4.superblock import (
    COMPAT_HAS_JOURNAL,
    INCOMPAT_RECOVER,
    OFFSET,
    RO_COMPAT_SHARED_BLOCKS,
    SIZE,
    parse_superblock,
)
from netbootd.formats.ext4.walk import Entry, walk
from netbootd.formats.window import Window

ROOT = 2
"""The number of the top directory's inode."""

_CHUNK = 32768  # bytes of an inode table that are read at once
_CHUNKS = 128  # of which so many are kept


class Ext4:
    """An ext2, ext3 or ext4 file system. Reading is on demand; 4 MiB of inode tables are kept.

    `window` is the partition as it lies in the image, `superblock` the checked superblock, `replayed` whether blocks
    come from the journal: then `read` tells what the image's bytes alone would not.

    :raises FormatError: no ext4, a damaged superblock or journal, or a feature that can't be read
    """

    __slots__ = ("_chunks", "_groups", "_log", "_logged", "_per_chunk", "superblock", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self._log: journal.Replay | None = None
        self._logged: list[int] = []
        if window.size < OFFSET + SIZE:
            raise unsupported(
                f"a partition of {window.size} bytes is too small for one", "The partition holds something else."
            )
        self._load()
        if self.superblock.incompat & INCOMPAT_RECOVER:
            self._replay()

    def _load(self) -> None:
        self.superblock = parse_superblock(self.read(OFFSET, SIZE), self.window.size)
        self._groups = Groups(self, self.superblock)
        self._chunks: dict[tuple[int, int], bytes] = {}
        self._per_chunk = max(1, _CHUNK // self.superblock.inode_size)

    def _replay(self) -> None:
        before = self.superblock
        log = journal.replay(self)
        if not log.places:
            return
        self._log = log
        self._logged = sorted(log.places)
        self._load()  # the superblock, the group descriptors and the inodes may be among the blocks
        if self.superblock.block_size != before.block_size or self.superblock.uuid != before.uuid:
            raise damaged("the journal holds the superblock of another file system")

    @property
    def replayed(self) -> bool:
        """Whether the journal holds newer blocks, so that `read` differs from the window."""
        return self._log is not None

    @property
    def used_bytes(self) -> int:
        """What is in use, files and metadata, by the superblock's own count: about the room that the files need."""
        return self.superblock.used_blocks * self.superblock.block_size

    def claims(self) -> BlockClaims:
        """A new record of who owns which block, with what belongs to the file system itself taken.

        :raises FormatError: its own parts overlap
        """
        sb = self.superblock
        claims = BlockClaims(sb.blocks_count, exclusive=not sb.ro_compat & RO_COMPAT_SHARED_BLOCKS)
        length = -(-sb.inodes_per_group * sb.inode_size // sb.block_size)
        for group in range(sb.group_count):
            claims.reserve(self._groups.inode_table(group), length, f"the inode table of group {group}")
        if sb.compat & COMPAT_HAS_JOURNAL and sb.journal_inum:
            self.inode(sb.journal_inum).extents(claims)
        return claims

    # ---------------------------------------------------------------- blocks

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` of the partition, as a replay of the journal would have left them.

        :raises FormatError: the range leaves the partition
        """
        log = self._log
        if log is None:
            return self.window.read(offset, length)
        size = self.superblock.block_size
        first, end = offset // size, -(-(offset + length) // size)
        if not log.touches(first, end, self._logged):
            return self.window.read(offset, length)
        last = min(end * size, self.window.size)  # a partition may end within a block that the file system lacks
        data = bytearray(self.window.read(first * size, max(last, offset + length) - first * size))
        for block in range(first, end):
            at = (block - first) * size
            place = log.places.get(block)
            if place is not None:
                data[at : at + size] = self.window.read(place * size, size)
            if (block if place is None else place) in log.escaped:
                data[at : at + 4] = journal.MAGIC_BYTES
        return bytes(data[offset - first * size : offset - first * size + length])

    def block(self, number: int) -> bytes:
        """A whole block.

        :raises FormatError: it lies outside the file system
        """
        if not 0 <= number < self.superblock.blocks_count:
            raise damaged(f"block {number} lies outside of its {self.superblock.blocks_count} blocks")
        size = self.superblock.block_size
        return self.read(number * size, size)

    def moved(self, extents: list[Extent]) -> list[Extent]:
        """The same extents, with what the journal holds in newer form pointing there.

        The journal keeps an escaped block without its first four bytes: `read` gives those back.
        """
        if self._log is None:
            return extents
        size = self.superblock.block_size
        out: list[Extent] = []
        for extent in extents:
            if extent.disk is None:
                out.append(extent)
                continue
            at = 0  # bytes of this extent that are done
            index = bisect_left(self._logged, extent.disk // size)
            while index < len(self._logged) and self._logged[index] * size < extent.disk + extent.length:
                home = self._logged[index]
                start = home * size - extent.disk
                if start > at:
                    out.append(Extent(extent.offset + at, start - at, extent.disk + at))
                at = min(start + size, extent.length)
                out.append(Extent(extent.offset + start, at - start, self._log.places[home] * size))
                index += 1
            if at < extent.length:
                out.append(Extent(extent.offset + at, extent.length - at, extent.disk + at))
        return out

    # ---------------------------------------------------------------- inodes

    def inode(self, number: int) -> Inode:
        """An inode that is in use.

        :raises FormatError: there is no such inode, or it is damaged or free
        """
        sb = self.superblock
        if not 1 <= number <= sb.inodes_count:
            raise damaged(f"inode {number} lies outside of its {sb.inodes_count} inodes")
        group, index = divmod(number - 1, sb.inodes_per_group)
        chunk, index = divmod(index, self._per_chunk)
        data = self._chunks.get((group, chunk))
        if data is None:
            data = self._read_chunk(group, chunk)
        at = index * sb.inode_size
        return Inode(self, number, data[at : at + sb.inode_size])

    def _read_chunk(self, group: int, chunk: int) -> bytes:
        sb = self.superblock
        first = chunk * self._per_chunk
        count = min(self._per_chunk, sb.inodes_per_group - first)
        offset = self._groups.inode_table(group) * sb.block_size + first * sb.inode_size
        data = self.read(offset, count * sb.inode_size)
        if len(self._chunks) >= _CHUNKS:
            del self._chunks[next(iter(self._chunks))]  # the oldest
        self._chunks[group, chunk] = data
        return data

    # ---------------------------------------------------------------- names

    def root(self) -> Inode:
        """The top directory.

        :raises FormatError: it is damaged, or no directory
        """
        inode = self.inode(ROOT)
        if inode.kind is not Kind.DIR:
            raise damaged(f"the top directory is a {inode.kind}")
        return inode

    def walk(self) -> Iterator[Entry]:
        """Every name, directories before what is in them. See `netbootd.formats.ext4.walk`.

        :raises FormatError: anything that is broken or hostile, before the entry that is concerned is yielded
        """
        return walk(self)
