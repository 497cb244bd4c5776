"""The privileged part: a small process that owns the kernel's NFS server for one state folder.

It takes requests (`netbootd.nfsd.kernel.protocol`) from root and from the user that serves, told by SO_PEERCRED, one at
a time. SIGTERM ends the kernel's server if it is ours; SIGHUP reads the configuration again, for who may use the
exports. When it dies, everything runs on, and the next one takes over.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from netbootd.errors import DeniedError, HostError, NetbootdError
from netbootd.nfsd.kernel import protocol
from netbootd.nfsd.kernel.manager import KernelNfs

_log = logging.getLogger(__name__)

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_TICK = 5.0
_CONNECTIONS = 32
_PATIENCE = 5.0


class Part:
    """Serves requests on a socket until `stop`.

    :param path: of the socket; made, and owned by `group` (its number, or None)
    :param users: the ids of the users that may ask, besides root
    """

    def __init__(self, nfs: KernelNfs, path: Path, users: Collection[int], group: int | None = None) -> None:
        self._nfs = nfs
        self._path = path
        self._users = {0, *users}
        self._group = group
        self._wake_in, self._wake_out = socket.socketpair()
        self._connections: dict[socket.socket, float] = {}
        self._stopping = False
        self._reload: Callable[[], None] | None = None

    def run(self, ready: Callable[[], None], reload: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, then end the kernel's server if it is ours.

        :param ready: called once requests are taken
        :param reload: called on SIGHUP
        :raises HostError: the socket can't be made
        """
        self._reload = reload
        listener = self._listen()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._wake_out.setblocking(False)
        old = signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        try:
            ready()
            self._loop(listener)
        finally:
            signal.set_wakeup_fd(old)
            listener.close()
            self._path.unlink(missing_ok=True)
            for connection in list(self._connections):
                connection.close()
        self._nfs.stop()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            self._path.chmod(0o660)
            if self._group is not None:
                os.chown(self._path, -1, self._group)
            listener.listen(_CONNECTIONS)
        except OSError as error:
            listener.close()
            raise HostError(f"Listening at {self._path}: {error.strerror or error}.") from error
        return listener

    def _loop(self, listener: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake_in, selectors.EVENT_READ)
            ticked = time.monotonic()
            while not self._stopping:
                for key, _ in selector.select(_TICK):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock is listener:
                        self._accept(listener, selector)
                    elif sock is self._wake_in:
                        self._signalled(sock.recv(64))
                    else:
                        self._serve(sock, selector)
                if time.monotonic() - ticked >= _TICK:
                    ticked = time.monotonic()
                    self._nfs.tick()
                    for sock, since in list(self._connections.items()):
                        if ticked - since > _PATIENCE:
                            self._end(sock, selector)

    def _signalled(self, numbers: bytes) -> None:
        if signal.SIGHUP in numbers and self._reload is not None:
            self._reload()
            self._nfs.clients_changed()
        self._stopping = self._stopping or bool({signal.SIGTERM, signal.SIGINT} & set(numbers))

    def _accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.settimeout(_PATIENCE)
        if len(self._connections) >= _CONNECTIONS:
            sock.close()
            return
        self._connections[sock] = time.monotonic()
        selector.register(sock, selectors.EVENT_READ)

    def _end(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        selector.unregister(sock)
        del self._connections[sock]
        sock.close()

    def _serve(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            packet = sock.recv(protocol.LIMIT + 1)
            if packet:
                sock.send(self._answer(sock, packet))
        except OSError as error:
            _log.debug("a peer has gone: %s", error)
        self._end(sock, selector)

    def _answer(self, sock: socket.socket, packet: bytes) -> bytes:
        _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        try:
            if uid not in self._users:
                raise DeniedError(f"User {uid} may not ask the privileged part for NFS.")
            return protocol.encode_answer(self._do(protocol.parse_request(packet)))
        except NetbootdError as error:
            _log.log(logging.DEBUG if error.code == "not-found" else logging.WARNING, "Request refused: %s", error)
            return protocol.encode_error(error)
        except Exception:
            _log.exception("a request failed")
            return protocol.encode_error(HostError("The privileged part for NFS failed; its log says more."))

    def _do(self, request: protocol.Request) -> dict[str, Any]:
        match request:
            case protocol.Start(addresses, port):
                self._nfs.start(addresses, port)
                return self._nfs.status()
            case protocol.Handle(image, generation, below, address):
                return {"handle": self._nfs.handle(image, generation, below, address).hex()}
            case protocol.Register(mount_port):
                self._nfs.register_mount(mount_port)
                return {}
            case protocol.Clients():
                return {"nfs4": self._nfs.nfs4_clients()}
            case protocol.Status():
                return self._nfs.status()
