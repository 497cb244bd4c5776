"""The catalog: releases' names, the publishers' indexes, and what counts as verified."""

import json
import os
import random

import pytest

from netbootd.cli import main as program
from netbootd.errors import (
    FormatError,
    HostError,
    NetworkError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from netbootd.images.catalog import list_offers, resolve
from netbootd.images.catalog.names import RaspiosName, UbuntuName, parse, suggestion
from netbootd.images.catalog.publishers import Publishers
from netbootd.images.documents import Documents
from netbootd.images.locations import below, file_name, location, public, reference
from netbootd.images.patience import Patience
from netbootd.model.image import ImageSpec
from tests.support.openpgp import Keys
from tests.support.publisher import Publisher, Reply, Told, sha256

QUICK = Patience(tries=2, first_delay=0.001, longest_delay=0.01, connect_seconds=2.0, silence_seconds=1.0)
IMAGE = random.Random(3).randbytes(5000)


@pytest.fixture(scope="module")
def keys():
    made = Keys()
    made.new("publisher")
    made.new("stranger")
    yield made
    made.close()


@pytest.fixture
def ring(keys, tmp_path):
    path = tmp_path / "ring.gpg"
    path.write_bytes(keys.export("publisher"))
    return path


@pytest.fixture
async def publisher(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with Publisher() as publisher:
        yield publisher


@pytest.fixture
def told():
    return Told()


def pi(release, flavour="server", arch="arm64", ending=".xz"):
    return f"ubuntu-{release}-preinstalled-{flavour}-{arch}+raspi.img{ending}"


def noble(*releases, **options):
    return {pi(release, **options): release.encode() * 9 for release in releases}


async def look_up(release, mirror, *, ring=None, skip=False, arch="arm64", digest="", told=None):
    return await resolve(
        ImageSpec("x", release=release, arch=arch, sha256=digest),
        mirror=None if mirror is None else getattr(mirror, "url", str(mirror)),
        keyring=ring,
        skip_verify=skip,
        progress=told or Told(),
        patience=QUICK,
    )


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("noble", UbuntuName("noble", "24.04", None, "server")),
        ("Noble", UbuntuName("noble", "24.04", None, "server")),
        ("24.04", UbuntuName("noble", "24.04", None, "server")),
        ("24.04.3", UbuntuName("noble", "24.04", 3, "server")),
        ("24.04.0", UbuntuName("noble", "24.04", 0, "server")),
        ("ubuntu-resolute-desktop", UbuntuName("resolute", "26.04", None, "desktop")),
        ("ubuntu-24.04.3-server", UbuntuName("noble", "24.04", 3, "server")),
        ("jammy-desktop", UbuntuName("jammy", "22.04", None, "desktop")),
        ("zesty", UbuntuName("zesty", "", None, "server")),
        ("31.04", UbuntuName("", "31.04", None, "server")),
        ("raspios-trixie", RaspiosName("trixie", "lite")),
        ("raspios-bookworm-full", RaspiosName("bookworm", "full")),
        ("raspios-newone-desktop", RaspiosName("newone", "desktop")),
        *[(bad, None) for bad in ("", "24", "24.4", "noble-lite", "raspios", "raspios-trixie-server", "a", "noble.3")],
        *[
            (bad, None)
            for bad in ("../noble", "noble/x", "debian-trixie", "24.04.3.1", "ubuntu-", "24.04.٣", "n\noble")
        ],
    ],
)
def test_names(name, wanted):
    assert parse(name) == wanted


def test_suggestions():
    assert "mean noble?" in suggestion("nobel")
    assert "mean raspios-trixie?" in suggestion("trixie")
    assert "mean raspios-trixie?" in suggestion("debian-trixie")
    assert "mean raspios-bookworm-lite?" in suggestion("raspios-bookworm", ["noble", "raspios-bookworm-lite"])
    assert "mean 24.04?" in suggestion("24.4")
    assert suggestion("qqq", ["noble", "jammy"]) == "There is: noble, jammy."


# -------------------------------------------------------------------------------------------------------- locations


