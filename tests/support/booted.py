"""A stand-in for the resolver, for tests of the servers: a folder of files, and nodes by what the path says."""

from __future__ import annotations

from pathlib import Path

from netbootd.boot.layers import Folder
from netbootd.errors import DeniedError, NotFoundError
from netbootd.model.event import BootEvent, Stage
from netbootd.model.identity import Evidence
from netbootd.model.node import Node
from netbootd.model.resource import BootPath, MemorySource, Resource


class FolderFiles:
    """Implements `netbootd.boot.contract.BootFiles` over one folder; ``cmdline.txt`` is rendered for each node.

    `denied` holds paths that nobody may have; `events` gathers what a server records through `record`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Folder(folder, "image")
        self.denied: set[str] = set()
        self.refused: set[str] = set()
        self.events: list[BootEvent] = []

    def identify(self, evidence: Evidence) -> Node:
        key = str(evidence.serial or evidence.mac or evidence.address)
        if key in self.refused:
            raise DeniedError(f"{key} is refused")
        name = f"node-{key}"
        return Node(name, "noble", name, evidence.serial, evidence.mac, evidence.address)

    def resolve(self, node: Node, path: BootPath, local: str) -> Resource:
        if path in self.denied:
            raise DeniedError(f"{path} is denied")
        if path == "cmdline.txt":
            data = f"serial={node.serial} server={local}\n".encode()
            return Resource(
                path, len(data), 0, f"{hash(data):x}", "rendered", "", Stage.FIRMWARE, lambda: MemorySource(data)
            )
        found = self.folder.find(path, Stage.KERNEL if path == "vmlinuz" else Stage.FIRMWARE)
        if found is None:
            raise NotFoundError(f"{self.folder.path}/{path} is not there")
        return found

    def generation_of(self, node: Node) -> str:
        return "0123456789abcdef"

    def record(self, event: BootEvent) -> None:
        self.events.append(event)
