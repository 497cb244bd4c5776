"""Decodes LZ4's legacy frame, the one that the kernel knows of and ``lz4 -l`` writes.

After the LZ4 frame format description ("Legacy frame") and lib/decompress_unlz4.c: a magic number, then blocks of at
most 8 MiB, each behind its compressed size. Nothing marks the end but the end of the input, or a size of zero: padding.
The blocks are decoded by python-lz4, which binds the reference library.
"""

from __future__ import annotations

import lz4.block

MAGIC = b"\x02\x21\x4c\x18"

_BLOCK = 8 << 20
_BOUND = _BLOCK + _BLOCK // 255 + 16  # LZ4_COMPRESSBOUND


class Lz4Decoder:
    """Works as the standard library's decompressors do, but for the size of what it returns: a block, not less."""

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self._held = bytearray()
        self._begun = False

    @property
    def needs_input(self) -> bool:
        """Whether the next block isn't there as a whole."""
        return not self.eof and not self._is_complete()

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """What the next whole block comes to, at most 8 MiB; empty where none is there yet.

        :raises ValueError: it is broken
        """
        self._held += data
        if not self._is_complete():
            return b""
        if not self._begun or self._held[:4] == MAGIC:  # archives may follow each other, each with its magic number
            if self._held[:4] != MAGIC:
                raise ValueError("no LZ4 legacy frame")
            self._begun = True
            del self._held[:4]
            return b""
        size = self._size()
        if size == 0:
            self._end()
            return b""
        if size > _BOUND:
            raise ValueError(f"a block of {size} bytes")
        block = bytes(self._held[4 : 4 + size])
        del self._held[: 4 + size]
        try:
            decoded: bytes = lz4.block.decompress(block, uncompressed_size=_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(str(error)) from None
        return decoded

    def at_end_of_input(self) -> bool:
        """Tell that nothing follows; whether the frame ends there well."""
        if self._begun and len(self._held) < 4:
            self._end()
        return self.eof

    def _size(self) -> int:
        return int.from_bytes(self._held[:4], "little")

    def _is_complete(self) -> bool:
        if len(self._held) < 4:
            return False
        if not self._begun or self._held[:4] == MAGIC:
            return True
        return self._size() > _BOUND or len(self._held) >= 4 + self._size()

    def _end(self) -> None:
        self.eof = True
        self.unused_data = bytes(self._held)
        self._held.clear()