def test_locations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert location("a b", "--mirror") == (tmp_path / "a b").as_uri()
    assert location("HTTP://h/x/", "--mirror") == "HTTP://h/x"
    assert location("http://h/x?y=1/", "--source") == "http://h/x?y=1/"
    assert location("http://h/a b/ü", "--mirror") == "http://h/a%20b/%C3%BC"
    assert below("http://h/x", "releases/a+b/c d") == "http://h/x/releases/a%2Bb/c%20d"
    for bad in ("ftp://h/x", "http://", "http://h:port/", "http://[x/", "file://other/x", "http://h/\n", "", "a\0b"):
        with pytest.raises(UsageError):
            location(bad, "--mirror")


def test_references_are_relative_quoted_and_stay_on_the_network():
    index = "https://h/a/list.json"
    assert reference(index, "b/x+y.img") == "https://h/a/b/x%2By.img"
    assert reference(index, "/x") == "https://h/x"
    assert reference(index, "//other/x%2By") == "https://other/x%2By"
    assert reference("file:///srv/list.json", "b/x") == "file:///srv/b/x"
    for bad in ("file:///etc/shadow", "ftp://h/x", "javascript:alert(1)", "http://h/\r\nx", "http://[", "x" * 5000):
        with pytest.raises(FormatError):
            reference(index, bad)


def test_file_names_are_fit_for_a_folder():
    assert file_name("https://h/a/x%2By.img.xz?token=/z") == "x+y.img.xz"
    assert file_name("https://h/a/..") == "image"
    assert file_name("https://h/") == "image"
    assert file_name("https://h/..%2f..%2fetc%2fpasswd") == "passwd"
    assert file_name("https://h/a%00b%0A.img") == "a_b_.img"
    assert file_name("https://h/.hidden") == "hidden"
    assert file_name("https://h/x.part") == "x.part_"
    assert len(file_name("https://h/" + "x" * 999)) == 200
    assert public("https://me:secret@h:1/x") == "https://h:1/x"
    assert public("/a@b/c") == "/a@b/c"


# ------------------------------------------------------------------------------------------------------------ Ubuntu


async def test_the_newest_point_release_by_numbers_with_its_name_quoted(publisher, keys, ring):
    files = {**noble("24.04.9", "24.04.10", "24.04"), **noble("24.04.11", flavour="desktop"), "x": b""}
    publisher.ubuntu("noble", files, lambda data: keys.sign(data, "publisher"))
    release = await look_up("noble", publisher, ring=ring)
    assert release.file_name == pi("24.04.10")
    assert release.url == f"{publisher.url}/releases/noble/release/" + pi("24.04.10").replace("+", "%2B")
    assert release.sha256 == sha256(b"24.04.10" * 9)
    assert (release.verified, release.key) == (True, keys.fingerprint("publisher"))
    assert "24.04.10" in release.title
    assert (await look_up("24.04.9", publisher, ring=ring)).file_name == pi("24.04.9")
    assert (await look_up("24.04.0", publisher, ring=ring)).file_name == pi("24.04")
    assert (await look_up("ubuntu-noble-desktop", publisher, ring=ring)).file_name == pi("24.04.11", "desktop")
    assert not any(path.endswith(".xz") for path in publisher.paths())


@pytest.mark.parametrize("folder", ["noble", "24.04"])
@pytest.mark.parametrize("name", ["noble", "24.04", "24.04.3"])
async def test_either_folder_will_do(publisher, keys, ring, folder, name):
    publisher.ubuntu(folder, noble("24.04.3"), lambda data: keys.sign(data, "publisher"))
    assert f"/{folder}/" in (await look_up(name, publisher, ring=ring)).url


async def test_a_pinned_release_has_a_folder_of_its_own(publisher, keys, ring):
    sign = lambda data: keys.sign(data, "publisher")  # noqa: E731
    publisher.ubuntu("noble", noble("24.04.4"), sign)
    publisher.ubuntu("24.04.3", noble("24.04.3"), sign)
    assert "/24.04.3/" in (await look_up("24.04.3", publisher, ring=ring)).url
    with pytest.raises(NotFoundError) as error:
        await look_up("24.04.2", publisher, ring=ring)
    assert "24.04.4 (arm64)" in error.value.hint


