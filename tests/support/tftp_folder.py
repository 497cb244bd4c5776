"""A TFTP server of ours over one folder, without images or configuration: for tests and the benchmark.

    python -m tests.support.tftp_folder ROOT --bind 127.0.0.1 --port 0 [--single-port] …

A node's own folder is ``ROOT/<id>/``. Prints its addresses as one line of JSON, then one line for each event with
``--events``; ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import stat
from functools import partial
from ipaddress import ip_network
from pathlib import Path

from netbootd.errors import DeniedError, NotFoundError
from netbootd.model.event import BootEvent, Stage
from netbootd.model.identity import Evidence
from netbootd.model.node import Node
from netbootd.model.resource import BootPath, ByteSource, FileSource, MemorySource, Resource
from netbootd.tftpd.server import TftpServer, TftpSettings


class FolderFiles:
    """`BootFiles` over a folder; `held` adds files in memory, `opened` sources of one's own; counts are for tests."""

    def __init__(self, root: Path, held: dict[str, bytes] | None = None) -> None:
        self.root = root
        self.held = held if held is not None else {}
        self.sources: dict[str, ByteSource] = {}
        self.denied: set[str] = set()
        self.asked: list[tuple[Evidence, str]] = []

    def identify(self, evidence: Evidence) -> Node:
        """Every machine is its own node, by serial, MAC or address."""
        name = str(evidence.serial or "") or (evidence.mac.dashed if evidence.mac else "") or evidence.address
        return Node(name, "test", name, evidence.serial, evidence.mac, evidence.address)

    def resolve(self, node: Node, path: BootPath, local: str) -> Resource:
        """The node's own file, else the common one."""
        if path in self.denied:
            raise DeniedError(f"{path} is not for anyone")
        self.asked.append((Evidence("tftp", node.address, local, node.serial, node.mac), path))
        stage = Stage.KERNEL if path.startswith("vmlinuz") else Stage.FIRMWARE
        if path in self.sources:
            source = self.sources[path]
            return Resource(path, source.size(), 0, "", "test", path, stage, lambda: source)
        if path in self.held:
            data = self.held[path]
            return Resource(path, len(data), 0, str(hash(data)), "test", path, stage, partial(MemorySource, data))
        for place in (self.root / node.id / path, self.root / path):
            try:
                status = place.stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                etag = f"{status.st_mtime_ns}-{status.st_size}"
                return Resource(
                    path, status.st_size, status.st_mtime_ns, etag, "test", str(place), stage, partial(_open, place)
                )
        raise NotFoundError(f"no layer has {path}")

    def generation_of(self, node: Node) -> str:
        """Always the same."""
        return "g1"


def _open(place: Path) -> ByteSource:
    return FileSource(os.open(place, os.O_RDONLY))


async def _serve(options: argparse.Namespace) -> None:
    def record(event: BootEvent) -> None:
        if options.events:
            print(json.dumps(dataclasses.asdict(event)), flush=True)

    settings = TftpSettings(
        bind=tuple((address, options.port) for address in options.bind),
        single_port=options.single_port,
        data_ports=options.data_ports,
        max_blksize=options.max_blksize,
        allow=tuple(ip_network(text) for text in options.allow) or None,
    )
    server = TftpServer(FolderFiles(options.root), record, settings)
    await server.start()
    print(json.dumps(server.addresses), flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await server.stop(options.drain)
    if options.events:
        print(json.dumps(server.stats.snapshot()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--bind", action="append", default=[])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--single-port", action="store_true")
    parser.add_argument("--data-ports", type=lambda text: tuple(int(n) for n in text.split("-")))
    parser.add_argument("--max-blksize", type=int)
    parser.add_argument("--allow", action="append", default=[])
    parser.add_argument("--drain", type=float, default=0.0)
    parser.add_argument("--events", action="store_true")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    options.bind = options.bind or ["127.0.0.1"]
    if options.uvloop:
        import uvloop

        uvloop.run(_serve(options))
    else:
        asyncio.run(_serve(options))


if __name__ == "__main__":
    main()
