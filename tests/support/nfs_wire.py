"""An NFSv3, NFSACL, MOUNT and port mapper client of the tests' own: it shares no code with the server.

Written from RFC 1813, RFC 5531 and RFC 1833. `Client` speaks over one TCP connection; answers come as `Unpacker`s or,
for the procedures that tests use most, as plain values.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from dataclasses import dataclass, field
from types import TracebackType

PORTMAP, NFS, MOUNT, NFSACL = 100000, 100003, 100005, 100227
TCP, UDP = 6, 17
OK, NOENT, ACCES, NOTDIR, ISDIR, INVAL, ROFS, NAMETOOLONG, STALE = 0, 2, 13, 20, 21, 22, 30, 63, 70
BADHANDLE, BAD_COOKIE, TOOSMALL = 10001, 10003, 10005
(GETATTR, SETATTR, LOOKUP, ACCESS, READLINK, READ, WRITE, CREATE, MKDIR, SYMLINK, MKNOD) = range(1, 12)
(REMOVE, RMDIR, RENAME, LINK, READDIR, READDIRPLUS, FSSTAT, FSINFO, PATHCONF, COMMIT) = range(12, 22)

_xids = itertools.count(int.from_bytes(os.urandom(3), "big"))


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def opaque(data: bytes) -> bytes:
    return u32(len(data)) + data + b"\0" * (-len(data) % 4)


def auth_none() -> bytes:
    return u32(0, 0)


def auth_sys(uid: int = 0, gid: int = 0, gids: tuple[int, ...] = (), machine: bytes = b"test") -> bytes:
    body = u32(7) + opaque(machine) + u32(uid, gid, len(gids), *gids)
    return u32(1) + opaque(body)


def call_record(
    program: int,
    version: int,
    procedure: int,
    args: bytes = b"",
    credential: bytes = b"",
    xid: int | None = None,
    rpc_version: int = 2,
) -> bytes:
    """A call without a record mark."""
    xid = next(_xids) & 0xFFFFFFFF if xid is None else xid
    head = u32(xid, 0, rpc_version, program, version, procedure)
    return head + (credential or auth_sys()) + auth_none() + args


def marked(record: bytes, *, last: bool = True) -> bytes:
    return u32(len(record) | (0x80000000 if last else 0)) + record


class Unpacker:
    """Reads XDR from the front."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, length: int) -> bytes:
        assert length <= len(self.rest), f"answer ends early: {length} > {len(self.rest)}"
        data, self.rest = self.rest[:length], self.rest[length:]
        return data

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def opaque(self) -> bytes:
        length = self.u32()
        data = self.take(length)
        assert self.take(-length % 4) == b"\0" * (-length % 4)
        return data

    def attributes(self) -> Attributes:
        return Attributes(*struct.unpack(">5I2Q2I2Q6I", self.take(84)))

    def post_op(self) -> Attributes | None:
        return self.attributes() if self.u32() else None

    def wcc(self) -> tuple[tuple[int, ...] | None, Attributes | None]:
        before = struct.unpack(">Q4I", self.take(24)) if self.u32() else None
        return before, self.post_op()

    def end(self) -> None:
        assert not self.rest, f"{len(self.rest)} bytes more than expected"


@dataclass(frozen=True)
class Attributes:
    """fattr3, field by field (RFC 1813, section 2.6)."""

    type: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    used: int
    major: int
    minor: int
    fsid: int
    fileid: int
    atime: int
    atime_ns: int
    mtime: int
    mtime_ns: int
    ctime: int
    ctime_ns: int


@dataclass(frozen=True)
class Denied:
    """A rejected call: (0, low, high) or (1, auth_stat)."""

    words: tuple[int, ...]


@dataclass(frozen=True)
class Accepted:
    """An accepted call: accept_stat and what follows it."""

    status: int
    body: bytes


Outcome = Accepted | Denied


def parse_reply(record: bytes) -> tuple[int, Outcome]:
    """(xid, outcome) of a reply without its record mark."""
    words = Unpacker(record)
    xid = words.u32()
    assert words.u32() == 1, "not a reply"
    if words.u32():
        return xid, Denied(struct.unpack(f">{len(words.rest) // 4}I", words.rest))
    assert words.u32() == 0
    assert words.opaque() == b""
    return xid, Accepted(words.u32(), words.rest)


@dataclass
class Entry:
    """One line of READDIR or READDIRPLUS."""

    fileid: int
    name: bytes
    cookie: int
    attributes: Attributes | None = None
    handle: bytes = b""


@dataclass
class Listing:
    status: int
    folder: Attributes | None
    verifier: bytes = b""
    entries: list[Entry] = field(default_factory=list)
    eof: bool = False
    size: int = 0


