"""Packs an image as xz on all cores.

Each piece of the image becomes an xz stream of its own, and the file is those streams one behind another (The .xz File
Format 1.2, section 2): every decoder reads that as one, and ours and others' can unpack it in parallel. The result does
not depend on the number of cores.
"""

from __future__ import annotations

import lzma
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

PIECE = 24 << 20
"""Bytes of the image in a stream: three times the dictionary, as xz itself chooses blocks."""

_PRESET = 6  # xz's default: 8 MiB of dictionary, 94 MiB of memory a core
_MAX_WORKERS = 4  # bounds the memory


def pack(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Compress the pieces of an image, each of `PIECE` bytes but for the last: (bytes of the piece, its xz stream)."""
    workers = min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
    zeros = bytes(PIECE)
    packed_zeros = b""
    queue: deque[tuple[int, Future[bytes] | bytes]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="xz") as pool:
        try:
            for piece in pieces:
                if piece == zeros:  # most of a card that was made large
                    packed_zeros = packed_zeros or _pack(zeros)
                    queue.append((len(piece), packed_zeros))
                else:
                    queue.append((len(piece), pool.submit(_pack, piece)))
                while len(queue) > workers + 1:
                    yield _taken(queue)
            while queue:
                yield _taken(queue)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _taken(queue: deque[tuple[int, Future[bytes] | bytes]]) -> tuple[int, bytes]:
    size, packed = queue.popleft()
    return size, packed if isinstance(packed, bytes) else packed.result()


def _pack(piece: bytes) -> bytes:
    return lzma.compress(piece, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=_PRESET)
