"""The running service: every socket is opened first, then all servers run until told to stop.

The first failure while opening closes what was opened and ends the start. Where systemd hands sockets in, exactly the
protocols whose sockets it could open are served. SIGHUP takes in a changed configuration, or keeps the old one where
the new one is faulty; transfers go on. SIGTERM and SIGINT drain: open transfers get
their time, new ones are refused; a second signal ends at once.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netbootd.boot.contract import observed
from netbootd.boot.files import BootDirectory
from netbootd.boot.identify import Identities
from netbootd.boot.sessions import Sessions
from netbootd.cloudinit.seed import Seed, SeedBuilder
from netbootd.config.loader import warnings
from netbootd.config.schema import Config
from netbootd.errors import ConfigError, HostError
from netbootd.host import systemd
from netbootd.host.links import AllowedPeers, Neighbours, address_to_advertise, local_addresses
from netbootd.host.sockets import allow_many_descriptors
from netbootd.httpd.bootfiles import BootFileRoutes
from netbootd.httpd.cards import CardRoutes
from netbootd.httpd.imager import ImagerRoutes
from netbootd.httpd.ipxe import IpxeRoutes
from netbootd.httpd.metrics import MetricsRoute
from netbootd.httpd.progress import ProgressRoutes
from netbootd.httpd.seed import SeedRoutes
from netbootd.httpd.server import HttpServer, HttpSettings
from netbootd.model.event import Outcome, Stage
from netbootd.model.export import Export
from netbootd.model.identity import Evidence, MacAddress, Serial
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node
from netbootd.nfsd import rpcbind
from netbootd.nfsd.kernel.client import SOCKET
from netbootd.nfsd.kernel.server import KernelServer
from netbootd.nfsd.server import EmbeddedServer, NfsSettings
from netbootd.service.access import SeedGate
from netbootd.service.defaults import default_image
from netbootd.service.events import Recorder
from netbootd.service.exports import GenerationExports, unprivileged_images
from netbootd.service.metrics import Metrics, Sources
from netbootd.service.reload import needs_restart, reread
from netbootd.store.database import Database, NodeRecord
from netbootd.store.generations import Generations
from netbootd.store.hostkeys import HostKeys
from netbootd.store.layout import Layout
from netbootd.tftpd.server import TftpServer, TftpSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line adds to the configuration; None leaves the configuration's value."""

    binds: tuple[str, ...] = ()
    advertise: str = ""
    tftp_port: int | None = None
    http_port: int | None = None
    nfs: str | None = None
    nfs_port: int | None = None
    mount_port: int | None = None
    portmap_port: int | str | None = None
    boot_files: tuple[Path, ...] = ()
    single_port: bool = False
    data_ports: tuple[int, int] | None = None
    ready_file: Path | None = None


