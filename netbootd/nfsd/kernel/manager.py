"""The kernel's NFS server brought to what the configuration and the state folder say, and kept there.

A server that runs already is taken as it is, if it has what nodes need, and is left running in the end; one that we
have started is ended by us, also where another process of ours started it: a note in the run folder, which a reboot
clears, says so. By the same note a process that takes over from one that died goes on. Exports of others are never
touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netbootd.errors import HostError, NotFoundError
from netbootd.model.export import Export
from netbootd.nfsd import rpcbind
from netbootd.nfsd.kernel import exportfs
from netbootd.nfsd.kernel.book import ExportBook
from netbootd.nfsd.kernel.caches import quote
from netbootd.nfsd.kernel.control import V3, V4_2, Listener, ServerControl, Setup, Version, open_control
from netbootd.nfsd.kernel.registrar import registrar
from netbootd.nfsd.kernel.upcalls import DOMAIN, Upcalls, grant_for_handle
from netbootd.nfsd.mount import MOUNT_PROGRAM, MOUNT_V3
from netbootd.nfsd.portmap import IPPROTO_TCP, Mapping

_log = logging.getLogger(__name__)

NFSD = Path("/proc/fs/nfsd")
DEFAULT_MOUNT_PORT = 20048
"""mountd's registered port (IANA); NFS's own belongs to the kernel."""

RPCBIND_PORT = 111

_NOTE = "serving.json"
_HANDLE_SIZE = 64
_THREADS_A_CPU, _MIN_THREADS, _MAX_THREADS = 4, 8, 64


@dataclass(frozen=True, slots=True)
class Clients:
    """Who may use the exports: a decision by address for the kernel's caches, networks for exportfs(8)."""

    allow: Callable[[str], bool]
    networks: Callable[[], Iterable[exportfs.Network]]