async def test_releases_that_nobody_here_has_heard_of(publisher, keys, ring):
    publisher.ubuntu("zesty", noble("31.10"), lambda data: keys.sign(data, "publisher"))
    publisher.ubuntu("32.04", noble("32.04.1"), lambda data: keys.sign(data, "publisher"))
    assert (await look_up("zesty", publisher, ring=ring)).file_name == pi("31.10")
    assert (await look_up("32.04", publisher, ring=ring)).file_name == pi("32.04.1")


async def test_an_old_release_is_not_passed_for_a_new_one(publisher, keys, ring):
    """Its signature is good, but it is not what was asked for."""
    publisher.ubuntu("noble", noble("22.04.5"), lambda data: keys.sign(data, "publisher"))
    with pytest.raises(NotFoundError):
        await look_up("noble", publisher, ring=ring)


async def test_the_architecture_counts(publisher, keys, ring):
    files = {**noble("24.04.3"), **noble("24.04.2", arch="armhf")}
    publisher.ubuntu("noble", files, lambda data: keys.sign(data, "publisher"))
    assert (await look_up("noble", publisher, ring=ring, arch="armhf")).file_name == pi("24.04.2", arch="armhf")
    assert (await look_up("noble", publisher, ring=ring, arch="aarch64")).file_name == pi("24.04.3")
    with pytest.raises(UsageError, match="riscv64"):
        await look_up("noble", publisher, ring=ring, arch="riscv64")
    with pytest.raises(NotFoundError):  # another server's files are for PCs
        await look_up("noble", publisher, ring=ring, arch="amd64")
    with pytest.raises(NotFoundError):
        await look_up("noble-desktop", publisher, ring=ring)


def isos(publisher, keys, *names, folder="noble"):
    """As on releases.ubuntu.com: other flavours and architectures lie beside."""
    listed = [*names, "ubuntu-24.04.3-desktop-amd64.iso", "ubuntu-24.04.3-netboot-amd64.tar.gz"]
    sums = "".join(f"{sha256(name.encode())} *{name}\n" for name in listed).encode()
    publisher.files[f"/{folder}/SHA256SUMS"] = sums
    publisher.files[f"/{folder}/SHA256SUMS.gpg"] = keys.sign(sums, "publisher")


async def test_pcs_get_the_live_servers_iso(publisher, keys, ring):
    older, newer = (f"ubuntu-24.04.{point}-live-server-amd64.iso" for point in (9, 10))
    isos(publisher, keys, older, newer)
    for name in ("noble", "24.04", "ubuntu-noble-server"):
        found = await look_up(name, publisher, ring=ring, arch="x86_64")
        assert (found.file_name, found.sha256) == (newer, sha256(newer.encode()))
        assert (found.url, found.verified) == (f"{publisher.url}/noble/{newer}", True)
    assert (await look_up("24.04.9", publisher, ring=ring, arch="amd64")).file_name == older
    with pytest.raises(VerificationError):
        await look_up("noble", publisher, arch="amd64")
    for name in ("noble-desktop", "24.04.8", "raspios-trixie"):
        with pytest.raises(NotFoundError):
            await look_up(name, publisher, ring=ring, arch="amd64")
    publisher.ubuntu("noble", noble("24.04.3"), lambda data: keys.sign(data, "publisher"))
    assert (await look_up("noble", publisher, ring=ring)).file_name == pi("24.04.3")
    offers = (await list_offers(Publishers.at(Documents(QUICK), publisher.url))).offers
    assert {(offer.name, offer.arch, offer.url.rpartition("/")[2]) for offer in offers} == {
        ("noble", "arm64", pi("24.04.3").replace("+", "%2B")),
        ("noble", "amd64", newer),
        ("24.04.9", "amd64", older),
    }


async def test_an_old_iso_is_not_passed_for_a_new_one(publisher, keys, ring):
    isos(publisher, keys, "ubuntu-22.04.5-live-server-amd64.iso")
    with pytest.raises(NotFoundError):
        await look_up("noble", publisher, ring=ring, arch="amd64")


