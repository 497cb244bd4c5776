"""Resolves (node, path) to a file: what is rendered for the node, its own files, the defaults', the image's.

TFTP and HTTP are both answered from here. `explain` tells which layer a file comes from.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from netbootd.boot import ipxe
from netbootd.boot.identify import Identities
from netbootd.boot.layers import Folder
from netbootd.boot.render import command_line
from netbootd.boot.sessions import Sessions
from netbootd.errors import FormatError, NotFoundError
from netbootd.model.event import Stage
from netbootd.model.facts import PC, ImageFacts
from netbootd.model.identity import Evidence
from netbootd.model.image import Generation
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node
from netbootd.model.resource import BootPath, MemorySource, Resource
from netbootd.store.generations import Generations

FLASHES = ("pieeprom.", "vl805.", "recovery")
"""Names that make a Pi reflash its EEPROM or start a recovery: a stray one in an image would hit a whole rack."""

_KERNEL_NAMES = ("kernel", "vmlinuz")


@dataclass(frozen=True, slots=True)
class _Image:
    generation: Generation
    facts: ImageFacts | None
    boot: Folder


class BootDirectory:
    """What every node gets; implements `netbootd.boot.contract.BootFiles`.

    :param defaults: folders laid over every image's boot files, later ones win
    :param server: how a node that asked a given local address reaches us
    :param token_of: the token of a node's present boot, None where tokens are not in use
    """

    def __init__(
        self,
        identities: Identities,
        sessions: Sessions,
        generations: Generations,
        defaults: tuple[Path, ...],
        server: Callable[[str], ServerAddress],
        token_of: Callable[[Node], str] | None,
    ) -> None:
        self._identities = identities
        self._sessions = sessions
        self._generations = generations
        self._defaults = tuple(Folder(path, "defaults") for path in reversed(defaults))
        self._server = server
        self._token_of = token_of
        self._images: dict[tuple[str, str], _Image] = {}

    def reconfigure(self, defaults: tuple[Path, ...], token_of: Callable[[Node], str] | None) -> None:
        """Lay these folders over every image from now on; files that are open stay so."""
        self._defaults = tuple(Folder(path, "defaults") for path in reversed(defaults))
        self._token_of = token_of

    def identify(self, evidence: Evidence) -> Node:
        """See `netbootd.boot.contract.BootFiles`."""
        return self._identities.identify(evidence)

    def generation_of(self, node: Node) -> str:
        """See `netbootd.boot.contract.BootFiles`."""
        return self._sessions.generation(node)

    def resolve(self, node: Node, path: BootPath, local: str) -> Resource:
        """See `netbootd.boot.contract.BootFiles`."""
        image = self._image(node.image, self._sessions.generation(node, path))
        found = self._rendered(node, path, local, image) or self._stored(node, path, image)
        if found is None:
            raise NotFoundError(f"{node.name} has no boot file {path}.")
        return found

    def paths(self, node: Node) -> list[str]:
        """Every path that `node` can have, sorted."""
        image = self._image(node.image, self._sessions.generation(node))
        folders = [*(Folder(path, "node") for path in node.boot_files), *self._defaults]
        found = {path for folder in folders for path in folder.files()}
        if image:
            found |= {path for path in image.boot.files() if not _flashes(path)}
            if image.facts:
                found |= {image.facts.cmdline_path, *image.facts.other_cmdlines} - {""}
        return sorted(found)

    def ipxe_script(self, node: Node | None, local: str) -> tuple[str, str]:
        """The script with which a PC's iPXE boots, and why it boots nothing ("" where it does).

        :param node: the machine that asks; None, or one without an id, where it has to name its MAC first
        :raises ConfigError: the node's arguments can't be said to iPXE
        """
        server = self._server(local)
        if node is None:
            return ipxe.which(server), ""
        image = self._image(node.image, self._sessions.generation(node, ipxe.SCRIPT))
        facts = image.facts if image else None
        if facts is None or facts.kind != PC:
            script, fault = ipxe.explain(node, prepared=image is not None), f"{node.image} is no image for PCs"
        else:
            token = self._token_of(node) if self._token_of and node.id else ""
            script, fault = ipxe.boot(facts, node, server, token), ""
        return (script, fault) if node.id else (ipxe.which(server, script), "")

    # ---------------------------------------------------------------- layers

    def _rendered(self, node: Node, path: BootPath, local: str, image: _Image | None) -> Resource | None:
        if image is None or image.facts is None or (facts := image.facts.for_cmdline(path)) is None:
            return None
        token = self._token_of(node) if self._token_of else ""
        root = str(image.generation.root)
        data = command_line(facts, node, self._server(local), root, token).encode()
        return Resource(
            path=path,
            size=len(data),
            mtime_ns=time.time_ns(),
            etag=hashlib.sha256(data).hexdigest()[:32],
            origin="rendered",
            detail=f"for {node.name} from image {node.image}, generation {image.generation.id}",
            stage=Stage.FIRMWARE,
            open=lambda: MemorySource(data),
        )

    def _stored(self, node: Node, path: BootPath, image: _Image | None) -> Resource | None:
        stage = _stage(path, image.facts if image else None)
        for folder in reversed(node.boot_files):
            if found := Folder(folder, "node").find(path, stage):
                return found
        for default in self._defaults:
            if found := default.find(path, stage):
                return found
        if image is None or _flashes(path):
            return None
        return image.boot.find(path, stage)

    def _image(self, name: str, ident: str) -> _Image | None:
        if not ident:
            return None
        image = self._images.get((name, ident))
        if image is None:
            generation = self._generations.find(name, ident)
            if generation is None:
                return None
            try:
                facts = self._generations.manifest(generation).get("facts")
            except FormatError:
                facts = None
            parsed = ImageFacts.from_dict(facts) if isinstance(facts, dict) else None
            image = _Image(generation, parsed, Folder(generation.boot, "image"))
            self._images[name, ident] = image
        return image


def _flashes(path: str) -> bool:
    return path.rpartition("/")[2].lower().startswith(FLASHES)


def _stage(path: BootPath, facts: ImageFacts | None) -> Stage:
    """The stage that a node has reached once it has this file whole."""
    if facts and facts.kernels:
        return Stage.KERNEL if path in facts.kernels else Stage.FIRMWARE
    name = path.rpartition("/")[2].lower()
    return Stage.KERNEL if name.startswith(_KERNEL_NAMES) else Stage.FIRMWARE
