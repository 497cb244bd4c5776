"""Reads of an ELF program what it is loaded with: its interpreter, and the shared libraries that it names.

After the System V ABI (gABI, chapters 4 and 5: ELF header, program header, dynamic section), both classes and both
byte orders. Left out: everything else, section headers above all, which a stripped program needn't have.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netbootd.errors import FormatError

MAGIC = b"\x7fELF"

_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3  # p_type
_NULL, _NEEDED, _STRINGS, _STRINGS_SIZE, _RPATH, _RUNPATH = 0, 1, 5, 10, 15, 29  # d_tag
_MAX_SEGMENTS = 256
_MAX_DYNAMIC = 4096
_MAX_NAME = 4096


@dataclass(frozen=True, slots=True)
class Elf:
    """What the loader has to know of a program or library.

    `machine` is e_machine with the class (32 or 64 bits): files of one system agree in it. `interpreter` is empty for
    libraries and static programs; `needed` are names, as a rule without a folder; `search` are the folders that it says
    itself (DT_RUNPATH, else DT_RPATH), with ``$ORIGIN`` as it stands there.
    """

    machine: tuple[int, int]
    interpreter: str
    needed: tuple[str, ...]
    search: tuple[str, ...]


def read(data: bytes) -> Elf:
    """Parse a program or shared library.

    :raises FormatError: it is none, or points outside of itself
    """
    if data[:4] != MAGIC:
        raise FormatError("Reading a program: it is no ELF file.")
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError, OverflowError):
        raise FormatError("Reading a program: its ELF headers are broken.") from None


def _read(data: bytes) -> Elf:
    if data[4] not in (1, 2) or data[5] not in (1, 2):
        raise ValueError(data[4:6])
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    (machine,) = struct.unpack_from(order + "H", data, 18)
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", data, 54 if wide else 42)
    if count > _MAX_SEGMENTS:
        raise ValueError(count)
    loads, dynamic, interpreter = [], (0, 0), ""
    for at in range(table, table + size * count, size or 1):
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(order + "IIQQQQ", data, at)
        else:
            kind, offset, address, _, length = struct.unpack_from(order + "IIIII", data, at)
        if kind == _LOAD:
            loads.append((address, offset, length))
        elif kind == _DYNAMIC:
            dynamic = (offset, length)
        elif kind == _INTERPRETER:
            interpreter = _text(data, offset, offset + length)
    entries = _dynamic(data, order + ("qQ" if wide else "iI"), *dynamic)
    values = dict(entries)
    if not entries or _STRINGS not in values:
        return Elf((machine, 64 if wide else 32), interpreter, (), ())
    start = _offset_of(loads, values[_STRINGS])
    end = start + values.get(_STRINGS_SIZE, 0)
    needed = tuple(_text(data, start + value, end) for tag, value in entries if tag == _NEEDED)
    path = values.get(_RUNPATH, values.get(_RPATH))
    search = _text(data, start + path, end) if path is not None else ""
    folders = tuple(folder for folder in search.split(":") if folder)
    return Elf((machine, 64 if wide else 32), interpreter, needed, folders)


def _dynamic(data: bytes, form: str, offset: int, length: int) -> list[tuple[int, int]]:
    entries = []
    size = struct.calcsize(form)
    for at in range(offset, offset + min(length, _MAX_DYNAMIC * size), size):
        tag, value = struct.unpack_from(form, data, at)
        if tag == _NULL:
            break
        entries.append((tag, value))
    return entries


def _offset_of(loads: list[tuple[int, int, int]], address: int) -> int:
    """Where in the file lies what the loader puts at this address."""
    for start, offset, length in loads:
        if start <= address < start + length:
            return offset + address - start
    raise ValueError(address)


def _text(data: bytes, start: int, end: int) -> str:
    stop = data.index(b"\0", start, min(end, len(data)))
    if stop - start > _MAX_NAME:
        raise ValueError(stop)
    return data[start:stop].decode("utf-8", "surrogateescape")
