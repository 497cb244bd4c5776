"""One image inside a container: zip (APPNOTE 6.3.10) by the standard library, tar (POSIX ustar and pax, GNU) in place.

A tar archive is not unpacked: the image in it is a range of it. The standard library's tarfile is left aside because
it reads an extended header of any size into memory. Left out: sparse members, encrypted members, split archives.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from netbootd.errors import FormatError, HostError
from netbootd.formats.window import Window

ZIP = b"PK\x03\x04"

_IMAGES = (".img", ".raw", ".iso", ".wic", ".sdimg", ".rpi-sdimg")
_MEMBERS = 10_000
_LONGEST = 64 << 10  # bytes of an extended header
_DIRECTORY = 4 << 20  # bytes of a zip's directory
_CHUNK = 1 << 20
_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, RuntimeError)


def unzip(fd: int) -> tuple[int, Iterator[bytes]]:
    """The size of the one image in a zip archive, and its bytes in pieces, checked against their CRC.

    :param fd: the open archive, which stays the caller's
    :raises FormatError: damaged, encrypted, or not exactly one image in it
    :raises HostError: the archive can't be read
    """
    with _told():
        archive = zipfile.ZipFile(_Bounded(fd, closefd=False))
    members = [member for member in archive.infolist()[: _MEMBERS + 1] if not member.filename.endswith("/")]
    chosen = members[_choose("zip", [member.filename for member in members])]
    if chosen.flag_bits & 1:
        raise _broken("zip", f"{_shown(chosen.filename)} is encrypted", "Unpack it first.")
    if chosen.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _broken(
            "zip", f"{_shown(chosen.filename)} is compressed by method {chosen.compress_type}", "Unpack it first."
        )
    return chosen.file_size, _read(archive, chosen)


class _Bounded(io.FileIO):
    """A file that refuses large reads: zipfile takes the whole directory into memory at once, whatever its size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _DIRECTORY:
            raise _broken("zip", "its directory is absurdly long")
        return super().read(size) or b""


@contextmanager
def _told(member: str = "") -> Iterator[None]:
    """Tell of what the standard library trips over as of a fault of the archive."""
    try:
        yield
    except FormatError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is a place before the archive's beginning, or behind any end
            raise HostError(f"Unpacking zip: {error.strerror}.") from error
        raise _broken("zip", f"{member}something of it lies outside") from error
    except _ZIP_FAULTS as error:
        raise _broken("zip", f"{member}{str(error)[:100]}") from error  # it may quote names of 64 KiB


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    got = 0
    with _told(f"{_shown(member.filename)}: "), archive.open(member) as stream:
        while data := stream.read(_CHUNK):
            got += len(data)
            yield data
    if got != member.file_size:
        raise _broken("zip", f"{_shown(member.filename)} is cut short")


def is_tar(head: bytes) -> bool:
    """Whether the first 512 bytes are a tar header whose checksum is right."""
    return len(head) >= 512 and head[257:262] == b"ustar" and _checksum(head[:512])


def find_in_tar(window: Window) -> Window:
    """The one image in a tar archive, as a range of it.

    :raises FormatError: damaged, sparse, or not exactly one image in it
    """
    names: list[str] = []
    ranges: list[Window] = []
    at, long_name, own_size = 0, "", -1
    for _ in range(_MEMBERS):
        if at + 512 > window.size:
            raise _broken("tar", "it is cut short")
        head = window.read(at, 512)
        if not any(head):
            break
        if not _checksum(head):
            raise _broken("tar", f"the header at {at} is damaged")
        kind, size = head[156:157], _number(head[124:136])
        at += 512
        if kind in b"xgL":
            if size > _LONGEST:
                raise _broken("tar", "an extended header is absurdly long")
            text = window.read(at, size)
            if kind == b"L":
                long_name = text.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":
                records = _pax(text)
                long_name, own_size = records.get("path", long_name), int(records.get("size", own_size))
                if any(key.startswith("GNU.sparse") for key in records):
                    raise _broken("tar", "it has a sparse member")
        elif kind == b"S":
            raise _broken("tar", "it has a sparse member")
        else:
            if own_size >= 0:
                size = own_size
            if kind in (b"0", b"\0", b"7"):
                names.append(long_name or _name(head))
                ranges.append(window.sub(at, size))
            long_name, own_size = "", -1
        if kind not in b"123456":  # links, devices, folders and pipes have no data
            at += -(-size // 512) * 512
    else:
        raise _broken("tar", f"it has more than {_MEMBERS} members")
    return ranges[_choose("tar", names)]


def _choose(kind: str, names: Sequence[str]) -> int:
    """Which of the files is the image: the only one named like one, else the only one there is."""
    seen = [
        index
        for index, name in enumerate(names)
        if not any(part.startswith((".", "__")) for part in name.split("/") if part != ".")
    ]
    images = [index for index in seen if names[index].lower().endswith(_IMAGES)]
    for found in (images, seen):
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(_shown(names[index]) for index in found[:5]) + (", …" if len(found) > 5 else "")
            raise _broken(kind, f"it holds {len(found)} files that could be the image ({shown})", "Unpack it first.")
    raise _broken(kind, "it holds no file", "Give an archive with one image in it.")


def _checksum(head: bytes) -> bool:
    try:
        return _number(head[148:156]) == sum(head[:148]) + sum(head[156:]) + 8 * 32
    except FormatError:
        return False


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 where the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if value >> 62:
            raise _broken("tar", "a size in it is absurd")
        return value
    try:
        return int(field.rstrip(b" \0").lstrip(b" ") or b"0", 8)
    except ValueError:
        raise _broken("tar", "a number in it is damaged") from None


def _name(head: bytes) -> str:
    name, prefix = head[:100].rstrip(b"\0"), head[345:500].rstrip(b"\0") if head[263:265] == b"00" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax(data: bytes) -> dict[str, str]:
    """The ``LENGTH KEY=VALUE`` records of a pax header."""
    records: dict[str, str] = {}
    while data:
        number, _, _ = data.partition(b" ")
        if not number.isdigit() or len(number) > 6 or not len(number) < int(number) <= len(data):
            raise _broken("tar", "an extended header is damaged")
        key, _, value = data[len(number) + 1 : int(number)].rstrip(b"\n").partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        data = data[int(number) :]
    size = records.get("size", "0")
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise _broken("tar", "an extended header is damaged")
    return records


def _shown(name: str) -> str:
    """A member's name for a sentence: quoted, and its end where it is long."""
    return repr(name if len(name) <= 100 else f"…{name[-100:]}")


def _broken(kind: str, why: str, hint: str = "The archive is damaged; fetch it again.") -> FormatError:
    return FormatError(f"Unpacking {kind}: {why}.", hint=hint)