class KernelNfs:
    """The kernel's server, our exports on it, and their file handles. All calls from one thread.

    :param exports: gives the live exports
    :param images: the folder below which all exports lie
    :param run: a folder that is kept until a reboot
    :param secure: serve calls from reserved ports alone
    """

    def __init__(
        self,
        exports: Callable[[], Iterable[Export]],
        images: Path,
        clients: Clients,
        run: Path,
        *,
        secure: bool = False,
        proc: Path = NFSD,
        controls: Callable[[Path], ServerControl] = open_control,
    ) -> None:
        self._book = ExportBook(exports, secure=secure)
        self._images = os.fsencode(os.path.realpath(images))
        self._clients = clients
        self._note = run / _NOTE
        self._proc = proc
        self._controls = controls
        self._control: ServerControl | None = None
        self._upcalls: Upcalls | None = None
        self._exportfs: exportfs.Exportfs | None = None
        self._adopted = False
        self._serving: tuple[tuple[str, ...], int] | None = None
        self._registered: tuple[list[Mapping], list[socket.AddressFamily]] | None = None

    # ------------------------------------------------------------------ starting

    def start(self, addresses: Sequence[str], port: int) -> None:
        """Export, and let the kernel serve on these addresses. May be called again, and then changes nothing.

        :raises HostError: this kernel has no NFS server, or it can't be had as it is needed
        """
        if self._control is not None and self._serving == (tuple(addresses), port) and self._control.threads():
            return
        mount_nfsd(self._proc)
        self._control = control = self._controls(self._proc)
        self._export()
        if control.threads():
            self._adopt(control, port)
            self._remember(addresses, port, ours=not self._adopted)
            self._serving = (tuple(addresses), port)
            return
        self._try_an_export()  # before anything runs: it fails where the file system can't be exported
        listeners = tuple(Listener("tcp", address, port) for address in self._usable(addresses))
        threads = min(_MAX_THREADS, max(_MIN_THREADS, _THREADS_A_CPU * (os.cpu_count() or 1)))
        self._adopted = False
        with registrar():
            self._remember(addresses, port, ours=True)
            try:
                control.start(Setup(listeners, threads, versions_of(control.versions())))
            except HostError:
                self._note.unlink(missing_ok=True)
                raise
        self._serving = (tuple(addresses), port)
        _log.info("The kernel's NFS server runs with %d threads on port %d (by %s)", threads, port, control.name)

    @staticmethod
    def _usable(addresses: Sequence[str]) -> Sequence[str]:
        """Without IPv6's wildcard where the host has no IPv6."""
        return [a for a in addresses if a != "::" or Path("/proc/net/if_inet6").exists()] or ["0.0.0.0"]  # noqa: S104

    def _export(self) -> None:
        """Export, by ourselves or by rpc.mountd, which may come and go."""
        other = exportfs.answerer()
        if other:
            if self._upcalls is not None:
                self._upcalls.stop(forget=True)
                self._upcalls = None
            if self._exportfs is None:
                _log.info("%s answers the kernel's export caches: exporting by exportfs", other)
                self._exportfs = exportfs.Exportfs(self._book, self._clients.networks, self._images)
            self._exportfs.reconcile()
        elif self._upcalls is None:
            self._exportfs = None
            upcalls = Upcalls(self._book, self._clients.allow)
            upcalls.start()
            self._upcalls = upcalls

    def _try_an_export(self) -> None:
        try:
            for grant in self._book.roots()[:1]:
                grant_for_handle(self._book, grant.path)
        except HostError:
            self.stop()
            raise

    def _adopt(self, control: ServerControl, port: int) -> None:
        if not control.versions().get(V3):
            raise HostError(
                "The kernel's NFS server runs already, without version 3, which a root file system needs.",
                hint="Enable it (vers3=y in /etc/nfs.conf) and restart nfs-server, or use --nfs embedded.",
            )
        ports = sorted({one.port for one in control.listeners() if one.transport == "tcp"})
        if port not in ports:
            have = ", ".join(map(str, ports)) or "none"
            raise HostError(
                f"The kernel's NFS server runs already, but not on TCP port {port} (its ports: {have}).",
                hint="Set [nfs] port to that, or end the server and let netbootd start it.",
            )
        self._adopted = not self._noted().get("ours", False)
        _log.info("The kernel's NFS server runs already: using it as it is")

    def _remember(self, addresses: Sequence[str], port: int, *, ours: bool) -> None:
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            beside = self._note.with_name(f".{self._note.name}")
            beside.write_text(json.dumps({"addresses": list(addresses), "port": port, "ours": ours}) + "\n")
            beside.replace(self._note)
        except OSError as error:
            raise HostError(f"Writing {self._note}: {error.strerror or error}.") from error

    def _noted(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._note.read_text()))
        except (OSError, ValueError):
            return {}

    def resume(self) -> None:
        """Go on where a process that died has left everything running; does nothing after a reboot or an orderly end.

        :raises HostError: see `start`
        """
        noted = self._noted()
        if noted:
            _log.info("Taking over the kernel's NFS server from an earlier process")
            self.start(noted["addresses"], int(noted["port"]))

    # ------------------------------------------------------------------ running

    def tick(self) -> None:
        """Every few seconds: run again what somebody has stopped, and export by who answers the kernel now."""
        if self._control is None:
            return
        try:
            if not self._control.threads() and (noted := self._noted()):
                _log.warning("The kernel's NFS server has been stopped by somebody: starting it again")
                self.start(noted["addresses"], int(noted["port"]))
            else:
                self._export()
        except HostError as error:
            _log.error("%s", error)

    def clients_changed(self) -> None:
        """Ask again who may use the exports."""
        if self._upcalls is not None:
            self._upcalls.allowances_changed()
        self.tick()

    def handle(self, image: str, generation: str, below: Sequence[bytes], address: str) -> bytes:
        """The NFSv3 file handle of a folder in a live generation's root, for a client.

        :param below: the names from the root to the folder
        :raises NotFoundError: there is no such generation or folder
        :raises HostError: the kernel gives no handle
        """
        grant = self._book.of(image, generation)
        if grant is None and self._book.refresh():
            grant = self._book.of(image, generation)
        if grant is None:
            raise NotFoundError(f"Image {image} has no generation {generation}.")
        path = folder_beneath(grant.path, below)
        if self._upcalls is not None:
            self._upcalls.introduce(address)
        grant_for_handle(self._book, path)
        return self._filehandle(DOMAIN, path)

    def _filehandle(self, domain: bytes, path: bytes) -> bytes:
        place = self._proc / "filehandle"
        try:
            fd = os.open(place, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.write(fd, quote(domain) + b" " + quote(path) + b" %d\n" % _HANDLE_SIZE)
                said = os.read(fd, 4096)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(f"Asking {place} for {os.fsdecode(path)}: {error.strerror or error}.") from error
        return bytes.fromhex(said.decode().strip().removeprefix("\\x"))

    def register_mount(self, port: int) -> None:
        """Tell the host's rpcbind that MOUNT is answered on a port, in place of what it knew of MOUNT.

        :raises HostError: rpc.mountd answers MOUNT here, or rpcbind doesn't take it
        """
        if exportfs.answerer():
            raise HostError("Registering MOUNT: rpc.mountd runs, and answers it.")
        mappings = [Mapping(MOUNT_PROGRAM, MOUNT_V3, IPPROTO_TCP, port)]
        families = [socket.AF_INET, socket.AF_INET6] if Path("/proc/net/if_inet6").exists() else [socket.AF_INET]
        try:
            rpcbind.register(mappings, families, RPCBIND_PORT)
        except (OSError, rpcbind.Refused) as error:
            raise HostError(f"Registering MOUNT with rpcbind: {error}.") from error
        self._registered = (mappings, families)

    def status(self) -> dict[str, Any]:
        """What is so at this moment, for serve and for doctor."""
        control = self._control
        if control is None:
            return {"running": False}
        pools = control.pool_mode()
        return {
            "running": control.threads() > 0,
            "by": control.name,
            "exports_by": "exportfs" if self._exportfs is not None else "caches",
            "adopted": self._adopted,
            "threads": control.threads(),
            "versions": [str(version) for version, on in sorted(control.versions().items()) if on],
            "listeners": [[one.transport, one.address, one.port] for one in control.listeners()],
            "pool_mode": pools.mode if pools else "",
            "exports": len(self._book.roots()),
        }

    def nfs4_clients(self) -> list[str]:
        """The addresses of the clients that have NFSv4 state here (/proc/fs/nfsd/clients)."""
        found = []
        for entry in sorted(self._proc.glob("clients/*/info")):
            with contextlib.suppress(OSError):
                address = client_address(entry.read_text(errors="replace"))
                if address:
                    found.append(address)
        return found

    # ------------------------------------------------------------------ stopping

    def stop(self) -> None:
        """Take our exports back, and end the server if it is ours."""
        control = self._control
        if self._registered is not None:
            with contextlib.suppress(OSError, rpcbind.Refused):
                rpcbind.unregister(*self._registered, RPCBIND_PORT)
            self._registered = None
        if self._exportfs is not None:
            self._exportfs.withdraw()
            self._exportfs = None
        if control is not None and self._noted().get("ours", False):
            with registrar():
                control.stop()
            _log.info("The kernel's NFS server has ended")
        self._note.unlink(missing_ok=True)
        if self._upcalls is not None:
            self._upcalls.stop(forget=True)
            self._upcalls = None
        self._control = None

    def leave(self) -> None:
        """Go away and let everything run on: nodes keep what they have, and whoever comes next takes over."""
        if self._upcalls is not None:
            self._upcalls.stop(forget=False)
            self._upcalls = None


def versions_of(known: dict[Version, bool]) -> tuple[Version, ...]:
    """What is enabled: 3, and 4.2 where this kernel has it.

    :raises HostError: this kernel has no NFSv3
    """
    if V3 not in known:
        raise HostError("This kernel's NFS server has no version 3.", hint="Use --nfs embedded.")
    return tuple(version for version in (V3, V4_2) if version in known)


def client_address(info: str) -> str:
    """The address in a file ``info``: a line ``address: "192.0.2.5:712"`` or ``address: "[2001:db8::5]:712"``."""
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key == "address":
            host = value.strip().strip('"').rpartition(":")[0]
            return host.strip("[]").partition("%")[0].removeprefix("::ffff:")
    return ""


def folder_beneath(root: bytes, names: Sequence[bytes]) -> bytes:
    """The path of a folder in a tree, gone to name by name through no symbolic link.

    :raises NotFoundError: there is none
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in names:
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                raise NotFoundError("Not a name of a folder.")
            inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError as error:
        raise NotFoundError(f"{os.fsdecode(b'/'.join(names))} is no folder of the tree.") from error
    finally:
        os.close(fd)
    return b"/".join((root, *names))


def mount_nfsd(folder: Path) -> None:
    """Mount the file system ``nfsd`` unless it is; the kernel loads its module for that.

    :raises HostError: this kernel has none, or we may not
    """
    if (folder / "threads").exists():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"nfsd", os.fsencode(folder), b"nfsd", 0, None) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENODEV, errno.ENOENT):
        raise HostError(
            "This kernel has no NFS server (the file system nfsd can't be mounted).",
            hint="Install the kernel's modules, or use --nfs embedded.",
        )
    raise HostError(
        f"Mounting the file system nfsd at {folder}: {os.strerror(number)}.",
        hint="It takes root (netbootd-nfs.service); or use --nfs embedded.",
    )
