"""The embedded NFS server: NFSv3, NFSACL and MOUNT over TCP, a port mapper over TCP and UDP, in one event loop.

It opens all sockets or none, asks `allow` before it reads anything from a peer, and keeps every resource within
`Limits`. Where another program holds the port mapper's port and answers like rpcbind, our services are registered
there instead and taken out again at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from netbootd.errors import HostError
from netbootd.host.sockets import pace_by_loss
from netbootd.nfsd import rpcbind
from netbootd.nfsd.acl import NFSACL_PROGRAM, NFSACL_V3, NfsAclV3
from netbootd.nfsd.connection import Connection, Counters, Shared
from netbootd.nfsd.datagrams import DatagramServer
from netbootd.nfsd.exports import LiveTrees
from netbootd.nfsd.files import OpenFiles
from netbootd.nfsd.listeners import open_tcp, open_tcp_and_udp, plain
from netbootd.nfsd.mount import MOUNT_PROGRAM, MOUNT_V3, ExportTable, MountV3, OnMount
from netbootd.nfsd.portmap import IPPROTO_TCP, IPPROTO_UDP, PORTMAP_PROGRAM, Mapping, PortMapper
from netbootd.nfsd.rpc import Caller, Dispatcher, Program
from netbootd.nfsd.v3 import NFS_PROGRAM, NFS_V3, NfsV3
from netbootd.nfsd.workers import Workers

_log = logging.getLogger(__name__)

_ACCEPTS_A_TURN = 32
_EVICTABLE_SECONDS = 10.0
_WARNING_SECONDS = 60.0
_WARNED_KEPT = 1024
_PAUSE_SECONDS = 1.0


def _anybody(address: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server may use. Times are seconds.

    `idle` ends a connection on which nothing is owed, `stalled` one whose peer stops in the middle (of a call, or of
    taking an answer), `tree_idle` drops the index of a tree that nobody reads.
    """

    connections: int = 1024
    connections_per_address: int = 64
    open_files: int = 512
    threads: int = 4
    idle: float = 900.0
    stalled: float = 120.0
    tree_idle: float = 3600.0
    sweep: float = 5.0


@dataclass(frozen=True, slots=True)
class NfsSettings:
    """Where to listen, and who may ask.

    `secure` takes calls from reserved ports alone, as the option of that name does in exports(5). `port` carries NFS,
    NFSACL and MOUNT; `mount_port` gives MOUNT a port of its own beside it (None: none). Port 0 is
    any free one. `portmap_port` None leaves the port mapper out. Sockets that are handed in, bound and listening, are
    used instead of opening the ports they stand for; `portmap_sockets` may hold UDP ones.
    """

    addresses: Sequence[str] = ("0.0.0.0",)  # noqa: S104 - a server's usual default
    port: int = 2049
    mount_port: int | None = None
    portmap_port: int | None = 111
    allow: Callable[[str], bool] = _anybody
    secure: bool = False
    limits: Limits = field(default_factory=Limits)
    sockets: Sequence[socket.socket] = ()
    mount_sockets: Sequence[socket.socket] = ()
    portmap_sockets: Sequence[socket.socket] = ()


@dataclass(frozen=True, slots=True)
class NfsPorts:
    """The ports in use; `portmap_port` is None where no port mapper knows of us."""

    port: int
    mount_port: int
    portmap_port: int | None


