"""Where a file's content lies: ext4's extent trees, and ext2's maps of direct and indirect blocks.

Linux: fs/ext4/extents.c (ext4_ext_check), indirect.c. Both are read to the end of the file and no further, so blocks
that were preallocated behind it don't show. Unwritten extents are holes, as the kernel reads them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from netbootd.formats.ext4.checksum import crc32c, stored
from netbootd.formats.ext4.faults import damaged, unsupported

if TYPE_CHECKING:
    from netbootd.formats.ext4.claims import BlockClaims
    from netbootd.formats.ext4.filesystem import Ext4
    from netbootd.formats.ext4.inode import Inode

_MAGIC = 0xF30A
_MAX_DEPTH = 5
_MAX_PIECES = (
    500_000  # runs, and blocks of the tree, 300 bytes of memory each; a 2 GiB file of single blocks has 262,144
)
_UNWRITTEN = 32768
_HEADER = struct.Struct("<HHHH4x")
_LEAF = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIH2x")
_FLAG_EXTENTS = 0x80000


class Extent(NamedTuple):
    """`length` bytes of a file from `offset` on; `disk` is where they lie in the partition, None for a hole."""

    offset: int
    length: int
    disk: int | None


class _Run(NamedTuple):
    """`length` blocks of a file from block `logical` on; `physical` is the first one's place, 0 for unwritten ones."""

    logical: int
    length: int
    physical: int


def extents(fs: Ext4, inode: Inode, claims: BlockClaims | None = None) -> list[Extent]:
    """The whole of a file, holes included, clipped to its size. See `Inode.extents`."""
    block_size = fs.superblock.block_size
    if inode.size > block_size << 32:
        raise damaged(f"inode {inode.number} has {inode.size} bytes, more than ext4 can map")
    nodes: set[int] = set()
    if inode.flags & _FLAG_EXTENTS:
        runs = _extent_tree(fs, inode, nodes)
    else:
        runs = _block_map(fs, inode, nodes)
    _check_overlaps(inode, runs, nodes)
    if claims is not None:
        for node in nodes:
            claims.claim(node, 1, inode.number)
        for run in runs:
            if run.physical:
                claims.claim(run.physical, run.length, inode.number)
    return _clip(fs, inode.size, runs)


def _check_overlaps(inode: Inode, runs: list[_Run], nodes: set[int]) -> None:
    """No block may be in a file twice, nor be a part of its tree as well."""
    if len(runs) + len(nodes) < 2:
        return
    places = [(run.physical, run.length) for run in runs if run.physical]
    places += [(node, 1) for node in nodes]
    places.sort()
    end = 0
    for first, count in places:
        if first < end:
            raise damaged(f"inode {inode.number} holds block {first} twice")
        end = first + count


def _clip(fs: Ext4, size: int, runs: list[_Run]) -> list[Extent]:
    block_size = fs.superblock.block_size
    out: list[Extent] = []
    reached = 0
    for logical, count, physical in runs:
        if not physical:
            continue
        start = logical * block_size
        if start >= size:
            break
        if start > reached:
            out.append(Extent(reached, start - reached, None))
        reached = min(start + count * block_size, size)
        out.append(Extent(start, reached - start, physical * block_size))
    if reached < size:
        out.append(Extent(reached, size - reached, None))
    return fs.moved(out)


def _check_room(inode: Inode, runs: list[_Run], nodes: set[int]) -> None:
    if len(runs) > _MAX_PIECES or len(nodes) > _MAX_PIECES:
        raise unsupported(
            f"inode {inode.number} lies in more than {_MAX_PIECES} pieces", "Make the image anew, less fragmented."
        )


def _extent_tree(fs: Ext4, inode: Inode, nodes: set[int]) -> list[_Run]:
    runs: list[_Run] = []
    depth = _header(inode, inode.area, None)[2]
    if depth > _MAX_DEPTH:
        raise damaged(f"the extent tree of inode {inode.number} is {depth} levels deep")
    _extent_node(fs, inode, inode.area, depth, nodes, runs)
    return runs


def _header(inode: Inode, node: bytes, depth: int | None) -> tuple[int, int, int]:
    """How many entries a node has, how many it has room for, and its height above the leaves."""
    magic, entries, room, found = _HEADER.unpack_from(node)
    if magic != _MAGIC or entries > room or 12 + room * 12 > len(node) or (depth is not None and found != depth):
        raise damaged(f"inode {inode.number} has a broken node in its extent tree")
    return entries, room, found