async def test_the_publishers_own_packing_is_preferred(publisher, keys, ring):
    files = {pi("24.04.3", ending=e): e.encode() * 9 for e in ("", ".gz", ".xz", ".zst")}
    publisher.ubuntu("noble", files, lambda data: keys.sign(data, "publisher"))
    assert (await look_up("noble", publisher, ring=ring)).file_name == pi("24.04.3")
    publisher.ubuntu("jammy", {pi("22.04", ending=""): b"x"}, lambda data: keys.sign(data, "publisher"))
    assert (await look_up("jammy", publisher, ring=ring)).file_name == pi("22.04", ending="")


async def test_unsigned_is_refused_unless_waived(publisher, ring, told):
    publisher.ubuntu("noble", noble("24.04.3"))
    with pytest.raises(VerificationError, match=r"SHA256SUMS\.gpg"):
        await look_up("noble", publisher, ring=ring)
    release = await look_up("noble", publisher, ring=ring, skip=True, told=told)
    assert (release.verified, release.key, release.sha256) == (False, "", sha256(b"24.04.3" * 9))
    assert "NOT VERIFIED" in told.notes[0]


async def test_a_strangers_signature_and_a_forged_list_are_refused_unless_waived(publisher, keys, ring):
    publisher.ubuntu("noble", noble("24.04.3"), lambda data: keys.sign(data, "stranger"))
    for case in ("stranger", "nobody's keyring", "forged"):
        if case == "forged":
            publisher.ubuntu("noble", noble("24.04.3"), lambda data: keys.sign(data, "publisher"))
            publisher.files["/releases/noble/release/SHA256SUMS"] += b"\n"
        given = None if case == "nobody's keyring" else ring
        with pytest.raises(VerificationError):
            await look_up("noble", publisher, ring=given)
        assert not (await look_up("noble", publisher, ring=given, skip=True)).verified


async def test_a_good_signature_counts_also_where_it_would_be_waived(publisher, keys, ring, told):
    publisher.ubuntu("noble", noble("24.04.3"), lambda data: keys.sign(data, "publisher"))
    assert (await look_up("noble", publisher, ring=ring, skip=True, told=told)).verified
    assert told.notes == []


async def test_a_demanded_digest_must_be_the_publishers(publisher, keys, ring):
    publisher.ubuntu("noble", noble("24.04.3"), lambda data: keys.sign(data, "publisher"))
    good = sha256(b"24.04.3" * 9)
    assert (await look_up("noble", publisher, ring=ring, digest=good.upper())).sha256 == good
    with pytest.raises(VerificationError, match="demanded"):
        await look_up("noble", publisher, ring=ring, digest="0" * 64, skip=True)
    with pytest.raises(UsageError, match="not a SHA-256"):
        await look_up("noble", publisher, ring=ring, digest="123")


async def test_what_is_not_there_is_told_with_what_is(publisher, keys, ring):
    publisher.ubuntu("jammy", noble("22.04.5"), lambda data: keys.sign(data, "publisher"))
    for name in ("noble", "jamy", "24.04.3", "nosuchrelease-desktop"):
        with pytest.raises(NotFoundError) as error:
            await look_up(name, publisher, ring=ring)
        assert "jammy" in error.value.hint
        assert error.value.exit_status == 8
    with pytest.raises(NotFoundError, match="no release 24"):
        await look_up("24", None)


async def test_bad_lists_of_checksums(publisher, ring):
    path = "/releases/noble/release/SHA256SUMS"
    evil = [b"", b"\0" * 5000, b"x" * 100, f"{'0' * 64} *../../{pi('24.04.3')}\n".encode(), b"<html>404</html>"]
    evil += [f"{'0' * 63} *{pi('24.04.3')}\n".encode(), f"{'g' * 64}  {pi('24.04.3')}\n".encode()]
    for data in evil:
        publisher.files[path] = data
        with pytest.raises(NotFoundError):
            await look_up("noble", publisher, ring=ring)
    publisher.files[path] = b"x" * (2 << 20)
    with pytest.raises(FormatError, match="larger"):
        await look_up("noble", publisher, ring=ring)
    publisher.rules.append(lambda *_: Reply(500))
    with pytest.raises(NetworkError):
        await look_up("noble", publisher, ring=ring)


