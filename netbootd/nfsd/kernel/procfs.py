"""The kernel's NFS server by the files of /proc/fs/nfsd (nfsd(7)), for kernels without the netlink commands."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Collection, Iterable
from pathlib import Path

from netbootd.errors import HostError
from netbootd.nfsd.kernel.control import Call, Listener, PoolMode, Setup, Version, failure

_VERSION = re.compile(r"([+-])(\d)(?:\.(\d))?\Z")
_BACKLOG = 64
_POOL_MODE = Path("/sys/module/sunrpc/parameters/pool_mode")


class ProcControl:
    """By writing to files, as root.

    :param folder: where the file system ``nfsd`` is mounted
    :param pool_mode_file: sunrpc's module parameter
    """

    name = "procfs"

    def __init__(self, folder: Path, pool_mode_file: Path = _POOL_MODE) -> None:
        self._folder = folder
        self._pool_mode = pool_mode_file

    def threads(self) -> int:
        """See `ServerControl`."""
        return int(self._read("threads").split()[0])

    def versions(self) -> dict[Version, bool]:
        """See `ServerControl`."""
        return parse_versions(self._read("versions"))

    def listeners(self) -> list[Listener]:
        """See `ServerControl`."""
        return parse_ports(self._read("portlist"))

    def pool_mode(self) -> PoolMode | None:
        """See `ServerControl`."""
        try:
            mode = self._pool_mode.read_text().strip()
            pools = len(self._read("pool_threads").split())
        except OSError:
            return None
        return PoolMode(mode, pools)

    def calls(self) -> list[Call]:
        """See `ServerControl`."""
        return []

    def start(self, setup: Setup) -> None:
        """See `ServerControl`."""
        if setup.pool_mode:
            self._set_pool_mode(setup.pool_mode)
        self._write("versions", version_words(self.versions(), setup.versions))
        self._write("nfsv4gracetime", str(setup.grace))  # not after the first listener: EBUSY
        try:
            for listener in setup.listeners:
                with _bound(listener) as sock:  # the kernel keeps its own reference
                    self._write("portlist", str(sock.fileno()))
            self._write("threads", str(setup.threads))
        except HostError:
            self.stop()
            raise

    def stop(self) -> None:
        """See `ServerControl`."""
        self._write("threads", "0")

    def _set_pool_mode(self, mode: str) -> None:
        try:
            self._pool_mode.write_text(mode)
        except OSError as error:
            raise failure(f"Writing {self._pool_mode}", error.errno or errno.EIO) from error

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text()
        except OSError as error:
            raise failure(f"Reading {self._folder / name}", error.errno or errno.EIO) from error

    def _write(self, name: str, text: str) -> None:
        # One write: the kernel takes each as a whole sentence.
        try:
            fd = os.open(self._folder / name, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode() + b"\n")
            finally:
                os.close(fd)
        except OSError as error:
            raise failure(f"Writing {text!r} to {self._folder / name}", error.errno or errno.EIO) from error


def _bound(listener: Listener) -> socket.socket:
    family = socket.AF_INET6 if ":" in listener.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listener.address, listener.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        where = f"[{listener.address}]" if family == socket.AF_INET6 else listener.address
        raise failure(f"NFS: listening on {where} port {listener.port}", error.errno or errno.EIO) from error
    return sock


def parse_versions(text: str) -> dict[Version, bool]:
    """The file ``versions``: ``-2 +3 +4 +4.1 +4.2``, where a bare 4 says whether there is any, and ``4.0`` may lack.

    :raises HostError: it holds something else
    """
    found: dict[Version, bool] = {}
    for word in text.split():
        match = _VERSION.match(word)
        if match is None:
            raise HostError(f"The kernel's list of NFS versions is not understood: {text.strip()!r}.")
        sign, major, minor = match.groups()
        if major == "4" and minor is None:
            found.setdefault(Version(4, 0), sign == "+")
            continue
        found[Version(int(major), int(minor or 0))] = sign == "+"
    return found


def version_words(known: Iterable[Version], enabled: Collection[Version]) -> str:
    """What to write into ``versions``. A bare 4 stands for all of its minor versions, and so comes before them."""
    known = list(known)
    majors = sorted({version.major for version in known})
    on = {version.major for version in enabled}
    words = [f"{'+' if major in on else '-'}{major}" for major in majors]
    words += [f"{'+' if version in enabled else '-'}{version}" for version in known if version.major >= 4]
    return " ".join(words)


def parse_ports(text: str) -> list[Listener]:
    """The file ``portlist``: a line of transport and port each, such as ``tcp 2049``; addresses it doesn't tell."""
    found = []
    for line in text.splitlines():
        transport, _, port = line.partition(" ")
        if port.isdecimal():
            found.append(Listener(transport, "", int(port)))
    return found
