"""The staged card images (``sd_image = true``), for nodes that flash themselves and for Raspberry Pi Imager.

``/images/<name>/<generation>/sdcard.img.xz`` and beside it ``.sha256`` never change; without the generation it is the
current one. ``/images/os_list.json`` lists the current ones in the format of Raspberry Pi Imager's repositories
(https://github.com/raspberrypi/rpi-imager, doc/json-schema).
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from netbootd.boot.layers import Folder
from netbootd.errors import FormatError, NotFoundError
from netbootd.httpd.answer import send
from netbootd.model.event import Stage
from netbootd.model.image import CARD, Generation
from netbootd.model.resource import BootPath
from netbootd.store.generations import Generations
from netbootd.store.layout import is_name

_FILES = f"{{file:{CARD.replace('.', '[.]')}([.]sha256)?}}"


class CardRoutes:
    """The routes of staged card images."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes; HEAD comes with GET."""
        router.add_get("/images/os_list.json", self._list)
        router.add_get(f"/images/{{name}}/{_FILES}", self._get)
        router.add_get(f"/images/{{name}}/{{generation}}/{_FILES}", self._get)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        name, ident = request.match_info["name"], request.match_info.get("generation")
        if not is_name(name):
            raise NotFoundError("not an image's name")
        found = self._generations.find(name, ident) if ident else self._generations.current(name)
        path = BootPath(request.match_info["file"])
        resource = Folder(found.path, "image").find(path, Stage.FIRMWARE) if found else None
        if resource is None:
            raise NotFoundError(f"no card image of {name} is staged")
        return (await send(request, resource))[0]

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"os_list": card_entries(self._generations, f"{request.scheme}://{request.host}")})


def card_entries(generations: Generations, base: str) -> list[dict[str, Any]]:
    """The entries of a repository for the current card images.

    :param base: ``http://HOST[:PORT]`` as the asker has it
    """
    every = (generations.current(name) for name in generations.names())
    return [entry for generation in every if generation for entry in _entries(generations, generation, base)]


def _entries(generations: Generations, generation: Generation, base: str) -> list[dict[str, Any]]:
    """The entry of a generation with a card image, or none."""
    try:
        manifest = generations.manifest(generation)
        card = manifest["card"]
        return [
            {
                "name": generation.name,
                "description": f"{generation.name}, prepared by netbootd with its cloud-init",
                "url": f"{base}/images/{generation.name}/{generation.id}/{CARD}",
                "release_date": str(manifest["created"])[:10],
                "extract_size": card["raw_size"],
                "extract_sha256": card["raw_sha256"],
                "image_download_size": card["size"],
                "image_download_sha256": card["sha256"],
                "init_format": "none",
            }
        ]
    except (FormatError, LookupError, TypeError):
        return []
