"""What a plain user's copy of a root file system can't have by itself: type, mode, owner, device number, attributes.

One file a tree, in a format of our own, version 1, all numbers little-endian::

    header    "nbattrs1", names (u32), sets (u32), bytes of the sets (u64), SHA-256 of all that follows (32 bytes)
    names     each: digest of the path (16 bytes), number of its set (u32); ascending by digest, none twice
    sets      each: mode (u32, as st_mode), uid, gid, major, minor, attributes (u32 each), and for every attribute
              the lengths of its name (u16) and its value (u32), then both; ascending by name

The digest is BLAKE2b-128 of the path's bytes below the top folder, without a slash at either end; the top folder's path
is empty. An image's files share a few hundred sets, so a name costs 20 bytes; looking one up is one look into a hash
table, and no two paths can be found that share a digest of this size.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from netbootd.errors import FormatError

MAX_NAMES = 2_000_000
"""More than the reader of ext4 takes, and ten times what a desktop's root has."""

MAX_SETS = 64 << 20
"""Bytes of all distinct sets. ACLs and capabilities are tens of bytes, and a root has a few hundred distinct ones."""

_MAGIC = b"nbattrs1"
_HEADER = struct.Struct("<8sIIQ32s")
_NAME = struct.Struct("<16sI")
_SET = struct.Struct("<6I")
_XATTR = struct.Struct("<HI")
_DIGEST = 16
_MAX_XATTR_NAME, _MAX_XATTR_VALUE = 255, 65536  # include/uapi/linux/limits.h: XATTR_NAME_MAX, XATTR_SIZE_MAX
_TYPES = frozenset((stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))
_HINT = "Prepare the image again with --unprivileged --force."

MAX_BYTES = _HEADER.size + MAX_NAMES * _NAME.size + MAX_SETS
"""Of the largest file in this format."""