async def test_lists_as_other_systems_write_them(publisher, keys, ring):
    """A byte order mark, line ends of two characters, text and binary marks, upper case, no end of line at the end."""
    names = [pi("24.04.10"), pi("24.04.9"), pi("24.04.4")]
    rows = [f"{number:064X} {mark}{name}" for number, (mark, name) in enumerate(zip("* *", names, strict=True), 10)]
    for data in ("\ufeff" + "\r\n".join(rows), "\n".join(reversed(rows)), "\r\n".join([*rows[1:], rows[0], ""])):
        folder = "/releases/noble/release"
        publisher.files[f"{folder}/SHA256SUMS"] = data.encode()
        publisher.files[f"{folder}/SHA256SUMS.gpg"] = keys.sign(data.encode(), "publisher")
        release = await look_up("noble", publisher, ring=ring)
        assert (release.file_name, release.sha256) == (pi("24.04.10"), f"{10:064x}")
        assert release.verified


@pytest.mark.parametrize("how", ["--clear-sign", "--sign"])
async def test_a_signed_message_is_no_detached_signature(publisher, keys, ring, how):
    """It vouches for the text inside, which need not be the list beside it."""
    ours = f"{sha256(b'ours')} *{pi('24.04.3')}\n".encode()
    inline = keys.gpg("--armor", "--local-user", "publisher@invalid", how, data=ours)
    for listed in (ours, ours.replace(b"24.04.3", b"24.04.4")):
        publisher.files["/releases/noble/release/SHA256SUMS"] = listed
        publisher.files["/releases/noble/release/SHA256SUMS.gpg"] = inline
        with pytest.raises(VerificationError) as caught:
            await look_up("noble", publisher, ring=ring)
        assert caught.value.exit_status == 6


async def test_mirrors_that_are_folders(publisher, keys, ring, tmp_path):
    folder = tmp_path / "my mirror" / "releases" / "noble" / "release"
    publisher.ubuntu("noble", noble("24.04.3"), lambda data: keys.sign(data, "publisher"))
    folder.mkdir(parents=True)
    for path, data in publisher.files.items():
        (folder / path.rpartition("/")[2]).write_bytes(data)
    for mirror in (tmp_path / "my mirror", (tmp_path / "my mirror").as_uri()):
        release = await look_up("noble", mirror, ring=ring)
        assert release.verified
        assert release.url == (folder / pi("24.04.3")).as_uri().replace("+", "%2B")
    assert publisher.requests == []
    for missing in (tmp_path / "nosuch", folder / "SHA256SUMS"):
        with pytest.raises(NotFoundError):
            await look_up("noble", missing, ring=ring)
    (folder / "SHA256SUMS").unlink()
    os.mkfifo(folder / "SHA256SUMS")
    with pytest.raises(HostError, match="not a file"):
        await look_up("noble", tmp_path / "my mirror", ring=ring)
    with pytest.raises(UsageError):
        await look_up("noble", "ftp://h/x", ring=ring)


# ---------------------------------------------------------------------------------------------- Raspberry Pi Imager


def entry(url, digest="a" * 64, **more):
    return {"name": "Raspberry Pi OS Lite (64-bit)", "url": url, "image_download_sha256": digest, **more}


def raspios(suite="trixie", arch="arm64", flavour="-lite", date="2025-10-01", folder="raspios_lite_arm64"):
    return f"{folder}/images/{folder}-{date}/{date}-raspios-{suite}-{arch}{flavour}.img.xz"


