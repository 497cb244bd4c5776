"""Reads and writes cpio archives in the newc form, of which an initramfs is made.

After the kernel's Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c, the reader that
counts: headers of 110 bytes in hexadecimal, name and data padded to four bytes, an entry ``TRAILER!!!`` at the end.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from netbootd.errors import FormatError

MAGICS = (b"070701", b"070702")
"""Of archives without and with checksums; nobody checks the latter."""

TRAILER = "TRAILER!!!"
_HEADER = 110
_DIGITS = re.compile(rb"[0-9A-Fa-f]*")
_NAME_LIMIT = 4096
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. `data` is None where its content was passed over; a link's data is its target."""

    name: str
    mode: int
    data: bytes | None = b""
    size: int = 0


def read(take: Callable[[int], bytes], wanted: Callable[[str, int], bool]) -> Iterator[Member]:
    """The entries of one archive, up to and without its trailer.

    :param take: gives exactly so many bytes, fewer at the end of the input only
    :param wanted: whether a file's content is to be kept, by name and size; links' targets always are
    :raises FormatError: it is cut short, or no archive
    """
    while True:
        header = take(_HEADER)
        if len(header) < _HEADER or header[:6] not in MAGICS:
            raise FormatError("Reading an initramfs: its cpio archive is broken or cut short.")
        if not _DIGITS.fullmatch(header, 6):  # int() would take a sign, and sizes below zero with it
            raise FormatError("Reading an initramfs: a header of its cpio archive is not hexadecimal.")
        fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        if not 0 < name_size <= _NAME_LIMIT:
            raise FormatError(f"Reading an initramfs: a name of {name_size} bytes in its cpio archive.")
        padded = name_size + -(_HEADER + name_size) % 4
        raw = take(padded)
        if len(raw) < padded:
            raise FormatError("Reading an initramfs: its cpio archive is cut short.")
        name = raw[: name_size - 1].decode("utf-8", "surrogateescape")
        if name == TRAILER:
            return
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
        keep = size <= _NAME_LIMIT if stat.S_ISLNK(mode) else stat.S_ISREG(mode) and wanted(name, size)
        yield Member(name, mode, _content(take, size, keep), size)


def _content(take: Callable[[int], bytes], size: int, keep: bool) -> bytes | None:
    """The data of an entry, or None once it is passed over."""
    kept, left = [], size + -size % 4
    while left:
        chunk = take(min(left, _CHUNK))
        if not chunk:
            raise FormatError("Reading an initramfs: its cpio archive is cut short.")
        left -= len(chunk)
        if keep:
            kept.append(chunk)
    return b"".join(kept)[:size] if keep else None


def write(members: Iterable[Member]) -> bytes:
    """An archive of these entries, owned by root, with all times 0; it is padded to 512 bytes, as cpio does it."""
    out = bytearray()
    for number, member in enumerate([*members, Member(TRAILER, 0)], 1):
        name = member.name.encode("utf-8", "surrogateescape") + b"\0"
        data = member.data or b""
        links = 2 if stat.S_ISDIR(member.mode) else 1
        fields = (number, member.mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += MAGICS[0] + b"".join(b"%08x" % value for value in fields) + name
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out + bytes(-len(out) % 512))
