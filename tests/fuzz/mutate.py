"""Makes inputs that are almost right out of right ones, always the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_LINE = 64
"""Bytes: an image is looked at in pieces of this size, and those of zeros alone are changed less often."""

_WIDTHS = (1, 2, 4, 8)


class Mutator:
    """Inputs from `seeds`, by one stream of random numbers.

    :param seeds: right inputs, one at least
    :param number: of the stream
    """

    def __init__(self, seeds: Sequence[bytes], number: int) -> None:
        self._seeds = seeds
        self._random = random.Random(number)
        self._lines = [_lines_with_content(seed) for seed in seeds]
        self._data = bytearray()
        self._places: Sequence[int] = ()
        self._steps: tuple[tuple[Callable[[], None], int], ...] = (
            (self._flip, 6),
            (self._byte, 6),
            (self._integer, 12),
            (self._near, 6),
            (self._swap, 2),
            (self._copy, 4),
            (self._echo, 4),
            (self._fill, 2),
            (self._splice, 2),
            (self._insert, 1),
            (self._delete, 1),
            (self._truncate, 1),
        )

    def next(self) -> bytes:
        """The next input: one seed with one to eight changes, few of them being the most frequent."""
        index = self._random.randrange(len(self._seeds))
        self._data, self._places = bytearray(self._seeds[index]), self._lines[index]
        steps, weights = zip(*self._steps, strict=True)
        for step in self._random.choices(steps, weights, k=min(8, 1 + int(self._random.expovariate(0.7)))):
            if not self._data:
                break
            step()
        return bytes(self._data)

    # ---------------------------------------------------------------- where, how much

    def _at(self, room: int = 1) -> int:
        """A place with `room` bytes behind it, as far as there are so many; mostly one where there is something."""
        last = max(0, len(self._data) - room)
        if self._places and self._random.random() < 0.9:
            return min(last, self._random.choice(self._places) * _LINE + self._random.randrange(_LINE))
        return self._random.randint(0, last)

    def _length(self) -> int:
        """Bytes of a stretch: short ones most often, and those of sectors and blocks."""
        length = self._random.choice((1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512, 1024, 4096))
        return min(length, len(self._data))

    # ---------------------------------------------------------------- the changes

    def _flip(self) -> None:
        self._data[self._at()] ^= 1 << self._random.randrange(8)

    def _byte(self) -> None:
        self._data[self._at()] = self._random.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x2F, self._random.randrange(256)))

    def _integer(self) -> None:
        """A field, aligned mostly, gets a value at which a reader may stumble."""
        width, order = self._random.choice(_WIDTHS), self._random.choice(("little", "little", "big"))
        at = self._at(width)
        if self._random.random() < 0.8:
            at -= at % width
        size, top = len(self._data), 1 << 8 * width
        edge = self._random.choice((0, 1, 2, top - 1, top - 2, top // 2, top // 2 - 1, size, size - 1, size + 1))
        near = self._random.choice((size // 512, size // 1024, size // 4096, self._random.randrange(64)))
        value = self._random.choice((edge, edge, near))
        self._data[at : at + width] = (value % top).to_bytes(width, order)  # type: ignore[arg-type]

    def _near(self) -> None:
        """A field gets a value close to what it has."""
        width, order = self._random.choice(_WIDTHS[:3]), self._random.choice(("little", "little", "big"))
        at = self._at(width)
        at -= at % width
        value = int.from_bytes(self._data[at : at + width], order)  # type: ignore[arg-type]
        value += self._random.choice((-1, 1, -2, 2, -16, 16, value, -value // 2))
        self._data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]

    def _swap(self) -> None:
        length = self._length()
        one, other = self._at(length), self._at(length)
        data = self._data
        first, second = data[one : one + length], data[other : other + length]
        data[one : one + length], data[other : other + length] = second, first

    def _copy(self) -> None:
        """One stretch over another: aligned, so that entries, blocks and sectors are there twice."""
        length = self._length()
        source, target = self._at(length), self._at(length)
        source, target = source - source % length, target - target % length
        self._data[target : target + length] = self._data[source : source + length]

    def _echo(self) -> None:
        """A field gets the value that it has in the entry before: two entries speak of the same thing."""
        width, distance = self._random.choice(_WIDTHS), self._random.choice((4, 8, 12, 16, 24, 32, 64, 128, 256))
        at = self._at(width)
        at -= at % width
        if at >= distance:
            self._data[at : at + width] = self._data[at - distance : at - distance + width]

    def _fill(self) -> None:
        length = self._length()
        at = self._at(length)
        self._data[at : at + length] = bytes([self._random.choice((0, 0, 0xFF, 0x41))]) * length

    def _splice(self) -> None:
        """A stretch of another seed."""
        other, length = self._random.choice(self._seeds), self._length()
        at = self._at(length)
        piece = other[at : at + length] or other[:length]
        self._data[at : at + len(piece)] = piece

    def _insert(self) -> None:
        length = self._length()
        source, at = self._at(length), self._at()
        self._data[at:at] = self._data[source : source + length] * self._random.choice((1, 1, 2, 50))

    def _delete(self) -> None:
        at = self._at()
        del self._data[at : at + self._length()]

    def _truncate(self) -> None:
        del self._data[self._at() :]


def _lines_with_content(data: bytes) -> list[int]:
    empty = bytes(_LINE)
    return [at // _LINE for at in range(0, len(data), _LINE) if not empty.startswith(data[at : at + _LINE])]
