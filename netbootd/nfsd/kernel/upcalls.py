"""Answers what the kernel's export caches ask, in a thread of its own.

Answers that grant something hold for a year, so that nodes go on reading when this process is gone; when the exports
change, the caches are flushed and ask again. Answers that refuse hold for a minute.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from netbootd.errors import HostError
from netbootd.nfsd.kernel import caches
from netbootd.nfsd.kernel.book import ExportBook
from netbootd.nfsd.kernel.caches import ADDRESSES, EXPORTS, HANDLES

_log = logging.getLogger(__name__)

DOMAIN = b"netbootd"
"""What all clients that may use the exports are called towards the kernel."""
RPC = Path("/proc/net/rpc")

_GRANTED, _REFUSED = 365 * 86400, 60
_LINE = 32768  # PAGE_SIZE of the largest pages that such a line could fill
_TICK = 2.0
_NO_CLIENT = b"0.0.0.0"


class Upcalls:
    """The channels of the three caches, open while this process answers them.

    :param allow: whether a client at an address (text) may use the exports
    :param rpc: /proc/net/rpc
    """

    def __init__(self, book: ExportBook, allow: Callable[[str], bool], rpc: Path = RPC) -> None:
        self._book = book
        self._allow = allow
        self._rpc = rpc
        self._channels: dict[int, str] = {}
        self._lock = threading.Lock()
        self._wake = os.pipe2(os.O_CLOEXEC)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the channels, forget what an earlier answerer said, and answer from now on.

        :raises HostError: this kernel has no such caches, or we may not
        """
        for name in (ADDRESSES, EXPORTS, HANDLES):
            path = self._rpc / name / "channel"
            try:
                self._channels[os.open(path, os.O_RDWR | os.O_CLOEXEC)] = name
            except OSError as error:
                raise HostError(f"Opening {path}: {error.strerror or error}.") from error
        self._book.refresh()
        self.flush(ADDRESSES, EXPORTS, HANDLES)
        self._thread = threading.Thread(target=self._run, name="nfs-upcalls", daemon=True)
        self._thread.start()

    def stop(self, *, forget: bool) -> None:
        """Answer no more. With `forget`, nothing of ours stays granted."""
        os.write(self._wake[1], b"x")
        if self._thread is not None:
            self._thread.join()
        for fd in self._channels:
            os.close(fd)
        self._channels.clear()
        if forget:
            self.flush(ADDRESSES, EXPORTS, HANDLES)

    def flush(self, *names: str) -> None:
        """Let the kernel ask again about everything."""
        for name in names:
            try:
                (self._rpc / name / "flush").write_text(f"{int(time.time())}\n")
            except OSError as error:
                _log.warning("The kernel's cache %s could not be flushed: %s", name, error)

    def allowances_changed(self) -> None:
        """Ask `allow` again about every client."""
        self.flush(ADDRESSES)

    def introduce(self, address: str) -> None:
        """Tell the kernel ahead of its asking that a client belongs to us.

        :raises HostError: the kernel doesn't take it
        """
        tell(ADDRESSES, caches.address_line(address.encode(), _until(_GRANTED), DOMAIN), self._rpc)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake[0], select.POLLIN)
        for fd in self._channels:
            poller.register(fd, select.POLLIN)
        looked = 0.0
        while True:
            ready = poller.poll(_TICK * 1000)
            if any(fd == self._wake[0] for fd, _ in ready):
                return
            try:
                if time.monotonic() - looked >= _TICK:
                    looked = time.monotonic()
                    self._look()
                for fd, _ in ready:
                    self._serve(fd)
            except Exception:
                _log.exception("answering the kernel's export caches failed")

    def _look(self) -> None:
        if self._book.refresh():
            self.flush(EXPORTS, HANDLES)

    def _serve(self, fd: int) -> None:
        try:
            line = os.read(fd, _LINE)
        except OSError as error:
            _log.warning("The kernel's cache %s can't be read: %s", self._channels[fd], error)
            return
        if not line:
            return
        answer = self.answer(self._channels[fd], line)
        if answer is None:
            return
        try:
            os.write(fd, answer)
        except OSError as error:
            _log.warning("The kernel does not take %r: %s", answer.decode(errors="replace"), error.strerror)

    def answer(self, cache: str, line: bytes) -> bytes | None:
        """The answer to one line, None where it is not understood."""
        try:
            words = caches.split(line)
            if cache == ADDRESSES:
                return self._about_address(words[1])
            if cache == EXPORTS:
                return self._about_export(words[0], words[1])
            return self._about_handle(words[0], int(words[1]), words[2])
        except (ValueError, IndexError):
            _log.warning("The kernel's cache %s asks what we don't understand: %r", cache, line)
            return None

    def _about_address(self, address: bytes) -> bytes:
        text = str(ipaddress.ip_address(address.decode()))
        if self._allow(text):
            return caches.address_line(address, _until(_GRANTED), DOMAIN)
        return caches.address_line(address, _until(_REFUSED), None)

    def _about_export(self, domain: bytes, path: bytes) -> bytes:
        grant = self._book.at(path) if domain == DOMAIN else None
        if grant is None and domain == DOMAIN and path.endswith(b"/root") and self._book.refresh():
            grant = self._book.at(path)  # published within the last two seconds
        return caches.export_line(domain, path, _until(_GRANTED if grant else _REFUSED), grant)

    def _about_handle(self, domain: bytes, kind: int, fsid: bytes) -> bytes:
        grant = self._book.named(kind, fsid) if domain == DOMAIN else None
        until = _until(_GRANTED if grant else _REFUSED)
        return caches.handle_line(domain, kind, fsid, until, grant.path if grant else None)


def grant_for_handle(book: ExportBook, path: bytes, rpc: Path = RPC) -> None:
    """Tell the kernel of the export that a folder is in: to give out a file handle it doesn't ask, but has to know.

    :raises HostError: the kernel doesn't take it; its file system can't be exported
    """
    # A domain is known to the kernel once a client belongs to it; where rpc.mountd answers, none belongs to ours.
    tell(ADDRESSES, caches.address_line(_NO_CLIENT, _until(_REFUSED), DOMAIN), rpc)
    while True:
        grant = book.at(path)
        if grant is not None and not grant.flags & caches.Flag.V4ROOT:
            break
        tell(EXPORTS, caches.export_line(DOMAIN, path, _until(_REFUSED), None), rpc)
        if path == b"/":
            raise HostError("The folder is below no exported one.")
        path = path.rpartition(b"/")[0] or b"/"
    tell(EXPORTS, caches.export_line(DOMAIN, path, _until(_GRANTED), grant), rpc)


def tell(cache: str, line: bytes, rpc: Path = RPC) -> None:
    """Write one line into a cache. Writing alone doesn't make us one who answers.

    :raises HostError: the kernel doesn't take it
    """
    path = rpc / cache / "channel"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(
            f"Writing {line.decode(errors='replace').strip()!r} to {path}: {error.strerror or error}.",
            hint="The state folder has to lie on a file system that can be exported, such as ext4, XFS or btrfs.",
        ) from error


def _until(seconds: int) -> int:
    return int(time.time()) + seconds
