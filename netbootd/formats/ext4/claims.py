"""Who owns which block: a second owner means cross-linked files, a loop, or an image that multiplies its own size."""

from __future__ import annotations

from netbootd.formats.ext4.faults import damaged


class BlockClaims:
    """The blocks of one file system that some inode has claimed, and how often shared attribute blocks were used.

    One byte a block, in memory that stays untouched until a block of its page is claimed.
    """

    __slots__ = ("_owned", "_shared", "exclusive")

    def __init__(self, blocks: int, *, exclusive: bool = True) -> None:
        self._owned = bytearray(blocks)
        self._shared: dict[int, int] = {}
        self.exclusive = exclusive  # False with shared_blocks: several files may hold the same block

    def claim(self, first: int, count: int, inode: int) -> None:
        """Take `count` blocks from `first` on for `inode`; they are known to lie in the file system.

        :raises FormatError: one of them is taken
        """
        end = first + count
        if self.exclusive and self._owned.find(1, first, end) >= 0:
            raise damaged(f"inode {inode} has blocks in {first} to {end - 1} that belong to something else too")
        self._owned[first:end] = b"\1" * count

    def reserve(self, first: int, count: int, what: str) -> None:
        """Take `count` blocks from `first` on for the file system itself; `what` names the use.

        :raises FormatError: one of them is taken, which no file system has, shared blocks or not
        """
        end = first + count
        if self._owned.find(1, first, end) >= 0:
            raise damaged(f"{what} lies in blocks {first} to {end - 1}, which belong to something else too")
        self._owned[first:end] = b"\1" * count

    def share(self, block: int, users: int, inode: int) -> None:
        """Count one more user of an attribute block that says it has `users`.

        :raises FormatError: that is one more than it says
        """
        left = self._shared.get(block, users) - 1
        if left < 0:
            raise damaged(f"inode {inode} uses the attribute block {block}, which has {users} users already")
        self._shared[block] = left
