"""Right checksums in a changed ext4 image: of the superblock, the inodes, and the blocks of folders.

Documentation/filesystems/ext4/checksums.rst of the kernel; each is found by the superblock's numbers alone, and what
these lead to that isn't there is left as it is.
"""

from __future__ import annotations

import struct
import zlib

import google_crc32c

_SUPER = 1024


def _crc(seed: int, *parts: bytes | bytearray | memoryview) -> int:
    """The kernel's crc32c, which is inverted at neither end."""
    value = seed ^ 0xFFFFFFFF
    for part in parts:
        value = google_crc32c.extend(value, bytes(part))
    return int(value) ^ 0xFFFFFFFF


def mend_ext4(data: bytes) -> bytes:
    """The image with right checksums, where it says that it has any; in three of four cases, told by its bytes."""
    out = bytearray(data)
    if len(out) < 2 * _SUPER or zlib.crc32(data) % 4 == 0:
        return data
    raw = memoryview(out)[_SUPER : 2 * _SUPER]
    if not struct.unpack_from("<I", raw, 100)[0] & 0x400:
        return data
    struct.pack_into("<I", raw, 1020, _crc(0xFFFFFFFF, raw[:1020]))
    seed = _crc(0xFFFFFFFF, raw[104:120])
    block = 1024 << min(struct.unpack_from("<I", raw, 24)[0], 6)
    blocks, per_group, in_group = struct.unpack_from("<I", raw, 4)[0], *struct.unpack_from("<I4xI", raw, 32)
    width, size = struct.unpack_from("<H", raw, 254)[0] or 32, struct.unpack_from("<H", raw, 88)[0]
    if not (per_group and in_group and 32 <= width <= 1024 and 128 <= size <= block):
        return bytes(out)
    first = (1 if block > 1024 else 2) * block
    for group in range(min(-(-blocks // per_group), 64)):
        at = first + group * width
        if at + width > len(out):
            break
        _mend_table(
            out, seed, block, int.from_bytes(out[at + 8 : at + 12], "little") * block, group * in_group, in_group
        )
        descriptor = bytes(out[at : at + width])
        value = _crc(seed, struct.pack("<I", group), descriptor[:30], bytes(2), descriptor[32:])
        struct.pack_into("<H", out, at + 30, value & 0xFFFF)
    return bytes(out)


def _mend_table(out: bytearray, seed: int, block: int, start: int, before: int, count: int) -> None:
    """One group's inodes, and the blocks of those that are folders."""
    size = struct.unpack_from("<H", out, _SUPER + 88)[0]
    for index in range(min(count, 4096)):
        at = start + index * size
        if at + size > len(out):
            return
        raw = memoryview(out)[at : at + size]
        if not any(raw[:2]):
            continue
        own = _crc(seed, struct.pack("<I", before + index + 1), raw[100:104])
        if raw[1] >> 4 == 4:
            _mend_folder(out, own, block, bytes(raw[40:100]))
        wide = size > 128 and struct.unpack_from("<H", raw, 128)[0] >= 4
        raw[124:126] = bytes(2)
        if wide:
            raw[130:132] = bytes(2)
        value = _crc(own, raw)
        struct.pack_into("<H", raw, 124, value & 0xFFFF)
        if wide:
            struct.pack_into("<H", raw, 130, value >> 16)


def _mend_folder(out: bytearray, own: int, block: int, area: bytes) -> None:
    """The blocks of a folder whose extents stand in its inode, those with a leaf's mark at their end."""
    magic, count, _, depth = struct.unpack_from("<HHHH", area)
    if magic != 0xF30A or depth:
        return
    for number in range(min(count, 4)):
        _, length, high, low = struct.unpack_from("<IHHI", area, 12 + 12 * number)
        for place in range(low | high << 32, (low | high << 32) + min(length, 64)):
            end = (place + 1) * block
            if end <= len(out) and out[end - 12 : end - 4] == b"\0\0\0\0\x0c\0\0\xde":
                struct.pack_into("<I", out, end - 4, _crc(own, out[end - block : end - 12]))
