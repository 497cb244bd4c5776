"""Results of READDIRPLUS that are kept: the nodes of a rack list the same folders, and a published tree never changes.

An answer depends on the tree, the folder, where in it to go on, and how much room the client has (RFC 1813 section
3.3.17). Who may list the folder is judged before an answer is looked for here.
"""

from __future__ import annotations

from collections import OrderedDict

OCTETS = 1 << 20
"""What the kept answers of one tree come to at most."""

Asked = tuple[int, int, int, int]
"""The folder's number, the position to go on from, the room for names, and that for everything."""


class Listings:
    """The answers that were given last for one tree, up to `octets` of them."""

    def __init__(self, octets: int = OCTETS) -> None:
        self._room = octets
        self._kept: OrderedDict[Asked, bytes] = OrderedDict()

    def get(self, asked: Asked) -> bytes | None:
        """The answer, if it is still there."""
        found = self._kept.get(asked)
        if found is not None:
            self._kept.move_to_end(asked)
        return found

    def keep(self, asked: Asked, answer: bytes) -> bytes:
        """Keep `answer`, which was not there, in place of what was not asked for the longest; returns it."""
        self._kept[asked] = answer
        self._room -= len(answer)
        while self._room < 0:
            self._room += len(self._kept.popitem(last=False)[1])
        return answer
