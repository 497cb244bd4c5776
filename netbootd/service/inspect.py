"""Looks at nodes as the servers would, without serving: their files, where each comes from, their seed as an ISO."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from netbootd.boot import ipxe
from netbootd.boot.files import BootDirectory
from netbootd.boot.identify import Identities
from netbootd.boot.sessions import Sessions
from netbootd.cloudinit.seed import DOCUMENTS, SeedBuilder
from netbootd.config.schema import Config
from netbootd.errors import HostError, NotFoundError
from netbootd.formats.cidata import cidata_iso
from netbootd.host.links import address_to_advertise
from netbootd.model.identity import MacAddress, Serial
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node
from netbootd.model.resource import BootPath, MemorySource
from netbootd.service.defaults import default_image
from netbootd.store.database import Database, NodeRecord
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout

_TOKEN = "TOKEN"  # noqa: S105 -- stands where each boot has another, which nobody is shown
_TEXT_LIMIT = 8192
_PIECE = 1 << 20
"""Rendered files up to this size are shown whole."""


class Inspector:
    """The configuration, the images and what was seen, for the commands that explain."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self._config = config
        generations = Generations(layout)
        image = default_image(config, generations)
        self._records = _records(layout)
        self._identities = Identities(
            [node.node(image) for node in config.nodes],
            stranger_image=image,
            refuse_strangers=False,
            mac_of=lambda address: None,
        )
        for record in self._records:
            serial = Serial.parse(record.serial) if record.serial else None
            mac = MacAddress.parse(record.mac) if record.mac else None
            self._identities.remember(serial, mac, record.address)
        sessions = Sessions(
            lambda name: found.id if (found := generations.current(name)) else "",
            lambda name, ident: generations.find(name, ident) is not None,
            self._records,
        )
        self._files = BootDirectory(
            self._identities,
            sessions,
            generations,
            config.defaults.boot_files,
            self._server,
            (lambda node: _TOKEN) if config.http.seed_tokens else None,
        )
        self._seeds = SeedBuilder(config)

    def node(self, text: str) -> Node:
        """The node that a person means.

        :raises NotFoundError: neither configured nor seen
        """
        node = self._identities.find(text)
        if node is None:
            raise NotFoundError(
                f"There is no node {text}.",
                hint="netbootd nodes list shows the configured ones and those that were seen.",
            )
        return node

    def files(self, node: Node) -> list[dict[str, Any]]:
        """Every boot file of the node: path, layer, size in bytes, where it comes from."""
        rows = []
        for path in self._files.paths(node):
            resource = self._files.resolve(node, BootPath.parse(path), "")
            rows.append({"path": path, "origin": resource.origin, "size": resource.size, "detail": resource.detail})
        return rows

    def explain(self, node: Node, path: str) -> dict[str, Any]:
        """The layer and inputs of one file, of ``nocloud/<document>``, or of ``ipxe/boot.ipxe``.

        :raises NotFoundError: the node has no such file
        """
        folder, _, document = path.strip("/").partition("/")
        if (folder, document) == ("ipxe", ipxe.SCRIPT):
            script, fault = self._files.ipxe_script(node, "")
            generation = self._files.generation_of(node)
            origin = fault or f"for {node.name} from image {node.image}, generation {generation}"
            return {
                "node": node.name,
                "path": f"ipxe/{ipxe.SCRIPT}",
                "layer": "rendered",
                "from": origin,
                "size": len(script),
                "sha256": hashlib.sha256(script.encode()).hexdigest(),
                "content": script,
            }
        if folder == "nocloud":
            if document not in DOCUMENTS:
                raise NotFoundError(
                    f"A seed has no document {document!r}.",
                    hint=f"There are {', '.join(f'nocloud/{name}' for name in DOCUMENTS)}.",
                )
            return self._explain_document(node, document)
        try:
            boot_path = BootPath.parse(path)
        except ValueError as error:
            raise NotFoundError(f"{path} can't be the path of a boot file.") from error
        try:
            resource = self._files.resolve(node, boot_path, "")
        except NotFoundError as error:
            if self._files.generation_of(node):
                hint = f"netbootd nodes show {node.name} lists the files that it has."
            else:
                hint = f"Its image {node.image} is not prepared: netbootd prepare builds it."
            raise NotFoundError(error.message, hint=hint) from None
        source = resource.open()
        digest = hashlib.sha256()
        try:
            while piece := source.read(_PIECE):  # a PC's image has gigabytes
                digest.update(piece)
        finally:
            source.close()
        answer: dict[str, Any] = {
            "node": node.name,
            "path": str(boot_path),
            "layer": resource.origin,
            "from": resource.detail,
            "size": resource.size,
            "sha256": digest.hexdigest(),
        }
        if isinstance(source, MemorySource) and len(source.data) <= _TEXT_LIMIT:
            answer["content"] = source.data.decode(errors="replace")
        return answer

    def _explain_document(self, node: Node, document: str) -> dict[str, Any]:
        seed = self._seeds.build(node, self._server(""))
        layers = self._seeds.explain(node, document)
        secret = document in seed.uses_secrets
        shown = self._seeds.unfilled(node, document) if secret else seed.document(document).decode(errors="replace")
        return {
            "node": node.name,
            "path": f"nocloud/{document}",
            "layer": "rendered",
            "secret": secret,
            "keys": [f"{origin.key}: {origin.place}" for origin in layers],
            "content": shown,
        }

    def write_seed(self, node: Node, output: Path) -> None:
        """Write the node's four documents as a CIDATA ISO; it holds secrets where they do, so only we may read it.

        :raises HostError: the file can't be written
        """
        seed = self._seeds.build(node, self._server(""))
        image = cidata_iso({name: seed.document(name) for name in DOCUMENTS})
        beside = output.with_name(f".{output.name}.part")
        try:
            beside.unlink(missing_ok=True)
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(image)
            beside.replace(output)
        except OSError as error:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise HostError(f"Writing {output}: {error.strerror or error}.") from error

    def _server(self, local: str) -> ServerAddress:
        server = self._config.server
        address = address_to_advertise(local, str(server.address or ""), server.interface, ())
        nfs = self._config.nfs
        return ServerAddress(address, self._config.http.port, nfs.port, nfs.port, nfs.portmap_port)


def _records(layout: Layout) -> list[NodeRecord]:
    if not layout.database.exists():
        return []
    database = Database(layout.database, readonly=True)
    try:
        return database.nodes()
    finally:
        database.close()
