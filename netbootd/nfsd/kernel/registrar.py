"""Takes the kernel's registrations where no rpcbind does, for as long as the kernel's server starts or stops.

With NFSv3 enabled the kernel registers every listener with the rpcbind of its host, and does not start without one.
It asks, in this order, the abstract Unix socket and the path (Linux before 6.5: the path alone) below; each call that
comes is answered with TRUE. Nodes don't ask here, but the port mapper of `netbootd serve`.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from netbootd.nfsd.portmap import PORTMAP_PROGRAM
from netbootd.nfsd.rpc import Answer, Caller, Dispatcher, Program, RecordError, Records, null, record
from netbootd.nfsd.xdr import TRUE, Reader

_log = logging.getLogger(__name__)

PATH = "/run/rpcbind.sock"
ABSTRACT = "\0/run/rpcbind.sock"
_RECORD_LIMIT = 4096


def _agree(args: Reader, caller: Caller) -> Answer:
    return TRUE


PROGRAM = Program(PORTMAP_PROGRAM, {version: {0: null, 1: _agree, 2: _agree} for version in (2, 3, 4)})


@contextlib.contextmanager
def registrar(path: str = PATH, abstract: str = ABSTRACT) -> Iterator[None]:
    """While this runs, the kernel's registrations succeed: with the rpcbind that is there, or with us."""
    if _answers(abstract) or _answers(path):
        yield
        return
    sockets = [sock for sock in (_listen(abstract), _listen(path)) if sock is not None]
    ended = threading.Event()
    thread = threading.Thread(target=_serve, args=(sockets, ended), name="registrar", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for sock in sockets:
            if sock.getsockname() == path:
                with contextlib.suppress(OSError):
                    Path(path).unlink()
            sock.close()


def _answers(name: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(name)
        except OSError:
            return False
    return True


def _listen(name: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if not name.startswith("\0"):
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()  # nobody answers there
        sock.bind(name)
        sock.listen()
    except OSError as error:
        _log.debug("no stand-in for rpcbind at %r: %s", name, error)
        sock.close()
        return None
    return sock


def _serve(sockets: list[socket.socket], ended: threading.Event) -> None:
    dispatcher = Dispatcher([PROGRAM])
    with selectors.DefaultSelector() as selector:
        for listener in sockets:
            selector.register(listener, selectors.EVENT_READ, None)
        while not ended.is_set():
            for key, _ in selector.select(0.05):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if key.data is None:
                    connection = sock.accept()[0]
                    selector.register(connection, selectors.EVENT_READ, Records(_RECORD_LIMIT))
                elif not _converse(sock, key.data, dispatcher):
                    selector.unregister(sock)
                    sock.close()
        for key in list(selector.get_map().values()):
            if key.data is not None:
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()


def _converse(sock: socket.socket, records: Records, dispatcher: Dispatcher) -> bool:
    try:
        data = sock.recv(65536)
        for call in records.feed(data):
            reply = dispatcher.answer(call, Caller("", "", 0.0))
            if reply is not None and isinstance(reply.body, bytes):
                sock.sendall(record(reply.head, reply.body))
    except (OSError, RecordError):
        return False
    return bool(data)
