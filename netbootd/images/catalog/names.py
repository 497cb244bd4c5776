"""The names of releases as operators write them, and what they ask for.

``[ubuntu-]CODENAME-or-VERSION[-server|-desktop]``, ``raspios-SUITE[-lite|-desktop|-full]``. A name that is well
formed is asked for at its publisher even where nobody here has heard of it: new releases need no new netbootd.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

UBUNTU_VERSIONS = {
    "focal": "20.04",
    "jammy": "22.04",
    "noble": "24.04",
    "oracular": "24.10",
    "plucky": "25.04",
    "questing": "25.10",
    "resolute": "26.04",
    "stonking": "26.10",
}
"""Codenames to versions of the releases with images for Pis, oldest first; the publisher's folders have either name."""

DEBIAN_SUITES = ("bullseye", "bookworm", "trixie", "forky")
RASPIOS_FLAVOURS = ("lite", "desktop", "full")

_CODENAMES = {version: codename for codename, version in UBUNTU_VERSIONS.items()}
_UBUNTU = re.compile(r"(?:ubuntu-)?(?:([a-z]{3,20})|(\d{1,2}\.\d\d)(?:\.(\d{1,3}))?)(?:-(server|desktop))?\Z", re.ASCII)
_RASPIOS = re.compile(r"raspios-([a-z]{3,20})(?:-(lite|desktop|full))?\Z")
_ARCHES = {"aarch64": "arm64", "armv7l": "armhf", "armv6l": "armhf", "x86_64": "amd64"}


@dataclass(frozen=True, slots=True)
class UbuntuName:
    """An Ubuntu release: `codename` or `version` or both ("" where not known); `point` where one is pinned."""

    codename: str
    version: str
    point: int | None
    flavour: str

    @property
    def folders(self) -> list[str]:
        """What the publisher may call its folder, the likeliest first."""
        pinned = f"{self.version}.{self.point}" if self.point is not None else ""
        return [folder for folder in (pinned, self.codename, self.version) if folder]

    @property
    def shown(self) -> str:
        """For messages: ``24.04.3 (noble) server``."""
        version = self.version + (f".{self.point}" if self.point is not None else "")
        both = f"{version} ({self.codename})" if version and self.codename else version or self.codename
        return f"{both} {self.flavour}"


@dataclass(frozen=True, slots=True)
class RaspiosName:
    """A Raspberry Pi OS: Debian's suite, and lite, desktop or full."""

    suite: str
    flavour: str

    @property
    def shown(self) -> str:
        """For messages: ``trixie lite``."""
        return f"{self.suite} {self.flavour}"


def parse(name: str) -> UbuntuName | RaspiosName | None:
    """What a release's name asks for, None where it is not one of these. Without a flavour: server, lite."""
    name = name.strip().lower()
    if match := _RASPIOS.match(name):
        return RaspiosName(match[1], match[2] or "lite")
    match = _UBUNTU.match(name)
    if match is None or match[1] == "raspios":
        return None
    codename, version, point, flavour = match.groups()
    return UbuntuName(
        codename or codename_of(version),
        version or UBUNTU_VERSIONS.get(codename, ""),
        int(point) if point else None,
        flavour or "server",
    )


def codename_of(version: str) -> str:
    """The codename of ``24.04``, "" where it is not known."""
    return _CODENAMES.get(version, "")


def arch_of(text: str) -> str:
    """Debian's name of an architecture, which may be written as the kernel says it."""
    return _ARCHES.get(text.lower(), text.lower())


def suggestion(name: str, offered: Iterable[str] = ()) -> str:
    """A hint for a release that isn't there: the likeliest that was meant, and what there is.

    :param offered: names that the publisher is known to have; without any, those that we know of
    """
    there = list(dict.fromkeys(offered))
    known = there or [*UBUNTU_VERSIONS, *UBUNTU_VERSIONS.values(), *(f"raspios-{suite}" for suite in DEBIAN_SUITES)]
    lowered = name.lower().removeprefix("ubuntu-")
    bare = lowered.partition("-")[2] if lowered.partition("-")[0] in ("debian", "raspbian", "raspios") else lowered
    suites = [known_name for known_name in known if known_name.startswith("raspios-") and bare in known_name.split("-")]
    close = suites[:1] or difflib.get_close_matches(lowered, known, n=1, cutoff=0.6)
    meant = f"Did you mean {close[0]}? " if close else ""
    if there:
        return f"{meant}There is: {', '.join(there[:24])}{', …' if len(there) > 24 else ''}."
    return f"{meant}netbootd images releases lists what there is."
