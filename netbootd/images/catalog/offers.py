"""All that the publishers offer for Pis, and the ISOs for PCs, as ``netbootd images releases`` lists it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from netbootd.errors import NetbootdError, NotFoundError
from netbootd.images.catalog import raspios, ubuntu
from netbootd.images.catalog.names import UBUNTU_VERSIONS, codename_of
from netbootd.images.catalog.oslist import Entry, Index
from netbootd.images.catalog.publishers import Publishers
from netbootd.images.catalog.ubuntu import UbuntuImage
from netbootd.images.locations import below, file_name, public

_ARCHIVE_ENDINGS = ("img", "raw", "xz", "zst", "gz", "zip", "tar")


@dataclass(frozen=True, slots=True)
class Offer:
    """One image that can be had. `name` is what --release takes, `size` bytes (0: not known), `date` ISO or empty."""

    name: str
    title: str
    version: str
    arch: str
    date: str
    size: int
    url: str


@dataclass(frozen=True, slots=True)
class Offers:
    """The images, and one sentence for every publisher or list that could not be asked."""

    offers: tuple[Offer, ...]
    problems: tuple[str, ...]


async def list_offers(publishers: Publishers) -> Offers:
    """What can be had; works with one publisher down. Nothing is verified for a list: `prepare` does that.

    :raises NetbootdError: no publisher could be asked
    """
    index, sums = await asyncio.gather(_index(publishers), _sums(publishers, _PIS))
    isos = _Asked(False)
    if not (publishers.mirror and sums.faults):  # which is the same server, and down
        isos = await _sums(publishers, _PCS)
    faults = [*index.faults, *sums.faults, *isos.faults]
    if not index.reached and not sums.reached and not isos.reached:
        raise (
            faults[0]
            if faults
            else NotFoundError(
                f"Listing {public(publishers.mirror)}: it has neither releases/ nor an index.",
                hint="--mirror names the folder (or URL) that is laid out as a publisher's.",
            )
        )
    entries = index.index.entries if index.index else ()
    offers = [*_ubuntu((*sums.images, *isos.images), entries), *_raspios(entries)]
    if publishers.mirror:
        offers += _others(entries)
    problems = [*(fault.message for fault in faults), *(index.index.problems if index.index else ())]
    return Offers(tuple(offers), tuple(dict.fromkeys(problems)))


def stem(url: str) -> str:
    """The file's name without the endings of archives."""
    name = file_name(url)
    while (dot := name.rpartition("."))[1] and dot[2].lower() in _ARCHIVE_ENDINGS:
        name = dot[0]
    return name


@dataclass(frozen=True, slots=True)
class _Asked:
    """What came of asking one publisher: whether it answered at all, what it has, what failed."""

    reached: bool
    faults: tuple[NetbootdError, ...] = ()
    index: Index | None = None
    images: tuple[tuple[UbuntuImage, str], ...] = ()


async def _index(publishers: Publishers) -> _Asked:
    try:
        return _Asked(True, index=await publishers.index())
    except NotFoundError as error:
        # a mirror of Ubuntu alone has none; the publisher of Raspberry Pi OS has
        return _Asked(False, () if publishers.mirror else (error,))
    except NetbootdError as error:
        return _Asked(False, (error,))


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of Ubuntu's servers: its base, where a release's list lies below it, and what is of interest there."""

    base: Callable[[Publishers], str]
    sums_url: Callable[[str, str], str]
    recognise: Callable[[str, str], UbuntuImage | None]


_PIS = _Kind(lambda publishers: publishers.ubuntu, ubuntu.sums_url, ubuntu.recognise)
_PCS = _Kind(lambda publishers: publishers.ubuntu_isos, ubuntu.iso_sums_url, ubuntu.recognise_iso)


async def _sums(publishers: Publishers, kind: _Kind) -> _Asked:
    """Every known release's SHA256SUMS on one of the servers, the newest release first."""
    base = kind.base(publishers)
    if not base:
        return _Asked(False)

    async def one(codename: str, version: str) -> _Asked:
        for folder in (codename, version):
            url = kind.sums_url(base, folder)
            try:
                document = await publishers.documents.read(url, ubuntu.LIMIT)
            except NotFoundError:
                continue
            except NetbootdError as error:
                return _Asked(False, (error,))
            every = ubuntu.parse_sums(document.data, kind.recognise)
            listed = [image for image in every if image.version == version]
            return _Asked(
                True, images=tuple((image, below(url.rpartition("/")[0], image.file_name)) for image in listed)
            )
        return _Asked(False)

    # one after the other where the first says that the server is down: eight times the same wait helps nobody
    newest_first = list(reversed(UBUNTU_VERSIONS.items()))
    first = await one(*newest_first[0])
    if first.faults:
        return first
    asked = [first, *await asyncio.gather(*(one(*release) for release in newest_first[1:]))]
    faults = {fault.message: fault for part in asked for fault in part.faults}
    return _Asked(
        any(part.reached for part in asked),
        tuple(faults.values()),
        images=tuple(image for part in asked for image in part.images),
    )


def _ubuntu(sums: tuple[tuple[UbuntuImage, str], ...], entries: tuple[Entry, ...]) -> list[Offer]:
    """One offer a file; the list of Raspberry Pi Imager adds sizes and dates, and what only it has."""
    found: dict[str, tuple[UbuntuImage, str, Entry | None]] = {}
    for image, url in sums:
        found.setdefault(image.file_name, (image, url, None))
    for entry in entries:
        known = ubuntu.recognise(file_name(entry.url))
        if known is not None:
            before = found.get(known.file_name)
            if before is None or before[2] is None:
                found[known.file_name] = (known, before[1] if before else entry.url, entry)
    best: dict[tuple[str, str, str], int] = {}
    for image, _, _ in found.values():
        key = (image.version, image.flavour, image.arch)
        best[key] = max(best.get(key, 0), image.point)
    offers: dict[tuple[str, str], Offer] = {}
    for image, url, listed in found.values():
        newest = image.point == best[image.version, image.flavour, image.arch]
        ending = "" if image.flavour == "server" else f"-{image.flavour}"
        name = (codename_of(image.version) or image.version) + ending if newest else image.name
        offer = Offer(
            name,
            image.title,
            image.release,
            image.arch,
            listed.date if listed else "",
            listed.size if listed else 0,
            url,
        )
        offers.setdefault((name, image.arch), offer)  # two packings of one image are one offer
    return sorted(offers.values(), key=lambda offer: _by_number(offer.version), reverse=True)


def _by_number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _raspios(entries: tuple[Entry, ...]) -> list[Offer]:
    return [
        Offer(
            image.name,
            image.entry.title or image.name,
            image.suite,
            image.arch,
            image.date,
            image.entry.size,
            image.entry.url,
        )
        for image in raspios.newest(entries)
    ]


def _others(entries: tuple[Entry, ...]) -> list[Offer]:
    """What the operator's own index has beside those."""
    return [
        Offer(stem(entry.url), entry.title, "", entry.architecture, entry.date, entry.size, entry.url)
        for entry in entries
        if raspios.recognise(entry) is None and ubuntu.recognise(file_name(entry.url)) is None
    ]
