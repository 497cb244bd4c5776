"""The embedded NFS server in a test's own event loop, over folders that the test has made."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netbootd.model.export import Export
from netbootd.nfsd.server import EmbeddedServer, NfsSettings
from tests.support.nfs_wire import Client


def export_of(path: Path, fsid: bytes | None = None) -> Export:
    name = bytes(path)
    return Export(name, fsid or hashlib.sha256(name).digest()[:8], "image", path.name)


@dataclass
class Table:
    """An export table that a test changes as it likes."""

    exports: list[Export] = field(default_factory=list)

    def find(self, path: bytes) -> Export | None:
        return next((export for export in self.exports if export.path == path), None)

    def by_fsid(self, fsid: bytes) -> Export | None:
        return next((export for export in self.exports if export.fsid == fsid), None)

    def all(self) -> Sequence[Export]:
        return self.exports


@dataclass
class Running:
    server: EmbeddedServer
    table: Table
    mounts: list[tuple[str, Export, float]]

    @property
    def port(self) -> int:
        return self.server.ports.port

    async def client(self, credential: bytes = b"") -> Client:
        return await Client.connect(self.port, credential=credential)


@asynccontextmanager
async def serving(*folders: Path, **settings: Any) -> AsyncIterator[Running]:
    """A server on any free ports of loopback, without a port mapper unless the settings say otherwise."""
    given: dict[str, Any] = {"addresses": ("127.0.0.1",), "port": 0, "portmap_port": None, **settings}
    table = Table([export_of(folder) for folder in folders])
    mounts: list[tuple[str, Export, float]] = []
    server = EmbeddedServer(table, NfsSettings(**given), lambda *mount: mounts.append(mount))
    await server.start()
    try:
        yield Running(server, table, mounts)
    finally:
        await server.stop(0)
