"""The state's archives as a repository of Raspberry Pi Imager (raspberrypi/rpi-imager, doc/json-schema), over HTTP.

Asked by curl, and by the product's own reader of such lists, which prepares from what another netbootd offers.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import lzma
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from netbootd.errors import VerificationError
from netbootd.httpd.cards import CardRoutes
from netbootd.httpd.imager import ImagerRoutes
from netbootd.httpd.server import HttpServer, HttpSettings
from netbootd.images.catalog import list_offers, resolve
from netbootd.images.catalog.publishers import Publishers
from netbootd.images.documents import Documents
from netbootd.images.download import fetch
from netbootd.images.patience import Patience
from netbootd.images.progress import Silent
from netbootd.model.facts import PC, ImageFacts
from netbootd.model.image import ImageSpec, Release
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout
from tests.support.processes import run

RASPIOS = "2025-10-01-raspios-trixie-arm64-lite.img.xz"
UBUNTU = "ubuntu-24.04.3-preinstalled-server-arm64+raspi.img.xz"
RAW = random.Random(7).randbytes(300_000)
PACKED = {name: lzma.compress(RAW, preset=number) for number, name in enumerate((RASPIOS, UBUNTU))}
QUICK = Patience(tries=2, first_delay=0.001, longest_delay=0.01, connect_seconds=2.0, silence_seconds=2.0)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Store:
    """A state folder that is filled by hand, and served."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder)
        self.generations = Generations(self.layout)

    def archive(self, name: str, data: bytes) -> Path:
        path = self.layout.downloads / digest(data) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def image(self, name: str, number: int, sha256: str, boot: tuple[str, ...] = (), **more: Any) -> None:
        generation = self.generations.layout.generation(name, f"{number:016x}")
        work = self.generations.begin(generation)
        for path in boot:
            (work / "boot" / path).parent.mkdir(parents=True, exist_ok=True)
            (work / "boot" / path).touch()
        source = {"url": "https://h/x", "sha256": sha256, "verified": True, "key": ""} | more.pop("source", {})
        facts = more.pop("facts", ImageFacts(os_id="debian", cloud_init_version="25.2")).as_dict()
        manifest = {"created": f"2026-01-0{number}T00:00:00+00:00", "arch": "arm64", "source": source, "facts": facts}
        self.generations.publish(work, generation, manifest | more)


