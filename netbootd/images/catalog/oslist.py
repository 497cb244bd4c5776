"""Raspberry Pi Imager's list of operating systems: os_list_imagingutility_v4.json (raspberrypi/rpi-imager, doc/).

``{"os_list": [ENTRY…]}``, where an entry is an image (`url`, `image_download_sha256`, `extract_sha256` …) or a folder
(`subitems`, or `subitems_url` with another such list). URLs may be relative to the list that has them. Nothing of the
list is believed but the URLs and digests, and those only where the list came by HTTPS or from the operator's mirror.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from netbootd.errors import FormatError, NetbootdError
from netbootd.images.documents import Document
from netbootd.images.locations import is_file, origin_of, public, reference

INDEX = "os_list_imagingutility_v4.json"
LIMIT = 8 << 20
"""Bytes of one list; the publisher's whole has about 200 KiB."""

_LISTS = 64
_ENTRIES = 20_000
_DEPTH = 8
_HEX = re.compile(r"[0-9a-fA-F]{64}\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of the list. Digests are lower-case hex or empty, sizes bytes or 0, `date` ISO or empty.

    `trusted`: it stands in a list that came by HTTPS, or from the mirror that the operator named.
    """

    title: str
    description: str
    url: str
    sha256: str
    size: int
    extract_sha256: str
    extract_size: int
    date: str
    devices: tuple[str, ...]
    architecture: str
    trusted: bool


@dataclass(frozen=True, slots=True)
class Index:
    """All images of a list and its sublists, in the publisher's order; `problems`: what couldn't be had."""

    url: str
    entries: tuple[Entry, ...]
    problems: tuple[str, ...]


Read = Callable[[str, int], Awaitable[Document]]


async def load(url: str, read: Read, *, named: bool) -> Index:
    """Read the list at `url` with all its sublists; one that can't be had is a problem, not a failure.

    :param read: (URL, limit in bytes) to a document
    :param named: the operator named this mirror, so that it and what lies on the same server is trusted
    :raises FormatError: the first list is no such list
    :raises NetbootdError: the first list can't be read
    """
    walk = _Walk(url, read, named)
    first = await read(url, LIMIT)
    await walk.document(first, trusted=named or first.url.startswith("https:"), depth=0)
    return Index(first.url, tuple(walk.entries), tuple(walk.problems))


class _Walk:
    """One reading of a list: bounded in depth, lists and entries, and never twice through the same one."""

    def __init__(self, url: str, read: Read, named: bool) -> None:
        self._read = read
        self._origin = origin_of(url) if named else None
        self._seen = {url}
        self._count = 0
        self.entries: list[Entry] = []
        self.problems: list[str] = []

    async def document(self, document: Document, *, trusted: bool, depth: int) -> None:
        """Take in one list."""
        self._seen.add(document.url)
        await self._items(_os_list(document), document.url, trusted=trusted, depth=depth)

    async def _items(self, items: list[Any], base: str, *, trusted: bool, depth: int) -> None:
        if depth > _DEPTH:
            self.problems.append(f"{public(base)}: lists are nested deeper than {_DEPTH}; the rest is left out.")
            return
        for item in items:
            self._count += 1
            if self._count > _ENTRIES:
                raise FormatError(f"Reading {public(base)}: more than {_ENTRIES} entries, which no such list has.")
            if not isinstance(item, dict):
                continue
            inner, elsewhere, url = item.get("subitems"), item.get("subitems_url"), item.get("url")
            if isinstance(inner, list):
                await self._items(inner, base, trusted=trusted, depth=depth + 1)
            elif isinstance(elsewhere, str) and elsewhere and not elsewhere.startswith("internal:"):
                await self._sublist(base, elsewhere, trusted=trusted, depth=depth + 1)
            elif isinstance(url, str) and url and not url.startswith("internal:"):
                self._image(item, base, url, trusted=trusted)

    async def _sublist(self, base: str, text: str, *, trusted: bool, depth: int) -> None:
        try:
            url = reference(base, text)
            if url in self._seen:
                return
            if len(self._seen) >= _LISTS:
                self.problems.append(f"{public(url)}: more than {_LISTS} lists; the rest is left out.")
                return
            self._seen.add(url)
            document = await self._read(url, LIMIT)
            safe = document.url.startswith("https:") or (
                self._origin is not None and origin_of(url) == self._origin and not (is_file(url) and not is_file(base))
            )
            await self.document(document, trusted=trusted and safe, depth=depth)
        except NetbootdError as error:
            self.problems.append(error.message)

    def _image(self, item: dict[str, Any], base: str, url: str, *, trusted: bool) -> None:
        try:
            absolute = reference(base, url)
        except FormatError as error:
            self.problems.append(error.message)
            return
        devices = item.get("devices")
        self.entries.append(
            Entry(
                title=_text(item.get("name")),
                description=_text(item.get("description")),
                url=absolute,
                sha256=_digest(item.get("image_download_sha256")),
                size=_size(item.get("image_download_size")),
                extract_sha256=_digest(item.get("extract_sha256")),
                extract_size=_size(item.get("extract_size")),
                date=_text(item.get("release_date"))[:10],
                devices=tuple(_text(device) for device in devices[:64]) if isinstance(devices, list) else (),
                architecture=_text(item.get("architecture")),
                trusted=trusted,
            )
        )


def _os_list(document: Document) -> list[Any]:
    try:
        value = json.loads(document.data)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else f"it is no JSON ({error})"
        raise FormatError(f"Reading {public(document.url)}: {why}.", hint="Try another mirror.") from None
    items = value.get("os_list") if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise FormatError(
            f"Reading {public(document.url)}: it has no os_list, so it is no list of Raspberry Pi Imager.",
            hint="Try another mirror.",
        )
    return items


def _text(value: object) -> str:
    """Text fit to be shown on one line, else empty."""
    return "".join(c for c in value[:300] if c.isprintable()) if isinstance(value, str) else ""


def _digest(value: object) -> str:
    return value.lower() if isinstance(value, str) and _HEX.match(value) else ""


def _size(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 50 else 0
