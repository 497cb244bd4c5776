"""RPC over UDP (RFC 5531, section 11, last paragraph), for the port mapper: a datagram is a call, the answer another.

Answers leave from the address that was asked, which matters on hosts with several: IP_PKTINFO.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
import time
from collections.abc import Callable

from netbootd.nfsd.listeners import plain
from netbootd.nfsd.rpc import Caller, Dispatcher

_log = logging.getLogger(__name__)

_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)  # Linux; the constant is missing from Python before 3.14
_IN_PKTINFO = struct.Struct("=I4s4s")
_IN6_PKTINFO = struct.Struct("=16sI")
_MAX_CALL = 4096
_MAX_REPLY = 1400  # what fits a packet: nobody's amplifier
_BATCH = 32


class DatagramServer:
    """Answers calls on one bound UDP socket."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        dispatcher: Dispatcher,
        allow: Callable[[str], bool],
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._dispatcher = dispatcher
        self._allow = allow
        sock.setblocking(False)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Stop answering and close the socket."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                call, extra, _, peer = self._socket.recvmsg(_MAX_CALL, 128)
                self._answer(call, extra, peer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # an ICMP error of an earlier answer, a full queue
                _log.debug("datagram of the port mapper: %s", error)

    def _answer(self, call: bytes, extra: list[tuple[int, int, bytes]], peer: tuple[str, int]) -> None:
        address = plain(peer[0])
        if not self._allow(address):
            _log.debug("call to the port mapper from %s, which is not allowed", address)
            return
        local, source = self._asked(extra)
        reply = self._dispatcher.answer(call, Caller(address, local, time.monotonic(), datagram=True))
        if reply is None or not isinstance(reply.body, bytes):
            return
        data = reply.head + reply.body
        if len(data) <= _MAX_REPLY:
            self._socket.sendmsg([data], source, 0, peer)

    def _asked(self, extra: list[tuple[int, int, bytes]]) -> tuple[str, list[tuple[int, int, bytes]]]:
        """The address of ours that was asked, and the control message that makes it the answer's source."""
        for level, kind, data in extra:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _IN_PKTINFO.size:
                _, chosen, _ = _IN_PKTINFO.unpack_from(data)
                return str(ipaddress.ip_address(chosen)), [(level, kind, _IN_PKTINFO.pack(0, chosen, bytes(4)))]
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _IN6_PKTINFO.size:
                chosen, index = _IN6_PKTINFO.unpack_from(data)
                return plain(str(ipaddress.ip_address(chosen))), [(level, kind, _IN6_PKTINFO.pack(chosen, index))]
        return plain(self._socket.getsockname()[0]), []
