"""The text lines of the kernel's export caches, /proc/net/rpc/*/channel: what it asks, and how it is answered.

The kernel writes a line for what it doesn't know, words with a blank between them; the answer is the same words, the
time until which it holds, and the rest. An answer without a rest means that there is nothing. Sources: the kernel's
net/sunrpc/cache.c (words), net/sunrpc/svcauth_unix.c (``auth.unix.ip``), fs/nfsd/export.c (``nfsd.export``,
``nfsd.fh``), include/uapi/linux/nfsd/export.h (flags), fs/nfsd/nfsfh.h (types of fsid).
"""

from __future__ import annotations

import enum
import re
import sys
from dataclasses import dataclass

ADDRESSES, EXPORTS, HANDLES = "auth.unix.ip", "nfsd.export", "nfsd.fh"
"""Which clients there are; what they may use; which folder a file handle is of."""

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_SPECIAL = re.compile(rb"[\\ \t\n]")
_NOBODY = 65534


class Flag(enum.IntFlag):
    """Of an export (NFSEXP_*)."""

    READONLY = 0x0001
    INSECURE_PORT = 0x0002
    ROOTSQUASH = 0x0004
    NOSUBTREECHECK = 0x0400
    NOAUTHNLM = 0x0800
    FSID = 0x2000
    V4ROOT = 0x10000


ROOT_TREE = Flag.READONLY | Flag.NOSUBTREECHECK | Flag.NOAUTHNLM
"""A root file system: read-only, root is root."""
WAY = Flag.READONLY | Flag.ROOTSQUASH | Flag.NOSUBTREECHECK | Flag.V4ROOT
"""A folder on the way to one, of which NFSv4 shows nothing but the way."""


class FsidType(enum.IntEnum):
    """How a file handle names its export, of those that are made for the exports above."""

    NUMBER = 1
    UUID16 = 6
    UUID16_INODE = 7


@dataclass(frozen=True, slots=True)
class Grant:
    """An exported folder: its real path, its identity (16 bytes; empty: number 0), the inode number of the folder."""

    path: bytes
    flags: Flag
    uuid: bytes
    inode: int

    def is_named_by(self, kind: int, fsid: bytes) -> bool:
        """Whether a file handle with this fsid is of this export. Numbers are in the machine's byte order."""
        if kind == FsidType.NUMBER:
            return not self.uuid and fsid == bytes(4)
        if kind == FsidType.UUID16:
            return fsid == self.uuid
        if kind == FsidType.UUID16_INODE:
            return bool(self.uuid) and fsid == self.inode.to_bytes(8, sys.byteorder) + self.uuid
        return False


def split(line: bytes) -> list[bytes]:
    r"""The words of a line: ``\ooo`` is an octet, a word of ``\x`` is hexadecimal.

    :raises ValueError: it has a word that can't be
    """
    words = []
    for word in line.rstrip(b"\n").split(b" "):
        if word.startswith(b"\\x"):
            words.append(bytes.fromhex(word[2:].decode("ascii", "replace")))
        elif word:
            words.append(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), word))
    return words


def quote(word: bytes) -> bytes:
    """A word as the kernel reads it back."""
    return _SPECIAL.sub(lambda match: b"\\%03o" % match[0][0], word)


def address_line(address: bytes, until: int, domain: bytes | None) -> bytes:
    """That the client at an address belongs to a domain (None: to none), until then (seconds since 1970)."""
    return _line(b"nfsd", address, b"%d" % until, *([] if domain is None else [quote(domain)]))


def export_line(domain: bytes, path: bytes, until: int, grant: Grant | None) -> bytes:
    """That a domain may use a folder (None: may not)."""
    head = (quote(domain), quote(path), b"%d" % until)
    if grant is None:
        return _line(*head)
    rest = [b"%d" % grant.flags, b"%d" % _NOBODY, b"%d" % _NOBODY, b"0"]
    return _line(*head, *rest, *([b"uuid", b"\\x" + grant.uuid.hex().encode()] if grant.uuid else []))


def handle_line(domain: bytes, kind: int, fsid: bytes, until: int, path: bytes | None) -> bytes:
    """Which folder the file handles of a domain with this fsid are of (None: of none)."""
    words = [quote(domain), b"%d" % kind, b"\\x" + fsid.hex().encode(), b"%d" % until]
    return _line(*words, *([] if path is None else [quote(path)]))


def _line(*words: bytes) -> bytes:
    return b" ".join(words) + b"\n"
