"""A window on an open image file: a partition is one, so nothing is mounted and nothing is copied."""

from __future__ import annotations

import os

from netbootd.errors import FormatError


class Window:
    """Random access to `size` bytes of the descriptor `fd` from `offset` on. It does not own the descriptor."""

    __slots__ = ("fd", "offset", "size")

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.fd = fd
        self.offset = offset
        self.size = size

    @classmethod
    def whole(cls, fd: int) -> Window:
        """A window on the whole of an open regular file."""
        return cls(fd, 0, os.fstat(fd).st_size)

    def holds(self, offset: int, length: int) -> bool:
        """Whether the descriptor itself has these bytes, so that they may be copied from it without `read`."""
        return 0 <= offset <= offset + length <= self.size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset` of the window.

        :raises FormatError: the range leaves the window, or the file ends early
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise FormatError(
                f"reading {length} bytes at {offset}: beyond the end of a {self.size} byte partition",
                hint="The image is truncated or damaged; fetch it again.",
            )
        data = os.pread(self.fd, length, self.offset + offset)
        while len(data) < length:  # pread stops at 2 GiB and at signals
            more = os.pread(self.fd, length - len(data), self.offset + offset + len(data))
            if not more:
                raise FormatError(
                    f"reading {length} bytes at {self.offset + offset}: the image file ends early",
                    hint="The image is truncated; fetch it again.",
                )
            data += more
        return data

    def sub(self, offset: int, size: int) -> Window:
        """A smaller window inside this one.

        :raises FormatError: it would leave this one
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(
                f"a range of {size} bytes at {offset} lies beyond the end of the image ({self.size} bytes)",
                hint="The image is truncated or its partition table is damaged; fetch it again.",
            )
        return Window(self.fd, self.offset + offset, size)
