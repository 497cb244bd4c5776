"""Ubuntu's preinstalled images for Pis: ``releases/<release>/release/SHA256SUMS`` names the files and their digests.

PCs get the live server's ISO, of which another server has the list: ``<release>/SHA256SUMS``. The name of a file is
never made up: the folder keeps only the newest point release, and the list says which that is.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

from netbootd.images.catalog.names import UbuntuName, codename_of
from netbootd.images.locations import below

_LINE = re.compile(rb"([0-9a-fA-F]{64}) [ *]([!-~]{1,255})\r?\Z")  # GNU coreutils' sha256sum
_FILE = re.compile(
    r"ubuntu-(\d{1,2}\.\d\d)(?:\.(\d{1,3}))?-preinstalled-(server|desktop)-(arm64|armhf)\+raspi\.img(\.xz|\.zst|\.gz|)\Z",
    re.ASCII,
)
_ISO = re.compile(r"ubuntu-(\d{1,2}\.\d\d)(?:\.(\d{1,3}))?-live-(server)-(amd64)\.iso\Z", re.ASCII)
_PREFERRED = (".xz", ".zst", ".gz", "")
SUMS = "SHA256SUMS"
LIMIT = 1 << 20
"""Bytes of SHA256SUMS, and of its signature; the publisher's has 2 KiB."""


@dataclass(frozen=True, slots=True)
class UbuntuImage:
    """One file of the list. `point` is 0 for the first release of a version (24.04)."""

    version: str
    point: int
    flavour: str
    arch: str
    file_name: str
    sha256: str

    @property
    def release(self) -> str:
        """``24.04.3``."""
        return f"{self.version}.{self.point}" if self.point else self.version

    @property
    def title(self) -> str:
        """``Ubuntu Server 24.04.3 (noble, arm64)``."""
        codename = codename_of(self.version)
        return f"Ubuntu {self.flavour.title()} {self.release} ({codename + ', ' if codename else ''}{self.arch})"

    @property
    def name(self) -> str:
        """As --release takes it, this very point release."""
        return self.release + ("" if self.flavour == "server" else f"-{self.flavour}")


def sums_url(base: str, folder: str) -> str:
    """Where the list of a release lies below the mirror `base`."""
    return below(base, f"releases/{folder}/release/{SUMS}")


def iso_sums_url(base: str, folder: str) -> str:
    """Where the list of a release's ISOs lies below the mirror `base`."""
    return below(base, f"{folder}/{SUMS}")


def recognise(file_name: str, sha256: str = "") -> UbuntuImage | None:
    """Which image a file's name says it is, None for anything but a preinstalled image for Pis."""
    return _image(_FILE.match(file_name), file_name, sha256)


def recognise_iso(file_name: str, sha256: str = "") -> UbuntuImage | None:
    """Which ISO a file's name says it is, None for anything but the live server's for PCs."""
    return _image(_ISO.match(file_name), file_name, sha256)


def _image(match: re.Match[str] | None, file_name: str, sha256: str) -> UbuntuImage | None:
    if match is None:
        return None
    version, point, flavour, arch = match.groups()[:4]
    return UbuntuImage(version, int(point or 0), flavour, arch, file_name, sha256)


def parse_sums(data: bytes, which: Callable[[str, str], UbuntuImage | None] = recognise) -> list[UbuntuImage]:
    """The images that SHA256SUMS lists; other lines, and what isn't a line, are passed over.

    :param which: `recognise` or `recognise_iso`
    """
    found = []
    for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n"):  # or an older release would be the newest
        match = _LINE.match(line)
        image = which(match[2].decode("ascii"), match[1].decode("ascii").lower()) if match else None
        if image is not None:
            found.append(image)
    return found


def fits(image: UbuntuImage, name: UbuntuName, arch: str) -> bool:
    """Whether an image is one that is asked for.

    The version counts where it is known, whatever the folder is called: a mirror can't pass an old release, with its
    good signature, for a new one.
    """
    return (
        (image.flavour, image.arch) == (name.flavour, arch)
        and (not name.version or image.version == name.version)
        and (name.point is None or image.point == name.point)
    )


def newest(images: list[UbuntuImage], name: UbuntuName, arch: str) -> UbuntuImage | None:
    """The newest image that fits, by numbers (24.04.10 is newer than 24.04.9), packed as the publisher does."""
    fitting = [image for image in images if fits(image, name, arch)]
    return max(fitting, key=_rank, default=None)


def _rank(image: UbuntuImage) -> tuple[tuple[int, ...], int]:
    match = _FILE.match(image.file_name)
    packed = _PREFERRED.index(match[5]) if match else len(_PREFERRED)
    return (*map(int, image.version.split(".")), image.point), -packed
