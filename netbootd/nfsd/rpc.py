"""ONC RPC version 2 (RFC 5531): record marking, calls, credentials, replies, and the way from a call to its program.

Credentials are AUTH_SYS and AUTH_NONE; AUTH_SHORT is never handed out, RPCSEC_GSS is not known. Bytes in, bytes out:
no socket here. A record that is not even a call is dropped, every other fault has its answer from the standard.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from netbootd.nfsd.xdr import Reader, XdrError, u32

_log = logging.getLogger(__name__)

AUTH_NONE = 0
AUTH_SYS = 1
NOBODY = 65534
LAST_FRAGMENT = 0x80000000

_MARK = struct.Struct(">I")
_CALL_HEAD = struct.Struct(">8I")  # xid, CALL, rpc version, program, version, procedure, flavour, its length
_XID_AND_TYPE = struct.Struct(">2I")
_CALL, _REPLY = 0, 1
_ACCEPTED = struct.pack(">4I", _REPLY, 0, AUTH_NONE, 0)  # MSG_ACCEPTED, an empty verifier
SUCCESS = _ACCEPTED + u32(0)
PROG_UNAVAIL = _ACCEPTED + u32(1)
PROC_UNAVAIL = _ACCEPTED + u32(3)
GARBAGE_ARGS = _ACCEPTED + u32(4)
SYSTEM_ERR = _ACCEPTED + u32(5)
RPC_MISMATCH = struct.pack(">5I", _REPLY, 1, 0, 2, 2)
AUTH_BADCRED = struct.pack(">4I", _REPLY, 1, 1, 1)
AUTH_REJECTEDCRED = struct.pack(">4I", _REPLY, 1, 1, 2)
AUTH_BADVERF = struct.pack(">4I", _REPLY, 1, 1, 3)
AUTH_TOOWEAK = struct.pack(">4I", _REPLY, 1, 1, 5)
RESERVED_PORTS = 1024
"""Ports below this one only a privileged process can send from (IPPORT_RESERVED of netinet/in.h)."""

_MAX_AUTH = 400  # RFC 5531, section 8.2: the body of a credential or verifier
_MAX_MACHINE_NAME = 255
_MAX_GIDS = 16
_CREDENTIALS_KEPT = 256


class RecordError(ValueError):
    """A peer's stream can't be understood any more; the connection has to end."""


class Records:
    """Takes a TCP stream apart into records (RFC 5531, section 11), whatever way it was cut into fragments and packets.

    It keeps at most one unfinished record of `limit` bytes, and what one `feed` brought.
    """

    __slots__ = ("_begun", "_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._begun = bytearray()  # fragments of a record that has more to come

    @property
    def unfinished(self) -> bool:
        """Whether the stream stands in the middle of a record."""
        return bool(self._buffer) or bool(self._begun)

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Take the next bytes of the stream; gives the records that are complete with them.

        :raises RecordError: a record is longer than the limit
        """
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= 4:
                mark: int = _MARK.unpack_from(buffer, position)[0]
                length = mark & 0x7FFFFFFF
                if len(self._begun) + length > self._limit:
                    raise RecordError(f"a record of more than {self._limit} bytes")
                end = position + 4 + length
                if end > len(buffer):
                    break
                fragment = bytes(buffer[position + 4 : end])
                position = end
                if mark & LAST_FRAGMENT:
                    if self._begun:
                        fragment = bytes(self._begun) + fragment
                        self._begun.clear()
                    yield fragment
                else:
                    self._begun += fragment
        finally:
            del buffer[:position]


def record(*parts: bytes) -> bytes:
    """One record of a single fragment."""
    body = b"".join(parts)
    return _MARK.pack(LAST_FRAGMENT | len(body)) + body


@dataclass(frozen=True, slots=True)
class Credential:
    """On whose behalf a call is made, as the client says."""

    uid: int
    gid: int
    gids: frozenset[int] = frozenset()

    def in_group(self, gid: int) -> bool:
        """Whether the caller is a member of the group."""
        return gid == self.gid or gid in self.gids


ANONYMOUS = Credential(NOBODY, NOBODY)


def parse_auth_sys(body: bytes) -> Credential:
    """Read the body of an AUTH_SYS credential (RFC 5531, appendix A).

    :raises XdrError: it is not one
    """
    reader = Reader(body)
    reader.u32()  # a stamp that means nothing to us
    reader.opaque(_MAX_MACHINE_NAME)
    uid, gid = reader.u32(), reader.u32()
    count = reader.u32()
    if count > _MAX_GIDS:
        raise XdrError(f"{count} groups in an AUTH_SYS credential, at most {_MAX_GIDS} are allowed")
    return Credential(uid, gid, frozenset(reader.u32() for _ in range(count)))