class Attributes(NamedTuple):
    """What one name has: `mode` as st_mode, with the type; `major` and `minor` of a device, else 0.

    `xattrs` are pairs of name and value, ascending.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()

    @property
    def type(self) -> int:
        """S_IFREG, S_IFCHR, …"""
        return stat.S_IFMT(self.mode)

    def encode(self) -> bytes:
        """As one set of the file.

        :raises FormatError: a name or a value is longer than Linux has them
        """
        parts = [_SET.pack(self.mode, self.uid, self.gid, self.major, self.minor, len(self.xattrs))]
        for name, value in sorted(self.xattrs):
            raw = os.fsencode(name)
            if len(raw) > _MAX_XATTR_NAME or len(value) > _MAX_XATTR_VALUE:
                raise FormatError(
                    f"An extended attribute of {len(value)} bytes, {name!r}, is larger than Linux has it."
                )
            parts += [_XATTR.pack(len(raw), len(value)), raw, value]
        return b"".join(parts)


class TreeAttributes:
    """The attributes of all names of one tree, by path. Made empty and filled, or read by `parse`."""

    def __init__(self) -> None:
        self._names: dict[bytes, int] = {}
        self._sets: list[Attributes] = []
        self._numbers: dict[Attributes, int] = {}
        self._size = 0  # of the encoded sets

    def __len__(self) -> int:
        return len(self._names)

    def get(self, path: bytes) -> Attributes | None:
        """What the name at `path` has; None where nothing is known of it."""
        number = self._names.get(_digest(path))
        return None if number is None else self._sets[number]

    def set(self, path: bytes, attributes: Attributes) -> None:
        """Note what a name has, in place of what was noted.

        :raises FormatError: there are too many names, or too much to note of them
        """
        number = self._numbers.get(attributes)
        if number is None:
            self._size += len(attributes.encode())
            if self._size > MAX_SETS:
                raise FormatError(
                    f"Keeping the attributes of the root file system: they take more than {MAX_SETS >> 20} MiB.",
                    hint="No image of an operating system is like that; as root, they are kept by the store.",
                )
            number = self._numbers[attributes] = len(self._sets)
            self._sets.append(attributes)
        self._put(path, number)

    def link(self, path: bytes, first: bytes) -> None:
        """Note that a name has what another has: a second name of the same file.

        :raises KeyError: nothing is known of `first`
        :raises FormatError: there are too many names
        """
        self._put(path, self._names[_digest(first)])

    def remove(self, path: bytes) -> None:
        """Forget a name. One that nothing is known of may be forgotten, too."""
        self._names.pop(_digest(path), None)

    def _put(self, path: bytes, number: int) -> None:
        self._names[_digest(path)] = number
        if len(self._names) > MAX_NAMES:
            raise FormatError(f"Keeping the attributes of the root file system: it has more than {MAX_NAMES} names.")

    # ---------------------------------------------------------------- the file

    def encode(self) -> bytes:
        """The file. The same names with the same attributes give the same bytes, whatever came in between."""
        encoded = {number: self._sets[number].encode() for number in set(self._names.values())}
        used = sorted(set(encoded.values()))
        places = {each: place for place, each in enumerate(used)}
        numbers = {number: places[each] for number, each in encoded.items()}
        rest = bytearray()
        for digest in sorted(self._names):
            rest += _NAME.pack(digest, numbers[self._names[digest]])
        rest += b"".join(used)
        size = len(rest) - len(self._names) * _NAME.size
        return _HEADER.pack(_MAGIC, len(self._names), len(used), size, hashlib.sha256(rest).digest()) + rest

    @classmethod
    def parse(cls, data: bytes) -> TreeAttributes:
        """Read a file.

        :raises FormatError: it is not in this format, damaged, or longer than `MAX_BYTES`
        """
        if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
            raise _damaged("it does not begin as such a file does")
        _, names, sets, size, digest = _HEADER.unpack_from(data)
        if names > MAX_NAMES or size > MAX_SETS or sets > names:
            raise _damaged(f"it speaks of {names} names and {sets} sets in {size} bytes")
        if len(data) != _HEADER.size + names * _NAME.size + size:
            raise _damaged(f"it has {len(data)} bytes, and speaks of {_HEADER.size + names * _NAME.size + size}")
        view = memoryview(data)[_HEADER.size :]
        if hashlib.sha256(view).digest() != digest:
            raise _damaged("its content does not have the digest that it names")
        made = cls()
        made._sets = list(_sets(view[names * _NAME.size :], sets))
        made._numbers = {attributes: number for number, attributes in enumerate(made._sets)}
        made._size = size
        made._names = dict(_NAME.iter_unpack(view[: names * _NAME.size]))
        digests = list(made._names)
        if len(digests) != names or digests != sorted(digests):
            raise _damaged("its names are not in order")
        if names and max(made._names.values()) >= sets:
            raise _damaged("a name has a set that is not there")
        return made


def _sets(data: memoryview, count: int) -> Iterator[Attributes]:
    at = 0
    for _ in range(count):
        try:
            mode, uid, gid, major, minor, xattrs = _SET.unpack_from(data, at)
            at += _SET.size
            found = []
            for _ in range(xattrs):
                name_length, length = _XATTR.unpack_from(data, at)
                at += _XATTR.size
                end = at + name_length + length
                if end > len(data) or not 0 < name_length <= _MAX_XATTR_NAME or length > _MAX_XATTR_VALUE:
                    raise _damaged("an attribute is longer than it can be")
                name = os.fsdecode(bytes(data[at : at + name_length]))
                found.append((name, bytes(data[at + name_length : end])))
                at = end
        except struct.error:
            raise _damaged("its sets end early") from None
        if stat.S_IFMT(mode) not in _TYPES or mode > 0o177777:
            raise _damaged(f"a set has the mode {mode:o}, which no file has")
        yield Attributes(mode, uid, gid, major, minor, tuple(found))
    if at != len(data):
        raise _damaged("bytes follow its last set")


def _digest(path: bytes) -> bytes:
    return hashlib.blake2b(path, digest_size=_DIGEST).digest()


def _damaged(why: str) -> FormatError:
    return FormatError(f"Reading the attributes of a tree: {why}.", hint=_HINT)
