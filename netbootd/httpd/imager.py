"""What the state has to be flashed, as Raspberry Pi Imager and the Pi's network install show it.

``/imager/os_list.json`` is a repository in their format (raspberrypi/rpi-imager, doc/json-schema): the verified
archives that published images were made of, as their publishers made them, and the staged card images. Imager takes it
with ``--repo``, a Pi's EEPROM with IMAGER_REPO_URL, and netbootd itself with ``--mirror``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aiohttp import web

from netbootd.boot.layers import Folder
from netbootd.errors import FormatError, NotFoundError
from netbootd.httpd.answer import send
from netbootd.httpd.cards import card_entries
from netbootd.model.event import Stage
from netbootd.model.facts import PI
from netbootd.model.image import Generation
from netbootd.model.resource import BootPath, Resource
from netbootd.store.archives import Archive, Archives
from netbootd.store.generations import Generations

_BOARDS = {
    "Raspberry Pi 5": ("pi5", re.compile(r"bcm2712.*\.dtb")),
    "Raspberry Pi 4": ("pi4", re.compile(r"bcm2711.*\.dtb")),
    "Raspberry Pi 3 and Zero 2 W": ("pi3", re.compile(r"bcm2710.*\.dtb|bcm2837.*\.dtb")),
    "Raspberry Pi 2": ("pi2", re.compile(r"bcm2709.*\.dtb|bcm2836.*\.dtb")),
    "Raspberry Pi 1 and Zero": ("pi1", re.compile(r"bcm2708.*\.dtb|bcm2835.*\.dtb")),
}
"""Imager's devices: the tags begin so, and an image boots a board whose device tree lies in its boot partition."""

_BITS = {"arm64": "64bit", "armhf": "32bit"}
_ARCHITECTURES = {"arm64": "armv8", "armhf": "armhf"}
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?=-)")
_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40"><rect x="8" y="3" width="24" height="34" rx="3"'
    b' fill="#456"/><path d="M13 8v7M18 8v7M23 8v7" stroke="#fff" stroke-width="3"/></svg>\n'
)


@dataclass(frozen=True, slots=True)
class _Offer:
    """An archive and the newest generation that was made of it."""

    archive: Archive
    generation: Generation
    manifest: Mapping[str, Any]


class ImagerRoutes:
    """The routes of the repository."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._archives = Archives(generations.layout)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes; HEAD comes with GET."""
        router.add_get("/imager/os_list.json", self._list)
        router.add_get("/imager/icon.svg", self._icon)
        router.add_get("/imager/{sha256:[0-9a-f]{64}}/{file}", self._get)

    async def _icon(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=_ICON, content_type="image/svg+xml")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(self._repository, f"{request.scheme}://{request.host}"))

    async def _get(self, request: web.Request) -> web.StreamResponse:
        return (
            await send(
                request,
                await asyncio.to_thread(self._resource, request.match_info["sha256"], request.match_info["file"]),
            )
        )[0]

    def _resource(self, sha256: str, name: str) -> Resource:
        offer = self._offers().get(sha256)
        found = None
        if offer is not None and offer.archive.path.name == name:
            found = Folder(offer.archive.path.parent, "download").find(BootPath(name), Stage.FIRMWARE)
        if found is None:
            raise NotFoundError("no such archive is offered")
        return found

    def _repository(self, base: str) -> dict[str, Any]:
        entries = [_entry(offer, base) for offer in self._offers().values()]
        entries += [{"icon": f"{base}/imager/icon.svg", **card} for card in card_entries(self._generations, base)]
        tags = {tag for entry in entries for tag in entry.get("devices", ())}
        devices = [
            {"name": name, "description": "", "tags": [tag for tag in sorted(tags) if tag.startswith(f"{prefix}-")]}
            for name, (prefix, _) in _BOARDS.items()
        ]
        every = {"name": "Any Raspberry Pi", "description": "", "tags": [], "default": True}
        return {"imager": {"devices": [*(device for device in devices if device["tags"]), every]}, "os_list": entries}

    def _offers(self) -> dict[str, _Offer]:
        """What can be offered, by digest: verified, whole, of a published generation, and for a Pi."""
        found: dict[str, _Offer] = {}
        for name in self._generations.names():
            for generation in self._generations.all(name):
                offer = self._offer(generation)
                if offer is not None:
                    found[offer.archive.sha256] = offer
        return found

    def _offer(self, generation: Generation) -> _Offer | None:
        try:
            manifest = self._generations.manifest(generation)
        except FormatError:
            return None
        source = _table(manifest, "source")
        if source.get("verified") is not True or _table(manifest, "facts").get("kind", PI) != PI:
            return None
        archive = self._archives.find(str(source.get("sha256", "")))
        return _Offer(archive, generation, manifest) if archive else None


def _entry(offer: _Offer, base: str) -> dict[str, Any]:
    archive, manifest = offer.archive, offer.manifest
    source, image, facts = (_table(manifest, key) for key in ("source", "image", "facts"))
    arch = str(manifest.get("arch", ""))
    dated = _DATE.match(archive.path.name)
    entry: dict[str, Any] = {
        "name": str(source.get("title") or offer.generation.name),
        "description": f"As published, in netbootd's store for its image {offer.generation.name}",
        "icon": f"{base}/imager/icon.svg",
        "url": f"{base}/imager/{archive.sha256}/{quote(archive.path.name)}",
        "release_date": dated[0] if dated else str(manifest.get("created", ""))[:10],
        "image_download_size": archive.size,
        "image_download_sha256": archive.sha256,
        "devices": _devices(offer.generation, arch),
        "init_format": _init_format(facts),
    }
    if arch in _ARCHITECTURES:
        entry["architecture"] = _ARCHITECTURES[arch]
    if isinstance(size := image.get("size"), int):
        entry["extract_size"] = size
    if isinstance(digest := source.get("extract_sha256"), str):
        entry["extract_sha256"] = digest
    return entry


def _devices(generation: Generation, arch: str) -> list[str]:
    """Imager's tags of the boards that the image has a device tree for."""
    bits = _BITS.get(arch, "64bit")
    names = {path.rpartition("/")[2] for path in Folder(generation.boot, "image").files()}
    return [
        f"{prefix}-{bits}" for prefix, pattern in _BOARDS.values() if any(pattern.fullmatch(name) for name in names)
    ]


def _init_format(facts: Mapping[str, Any]) -> str:
    """How Imager customises it: by cloud-init, that of Raspberry Pi, the older firstrun.sh, or not at all."""
    has_cloud_init, raspios = bool(facts.get("cloud_init_version")), facts.get("os_id") in ("debian", "raspbian")
    if has_cloud_init:
        return "cloudinit-rpi" if raspios else "cloudinit"
    return "systemd" if raspios else "none"


def _table(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