class EmbeddedServer:
    """Serves an export table.

    :param exports: see `netbootd.nfsd.mount.ExportTable`; asked again and again, so that it may change
    :param on_mount: told of every MNT (address, export, seconds), on the event loop
    """

    def __init__(self, exports: ExportTable, settings: NfsSettings, on_mount: OnMount) -> None:
        self._exports = exports
        self._settings = settings
        self._on_mount = on_mount
        self._connections: dict[Connection, None] = {}
        self._listeners: list[socket.socket] = []
        self._datagrams: list[DatagramServer] = []
        self._registered: tuple[Sequence[Mapping], Sequence[int], int] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._warned: dict[str, float] = {}
        self._ports: NfsPorts | None = None
        self._shared: Shared | None = None
        self._scanners: Workers | None = None
        self._max_connections = settings.limits.connections
        self._drained: asyncio.Event | None = None

    @property
    def ports(self) -> NfsPorts:
        """The ports in use, once started."""
        if self._ports is None:
            raise RuntimeError("the NFS server has not been started")
        return self._ports

    @property
    def counters(self) -> Counters:
        """Calls, bytes and connections since the start."""
        return self._shared.counters if self._shared is not None else Counters()

    @property
    def connected(self) -> int:
        """The number of connections at this moment."""
        return len(self._connections)

    # ------------------------------------------------------------------ starting

    async def start(self) -> None:
        """Open everything and serve.

        :raises HostError: a port can't be had; nothing is left open
        """
        settings = self._settings
        opened: list[socket.socket] = []
        try:
            nfs = self._take(settings.sockets, opened) or self._open(opened, settings.port, "--nfs-port")
            port = int(nfs[0].getsockname()[1])
            mount: list[socket.socket] = self._take(settings.mount_sockets, opened)
            if not mount and settings.mount_port is not None and settings.mount_port != port:
                mount = self._open(opened, settings.mount_port, "--mount-port")
            mount_port = int(mount[0].getsockname()[1]) if mount else port
            mappings = _mappings(port, mount_port)
            portmap, portmap_port = await self._port_mapper(opened, mappings, nfs)
        except BaseException:
            for sock in opened:
                sock.close()
            raise
        self._serve(nfs, mount, portmap, mappings, portmap_port)
        self._ports = NfsPorts(port, mount_port, portmap_port)
        _log.info("NFS on port %d, MOUNT on %d, port mapper %s", port, mount_port, portmap_port or "off")

    @staticmethod
    def _take(sockets: Sequence[socket.socket], opened: list[socket.socket]) -> list[socket.socket]:
        opened.extend(sockets)
        for sock in sockets:
            sock.setblocking(False)
        return list(sockets)

    def _open(self, opened: list[socket.socket], port: int, option: str) -> list[socket.socket]:
        sockets = open_tcp(self._settings.addresses, port, option)
        opened.extend(sockets)
        return sockets

    async def _port_mapper(
        self, opened: list[socket.socket], mappings: Sequence[Mapping], nfs: Sequence[socket.socket]
    ) -> tuple[list[socket.socket], int | None]:
        """Our own port mapper's sockets, or none where the host's rpcbind has taken our services instead."""
        settings = self._settings
        given = self._take(settings.portmap_sockets, opened)
        if given:
            return given, int(given[0].getsockname()[1])
        port = settings.portmap_port
        if port is None:
            return [], None
        try:
            sockets = open_tcp_and_udp(settings.addresses, port, "--portmap-port")
        except HostError:
            concrete = [a for a in settings.addresses if a not in ("0.0.0.0", "::")]  # noqa: S104
            if port == 0 or not await asyncio.to_thread(rpcbind.answers, port, ["127.0.0.1", "::1", *concrete]):
                raise
            families = sorted({int(sock.family) for sock in nfs})
            await self._register(mappings, families, port)
            return [], port
        opened.extend(sockets)
        return sockets, int(sockets[0].getsockname()[1])

    async def _register(self, mappings: Sequence[Mapping], families: Sequence[int], port: int) -> None:
        """Tell the host's rpcbind of our services.

        :raises HostError: it doesn't take them
        """
        try:
            await asyncio.to_thread(rpcbind.register, mappings, families, port)
        except (OSError, rpcbind.Refused) as error:
            raise HostError(
                f"NFS: registering with the rpcbind that answers on port {port}: {error}",
                hint="Only root may register there: stop rpcbind, or choose --portmap-port N or off.",
            ) from error
        self._registered = (mappings, families, port)

    def _serve(
        self,
        nfs: Sequence[socket.socket],
        mount: Sequence[socket.socket],
        portmap: Sequence[socket.socket],
        mappings: Sequence[Mapping],
        portmap_port: int | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        limits = self._settings.limits
        open_files = self._share_descriptors()
        files = OpenFiles(open_files)
        self._scanners = Workers(loop, 1, "nfs-index")
        trees = LiveTrees(self._exports, self._scanners, files.forget)
        self._shared = Shared(loop, trees, files, Workers(loop, limits.threads, "nfs-read"), self._forget)
        mounts = self._mount_program(trees).program()
        programs = [NfsV3(trees).program(), NfsAclV3(trees).program(), mounts]
        self._listen(nfs, programs, secure=self._settings.secure)
        self._listen(mount, [mounts], secure=self._settings.secure)
        if portmap and portmap_port is not None:
            both = [Mapping(PORTMAP_PROGRAM, v, p, portmap_port) for v in (2, 3, 4) for p in (IPPROTO_TCP, IPPROTO_UDP)]
            program = PortMapper([*both, *mappings]).program()
            self._listen([sock for sock in portmap if sock.type == socket.SOCK_STREAM], [program], secure=False)
            for sock in portmap:
                if sock.type == socket.SOCK_DGRAM:
                    server = DatagramServer(loop, sock, Dispatcher([program]), self._settings.allow)
                    self._datagrams.append(server)
        self._sweeper = loop.call_later(limits.sweep, self._sweep)

    def _mount_program(self, trees: LiveTrees) -> MountV3:
        return MountV3(self._exports, trees, self._on_mount)

    def _share_descriptors(self) -> int:
        """Fit connections and open files into half of the descriptors that this process may have."""
        limits = self._settings.limits
        half = max(32, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        if limits.connections + limits.open_files <= half:
            return limits.open_files
        open_files = min(limits.open_files, half // 3)
        self._max_connections = min(limits.connections, half - open_files)
        _log.info("at most %d NFS connections: this process may have few descriptors", self._max_connections)
        return open_files

    def _listen(self, sockets: Sequence[socket.socket], programs: Sequence[Program], *, secure: bool) -> None:
        loop = asyncio.get_running_loop()
        dispatcher = Dispatcher(programs, refused=self._refused_port if secure else None)
        for sock in sockets:
            self._listeners.append(sock)
            pace_by_loss(sock)
            loop.add_reader(sock.fileno(), self._accept, sock, dispatcher)

    # ------------------------------------------------------------------ serving

    def _accept(self, listener: socket.socket, dispatcher: Dispatcher) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:  # out of descriptors or memory: try again when there may be some
                _log.error("a connection could not be accepted: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener.fileno())
                loop.call_later(_PAUSE_SECONDS, self._resume, listener, dispatcher)
                return
            self._welcome(sock, (plain(peer[0]), int(peer[1])), dispatcher)

    def _resume(self, listener: socket.socket, dispatcher: Dispatcher) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener, dispatcher)

    def _welcome(self, sock: socket.socket, peer: tuple[str, int], dispatcher: Dispatcher) -> None:
        assert self._shared is not None
        address = peer[0]
        if not self._settings.allow(address):
            self._refuse(sock, address, "it is not among the allowed addresses")
            return
        if sum(other.address == address for other in self._connections) >= (
            self._settings.limits.connections_per_address
        ):
            self._refuse(sock, address, "it has too many connections")
            return
        if len(self._connections) >= self._max_connections and not self._evict():
            self._refuse(sock, address, "there are too many connections")
            return
        try:
            sock.setblocking(False)
            _tune(sock)
            local = plain(sock.getsockname()[0])
        except OSError:  # it is gone again
            sock.close()
            return
        self._shared.counters.connections += 1
        self._connections[Connection(self._shared, sock, peer, local, dispatcher)] = None

    def _refuse(self, sock: socket.socket, address: str, why: str) -> None:
        assert self._shared is not None
        sock.close()
        self._shared.counters.refused += 1
        self._warn(address, f"an NFS connection from {address} was refused: {why}")

    def _refused_port(self, caller: Caller) -> None:
        self._warn(
            caller.address,
            f"NFS calls from {caller.address} are refused: they come from port {caller.port}, and [nfs] secure takes"
            " those from ports below 1024 alone",
        )

    def _warn(self, address: str, message: str) -> None:
        """Log it, unless this address has had its warning a moment ago."""
        now = time.monotonic()
        if now - self._warned.get(address, -_WARNING_SECONDS) >= _WARNING_SECONDS:
            if len(self._warned) >= _WARNED_KEPT:
                self._warned.clear()
            self._warned[address] = now
            _log.warning("%s", message)

    def _evict(self) -> bool:
        """Make room by ending the connection that has been idle for longest, if any has been for a while."""
        idle = [connection for connection in self._connections if not connection.busy]
        oldest = min(idle, key=lambda connection: connection.active, default=None)
        if oldest is None or time.monotonic() - oldest.active < _EVICTABLE_SECONDS:
            return False
        oldest.close()
        return True

    def _forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if self._drained is not None and not self._connections:
            self._drained.set()

    def _sweep(self) -> None:
        assert self._shared is not None
        limits = self._settings.limits
        now = time.monotonic()
        for connection in list(self._connections):
            why = connection.overdue(now, limits.idle, limits.stalled)
            if why:
                _log.info("connection of %s ended: %s", connection.address, why)
                connection.close()
        self._shared.trees.sweep(limits.tree_idle)
        self._sweeper = self._shared.loop.call_later(limits.sweep, self._sweep)

    # ------------------------------------------------------------------ stopping

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more connections and calls, give answers that are owed `drain_seconds`, then close everything."""
        if self._shared is None:
            return
        loop = asyncio.get_running_loop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listener in self._listeners:
            loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        for server in self._datagrams:
            server.close()
        self._datagrams.clear()
        if self._registered is not None:
            registered, self._registered = self._registered, None
            try:
                await asyncio.to_thread(rpcbind.unregister, *registered)
            except (OSError, rpcbind.Refused) as error:
                _log.warning("our services stay registered with rpcbind: %s", error)
        for connection in list(self._connections):
            connection.finish()
        if self._connections and drain_seconds > 0:
            self._drained = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), drain_seconds)
        for connection in list(self._connections):
            connection.close()
        self._shared.workers.close()
        if self._scanners is not None:
            self._scanners.close()
        self._shared.trees.clear()
        self._shared.files.clear()
        self._shared = None


def _tune(sock: socket.socket) -> None:
    """Answers leave at once; a peer that vanished is noticed after about two minutes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def _mappings(port: int, mount_port: int) -> list[Mapping]:
    return [
        Mapping(NFS_PROGRAM, NFS_V3, IPPROTO_TCP, port),
        Mapping(NFSACL_PROGRAM, NFSACL_V3, IPPROTO_TCP, port),
        Mapping(MOUNT_PROGRAM, MOUNT_V3, IPPROTO_TCP, mount_port),
    ]