@dataclass(slots=True)
class Caller:
    """Who calls: the peer's address, the address of ours that it asked, when (monotonic), its credential, its port."""

    address: str
    local: str
    received: float
    credential: Credential = field(default=ANONYMOUS)
    datagram: bool = False
    port: int = 0


class Later:
    """An answer that can't be given at once; what it needs is told by the subclass, which the server knows."""

    __slots__ = ()


Answer = bytes | Later
Procedure = Callable[[Reader, Caller], Answer]


@dataclass(frozen=True, slots=True)
class Program:
    """One RPC program: its number and, for each version, its procedures by number."""

    number: int
    versions: Mapping[int, Mapping[int, Procedure]]


@dataclass(slots=True)
class Reply:
    """What goes back: `head` up to the results, and the results, which may still have to be fetched."""

    head: bytes
    body: Answer


class Dispatcher:
    """Answers records with the procedures of some programs. It never raises for what a peer sent.

    :param refused: told of every call from a port that is not reserved, which is then refused, but for procedure 0,
        which asks for nothing; None: such calls are answered
    """

    def __init__(self, programs: Iterable[Program], *, refused: Callable[[Caller], None] | None = None) -> None:
        self._programs = {program.number: program.versions for program in programs}
        self._refused = refused
        self._credentials: dict[bytes, Credential] = {}

    def answer(self, call: bytes, caller: Caller) -> Reply | None:
        """The reply to one record; None where it is not a call, which gets no answer.

        `caller.credential` is filled in. An exception of a procedure other than `XdrError` is a bug of ours: it is
        logged and answered with SYSTEM_ERR.
        """
        try:
            xid, kind, rpc_version, number, version, procedure, flavour, length = _CALL_HEAD.unpack_from(call)
        except struct.error:
            return _answer_to_a_stump(call)
        head = _MARK.pack(xid)
        if kind != _CALL:
            return None
        if rpc_version != 2:
            return Reply(head, RPC_MISMATCH)
        if self._refused is not None and procedure and caller.port >= RESERVED_PORTS:
            self._refused(caller)
            return Reply(head, AUTH_TOOWEAK)  # "rejected for security reasons" (RFC 5531, section 9)
        position = 32 + length + (-length & 3)
        if length > _MAX_AUTH or position > len(call):
            return Reply(head, AUTH_BADCRED)
        if flavour == AUTH_SYS:
            body = call[32 : 32 + length]
            credential = self._credentials.get(body)
            if credential is None:
                try:
                    credential = self._remember(body)
                except XdrError:
                    return Reply(head, AUTH_BADCRED)
            caller.credential = credential
        elif flavour == AUTH_NONE:
            caller.credential = ANONYMOUS
        else:
            return Reply(head, AUTH_REJECTEDCRED)
        args = Reader(call, position)
        try:
            args.u32()  # the verifier's flavour: neither AUTH_SYS nor AUTH_NONE has one
            args.opaque(_MAX_AUTH)
        except XdrError:
            return Reply(head, AUTH_BADVERF)
        return self._call(head, number, version, procedure, args, caller)

    def _call(self, head: bytes, number: int, version: int, procedure: int, args: Reader, caller: Caller) -> Reply:
        versions = self._programs.get(number)
        if versions is None:
            return Reply(head, PROG_UNAVAIL)
        procedures = versions.get(version)
        if procedures is None:
            return Reply(head, _ACCEPTED + struct.pack(">3I", 2, min(versions), max(versions)))
        function = procedures.get(procedure)
        if function is None:
            return Reply(head, PROC_UNAVAIL)
        try:
            body = function(args, caller)
        except XdrError:
            return Reply(head, GARBAGE_ARGS)
        except Exception:
            _log.exception(
                "program %d version %d procedure %d failed for %s", number, version, procedure, caller.address
            )
            return Reply(head, SYSTEM_ERR)
        return Reply(head + SUCCESS, body)

    def _remember(self, body: bytes) -> Credential:
        credential = parse_auth_sys(body)
        if len(self._credentials) >= _CREDENTIALS_KEPT:
            self._credentials.clear()
        self._credentials[body] = credential
        return credential


def _answer_to_a_stump(call: bytes) -> Reply | None:
    """A record that ends inside the call's head: answered where at least a call of another RPC version shows."""
    if len(call) < 12:
        return None
    xid, kind = _XID_AND_TYPE.unpack_from(call)
    if kind != _CALL:
        return None
    version: int = _MARK.unpack_from(call, 8)[0]
    return Reply(_MARK.pack(xid), RPC_MISMATCH if version != 2 else GARBAGE_ARGS)


def null(args: Reader, caller: Caller) -> bytes:
    """Procedure 0 of every program: does nothing, answers nothing."""
    return b""