async def test_raspberry_pi_os_is_found_in_nested_lists(publisher):
    sub = [
        entry(raspios(date="2025-05-06"), "1" * 64, release_date="2025-05-06"),
        entry(raspios(), "B" * 64, release_date="2025-10-01", image_download_size=77, extract_sha256="c" * 64),
        entry(raspios(arch="armhf"), "2" * 64, release_date="2025-12-01"),
        entry(raspios(suite="bookworm", folder="raspios_oldstable_lite_arm64"), "3" * 64),
    ]
    publisher.index(sub, "/lists/sub.json")
    publisher.index(
        [
            {"name": "Erase", "url": "internal://format"},
            {"name": "Raspberry Pi OS (other)", "subitems": [{"name": "x", "subitems_url": "lists/sub.json"}]},
            entry(raspios(flavour="", folder="raspios_arm64"), "4" * 64),
            entry(raspios(flavour="-full", folder="raspios_full_arm64"), "5" * 64),
        ]
    )
    release = await look_up("raspios-trixie", publisher)
    assert release.sha256 == "b" * 64
    assert (release.size, release.extract_sha256) == (77, "c" * 64)
    assert (release.verified, release.key) == (True, "")
    assert release.url == f"{publisher.url}/lists/{raspios()}"
    assert release.file_name == "2025-10-01-raspios-trixie-arm64-lite.img.xz"
    for name, arch, digest in [
        ("raspios-trixie-lite", "armhf", "2"),
        ("raspios-bookworm-lite", "arm64", "3"),
        ("raspios-trixie-desktop", "arm64", "4"),
        ("raspios-trixie-full", "arm64", "5"),
    ]:
        assert (await look_up(name, publisher, arch=arch)).sha256 == digest * 64
    with pytest.raises(NotFoundError) as error:
        await look_up("raspios-bookworm-full", publisher)
    assert "raspios-bookworm-lite (arm64)" in error.value.hint


async def test_images_that_are_named_otherwise_are_told_by_their_description(publisher):
    told = {"description": "A port of Debian Bookworm with no desktop environment", "devices": ["pi4-64bit"]}
    publisher.index([entry("mine.img.xz", "7" * 64, **told, name="Raspberry Pi OS (Legacy) Lite")])
    assert (await look_up("raspios-bookworm-lite", publisher)).sha256 == "7" * 64


async def test_what_a_list_may_vouch_for(publisher, told):
    """By HTTPS or from the operator's mirror it may; a list on another server, by HTTP, may not."""
    async with Publisher() as other:
        other.index([entry(raspios("forky"), "9" * 64)], "/sub.json")
        publisher.index([entry(raspios(), ""), {"subitems_url": f"{other.url}/sub.json"}])
        for name, digest in (("raspios-trixie", ""), ("raspios-forky", "9" * 64)):
            with pytest.raises(VerificationError):
                await look_up(name, publisher)
            release = await look_up(name, publisher, skip=True, told=told)
            assert (release.verified, release.sha256) == (False, digest)
    publisher.index([entry(raspios(), "", extract_sha256="d" * 64)])  # checked when it is unpacked
    release = await look_up("raspios-trixie", publisher)
    assert (release.verified, release.sha256, release.extract_sha256) == (True, "", "d" * 64)
    assert "no sha256" in told.notes[0]
    assert "HTTPS" in told.notes[1]


async def test_an_ubuntu_of_an_index_counts_by_its_signature(publisher, keys, ring):
    publisher.index([entry(f"pool/{pi('24.04.3')}", "8" * 64)])
    with pytest.raises(VerificationError, match="SHA256SUMS"):
        await look_up("noble", publisher, ring=ring)
    release = await look_up("noble", publisher, ring=ring, skip=True)
    assert (release.verified, release.sha256) == (False, "8" * 64)
    with pytest.raises(VerificationError):
        await look_up("ubuntu-24.04.3-preinstalled-server-arm64+raspi", publisher, ring=ring)
    sums = f"{'e' * 64} *{pi('24.04.3')}\n".encode()
    publisher.files |= {"/pool/SHA256SUMS": sums, "/pool/SHA256SUMS.gpg": keys.sign(sums, "publisher")}
    release = await look_up("noble", publisher, ring=ring)
    assert (release.verified, release.sha256) == (True, "e" * 64)
    assert release.url == f"{publisher.url}/pool/{pi('24.04.3')}".replace("+", "%2B")


