"""Blocks of a large file as whole DATA packets, for transfers in lock-step: many are read with one system call.

A Pi asks for one block at a time, so that what a packet costs is what a boot costs. preadv(2) reads a group of blocks
into one buffer, each behind the room for its header, and what lies there in one piece leaves by send(2): a header and a
slice of a mapped file need sendmsg(2), which costs Python and the kernel more than the copy does.
"""

from __future__ import annotations

import os

from netbootd.tftpd.packets import Opcode

_MOST_BLOCKS = 32
_MOST_OCTETS = 64 << 10
_HEADER = 4
_NUMBERS = bytes(range(256))


class Frames:
    """The DATA packets of an open file of `size` octets in blocks of `blksize`. The descriptor stays the caller's.

    `group` blocks are held, a divisor of 256, so that their numbers have the same high octet. Nothing is held before
    the first packet is asked for: most requests of firmware are probes.
    """

    __slots__ = ("_buffer", "_fd", "_first", "_packets", "_size", "_whole", "blksize", "group")

    def __init__(self, fd: int, size: int, blksize: int) -> None:
        self._fd, self._size, self.blksize = fd, size, blksize
        self.group = 1 << min(_MOST_BLOCKS, max(1, _MOST_OCTETS // blksize)).bit_length() - 1
        self._first = -self.group
        self._buffer = bytearray()
        self._packets: list[memoryview] = []
        self._whole: list[memoryview] = []

    def packet(self, block: int) -> memoryview:
        """The packet of `block`, counted from 1; valid until a block of another group is asked for.

        :raises EOFError: the file has become shorter
        :raises OSError: it can't be read
        """
        at = block - self._first
        return self._packets[at] if 0 <= at < self.group else self._read(block)

    def _read(self, block: int) -> memoryview:
        """Read the group that `block` belongs to."""
        group, step = self.group, _HEADER + self.blksize
        if not self._buffer:
            self._buffer = bytearray(group * step)
            self._buffer[1::step] = bytes((Opcode.DATA,)) * group
            view = memoryview(self._buffer)
            self._whole = [view[at : at + step] for at in range(0, group * step, step)]
        first = block - block % group
        self._first = -group  # until all of it is there
        self._buffer[2::step] = bytes((first >> 8 & 0xFF,)) * group
        self._buffer[3::step] = _NUMBERS[first & 0xFF :][:group]
        start = max(first, 1)  # the number 0 is the OACK's
        at = (start - 1) * self.blksize
        payloads = [packet[_HEADER:] for packet in self._whole[start - first :]]
        if os.preadv(self._fd, payloads, at) < min(len(payloads) * self.blksize, self._size - at):
            raise EOFError("the file has become shorter")
        self._packets, last = self._whole, self._size // self.blksize + 1
        if last - first < group:
            short = self._whole[last - first][: _HEADER + self._size % self.blksize]
            self._packets = [*self._whole[: last - first], short]
        self._first = first
        return self._packets[block - first]