class Service:
    """All servers of one netbootd, on one event loop.

    :param read: gives the configuration as its file says now, for a reload
    """

    def __init__(self, config: Config, layout: Layout, options: ServeOptions, read: Callable[[], Config]) -> None:
        self._config = config
        self._read = read
        self._options = options
        self._generations = Generations(layout)
        self._database = Database(layout.database)
        self._neighbours = Neighbours()
        self._allowed = AllowedPeers(config.server.allow, config.server.interface)
        records = self._database.nodes()
        image = default_image(config, self._generations)
        self._identities = Identities(
            [node.node(image) for node in config.nodes],
            stranger_image=image,
            refuse_strangers=config.defaults.unknown_nodes == "refuse",
            mac_of=self._neighbours.mac_of,
        )
        self._remember(records)
        self._sessions = Sessions(
            lambda name: found.id if (found := self._generations.current(name)) else "",
            lambda name, ident: self._generations.find(name, ident) is not None,
            records,
        )
        self._files = BootDirectory(
            self._identities,
            self._sessions,
            self._generations,
            (*config.defaults.boot_files, *options.boot_files),
            self._server_address,
            self._token_of(),
        )
        self._seeds = self._seed_builder(config)
        self._gate = SeedGate(self._identities, self._neighbours.mac_of, self._token_of())
        self._host_keys = HostKeys(layout.host_keys)
        self._recorder = Recorder(self._sessions, self._database)
        self._metrics = Metrics(Sources(self._count_tftp, self._count_http, self._count_nfs, self._stages))
        self._recorder.subscribers.append(self._metrics.observe)
        self._address: ServerAddress | None = None
        self._tftp: TftpServer
        self._http: HttpServer
        self._nfs: EmbeddedServer | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._reload_wanted = asyncio.Event()

    # ---------------------------------------------------------------- starting

    async def run(self) -> None:
        """Serve until a signal.

        :raises HostError: a port or an address can't be had; nothing was served then
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        allow_many_descriptors()
        await self._open()
        background = asyncio.create_task(self._recorder.run())
        watchdog = asyncio.create_task(_feed_watchdog())
        reloading: asyncio.Task[None] | None = None
        try:
            if self._options.ready_file:
                write_ready_file(self._options.ready_file, self.ready())
            systemd.notify("READY=1")
            self._announce()
            gc.freeze()  # what lives as long as the service needn't be searched for garbage, which takes milliseconds
            reloading = asyncio.create_task(self._reload_when_asked())
            await self._stop.wait()
            reloading.cancel()
            systemd.notify("STOPPING=1")
            await self._drain()
        finally:
            background.cancel()
            watchdog.cancel()
            tasks = [task for task in (background, watchdog, reloading) if task]
            await asyncio.gather(*tasks, return_exceptions=True)
            self._recorder.flush()
            self._database.close()
            self._neighbours.close()
            self._allowed.close()
            if self._options.ready_file:
                self._options.ready_file.unlink(missing_ok=True)

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def _open(self) -> None:
        config, options = self._config, self._options
        # netlink in a thread: pyroute2's sockets want an event loop of their own
        binds = options.binds or await asyncio.to_thread(default_binds)
        inherited = systemd.inherited_sockets()
        http_binds = self._binds_of("http", binds, inherited)
        http_port = config.http.port if options.http_port is None else options.http_port
        self._http = HttpServer(
            HttpSettings(
                binds=tuple((bind, http_port) for bind in http_binds),
                allowed=self._allowed,
                sockets=tuple(inherited.get("http", ())),
            ),
            BootFileRoutes(self._files, self._recorder.record),
            SeedRoutes(
                self._files,
                self._seed,
                self._gate,
                self._recorder.record,
            ),
            ProgressRoutes(self._files, self._recorder.record),
            MetricsRoute(self._metrics.render),
            CardRoutes(self._generations),
            ImagerRoutes(self._generations),
            IpxeRoutes(self._files, self._recorder.record),
        )
        tftp_port = config.tftp.port if options.tftp_port is None else options.tftp_port
        self._tftp = TftpServer(
            self._files,
            self._recorder.record,
            TftpSettings(
                bind=tuple((bind, tftp_port) for bind in self._binds_of("tftp", binds, inherited)),
                allow=self._allowed,
                single_port=options.single_port or config.tftp.single_port,
                data_ports=options.data_ports or config.tftp.data_ports,
                max_blksize=config.tftp.max_blksize,
                max_windowsize=config.tftp.max_windowsize,
                sockets=tuple(inherited.get("tftp", ())),
            ),
        )
        started: list[Any] = []
        try:
            self._http.bind()
            started.append(self._http)
            await self._tftp.start()
            started.append(self._tftp)
            await self._open_nfs(binds, inherited)
            self._address = await asyncio.to_thread(self._advertised, binds)
            await self._http.start()
        except BaseException:
            for server in started:
                await server.stop(0)
            if self._nfs:
                await self._nfs.stop(0)
            raise

    @staticmethod
    def _binds_of(name: str, binds: tuple[str, ...], inherited: dict[str, list[socket.socket]]) -> tuple[str, ...]:
        """Where a protocol opens sockets itself: nowhere where systemd does so, which may have failed for this one."""
        if not inherited:
            return binds
        if name not in inherited:
            _log.error(
                "%s is not served: systemd handed in no socket named %s (systemctl status netbootd-%s.socket).",
                name.upper(),
                name,
                name,
            )
        return ()

    async def _open_nfs(self, binds: tuple[str, ...], inherited: dict[str, list[socket.socket]]) -> None:
        config, options = self._config.nfs, self._options
        backend = options.nfs or config.backend
        if backend == "off":
            for sock in (*inherited.get("nfs", ()), *inherited.get("portmap", ())):
                sock.close()
            return
        portmap_port = config.portmap_port if options.portmap_port is None else options.portmap_port
        port = config.port if options.nfs_port is None else options.nfs_port
        if backend != "embedded" and await self._open_kernel_nfs(binds, inherited, backend, port, portmap_port):
            return
        kernel_expected = SOCKET.parent.exists()  # then systemd holds no port for us, and none below 1024 is needed
        if inherited and "nfs" not in inherited and not kernel_expected:
            self._binds_of("nfs", binds, inherited)
            for sock in inherited.get("portmap", ()):
                sock.close()
            return
        if inherited and portmap_port not in ("off", None) and not inherited.get("portmap"):
            _log.error(
                "No portmapper: systemd handed in no socket named portmap (systemctl status netbootd-portmap.socket)."
            )
            portmap_port = None
        self._nfs = EmbeddedServer(
            GenerationExports(self._generations),
            NfsSettings(
                addresses=binds,
                port=port,
                mount_port=options.mount_port,
                portmap_port=None if portmap_port in ("off", None) else int(portmap_port),
                allow=self._allowed,
                secure=config.secure,
                sockets=inherited.get("nfs", ()),
                portmap_sockets=() if portmap_port in ("off", None) else inherited.get("portmap", ()),
            ),
            self._mounted,
        )
        await self._nfs.start()

    async def _open_kernel_nfs(
        self,
        binds: tuple[str, ...],
        inherited: dict[str, list[socket.socket]],
        backend: str,
        port: int,
        portmap_port: int | str | None,
    ) -> bool:
        """Let the kernel serve; False where the backend is ``auto`` and it can't."""
        recorded = await asyncio.to_thread(unprivileged_images, self._generations)
        if recorded and backend == "kernel":
            raise HostError(
                f"Serving NFS by the kernel: the current generation of {recorded[0]} was made with --unprivileged, so"
                " its owners and modes are not on disk, where the kernel would look for them.",
                hint="Prepare it as root without --unprivileged, or use --nfs embedded.",
            )
        if backend == "auto" and ("nfs" in inherited or not SOCKET.exists()):
            return False
        if recorded:
            _log.info("Serving NFS by netbootd itself: %s was made with --unprivileged", ", ".join(recorded))
            return False
        off = portmap_port in ("off", None)
        if (
            not off and inherited and not inherited.get("portmap")
        ):  # port 111 is not for us to open, but rpcbind's maybe
            off = not await asyncio.to_thread(rpcbind.answers, int(portmap_port or 0), ["127.0.0.1", "::1"])
        settings = NfsSettings(
            addresses=binds,
            port=port,
            mount_port=self._options.mount_port,
            portmap_port=None if off else int(portmap_port or 0),
            allow=self._allowed,
            secure=self._config.nfs.secure,
            portmap_sockets=() if off else inherited.get("portmap", ()),
        )
        server = KernelServer(GenerationExports(self._generations), settings, self._mounted)
        try:
            await server.start()
        except HostError as error:
            if backend == "kernel":
                raise
            _log.warning("Serving NFS by netbootd itself, since by the kernel it fails: %s", error)
            return False
        self._nfs = server
        for sock in inherited.get("nfs", ()):
            sock.close()
        return True

    def _advertised(self, binds: tuple[str, ...]) -> ServerAddress:
        """What is told to a node where the address that it asked isn't known."""
        config, options = self._config.server, self._options
        try:
            address = address_to_advertise(
                options.advertise, str(config.address or ""), config.interface, options.binds or binds
            )
        except HostError as error:
            _log.warning("%s Until then nodes are told the address that they asked.", error)
            address = ""
        ports = self._nfs.ports if self._nfs else None
        return ServerAddress(
            address=address,
            http_port=self._http.port if self._http.addresses else self._config.http.port,
            nfs_port=ports.port if ports else 2049,
            mount_port=ports.mount_port if ports else 2049,
            portmap_port=ports.portmap_port if ports else None,
        )

    def ready(self) -> dict[str, Any]:
        """What the ready file says."""
        ports = self._nfs.ports if self._nfs else None
        nfs = None
        if ports:
            nfs = {
                "backend": "kernel" if isinstance(self._nfs, KernelServer) else "embedded",
                "port": ports.port,
                "mount_port": ports.mount_port,
                "portmap_port": ports.portmap_port,
            }
        return {
            "pid": os.getpid(),
            "tftp": self._tftp.addresses,
            "http": self._http.addresses,
            "nfs": nfs,
            "dhcp": None,
        }

    def _announce(self) -> None:
        prepared = [name for name in self._generations.names() if self._generations.current(name)]
        for protocol, addresses in (("TFTP", self._tftp.addresses), ("HTTP", self._http.addresses)):
            _log.info("Serving %s on %s", protocol, ", ".join(addresses))
        if self._nfs:
            _log.info("Serving NFS on port %d", self._nfs.ports.port)
        if prepared:
            _log.info("Ready for nodes: images %s", ", ".join(prepared))
        else:
            _log.warning("No image is prepared; netbootd prepare builds one.")
        for text in warnings(self._config):
            _log.warning("%s", text)

    # ---------------------------------------------------------------- serving

    def _token_of(self) -> Callable[[Node], str] | None:
        return self._sessions.token if self._config.http.seed_tokens else None

    def _server_address(self, local: str) -> ServerAddress:
        """How a node that asked our address `local` reaches us."""
        assert self._address is not None
        chosen = self._options.advertise or local or self._address.address
        return replace(self._address, address=chosen)

    async def _seed(self, node: Node, evidence: Evidence, token: str, document: str) -> tuple[Seed, str]:
        """The seed of a node and a note; with its host keys where they are asked for and the asker is known as it."""
        server = self._server_address(evidence.local)
        if document != "vendor-data" or not node.id:
            return self._seeds.build(node, server), ""
        doubt = self._gate.doubt(node, evidence, token)
        if not doubt:
            try:
                keys = await asyncio.to_thread(self._host_keys.of, node.id)
                return self._seeds.build(node, server, keys), ""
            except HostError as error:
                _log.error("%s", error, extra={"fields": {"NODE": node.name}})
                doubt = error.message
        return self._seeds.build(node, server), f"without SSH host keys: {doubt}"

    def _mounted(self, address: str, export: Export, seconds: float) -> None:
        evidence = Evidence("nfs", address)
        node = self._identities.identify(evidence)
        path = os.fsdecode(export.path)
        self._recorder.record(
            observed(
                node,
                evidence,
                path,
                Outcome.OK,
                stage=Stage.ROOT,
                generation=export.generation,
                seconds=seconds,
            )
        )

    def _remember(self, records: Iterable[NodeRecord]) -> None:
        """Know again the machines of earlier boots."""
        for record in sorted(records, key=lambda record: record.last_seen):
            serial = Serial.parse(record.serial) if record.serial else None
            mac = MacAddress.parse(record.mac) if record.mac else None
            self._identities.remember(serial, mac, record.address)

    def _seed_builder(self, config: Config) -> SeedBuilder:
        seeds = SeedBuilder(config)
        seeds.learn((*self._identities.configured, Node("an unknown node", "", "unknown", serial=Serial("00000000"))))
        return seeds

    # ---------------------------------------------------------------- reloading

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            systemd.notify_reloading()
            try:
                config = await asyncio.to_thread(reread, self._read)
            except ConfigError as error:
                _log.error("The configuration stays as it was: %s", " ".join((error.message, *error.details)))
            except Exception:
                _log.exception("The configuration stays as it was")
            else:
                self._take_in(config)
            systemd.notify("READY=1")

    def _take_in(self, config: Config) -> None:
        """Serve by this configuration from now on, all at once; what is under way has what it began with."""
        later = needs_restart(self._config, config)
        if later:
            _log.warning("Only a restart changes %s.", ", ".join(later))
            kept = {name: getattr(self._config, name) for name in ("tftp", "nfs", "dhcp")}
            http = replace(self._config.http, seed_tokens=config.http.seed_tokens)
            config = replace(config, http=http, **kept)
        self._config = config
        image = default_image(config, self._generations)
        self._identities.reconfigure(
            [node.node(image) for node in config.nodes],
            stranger_image=image,
            refuse_strangers=config.defaults.unknown_nodes == "refuse",
        )
        self._remember(self._sessions.records())
        self._files.reconfigure((*config.defaults.boot_files, *self._options.boot_files), self._token_of())
        self._gate.reconfigure(self._token_of())
        self._seeds = self._seed_builder(config)
        self._allowed.reconfigure(config.server.allow, config.server.interface)
        _log.info("Serving by the configuration of %s as it is now", config.path or "the defaults")

    # ---------------------------------------------------------------- counting

    def _count_tftp(self) -> dict[str, int]:
        return self._tftp.stats.snapshot()

    def _count_http(self) -> dict[str, int]:
        connections = self._http.connections
        return {
            "open": len(connections),
            "accepted_connections": connections.accepted,
            "refused_connections": connections.refused,
            "timed_out_connections": connections.timed_out,
        }

    def _count_nfs(self) -> dict[str, int]:
        if self._nfs is None:
            return {}
        counters = self._nfs.counters
        return {
            "open": self._nfs.connected,
            "accepted_connections": counters.connections,
            "refused_connections": counters.refused,
            "broken_connections": counters.broken,
            "calls": counters.calls,
            "sent_bytes": counters.bytes_sent,
        }

    def _stages(self) -> list[str]:
        return [record.stage for record in self._sessions.records()]

    # ---------------------------------------------------------------- stopping

    async def _drain(self) -> None:
        seconds = self._config.server.drain_seconds
        _log.info("Stopping: open transfers get up to %.0f s", seconds)

        async def every_server() -> None:
            servers = [self._tftp.stop(seconds), self._http.stop(seconds)]
            if self._nfs:
                servers.append(self._nfs.stop(min(seconds, 1.0)))  # a node reads its root for ever: nothing to wait for
            await asyncio.gather(*servers)

        draining = asyncio.create_task(every_server())
        stop_now = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait((draining, stop_now), return_when=asyncio.FIRST_COMPLETED)
        stop_now.cancel()
        if not draining.done():
            _log.warning("Second signal: ending at once")
            draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)


def default_binds() -> tuple[str, ...]:
    """Every address, of both families where this host has IPv6."""
    has_ipv6 = any(local.network.version == 6 for local in local_addresses())
    return ("0.0.0.0", "::") if has_ipv6 else ("0.0.0.0",)  # noqa: S104 -- `allow` says who is answered


def write_ready_file(path: Path, value: dict[str, Any]) -> None:
    """Write the ready file by rename.

    :raises HostError: its folder can't be written
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(value) + "\n")
        beside.replace(path)
    except OSError as error:
        raise HostError(f"Writing the ready file {path}: {error.strerror or error}.") from error


async def _feed_watchdog() -> None:
    interval = systemd.watchdog_seconds()
    while interval:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval / 3)