class Client:
    """One TCP connection. A context manager."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, credential: bytes) -> None:
        self.reader = reader
        self.writer = writer
        self.credential = credential

    @classmethod
    async def connect(cls, port: int, host: str = "127.0.0.1", credential: bytes = b"") -> Client:
        reader, writer = await asyncio.open_connection(host, port, limit=4 << 20)
        return cls(reader, writer, credential or auth_sys())

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> bytes:
        """The next record."""
        parts = []
        last = False
        while not last:
            mark = int.from_bytes(await self.reader.readexactly(4), "big")
            last = bool(mark & 0x80000000)
            parts.append(await self.reader.readexactly(mark & 0x7FFFFFFF))
        return b"".join(parts)

    async def outcome(self, record: bytes) -> Outcome:
        """Send a call and wait for its reply."""
        self.send(marked(record))
        xid, outcome = parse_reply(await self.receive())
        assert xid == int.from_bytes(record[:4], "big")
        return outcome

    async def call(
        self, program: int, version: int, procedure: int, args: bytes = b"", credential: bytes = b""
    ) -> Unpacker:
        """The results of a call that must succeed at the RPC level."""
        record = call_record(program, version, procedure, args, credential or self.credential)
        outcome = await self.outcome(record)
        assert isinstance(outcome, Accepted), outcome
        assert outcome.status == 0, outcome
        return Unpacker(outcome.body)

    async def nfs(self, procedure: int, args: bytes, credential: bytes = b"") -> Unpacker:
        return await self.call(NFS, 3, procedure, args, credential)

    # ------------------------------------------------------------------ procedures

    async def mount(self, path: bytes) -> bytes:
        """The root's handle."""
        results = await self.call(MOUNT, 3, 1, opaque(path))
        status = results.u32()
        assert status == 0, f"MNT: status {status}"
        return results.opaque()

    async def mount_status(self, path: bytes) -> int:
        return (await self.call(MOUNT, 3, 1, opaque(path))).u32()

    async def getattr(self, handle: bytes) -> Attributes:
        results = await self.nfs(GETATTR, opaque(handle))
        assert results.u32() == 0
        attributes = results.attributes()
        results.end()
        return attributes

    async def status(self, procedure: int, args: bytes, credential: bytes = b"") -> int:
        return (await self.nfs(procedure, args, credential)).u32()

    async def lookup(self, folder: bytes, name: bytes, credential: bytes = b"") -> bytes:
        results = await self.nfs(LOOKUP, opaque(folder) + opaque(name), credential)
        status = results.u32()
        assert status == 0, f"LOOKUP {name!r}: status {status}"
        handle = results.opaque()
        assert results.post_op() is not None
        assert results.post_op() is not None
        results.end()
        return handle

    async def walk(self, handle: bytes, path: str) -> bytes:
        for name in path.split("/"):
            handle = await self.lookup(handle, os.fsencode(name))
        return handle

    async def access(self, handle: bytes, wanted: int = 0x3F, credential: bytes = b"") -> int:
        results = await self.nfs(ACCESS, opaque(handle) + u32(wanted), credential)
        assert results.u32() == 0
        assert results.post_op() is not None
        allowed = results.u32()
        results.end()
        return allowed

    async def read(self, handle: bytes, offset: int, count: int, credential: bytes = b"") -> tuple[bytes, bool]:
        """(data, eof)"""
        results = await self.nfs(READ, opaque(handle) + u64(offset) + u32(count), credential)
        status = results.u32()
        assert status == 0, f"READ: status {status}"
        assert results.post_op() is not None
        said, eof = results.u32(), results.u32()
        data = results.opaque()
        results.end()
        assert len(data) == said
        return data, bool(eof)

    async def read_whole(self, handle: bytes, step: int = 1 << 20) -> bytes:
        parts: list[bytes] = []
        eof = False
        while not eof:
            data, eof = await self.read(handle, sum(map(len, parts)), step)
            parts.append(data)
        return b"".join(parts)

    async def readlink(self, handle: bytes) -> bytes:
        results = await self.nfs(READLINK, opaque(handle))
        assert results.u32() == 0
        assert results.post_op() is not None
        target = results.opaque()
        results.end()
        return target

    async def readdir(
        self, handle: bytes, cookie: int = 0, verifier: bytes = bytes(8), count: int = 8192, credential: bytes = b""
    ) -> Listing:
        args = opaque(handle) + u64(cookie) + verifier + u32(count)
        results = await self.nfs(READDIR, args, credential)
        return _listing(results, plus=False)

    async def readdirplus(
        self,
        handle: bytes,
        cookie: int = 0,
        verifier: bytes = bytes(8),
        dircount: int = 8192,
        maxcount: int = 32768,
        credential: bytes = b"",
    ) -> Listing:
        args = opaque(handle) + u64(cookie) + verifier + u32(dircount, maxcount)
        return _listing(await self.nfs(READDIRPLUS, args, credential), plus=True)

    async def list_all(self, handle: bytes, count: int = 8192, *, plus: bool = False) -> list[Entry]:
        """Every entry, in as many calls as it takes."""
        entries: list[Entry] = []
        cookie, verifier = 0, bytes(8)
        while True:
            if plus:
                listing = await self.readdirplus(handle, cookie, verifier, count, count)
            else:
                listing = await self.readdir(handle, cookie, verifier, count)
            assert listing.status == 0, listing.status
            entries += listing.entries
            if listing.eof:
                return entries
            assert listing.entries, "no entry and no end"
            cookie, verifier = listing.entries[-1].cookie, listing.verifier


def _listing(results: Unpacker, *, plus: bool) -> Listing:
    size = len(results.rest)
    status = results.u32()
    listing = Listing(status, results.post_op(), size=size)
    if status:
        results.end()
        return listing
    listing.verifier = results.take(8)
    while results.u32():
        entry = Entry(results.u64(), results.opaque(), results.u64())
        if plus:
            entry.attributes = results.post_op()
            entry.handle = results.opaque() if results.u32() else b""
        listing.entries.append(entry)
    listing.eof = bool(results.u32())
    results.end()
    return listing