async def test_an_index_of_ones_own_with_any_image(publisher, tmp_path):
    items = [entry("RaspAP-1.0+x.img.xz", "6" * 64, name="My Router")]
    publisher.index(items, "/mine.json")
    for name in ("raspap-1.0+x", "My Router", "RaspAP-1.0+x"):
        release = await look_up(name, publisher.url + "/mine.json")
        assert (release.sha256, release.verified) == ("6" * 64, True)
    assert release.url == f"{publisher.url}/RaspAP-1.0%2Bx.img.xz"
    (tmp_path / "mine.json").write_text(json.dumps({"os_list": items}))
    release = await look_up("My Router", tmp_path / "mine.json")
    assert release.url == (tmp_path / "RaspAP-1.0+x.img.xz").as_uri().replace("+", "%2B")
    (tmp_path / "mine.json").write_text(json.dumps({"os_list": [entry("x.img", None, name="nodigest")]}))
    (tmp_path / "x.img").write_bytes(IMAGE)
    release = await look_up("nodigest", tmp_path / "mine.json", skip=True)
    assert (release.sha256, release.verified) == (sha256(IMAGE), False)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", FormatError),
        (b"{", FormatError),
        (b"[]", FormatError),
        (b'{"os_list": {}}', FormatError),
        (b"[" * 100_000, FormatError),
        (b'{"os_list": [' + b"1," * 30_000 + b"1]}", FormatError),
        (b'{"os_list": [' + b'{"subitems": [' * 200 + b"]}" * 200 + b"]}", NotFoundError),
        (b'{"os_list": [1, null, "x", [], {}, {"url": 5}, {"subitems": {}}, {"url": "http://["}]}', NotFoundError),
        (b'{"os_list": [{"subitems_url": "os_list_imagingutility_v4.json"}, {"subitems_url": 1}]}', NotFoundError),
        (b'{"os_list": [{"name": 1, "url": "x\\u0000", "devices": 3, "release_date": []}]}', NotFoundError),
        (b'{"os_list": [{"url": "file:///etc/2025-10-01-raspios-trixie-arm64-lite.img.xz"}]}', NotFoundError),
        (b"\xff\xfe{}", FormatError),
        (b" " * (9 << 20), FormatError),
    ],
)
async def test_hostile_lists(publisher, data, error):
    publisher.files["/os_list_imagingutility_v4.json"] = data
    with pytest.raises(error):
        await look_up("raspios-trixie", publisher)
    assert len(publisher.requests) < 5


async def test_lists_that_go_on_for_ever(publisher):
    """Each list refers to the next: bounded in depth, and in number where they are many."""
    for number in range(200):
        publisher.index([{"subitems_url": f"/{number + 1}.json"}, {"subitems_url": "/0.json"}], f"/{number}.json")
    publisher.index([{"subitems_url": f"/{number}.json"} for number in range(200)])
    with pytest.raises(NotFoundError) as error:
        await look_up("raspios-trixie", publisher)
    assert error.value.details
    assert len(publisher.requests) <= 65
    item = entry(raspios())
    for _ in range(20):
        item = {"name": "deeper", "subitems": [item]}
    publisher.index([item])
    with pytest.raises(NotFoundError) as error:
        await look_up("raspios-trixie", publisher)
    assert "deeper" in error.value.details[0]


# --------------------------------------------------------------------------------------------------------- --source


async def source(text, *, digest="", skip=False, told=None):
    return await resolve(
        ImageSpec("x", source=str(text), sha256=digest),
        mirror=None,
        keyring=None,
        skip_verify=skip,
        progress=told or Told(),
        patience=QUICK,
    )


async def test_an_url_needs_a_digest(publisher, told):
    url = publisher.url + "/dir/x%2By.img.xz"
    with pytest.raises(VerificationError, match="authentic"):
        await source(url)
    release = await source(url, digest="A" * 64)
    assert (release.url, release.file_name, release.sha256) == (url, "x+y.img.xz", "a" * 64)
    assert release.verified
    release = await source(url, skip=True, told=told)
    assert (release.verified, release.sha256) == (False, "")
    assert "NOT VERIFIED" in told.notes[0]
    assert publisher.requests == []


