"""Images: what is published, what we want made of it, and what lies finished on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

CARD: Final = "sdcard.img.xz"
"""The name of a card image within a generation; its digest lies beside it as ``.sha256``, as sha256sum writes it."""

ATTRIBUTES: Final = "attributes"
"""The name, within a generation, of the record of what its root tree can't have by itself."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What an operator wants built. Exactly one of `release` and `source` is set (`source`: a path or an URL).

    `card` has the cloud-init documents (name and bytes) of the card image that is to lie beside the netboot root; none:
    no such image.
    """

    name: str
    release: str = ""
    source: str = ""
    sha256: str = ""
    arch: str = "arm64"
    cmdline_append: str = ""
    config_append: str = ""
    card: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """One published image, resolved: where its archive lies and how it is known to be genuine.

    `sha256` is the archive's digest (empty until known), `size` its bytes (0: not known), `key` the fingerprint of the
    key that signed it (empty without a signature), `verified` whether it is authentic by the rules of the operator's
    contract. `extract_sha256` is the digest of the image inside, where the publisher names one. `own` says that `url`
    is the operator's own file, whose digest was worked out from it just now.
    """

    title: str
    url: str
    file_name: str
    sha256: str
    size: int
    verified: bool
    key: str
    extract_sha256: str = ""
    own: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished, immutable build of an image: `path` holds ``boot/``, ``root/`` and ``image.json``."""

    name: str
    id: str
    path: Path

    @property
    def boot(self) -> Path:
        """The boot partition's files, patched."""
        return self.path / "boot"

    @property
    def root(self) -> Path:
        """The root file system, patched: what NFS exports."""
        return self.path / "root"

    @property
    def attributes(self) -> Path:
        """The record of the attributes of `root`, if it was made without privileges."""
        return self.path / ATTRIBUTES
