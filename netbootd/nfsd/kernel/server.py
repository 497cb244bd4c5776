"""The unprivileged side of the kernel backend: MOUNT and the port mapper in the event loop; NFS is in the kernel."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any

from netbootd.errors import HostError
from netbootd.nfsd import rpcbind
from netbootd.nfsd.acl import NFSACL_PROGRAM, NFSACL_V3
from netbootd.nfsd.exports import LiveTrees
from netbootd.nfsd.kernel.client import PrivilegedPart
from netbootd.nfsd.kernel.manager import DEFAULT_MOUNT_PORT, RPCBIND_PORT
from netbootd.nfsd.kernel.mount import KernelMountV3
from netbootd.nfsd.mount import MOUNT_PROGRAM, MOUNT_V3, ExportTable, MountV3, OnMount
from netbootd.nfsd.portmap import IPPROTO_TCP, Mapping
from netbootd.nfsd.server import EmbeddedServer, NfsPorts, NfsSettings
from netbootd.nfsd.v3 import NFS_PROGRAM, NFS_V3

_log = logging.getLogger(__name__)

_NFS_V4 = 4
_KEEP_SECONDS = 10.0


class KernelServer(EmbeddedServer):
    """Starts the kernel's server by the privileged part, and serves what is not the kernel's business.

    Stopping it leaves the kernel's server running: nodes go on while the service restarts. That the exports of
    generations come and go is seen by the privileged part itself.

    :param settings: `port` is the kernel's; `mount_port` None stands for mountd's registered 20048
    """

    def __init__(
        self, exports: ExportTable, settings: NfsSettings, on_mount: OnMount, part: PrivilegedPart | None = None
    ) -> None:
        super().__init__(exports, settings, on_mount)
        self._part = part or PrivilegedPart()
        self.status: dict[str, Any] = {}
        """What the privileged part told last."""
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open MOUNT and the port mapper, and have the kernel serve.

        :raises HostError: a port can't be had, or the kernel's server can't; nothing is left open
        """
        await self._open_all()
        self._keeping = asyncio.create_task(self._keep())

    async def _open_all(self) -> None:
        settings = self._settings
        self.status = await asyncio.to_thread(self._part.start, settings.addresses, settings.port)
        if self.status["exports_by"] == "exportfs":
            await self._leave_to_mountd()
            return
        opened: list[socket.socket] = []
        try:
            mount = self._take(settings.mount_sockets, opened)
            if not mount:
                wanted = DEFAULT_MOUNT_PORT if settings.mount_port is None else settings.mount_port
                mount = self._open(opened, wanted, "--mount-port")
            mount_port = int(mount[0].getsockname()[1])
            mappings = _mappings(settings.port, mount_port)
            portmap, portmap_port = await self._port_mapper(opened, [mappings[-1]], mount)
        except BaseException:
            for sock in opened:
                sock.close()
            raise
        self._serve([], mount, portmap, mappings, portmap_port)
        self._ports = NfsPorts(settings.port, mount_port, portmap_port)
        mapper = portmap_port or "off"
        _log.info("NFS by the kernel on port %d, MOUNT on %d, port mapper %s", settings.port, mount_port, mapper)

    async def _keep(self) -> None:
        """Ask again and again: a privileged part that was restarted has to be told."""
        lost = False
        while True:
            await asyncio.sleep(_KEEP_SECONDS)
            try:
                self.status = await asyncio.to_thread(self._part.start, self._settings.addresses, self._settings.port)
                lost = False
            except HostError as error:
                if not lost:
                    _log.error("NFS by the kernel: %s", error)
                lost = True

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """See `EmbeddedServer.stop`; the kernel goes on."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        await super().stop(drain_seconds)

    async def _leave_to_mountd(self) -> None:
        """Where rpc.mountd runs it answers MOUNT for our exports as for others', and rpcbind tells its port."""
        port = await asyncio.to_thread(rpcbind.port_of, MOUNT_PROGRAM, MOUNT_V3, RPCBIND_PORT)
        self._serve([], [], [], [], None)
        self._ports = NfsPorts(self._settings.port, port, RPCBIND_PORT)
        for sock in (*self._settings.mount_sockets, *self._settings.portmap_sockets):
            sock.close()
        _log.info("NFS by the kernel on port %d; rpc.mountd, on port %d, answers MOUNT", self._settings.port, port)

    async def _register(self, mappings: Sequence[Mapping], families: Sequence[int], port: int) -> None:
        """The kernel has registered NFS; the privileged part does so for MOUNT, and takes it out again."""
        await asyncio.to_thread(self._part.register, mappings[-1].port)

    def _mount_program(self, trees: LiveTrees) -> MountV3:
        loop = asyncio.get_running_loop()
        return KernelMountV3(self._exports, trees, self._on_mount, loop, self._part.handle)


def _mappings(port: int, mount_port: int) -> Sequence[Mapping]:
    return [
        Mapping(NFS_PROGRAM, NFS_V3, IPPROTO_TCP, port),
        Mapping(NFS_PROGRAM, _NFS_V4, IPPROTO_TCP, port),
        Mapping(NFSACL_PROGRAM, NFSACL_V3, IPPROTO_TCP, port),
        Mapping(MOUNT_PROGRAM, MOUNT_V3, IPPROTO_TCP, mount_port),
    ]