async def test_a_file_is_the_operators_own(tmp_path, told):
    path = tmp_path / "my image+.img.xz"
    path.write_bytes(IMAGE)
    for text in (path, path.as_uri()):
        release = await source(text, told=told)
        assert (release.sha256, release.size, release.verified, release.own) == (sha256(IMAGE), len(IMAGE), True, True)
        assert release.url == path.as_uri()
    assert told.done == len(IMAGE)
    assert (await source(path, digest=sha256(IMAGE).upper())).verified
    with pytest.raises(VerificationError):
        await source(path, digest="0" * 64, skip=True)
    with pytest.raises(UsageError):
        await source(path, digest="xyz")


async def test_sources_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name, error in (("nosuch", NotFoundError), (".", UsageError), ("fifo", UsageError), ("loop", HostError)):
        with pytest.raises(error):
            await source(tmp_path / name)
    with pytest.raises(UsageError):
        await source("/dev/null")
    with pytest.raises(UsageError):
        await source("ftp://h/x.img")


# -------------------------------------------------------------------------------------------------------- the list


def publishers(mirror):
    return Publishers.at(Documents(QUICK), mirror)


async def test_what_is_offered(publisher):
    publisher.ubuntu("noble", {**noble("24.04.3", "24.04.4"), **noble("24.04.4", flavour="desktop")})
    publisher.ubuntu("22.04", noble("22.04.5"))
    listed = entry(
        f"{publisher.url}/releases/noble/release/{pi('24.04.4')}", release_date="2026-02-12", image_download_size=9
    )
    items = [listed, entry(raspios(), release_date="2025-10-01"), entry("other.img.xz", name="Other OS")]
    publisher.index(items)
    found = await list_offers(publishers(publisher.url))
    rows = {(offer.name, offer.arch): offer for offer in found.offers}
    assert set(rows) == {
        ("noble", "arm64"),
        ("noble-desktop", "arm64"),
        ("24.04.3", "arm64"),
        ("jammy", "arm64"),
        ("raspios-trixie-lite", "arm64"),
        ("other", ""),
    }
    noble_row = rows["noble", "arm64"]
    assert (noble_row.version, noble_row.date, noble_row.size) == ("24.04.4", "2026-02-12", 9)
    assert noble_row.url.endswith(pi("24.04.4").replace("+", "%2B"))
    assert found.problems == ()
    for offer in found.offers:  # each name is one that can be prepared
        assert (await look_up(offer.name, publisher, skip=True)).url == offer.url


async def test_one_publisher_down_is_told_and_the_other_listed(publisher):
    publisher.ubuntu("noble", noble("24.04.4"))
    publisher.rules.append(lambda request, _: Reply(503) if "os_list" in request.path else None)
    found = await list_offers(publishers(publisher.url))
    assert [offer.name for offer in found.offers] == ["noble"]
    assert "os_list" in found.problems[0]
    publisher.index([entry(raspios())])
    publisher.rules = [lambda request, _: Reply(503) if "SHA256SUMS" in request.path else None]
    found = await list_offers(publishers(publisher.url))
    assert [offer.name for offer in found.offers] == ["raspios-trixie-lite"]
    assert len(found.problems) == 1
    publisher.rules = [lambda *_: Reply(503)]
    with pytest.raises(NetworkError):
        await list_offers(publishers(publisher.url))
    publisher.rules = [lambda *_: Reply(404)]
    with pytest.raises(NotFoundError):
        await list_offers(publishers(publisher.url))


def test_the_command_lists_a_folder(tmp_path, capsys):
    folder = tmp_path / "mirror" / "releases" / "noble" / "release"
    folder.mkdir(parents=True)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64} *{pi('24.04.3')}\n")
    for words, status in (([], 0), (["--json"], 0)):
        with pytest.raises(SystemExit) as caught:
            program.main(["images", "releases", "--mirror", str(tmp_path / "mirror"), *words])
        assert caught.value.code == status
        out, err = capsys.readouterr()
        assert err == ""
        if words:
            (row,) = json.loads(out)["releases"]
            assert list(row) == ["name", "title", "version", "arch", "date", "size", "url"]
            assert (row["name"], row["version"]) == ("noble", "24.04.3")
        else:
            assert "noble" in out
    with pytest.raises(SystemExit) as caught:
        program.main(["images", "releases", "--mirror", str(tmp_path / "nosuch")])
    assert caught.value.code == 8
