"""Content that lands where it will stay: an image's files are written once, and the image itself never.

ext4 has most inode tables before what the inodes hold. While an image is decoded, the tables that have gone by tell
which bytes of it are whose, and these go straight into files of their own, named after the inodes; all else goes to the
scratch file. That is a guess by tables that nobody has checked, and all that is kept of it is a map: these bytes of the
image lie in that file. By it the image can be read as a whole (`LandedWindow`), whatever the tables said; and once the
file system's reader has told what belongs to a file, `Landed.take` hands the file over if it holds just that.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from netbootd.errors import FormatError, HostError
from netbootd.formats.ext4 import forecast
from netbootd.formats.ext4.extents import Extent
from netbootd.formats.ext4.superblock import OFFSET, SIZE, Superblock, parse_superblock
from netbootd.formats.partitions import Partition, read_table
from netbootd.formats.window import Window
from netbootd.images.decompress.sparse import RESERVE, SparseFile
from netbootd.images.room import check_room

TABLE = 64 << 10
"""Bytes from the image's start that have to be there before its partition table is read."""

_MOST = 500_000  # stretches that are kept in memory, 200 bytes each; an image with more is spread out elsewhere
_TABLES = 4096  # that are followed: 512 GiB in groups of 4 KiB blocks, 32 GiB in groups of 1 KiB blocks
_TOGETHER = 64  # inodes whose files share a folder
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PUT = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_GET = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Stretch(NamedTuple):
    """`length` bytes at `start` of the image, which are at `offset` of the file that is named after `inode`."""

    start: int
    length: int
    inode: int
    offset: int


class _Watch(NamedTuple):
    """What to do once all bytes from `start` to `end` of the image are there."""

    start: int
    end: int
    then: Callable[[], None]


def _end_of(watch: _Watch) -> int:
    return watch.end


