"""Which image of the list is which Raspberry Pi OS.

The file's name says it all: ``2025-10-01-raspios-trixie-arm64-lite.img.xz``. Where an index of one's own names its
files otherwise, the entry's description ("A port of Debian Trixie …"), title and devices do. The folder doesn't: what
is current today lies under ``raspios_oldstable_*`` tomorrow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from netbootd.images.catalog.names import RASPIOS_FLAVOURS, RaspiosName
from netbootd.images.catalog.oslist import Entry

_FILE = re.compile(
    r"(?:(\d{4}-\d\d-\d\d)-)?raspios-([a-z]+)-(arm64|armhf)(?:-(lite|full|desktop))?(?:\.[a-z0-9.]+)?\Z",
    re.IGNORECASE | re.ASCII,
)
_TITLE = re.compile(r"raspberry pi os\b", re.IGNORECASE)
_SUITE = re.compile(r"\bdebian (?:gnu/linux )?(?:\d+ )?\(?([a-z]{4,20})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RaspiosImage:
    """One image, told."""

    suite: str
    flavour: str
    arch: str
    date: str
    entry: Entry

    @property
    def name(self) -> str:
        """As --release takes it."""
        return f"raspios-{self.suite}-{self.flavour}"


def recognise(entry: Entry) -> RaspiosImage | None:
    """Which Raspberry Pi OS it is, None where it is none or can't be told."""
    match = _FILE.match(unquote(urlsplit(entry.url).path).rpartition("/")[2])
    if match is not None:
        date, suite, arch, flavour = match.groups()
        return RaspiosImage(
            suite.lower(), (flavour or "desktop").lower(), arch.lower(), entry.date or date or "", entry
        )
    if not _TITLE.match(entry.title):
        return None
    found = _SUITE.search(entry.description) or _SUITE.search(entry.title)
    arch = _arch(entry)
    if found is None or not arch:
        return None
    words = set(re.findall(r"[a-z]+", entry.title.lower()))
    flavour = next((flavour for flavour in RASPIOS_FLAVOURS if flavour in words), "desktop")
    return RaspiosImage(found[1].lower(), flavour, arch, entry.date, entry)


def _arch(entry: Entry) -> str:
    if entry.architecture:
        return {"armv8": "arm64", "arm64": "arm64", "armhf": "armhf"}.get(entry.architecture.lower(), "")
    for bits, arch in (("64", "arm64"), ("32", "armhf")):
        if re.search(rf"\b{bits}-bit\b", entry.title) or any(
            device.endswith(f"-{bits}bit") for device in entry.devices
        ):
            return arch
    return ""


def choose(entries: tuple[Entry, ...], name: RaspiosName, arch: str) -> RaspiosImage | None:
    """The newest image of that suite, flavour and architecture; of two of one date the first in the list."""
    found = [image for entry in entries if (image := recognise(entry)) is not None]
    fitting = [image for image in found if (image.suite, image.flavour, image.arch) == (name.suite, name.flavour, arch)]
    return max(fitting, key=lambda image: image.date, default=None)


def newest(entries: tuple[Entry, ...]) -> list[RaspiosImage]:
    """The newest image of every suite, flavour and architecture, in the publisher's order."""
    best: dict[tuple[str, str, str], RaspiosImage] = {}
    for entry in entries:
        image = recognise(entry)
        if image is not None:
            key = (image.suite, image.flavour, image.arch)
            if key not in best or image.date > best[key].date:
                best[key] = image
    return list(best.values())
