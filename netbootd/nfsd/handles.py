"""File handles: 24 bytes that name one entry of one published tree, today, after a restart, and on a second server.

A handle holds the export's `fsid`, the entry's number in the tree's index and a 64-bit digest of its path. Nothing in
it is an address on disk: the server looks it up in the index of a tree that it exports, so a forged handle can name
nothing else than an entry of a live export, and a handle of a tree that was replaced underneath its fsid is stale.
"""

from __future__ import annotations

import struct

TAG = b"nbf1"
SIZE = 24
FSID_SIZE = 8
_REST = struct.Struct(">IQ")
_PREFIX = len(TAG) + FSID_SIZE


def make(fsid: bytes, number: int, key: int) -> bytes:
    """The handle of entry `number` with path digest `key` in the export `fsid` (8 bytes)."""
    return TAG + fsid + _REST.pack(number, key)


def fsid_of(handle: bytes) -> bytes | None:
    """The export that a handle speaks of, None where it is not a handle of ours."""
    if len(handle) != SIZE or handle[:4] != TAG:
        return None
    return handle[4:_PREFIX]


def entry_of(handle: bytes) -> tuple[int, int]:
    """(number, path digest) of a handle that `fsid_of` has accepted."""
    number, key = _REST.unpack_from(handle, _PREFIX)
    return number, key
