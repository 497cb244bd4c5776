"""The cloud-init documents of a node that boots from a card: the same folders, but for the overlay of the netboot root.

They lie in the card's FAT partition, where cloud-init's NoCloud finds them: by its label (Ubuntu's ``system-boot``) or
as ``seedfrom: file:///boot/firmware`` (Ubuntu since 23.10, Raspberry Pi OS since trixie).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netbootd.cloudinit.seed import DOCUMENTS, Defaults, SeedBuilder, Settings
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node

OVERLAY: Final = "sdcard"
_REPLACED = ("overlays", "netboot")
_NEEDED = ("user-data", "meta-data")
_ABOUT_SERVER = ("${node:server}", "${node:url}")


@dataclass(frozen=True, slots=True)
class CardDocuments:
    """What is written into the FAT partition, by name; `uses_secrets` tells that a file or variable is filled in."""

    files: dict[str, bytes]
    uses_secrets: bool


@dataclass(frozen=True, slots=True)
class _Defaults:
    user: str
    ssh_authorized_keys: tuple[Path, ...]
    cloud_init: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Settings:
    base: Path
    defaults: Defaults


class CardSeeds:
    """Makes the documents of cards from a configuration's folders.

    :param overlay: the sdcard overlay that ships with netbootd
    """

    def __init__(self, settings: Settings, overlay: Path) -> None:
        defaults = settings.defaults
        folders = folders_of_cards(defaults.cloud_init, overlay)
        changed = _Defaults(defaults.user, defaults.ssh_authorized_keys, folders)
        self._builder = SeedBuilder(_Settings(settings.base, changed), reporting=False)

    def names_server(self, node: Node) -> bool:
        """Whether a document of `node` has the server's address in it.

        :raises ConfigError: a document is faulty
        """
        texts = [self._builder.unfilled(node, name) for name in DOCUMENTS]
        return any(field in text for text in texts for field in _ABOUT_SERVER)

    def build(self, node: Node, server: ServerAddress) -> CardDocuments:
        """The documents of `node`; those that would be empty and that cloud-init can do without are left out.

        :raises ConfigError: a document is faulty, or what it refers to is not there
        """
        seed = self._builder.build(node, server)
        files = {name: data for name, data in seed.documents.items() if data or name in _NEEDED}
        return CardDocuments(files, bool(seed.uses_secrets))


def folders_of_cards(folders: Sequence[Path], overlay: Path) -> tuple[Path, ...]:
    """The folders of every card, in order: the netboot overlay's place is taken by the sdcard overlay.

    That is the ``sdcard`` folder beside it where there is one, else the shipped one; without a netboot overlay the
    shipped one comes first, so that every other folder can overrule it.
    """
    found = False
    chosen = []
    for folder in folders:
        if folder.parts[-2:] == _REPLACED:
            beside = folder.with_name(OVERLAY)
            chosen.append(beside if beside.is_dir() else overlay)
            found = True
        else:
            chosen.append(folder)
    return tuple(chosen) if found else (overlay, *chosen)
