"""The publishers' addresses, and what a mirror in their place has."""

from __future__ import annotations

from dataclasses import dataclass

from netbootd.images.catalog import oslist
from netbootd.images.catalog.oslist import INDEX, Index
from netbootd.images.documents import Documents
from netbootd.images.locations import below, location

UBUNTU = "https://cdimage.ubuntu.com"
UBUNTU_ISOS = "https://releases.ubuntu.com"
RASPBERRY_PI = "https://downloads.raspberrypi.com"


@dataclass(frozen=True, slots=True)
class Publishers:
    """Where to look: at the publishers, or at `mirror` (an URL, "" without one) in place of them all."""

    documents: Documents
    mirror: str

    @classmethod
    def at(cls, documents: Documents, mirror: str | None) -> Publishers:
        """With the operator's `mirror` as written: an URL, a folder, or an index of its own (``….json``).

        :raises UsageError: it is no URL that can be used
        """
        return cls(documents, location(mirror, "--mirror") if mirror else "")

    @property
    def ubuntu(self) -> str:
        """The base of ``releases/…``, empty where the mirror is but an index."""
        return "" if self._only_index else self.mirror or UBUNTU

    @property
    def ubuntu_isos(self) -> str:
        """The base of ``<release>/…`` with ISOs for PCs, empty where the mirror is but an index."""
        return "" if self._only_index else self.mirror or UBUNTU_ISOS

    @property
    def _only_index(self) -> bool:
        return self.mirror.partition("?")[0].lower().endswith(".json")

    @property
    def index_url(self) -> str:
        """Where the list of Raspberry Pi Imager lies."""
        return self.mirror if self._only_index else below(self.mirror or RASPBERRY_PI, INDEX)

    async def index(self) -> Index:
        """The list of Raspberry Pi Imager, whole.

        :raises NetbootdError: it can't be had
        """
        return await oslist.load(self.index_url, self.documents.read, named=bool(self.mirror))