class Site:
    """An HTTP server in a thread of its own."""

    def __init__(self, store: Store) -> None:
        self.allowed = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = HttpServer(
            HttpSettings((("127.0.0.1", 0),), lambda peer: self.allowed),
            CardRoutes(store.generations),
            ImagerRoutes(store.generations),
        )
        self._server.bind()
        self._call(self._server.start())
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.list_url = f"{self.url}/imager/os_list.json"

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        self._call(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def status(self, path: str) -> int:
        argv = ["curl", "-s", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", f"{self.url}{path}"]
        return int(run(argv).stdout)

    def entries(self) -> list[dict[str, Any]]:
        listed = json.loads(run(["curl", "-sf", self.list_url]).stdout)
        found: list[dict[str, Any]] = listed["os_list"]
        return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return Store(tmp_path / "state")


@pytest.fixture
def site(store: Store) -> Iterator[Site]:
    site = Site(store)
    yield site
    site.close()


def offered(store: Store) -> None:
    boot = ("bcm2711-rpi-4-b.dtb", "current/bcm2712-rpi-5-b.dtb", "bcm2710-rpi-3-b.dtb", "kernel8.img")
    told = {"title": "Raspberry Pi OS Lite (64-bit)", "extract_sha256": digest(RAW)}
    store.archive(RASPIOS, PACKED[RASPIOS])
    store.image("pios", 1, digest(PACKED[RASPIOS]), boot, source=told, image={"size": len(RAW)})


def test_an_entry_has_what_imager_needs(store: Store, site: Site) -> None:
    assert site.entries() == []
    offered(store)
    (entry,) = site.entries()
    assert entry == {
        "name": "Raspberry Pi OS Lite (64-bit)",
        "description": entry["description"],
        "icon": f"{site.url}/imager/icon.svg",
        "url": f"{site.url}/imager/{digest(PACKED[RASPIOS])}/{RASPIOS}",
        "release_date": "2025-10-01",
        "image_download_size": len(PACKED[RASPIOS]),
        "image_download_sha256": digest(PACKED[RASPIOS]),
        "extract_size": len(RAW),
        "extract_sha256": digest(RAW),
        "devices": ["pi5-64bit", "pi4-64bit", "pi3-64bit"],
        "init_format": "cloudinit-rpi",
        "architecture": "armv8",
    }
    listed = json.loads(run(["curl", "-sf", site.list_url]).stdout)
    tags = [device["tags"] for device in listed["imager"]["devices"]]
    assert tags == [["pi5-64bit"], ["pi4-64bit"], ["pi3-64bit"], []]
    assert run(["curl", "-sfI", entry["icon"]]).stdout.lower().count("image/svg+xml") == 1


def test_the_archive_comes_whole_and_in_pieces(store: Store, site: Site, tmp_path: Path) -> None:
    offered(store)
    (entry,) = site.entries()
    out = tmp_path / "out"
    run(["curl", "-sf", "-o", out, entry["url"]])
    assert out.read_bytes() == PACKED[RASPIOS]
    out.write_bytes(PACKED[RASPIOS][:100_000])
    run(["curl", "-sf", "-C", "-", "-o", out, entry["url"]])  # goes on where it broke off
    assert out.read_bytes() == PACKED[RASPIOS]
    head = run(["curl", "-sfI", "-r", "5-9", entry["url"]]).stdout.lower()
    assert " 206 " in head
    assert f"content-range: bytes 5-9/{len(PACKED[RASPIOS])}" in head


def test_only_what_is_verified_whole_and_for_a_pi_is_offered(store: Store, site: Site) -> None:
    hidden = {}
    for number, (name, more) in enumerate(
        {
            "unverified": {"source": {"verified": False}},
            "pc": {"facts": ImageFacts(kind=PC)},
            "gone": {},
            "unfinished": {},
        }.items(),
        1,
    ):
        data = name.encode() * 10
        path = store.archive(f"{name}.img", data)
        if name == "gone":
            path.unlink()
        elif name == "unfinished":
            path.rename(path.with_name("unfinished.img.part"))
        store.image(name, number, digest(data), **more)  # type: ignore[arg-type]
        hidden[name] = f"/imager/{digest(data)}/{name}.img"
    hidden["orphan"] = f"/imager/{digest(b'orphan')}/{store.archive('orphan.img', b'orphan').name}"
    hidden["part"] = f"/imager/{digest(b'unfinished' * 10)}/unfinished.img.part"
    offered(store)
    (entry,) = site.entries()
    assert entry["name"].startswith("Raspberry Pi OS")
    base = f"/imager/{digest(PACKED[RASPIOS])}"
    paths = [*hidden.values(), base, f"{base}/", f"{base}/other.img", f"{base}/..%2f..%2fdb", f"{base}/../../x"]
    paths += ["/imager/", "/imager/zz/x", f"/imager/{'0' * 64}/{RASPIOS}"]
    assert [site.status(path) for path in paths] == [404] * len(paths)
    assert site.status(f"{base}/{RASPIOS}") == 200


def test_one_archive_of_several_images_is_one_entry_and_names_are_quoted(store: Store, site: Site) -> None:
    store.archive(UBUNTU, PACKED[UBUNTU])
    facts = ImageFacts(os_id="ubuntu", cloud_init_version="25.1")
    store.image("a", 1, digest(PACKED[UBUNTU]), facts=facts)
    store.image("b", 2, digest(PACKED[UBUNTU]), facts=facts)
    (entry,) = site.entries()
    assert (entry["name"], entry["release_date"], entry["init_format"]) == ("b", "2026-01-02", "cloudinit")
    assert entry["url"].endswith("/" + quote(UBUNTU))
    assert "extract_sha256" not in entry
    assert "extract_size" not in entry
    assert run(["curl", "-sf", entry["url"], "-o", "/dev/null", "-w", "%{size_download}"]).stdout == str(
        len(PACKED[UBUNTU])
    )


def test_a_card_image_is_listed_too(store: Store, site: Site) -> None:
    card = {"file": "sdcard.img.xz", "size": 5, "sha256": "0" * 64, "raw_size": 9, "raw_sha256": "1" * 64}
    store.image("cards", 1, "2" * 64, card=card)
    (entry,) = site.entries()
    assert entry["url"] == f"{site.url}/images/cards/{1:016x}/sdcard.img.xz"
    assert entry["icon"]


def test_strangers_get_neither_list_nor_archive(store: Store, site: Site) -> None:
    offered(store)
    site.allowed = False
    assert site.status("/imager/os_list.json") == 403
    assert site.status(f"/imager/{digest(PACKED[RASPIOS])}/{RASPIOS}") == 403


# --------------------------------------------------------------------------------------------- the product's own reader


async def look_up(release: str, site: Site) -> Release:
    spec = ImageSpec("x", release=release)
    return await resolve(spec, mirror=site.list_url, keyring=None, skip_verify=False, progress=Silent(), patience=QUICK)


async def test_another_netbootd_prepares_from_it(store: Store, site: Site, tmp_path: Path) -> None:
    offered(store)
    for name in ("raspios-trixie", RASPIOS.removesuffix(".img.xz"), "Raspberry Pi OS Lite (64-bit)"):
        release = await look_up(name, site)
        assert (release.verified, release.sha256, release.extract_sha256, release.size) == (
            True,
            digest(PACKED[RASPIOS]),
            digest(RAW),
            len(PACKED[RASPIOS]),
        )
    path = await fetch(release, tmp_path / "downloads", Silent(), patience=QUICK)
    assert path == tmp_path / "downloads" / digest(PACKED[RASPIOS]) / RASPIOS
    assert path.read_bytes() == PACKED[RASPIOS]
    offers = await list_offers(Publishers.at(Documents(QUICK), site.list_url))
    assert [offer.name for offer in offers.offers] == ["raspios-trixie-lite"]


async def test_an_ubuntu_of_it_is_not_verified_by_it(store: Store, site: Site) -> None:
    """What counts for Ubuntu is its signature, which the list can't give."""
    store.archive(UBUNTU, PACKED[UBUNTU])
    store.image("noble", 1, digest(PACKED[UBUNTU]))
    with pytest.raises(VerificationError, match="SHA256SUMS"):
        await look_up("noble", site)