def _extent_node(fs: Ext4, inode: Inode, node: bytes, depth: int, nodes: set[int], runs: list[_Run]) -> None:
    """Append the runs of a node and of everything below it."""
    entries = _header(inode, node, depth)[0]
    total = fs.superblock.blocks_count
    first_block = fs.superblock.first_data_block
    if depth == 0:
        after = runs[-1].logical + runs[-1].length if runs else 0
        for index in range(entries):
            logical, count, high, low = _LEAF.unpack_from(node, 12 + index * 12)
            physical = low | high << 32
            written = count <= _UNWRITTEN
            if not written:
                count -= _UNWRITTEN
            if not count or logical < after or physical <= first_block or physical + count > total:
                raise damaged(f"inode {inode.number} has a broken extent: {count} blocks at {physical}")
            runs.append(_Run(logical, count, physical if written else 0))
            after = logical + count
        if after > 1 << 32:
            raise damaged(f"inode {inode.number} has an extent beyond the last block that a file can have")
        _check_room(inode, runs, nodes)
        return
    previous = -1
    for index in range(entries):
        logical, low, high = _INDEX.unpack_from(node, 12 + index * 12)
        block = low | high << 32
        if logical <= previous or not first_block < block < total or block in nodes:
            raise damaged(f"inode {inode.number} has a broken or looping index in its extent tree: block {block}")
        previous = logical
        nodes.add(block)
        before = len(runs)
        _extent_node(fs, inode, _tree_block(fs, inode, block), depth - 1, nodes, runs)
        if len(runs) > before and runs[before].logical < logical:
            raise damaged(f"inode {inode.number} has extents in the wrong branch of its tree")


def _tree_block(fs: Ext4, inode: Inode, block: int) -> bytes:
    """A node of the tree, its checksum verified."""
    node = fs.block(block)
    if fs.superblock.metadata_csum:
        tail = 12 + _header(inode, node, None)[1] * 12
        if tail + 4 > len(node):
            raise damaged(f"inode {inode.number} has no room for a checksum in the extent block {block}")
        if stored(crc32c(inode.seed, node[:tail])) != int.from_bytes(node[tail : tail + 4], "little"):
            raise damaged(f"the extent block {block} of inode {inode.number} does not match its checksum")
    return node


def _block_map(fs: Ext4, inode: Inode, nodes: set[int]) -> list[_Run]:
    block_size = fs.superblock.block_size
    walk = _MapWalk(fs, inode, nodes, -(-inode.size // block_size))
    pointers = struct.unpack("<15I", inode.area)
    walk.data(pointers[:12])
    for level, pointer in enumerate(pointers[12:], start=1):
        walk.tree(pointer, level)
    return walk.runs


class _MapWalk:
    """Goes through a block map up to the file's last block and gathers runs."""

    __slots__ = ("_fs", "_inode", "_nodes", "_per_block", "_reached", "_wanted", "runs")

    def __init__(self, fs: Ext4, inode: Inode, nodes: set[int], wanted: int) -> None:
        self._fs = fs
        self._inode = inode
        self._nodes = nodes
        self._wanted = wanted  # blocks, by the file's size
        self._reached = 0
        self._per_block = fs.superblock.block_size // 4
        self.runs: list[_Run] = []

    def data(self, pointers: tuple[int, ...]) -> None:
        """Take a row of pointers to data."""
        total = self._fs.superblock.blocks_count
        first_block = self._fs.superblock.first_data_block
        logical = self._reached
        self._reached += len(pointers)
        start = count = physical = 0  # the run being gathered
        for block in pointers[: max(0, self._wanted - logical)]:
            if count and block == physical + count:
                count += 1
            else:
                if count:
                    self.runs.append(_Run(start, count, physical))
                start, count, physical = logical, 1 if block else 0, block
            if block and not first_block < block < total:
                raise damaged(f"inode {self._inode.number} points to block {block}, outside the file system")
            logical += 1
        if count:
            self.runs.append(_Run(start, count, physical))
        _check_room(self._inode, self.runs, self._nodes)

    def tree(self, block: int, level: int) -> None:
        """Take the pointer to an indirect block of a level: 1 for one whose pointers are data."""
        span = self._per_block**level
        if not block or self._reached >= self._wanted:
            self._reached += span
            return
        total = self._fs.superblock.blocks_count
        if not self._fs.superblock.first_data_block < block < total or block in self._nodes:
            raise damaged(f"inode {self._inode.number} has a broken or looping indirect block: {block}")
        self._nodes.add(block)
        pointers = struct.unpack(f"<{self._per_block}I", self._fs.block(block))
        if level == 1:
            self.data(pointers)
            return
        for pointer in pointers:
            self.tree(pointer, level - 1)
