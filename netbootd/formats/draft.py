"""Changes to an image before they are made: reads see them, the image does not.

Who edits a file system in place does so on a draft; what comes of it is a list of ranges with their new bytes. The
image itself may be read-only, or be streamed into an archive with the changes put in on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from netbootd.errors import FormatError
from netbootd.formats.window import Window

_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Edit:
    """New bytes at `offset`, counted from the start of whatever the list that it stands in is about."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + len(self.data)

    def moved(self, distance: int) -> Edit:
        """The same, `distance` bytes further back."""
        return Edit(self.offset + distance, self.data)


class Draft(Window):
    """A window that can be written to: the sectors that were are kept in memory."""

    __slots__ = ("_sectors",)

    def __init__(self, window: Window) -> None:
        super().__init__(window.fd, window.offset, window.size)
        self._sectors: dict[int, bytearray] = {}

    def read(self, offset: int, length: int) -> bytes:
        """As `Window.read`, with what was written."""
        data = super().read(offset, length)
        if not self._sectors or not length:
            return data
        first, last = offset // _SECTOR, (offset + length - 1) // _SECTOR
        if last - first < len(self._sectors):
            changed = [number for number in range(first, last + 1) if number in self._sectors]
        else:
            changed = [number for number in self._sectors if first <= number <= last]
        if not changed:
            return data
        edits = [Edit(number * _SECTOR, bytes(self._sectors[number])) for number in changed]
        return patched(offset, data, edits)

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`.

        :raises FormatError: the range leaves the window
        """
        if offset < 0 or offset + len(data) > self.size:
            raise FormatError(f"writing {len(data)} bytes at {offset}: beyond the end of a {self.size} byte partition")
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, _SECTOR)
            size = min(_SECTOR - start, len(data) - at)
            self._sector(number)[start : start + size] = data[at : at + size]
            at += size

    def _sector(self, number: int) -> bytearray:
        if number not in self._sectors:
            begin = number * _SECTOR
            self._sectors[number] = bytearray(super().read(begin, min(_SECTOR, self.size - begin)))
        return self._sectors[number]

    def edits(self) -> list[Edit]:
        """What is different now: whole sectors, neighbours as one, in order."""
        runs: list[tuple[int, bytearray]] = []
        for number, data in sorted(self._sectors.items()):
            begin = number * _SECTOR
            if super().read(begin, len(data)) == data:
                continue
            if runs and runs[-1][0] + len(runs[-1][1]) == begin:
                runs[-1][1].extend(data)
            else:
                runs.append((begin, bytearray(data)))
        return [Edit(begin, bytes(data)) for begin, data in runs]


def patched(offset: int, data: bytes, edits: Iterable[Edit]) -> bytes:
    """The bytes `data`, which begin at `offset`, with those of the edits that lie within."""
    changed = bytearray(data)
    for edit in edits:
        start, stop = max(edit.offset, offset), min(edit.end, offset + len(data))
        if start < stop:
            changed[start - offset : stop - offset] = edit.data[start - edit.offset : stop - edit.offset]
    return bytes(changed)