def _name(inode: int) -> bytes:
    """Where the content of an inode lands. ext4 makes files in large folders several times more slowly."""
    return b"%d/%d" % (inode // _TOGETHER, inode)


class Landed:
    """Which bytes of an image have landed in files, and the folder of these files, which belongs to this object."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self._path = folder
        self.folder = os.open(folder, _FOLDER)
        self.partition = 0  # where the file system begins whose inodes the files are named after
        self._stretches: list[_Stretch] = []
        self._starts: list[int] | None = None  # of the stretches in order, once they are complete
        self._amounts: dict[int, int] = {}  # bytes that each file has

    @property
    def size(self) -> int:
        """Bytes that have landed."""
        return sum(stretch.length for stretch in self._stretches)

    def close(self) -> None:
        """Remove what has not been taken. May be called twice."""
        if self.folder >= 0:
            os.close(self.folder)
            self.folder = -1
            shutil.rmtree(self._path, ignore_errors=True)

    def put(self, stretch: _Stretch, data: memoryview) -> None:
        """Write a stretch into its file; may be called from several threads.

        :raises OSError: the disk is full, or fails
        """
        name = _name(stretch.inode)
        try:
            fd = os.open(name, _PUT, 0o600, dir_fd=self.folder)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(name.partition(b"/")[0], 0o700, dir_fd=self.folder)
            fd = os.open(name, _PUT, 0o600, dir_fd=self.folder)
        try:
            offset = stretch.offset
            while data:
                count = os.pwrite(fd, data, offset)
                data = data[count:]
                offset += count
        finally:
            os.close(fd)
        self._stretches.append(stretch)

    def complete(self) -> None:
        """Nothing will land any more."""
        self._stretches.sort()
        self._starts = [stretch.start for stretch in self._stretches]
        for stretch in self._stretches:
            self._amounts[stretch.inode] = self._amounts.get(stretch.inode, 0) + stretch.length

    def overlapping(self, start: int, end: int) -> list[_Stretch]:
        """The stretches between two bytes of the image, in order."""
        starts = self._starts
        if not starts:
            return []
        first = max(0, bisect_right(starts, start) - 1)
        if self._stretches[first].start + self._stretches[first].length <= start:
            first += 1
        last = first
        while last < len(starts) and starts[last] < end:
            last += 1
        return self._stretches[first:last]

    def fill(self, start: int, data: bytes) -> bytes:
        """The bytes of the image at `start`, given what the scratch file has there.

        :raises FormatError: a part of them has been taken, as the content of a file: nothing else may have it
        """
        whole = None
        for stretch in self.overlapping(start, start + len(data)):
            first, end = max(start, stretch.start), min(start + len(data), stretch.start + stretch.length)
            whole = bytearray(data) if whole is None else whole
            whole[first - start : end - start] = self._get(stretch, first - stretch.start, end - first)
        return data if whole is None else bytes(whole)

    def _get(self, stretch: _Stretch, skip: int, length: int) -> bytes:
        try:
            fd = os.open(_name(stretch.inode), _GET, dir_fd=self.folder)
        except FileNotFoundError:
            raise FormatError(
                f"Reading the root file system: inode {stretch.inode} and something else have the same blocks.",
                hint="The image is damaged; fetch it again.",
            ) from None
        try:
            data = b""
            while len(data) < length and (more := os.pread(fd, length - len(data), stretch.offset + skip + len(data))):
                data += more
            return data.ljust(length, b"\0")
        finally:
            os.close(fd)

    def take(self, inode: int, extents: list[Extent], name: bytes, above: int) -> list[Extent] | None:
        """Give the file of `inode` its name, if it holds nothing but what belongs there.

        :param extents: where the content lies in the partition, as its reader says
        :param above: a descriptor of the folder in which the name is
        :returns: the extents that have not landed and have to be copied; None where the file was not taken
        :raises OSError: the disk fails
        """
        amount = self._amounts.get(inode)
        if not amount:
            return None
        rest: list[Extent] = []
        for extent in extents:
            if extent.disk is None:
                continue
            start = at = self.partition + extent.disk
            end = start + extent.length
            for stretch in self.overlapping(start, end):
                behind = stretch.start + stretch.length
                fits = stretch.start >= start and behind <= end
                if not fits or stretch.inode != inode or stretch.offset != extent.offset + stretch.start - start:
                    return None
                if stretch.start > at:
                    rest.append(Extent(extent.offset + at - start, stretch.start - at, extent.disk + at - start))
                at = behind
                amount -= stretch.length
            if at < end:
                rest.append(Extent(extent.offset + at - start, end - at, extent.disk + at - start))
        if amount:
            return None  # there is something in it that the reader does not know of
        os.rename(_name(inode), name, src_dir_fd=self.folder, dst_dir_fd=above)
        del self._amounts[inode]
        return rest


class LandedWindow(Window):
    """A window on an image of which parts have landed in files."""

    __slots__ = ("landed",)

    def __init__(self, fd: int, offset: int, size: int, landed: Landed) -> None:
        super().__init__(fd, offset, size)
        self.landed = landed

    @property
    def files(self) -> Landed | None:
        """The files, where this is a window on the file system whose content they hold."""
        return self.landed if self.offset == self.landed.partition else None

    def holds(self, offset: int, length: int) -> bool:
        """As `Window.holds`: not what has landed."""
        start = self.offset + offset
        return super().holds(offset, length) and not self.landed.overlapping(start, start + length)

    def read(self, offset: int, length: int) -> bytes:
        """As `Window.read`.

        :raises FormatError: see `Landed.fill`, too
        """
        return self.landed.fill(self.offset + offset, super().read(offset, length))

    def sub(self, offset: int, size: int) -> LandedWindow:
        """As `Window.sub`."""
        part = super().sub(offset, size)
        return LandedWindow(part.fd, part.offset, part.size, self.landed)


class LandingFile(SparseFile):
    """A scratch file for an image of which the root file system's content lands in files.

    :param landing: a folder to be made for these files, on the file system on which they shall stay
    """

    def __init__(self, folder: Path, limit: int, landing: Path) -> None:
        try:
            self.landed = Landed(landing)
        except OSError as error:
            raise HostError(f"Making {landing}: {error.strerror}.") from error
        super().__init__(folder, limit)
        self._knowing = threading.Lock()
        self._there: list[tuple[int, int]] = []  # what has come of the image: (start, end), in order, apart
        self._watches: list[_Watch] = [_Watch(0, TABLE, self._see_table)]  # by their ends
        self._plan: tuple[list[int], list[_Stretch]] = ([], [])

    def write(self, position: int, data: bytes) -> None:
        """As `SparseFile.write`, for as much as is not known to be a file's content.

        :raises FormatError: see there
        :raises HostError: the disk is full
        """
        self.check(position, data)
        starts, plan = self._plan
        end = position + len(data)
        at = position
        index = max(0, bisect_right(starts, position) - 1)
        view = memoryview(data)
        while index < len(starts) and starts[index] < end:
            stretch = plan[index]
            index += 1
            first, last = max(stretch.start, at), min(stretch.start + stretch.length, end)
            if first >= last:
                continue
            if first > at:
                self.put(at, data[at - position : first - position])
            if last - first != stretch.length:
                stretch = _Stretch(first, last - first, stretch.inode, stretch.offset + first - stretch.start)
            self._land(stretch, view[first - position : last - position])
            at = last
        if at < end:
            self.put(at, data[at - position :] if at > position else data)
        self.reach(end)
        if self._watches:
            self._arrived(position, end)

    def _land(self, stretch: _Stretch, data: memoryview) -> None:
        self.account(len(data))
        try:
            self.landed.put(stretch, data)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise self.explained(error) from error
            self.put(stretch.start, bytes(data))  # it may be nobody's, whatever the table says

    def finish(self) -> None:
        """As `SparseFile.finish`; nothing lands any more."""
        super().finish()
        self._watches, self._plan = [], ([], [])
        self.landed.complete()

    # ---------------------------------------------------------------- what goes by

    def _arrived(self, start: int, end: int) -> None:
        """Take note of bytes that have been written, and do what waits for them."""
        with self._knowing:
            apart = [each for each in self._there if each[1] < start or each[0] > end]
            joined = [each for each in self._there if each[1] >= start and each[0] <= end]
            first, last = min([start, *(each[0] for each in joined)]), max([end, *(each[1] for each in joined)])
            self._there = sorted([*apart, (first, last)])
            # What waits for something before the new bytes, or behind all there is, waits on.
            low = bisect_right(self._watches, start, key=_end_of)
            ending = self._watches[low : bisect_right(self._watches, last, key=_end_of)]
            self._watches[low : low + len(ending)] = [watch for watch in ending if watch.start < first]
            for watch in ending:
                if watch.start >= first:
                    watch.then()

    def _wait(self, start: int, length: int, then: Callable[[], None]) -> None:
        """Do something once these bytes are there: now, if they are."""
        if any(first <= start and start + length <= last for first, last in self._there):
            then()
        else:
            insort(self._watches, _Watch(start, start + length, then), key=_end_of)

    def _read(self, start: int, length: int) -> bytes:
        """What has come of the image, zeros for what is a hole."""
        return os.pread(self.fd, length, start).ljust(length, b"\0")

    def _see_table(self) -> None:
        try:
            table = read_table(_Incomplete(self.fd, 0, self.limit))
        except FormatError:
            return  # it is read again when the image is there, and refused then
        root = max(table.partitions, key=lambda partition: partition.size)
        self._wait(root.offset + OFFSET, SIZE, lambda: self._see_superblock(root))

    def _see_superblock(self, root: Partition) -> None:
        try:
            superblock = parse_superblock(self._read(root.offset + OFFSET, SIZE), root.size)
        except FormatError:
            return
        if not forecast.can_be_told(superblock):
            return
        needed = superblock.used_blocks * superblock.block_size + RESERVE
        check_room(self.folder, needed, "Exporting the image")
        self.landed.partition = root.offset
        start, length = forecast.descriptors(superblock)
        self._wait(root.offset + start, length, lambda: self._see_descriptors(root, superblock))

    def _see_descriptors(self, root: Partition, superblock: Superblock) -> None:
        start, length = forecast.descriptors(superblock)
        tables = sorted(forecast.inode_tables(superblock, self._read(root.offset + start, length)))
        behind = 0
        for table in tables[:_TABLES]:
            if table.start >= behind:  # each byte is read as an inode once, whatever the descriptors say
                behind = table.start + table.length
                self._wait(root.offset + table.start, table.length, self._reader(root, superblock, table))

    def _reader(self, root: Partition, superblock: Superblock, table: forecast.InodeTable) -> Callable[[], None]:
        def see() -> None:
            raw = self._read(root.offset + table.start, table.length)
            told = sorted(
                _Stretch(root.offset + start, length, inode, offset)
                for start, length, inode, offset in forecast.stretches(superblock, table, raw)
            )
            starts, plan = self._plan
            if told and len(plan) + len(told) <= _MOST:
                # What a table tells of lies together, mostly: the rest is copied, and not sorted anew.
                low, high = bisect_left(starts, told[0].start), bisect_right(starts, told[-1].start)
                middle = sorted([*plan[low:high], *told])
                between = [stretch.start for stretch in middle]
                self._plan = ([*starts[:low], *between, *starts[high:]], [*plan[:low], *middle, *plan[high:]])

        return see


class _Incomplete(Window):
    """A window on a file that still grows: what it lacks is read as zeros."""

    __slots__ = ()

    def read(self, offset: int, length: int) -> bytes:
        """Zeros for what has not come yet."""
        return os.pread(self.fd, length, self.offset + offset).ljust(length, b"\0")

    def sub(self, offset: int, size: int) -> _Incomplete:
        """As `Window.sub`."""
        part = super().sub(offset, size)
        return _Incomplete(part.fd, part.offset, part.size)
