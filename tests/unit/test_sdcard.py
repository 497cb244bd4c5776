"""Card images: every byte as published but for the seed in the FAT partition; options, refusals, what is staged."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import lzma
import os
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
import yaml

from netbootd.cli import main as program
from netbootd.cli.sdcard import hostname
from netbootd.cloudinit.cards import folders_of_cards
from netbootd.errors import FormatError
from netbootd.formats.draft import Edit
from netbootd.formats.window import Window
from netbootd.httpd.cards import CardRoutes
from netbootd.httpd.server import HttpServer, HttpSettings
from netbootd.images import build, compress, sdcard
from netbootd.images.progress import Silent
from netbootd.model.image import CARD, ImageSpec
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout
from tests.support.small_image import FAT, MIB, small_image

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmVVTWZ4NjaDqyhQ0B9B1u0mUuCPq9yx5xY7pXrJr5N a@b"
PUBLISHED = {
    "config.txt": b"arm_64bit=1\n",
    "user-data": b"#cloud-config\nchpasswd: {}\n",
    "vmlinuz": bytes(range(256)) * 999,
}
PUBLISHED |= {"meta-data": b"dsmode: local\ninstance_id: cloud-image\n", "network-config": b"network: {version: 2}\n"}


def run(*argv: object) -> str:
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    done = subprocess.run([str(a) for a in argv], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def published(folder: Path, *, cloud_init: bool = True) -> Path:
    """A small image with or without cloud-init in its root."""
    tree = folder / "tree"
    for name in ("etc/cloud" if cloud_init else "etc/apt", "usr"):
        (tree / name).mkdir(parents=True)
    return small_image(folder / f"published-{cloud_init}.img", PUBLISHED, tree)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("image"))


@dataclass
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def prepare(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Path
) -> Callable[..., Result]:
    """Run ``netbootd prepare`` in a folder with a configuration and a source."""
    monkeypatch.chdir(tmp_path)
    for name in ("NETBOOTD_CONFIG", "NETBOOTD_STATE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "key.pub").write_text(KEY + "\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "user-data").write_text("#cloud-config\ntimezone: Europe/Vienna\n")
    (tmp_path / "netbootd.toml").write_text(
        f"""
[defaults]
user = "admin"
ssh_authorized_keys = ["key.pub"]
[[image]]
name = "noble"
source = "{image}"
[[node]]
name = "valar-0"
serial = "1A2B3C4D"
hostname = "aule"
cloud_init = ["mine"]
"""
    )

    def call(*words: object) -> Result:
        with pytest.raises(SystemExit) as caught:
            program.main(["--state", "state", "prepare", *map(str, words)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Result(int(caught.value.code or 0), out, err)

    return call


def seed(card: Path) -> dict[str, bytes]:
    """The boot partition's files as mtools reads them; the file system has to be sound."""
    raw = card.read_bytes()
    fat = card.with_name("judged.fat")
    fat.write_bytes(raw[FAT[0] : sum(FAT)])
    run("fsck.fat", "-n", fat)
    folder = card.with_name("judged")
    folder.mkdir()
    run("mcopy", "-n", "-i", fat, "::*", folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_card_is_the_published_image_but_for_the_seed(prepare: Callable[..., Result], image: Path) -> None:
    result = prepare("--target", "sdcard", "--node", "valar-0", "--output", "card.img")
    assert result.status == 0, result.err
    assert "card.img: a card of noble for valar-0" in result.out
    card = Path("card.img").resolve()
    before, after = image.read_bytes(), card.read_bytes()
    assert len(after) == len(before)
    assert after[: FAT[0]] == before[: FAT[0]] and after[sum(FAT) :] == before[sum(FAT) :] and after != before
    files = seed(card)
    assert {name: data for name, data in files.items() if name not in ("user-data", "meta-data")} == {
        name: data for name, data in PUBLISHED.items() if name not in ("user-data", "meta-data")
    }
    user = yaml.safe_load(files["user-data"])
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert (user["hostname"], user["timezone"], user["user"]["name"]) == ("aule", "Europe/Vienna", "admin")
    assert user["user"]["ssh_authorized_keys"] == [KEY]
    assert user["growpart"]["mode"] == "auto" and user["resize_rootfs"] is True
    assert b"overlay" not in files["user-data"] and b"RuntimeMaxUse" not in files["user-data"]
    meta = yaml.safe_load(files["meta-data"])
    assert meta["instance-id"].startswith("1a2b3c4d-")
    assert (meta["local-hostname"], meta["dsmode"]) == ("aule", "local")
    assert {path.name for path in Path().iterdir() if ".part" in path.name} == set()


def test_the_same_inputs_give_the_same_card(prepare: Callable[..., Result]) -> None:
    for name in ("one.img", "two.img"):
        assert prepare("--target", "sdcard", "--output", name).status == 0
    assert Path("one.img").read_bytes() == Path("two.img").read_bytes()


def test_documents_of_the_node_alone_are_written_where_given(prepare: Callable[..., Result]) -> None:
    Path("mine/network-config").write_text("network: {version: 2, ethernets: {eth0: {dhcp4: true}}}\n")
    Path("mine/vendor-data").write_text("#cloud-config\nreporting: {x: {type: webhook, endpoint: '${node:url}/e'}}\n")
    result = prepare("--target", "sdcard", "--node", "1a2b3c4d", "--output", "card.img", "--advertise", "192.0.2.9")
    assert result.status == 0, result.err
    files = seed(Path("card.img").resolve())
    assert yaml.safe_load(files["network-config"])["network"]["ethernets"] == {"eth0": {"dhcp4": True}}
    assert yaml.safe_load(files["vendor-data"]) == {
        "reporting": {"x": {"type": "webhook", "endpoint": "http://192.0.2.9/e"}}
    }


def test_packed_it_is_the_same_image(prepare: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "PIECE", 4 * MIB)
    monkeypatch.setattr(sdcard, "PIECE", 4 * MIB)
    assert prepare("--target", "sdcard", "--output", "card.img").status == 0
    result = prepare("--target", "sdcard", "--output", "card.img.xz", "--compress", "xz", "--json")
    assert result.status == 0, result.err
    packed = Path("card.img.xz").read_bytes()
    run("xz", "-t", "card.img.xz")
    assert lzma.decompress(packed) == Path("card.img").read_bytes()
    (row,) = json.loads(result.out)["images"]
    assert (row["name"], row["changed"], row["path"]) == ("noble", True, str(Path("card.img.xz").resolve()))
    assert (row["size"], row["sha256"]) == (len(packed), hashlib.sha256(packed).hexdigest())


def test_secrets_make_the_file_private(prepare: Callable[..., Result]) -> None:
    Path("secret").write_text("s3cret")
    Path("mine/user-data").write_text("#cloud-config\nwifi: ${file:secret}\n")
    assert prepare("--target", "sdcard", "--node", "valar-0", "--output", "card.img").status == 0
    assert Path("card.img").stat().st_mode & 0o777 == 0o600
    assert yaml.safe_load(seed(Path("card.img").resolve())["user-data"])["wifi"] == "s3cret"
    assert prepare("--target", "sdcard", "--output", "other.img").status == 0
    assert Path("other.img").stat().st_mode & 0o044 == 0o044


def test_a_dry_run_writes_nothing(prepare: Callable[..., Result]) -> None:
    result = prepare("--target", "sdcard", "--node", "valar-0", "--output", "card.img", "--dry-run")
    assert (result.status, "would be" in result.out) == (0, True)
    assert not Path("card.img").exists() and not Path("card.img.part").exists()


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--output", "x.img"], 2, "--output goes with --target sdcard"),
        (["--target", "sdcard", "--output", "x.img", "--unprivileged"], 2, "--unprivileged goes with --target netboot"),
        (["--compress", "xz"], 2, "--compress goes with"),
        (["--node", "valar-0"], 2, "--node goes with"),
        (["--target", "netboot", "--output", "x.img"], 2, "--output goes with"),
        (["--target", "sdcard"], 2, "--output FILE is missing"),
        (["--target", "floppy", "--output", "x.img"], 2, "floppy"),
        (["--target", "sdcard", "--output", "x.img", "--compress", "gzip"], 2, "gzip"),
        (["--target", "sdcard", "--output", "x.img", "--node", "nobody"], 8, "no node nobody"),
        (["nosuch", "--target", "sdcard", "--output", "x.img"], 8, "nosuch"),
        (["--target", "sdcard", "--output", "none/x.img"], 4, "there is no folder"),
        (["--target", "sdcard", "--output", "mine"], 4, "it is a folder"),
        (["--target", "sdcard", "--output", "/dev/null"], 4, "not a file"),
        (["--target", "sdcard", "--output", "/proc/x.img"], 4, "/proc"),
        (["--target", "sdcard", "--output", "netbootd.toml/x.img"], 4, "netbootd.toml"),
    ],
)
def test_refusals(prepare: Callable[..., Result], words: list[str], status: int, says: str) -> None:
    result = prepare(*words)
    assert (result.status, result.out) == (status, ""), result.err
    assert says in result.err
    assert not Path("x.img").exists() and not Path("x.img.part").exists()


def test_a_device_is_refused(prepare: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("disk").touch()
    monkeypatch.setattr(sdcard.stat, "S_ISBLK", lambda mode: True)  # a node of a real disk might be written to
    result = prepare("--target", "sdcard", "--output", "disk")
    assert result.status == 4 and "it is a device" in result.err
    assert Path("disk").read_bytes() == b""


def test_an_image_without_cloud_init_is_refused(prepare: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    bare = published(tmp_path / "made", cloud_init=False)
    Path("card.img").write_text("what was there")
    result = prepare("--source", bare, "--target", "sdcard", "--output", "card.img")
    assert result.status == 7 and "no cloud-init" in result.err and "bookworm" in result.err
    assert Path("card.img").read_text() == "what was there" and not Path("card.img.part").exists()


def test_the_source_is_not_overwritten(prepare: Callable[..., Result], image: Path) -> None:
    digest = hashlib.sha256(image.read_bytes()).digest()
    result = prepare("--target", "sdcard", "--output", image)
    assert result.status == 2 and "the source itself" in result.err
    assert hashlib.sha256(image.read_bytes()).digest() == digest


def test_two_at_once_do_not_fight(prepare: Callable[..., Result]) -> None:
    with Path("card.img.part").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = prepare("--target", "sdcard", "--output", "card.img")
    assert result.status == 9 and "another process" in result.err
    assert prepare("--target", "sdcard", "--output", "card.img").status == 0  # what a dead process left is taken up


def test_a_full_disk_leaves_nothing(prepare: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sdcard, "_copy", full)
    result = prepare("--target", "sdcard", "--output", "card.img")
    assert result.status == 4 and "No space left" in result.err
    assert not Path("card.img").exists() and not Path("card.img.part").exists()


def test_several_images_and_none_meant(prepare: Callable[..., Result], image: Path) -> None:
    text = Path("netbootd.toml").read_text()
    Path("netbootd.toml").write_text(f'{text}\n[[image]]\nname = "other"\nsource = "{image}"\n')
    assert prepare("other", "--target", "sdcard", "--output", "card.img").status == 0
    assert "other" in seed(Path("card.img").resolve())["meta-data"].decode()
    both = prepare("noble", "other", "--target", "sdcard", "--output", "card.img")
    assert both.status == 2 and "noble, other" in both.err
    assert prepare("--target", "sdcard", "--output", "noble.img").status == 0  # noble is the default


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("name", "host"), [("noble", "noble"), ("24.04.3", "24-04-3"), ("raspios_X+", "raspios-x"), ("..", "node")]
)
def test_a_card_for_any_node_is_called_by_the_image(name: str, host: str) -> None:
    assert hostname(name) == host


def test_the_overlay_of_cards_takes_the_place_of_the_netboot_overlay(tmp_path: Path) -> None:
    shipped, mine = tmp_path / "shipped", tmp_path / "overlays" / "netboot"
    base, more = tmp_path / "base", tmp_path / "more"
    assert folders_of_cards((base, mine, more), shipped) == (base, shipped, more)
    (tmp_path / "overlays" / "sdcard").mkdir(parents=True)
    assert folders_of_cards((base, mine, more), shipped) == (base, tmp_path / "overlays" / "sdcard", more)
    assert folders_of_cards((base, more), shipped) == (shipped, base, more)


def test_holes_stay_holes_and_edits_are_made(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as stream:
        stream.write(b"skipped" + b"a" * 5000)
        stream.seek(60 * MIB)
        stream.write(b"b" * 5000)
        stream.truncate(90 * MIB)
    with source.open("rb") as read, target.open("wb") as write:
        window = Window(read.fileno(), 7, 90 * MIB - 7)
        edits = [Edit(3, b"XYZ"), Edit(70 * MIB, b"far")]
        card = sdcard.copy_card(window, edits, write.fileno(), Silent(), SimpleNamespace(is_set=lambda: False))  # type: ignore[arg-type]
    wanted = bytearray(source.read_bytes()[7:])
    wanted[3:6], wanted[70 * MIB : 70 * MIB + 3] = b"XYZ", b"far"
    assert card.size == len(wanted)
    assert target.read_bytes() == wanted
    assert target.stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("packed", [False, True])
def test_stopping_is_heard(image: Path, tmp_path: Path, packed: bool) -> None:
    write = sdcard.pack_card if packed else sdcard.copy_card
    with image.open("rb") as read, (tmp_path / "out").open("wb") as out, pytest.raises(sdcard.Stopped):
        write(Window.whole(read.fileno()), [], out.fileno(), Silent(), SimpleNamespace(is_set=lambda: True))  # type: ignore[arg-type]


def test_a_boot_partition_that_is_broken_is_refused(image: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.img"
    broken.write_bytes(image.read_bytes())
    reserved = int.from_bytes(broken.read_bytes()[FAT[0] + 14 : FAT[0] + 16], "little")
    with broken.open("r+b") as stream:
        stream.seek(FAT[0] + reserved * 512 + 4)  # the table's entries of clusters 2 and 3: each other
        stream.write(b"\x03\0\x02\0")
        stream.flush()
        with pytest.raises(FormatError, match="reading the boot partition"):
            sdcard.card_edits(Window.whole(stream.fileno()), {"user-data": b"x"})


# ---------------------------------------------------------------- staged


def test_a_generations_id_depends_on_its_card_only_where_it_has_one(tmp_path: Path) -> None:
    from netbootd.model.image import Release
    from netbootd.model.network import ServerAddress

    release = Release("t", "u", "f", "0" * 64, 1, True, "")
    specs = [ImageSpec("n"), ImageSpec("n", card=(("user-data", b"1"),)), ImageSpec("n", card=(("user-data", b"2"),))]
    ids = [build.generation_id(spec, release, ServerAddress("192.0.2.1"), tmp_path, "") for spec in specs]
    assert len(set(ids)) == 3


def test_sd_image_with_a_secret_is_refused(prepare: Callable[..., Result]) -> None:
    text = Path("netbootd.toml").read_text().replace("[[node]]", "sd_image = true\n[[node]]")
    assert tomllib.loads(text)["image"][0]["sd_image"] is True
    Path("netbootd.toml").write_text(text.replace("[[image]]", 'cloud_init = ["mine"]\n[[image]]'))
    Path("secret").write_text("s3cret")
    Path("mine/user-data").write_text("#cloud-config\nwifi: ${file:secret}\n")
    result = prepare("--advertise", "192.0.2.1")
    assert result.status == 3 and "sd_image" in result.err


@pytest.fixture
def staged(image: Path, tmp_path: Path) -> Iterator[tuple[Generations, str]]:
    """A generation with a card image, and one of another image without."""
    generations = Generations(Layout(tmp_path / "state"))
    for name, ident in (("noble", "0123456789abcdef"), ("bare", "fedcba9876543210")):
        generation = generations.layout.generation(name, ident)
        work = generations.begin(generation)
        manifest: dict[str, object] = {"created": "2026-01-02T03:04:05+00:00"}
        if name == "noble":
            with image.open("rb") as stream:
                window = Window.whole(stream.fileno())
                stop = SimpleNamespace(is_set=lambda: False)
                card = sdcard.stage_card(window, {"user-data": b"ours"}, work, Silent(), stop)  # type: ignore[arg-type]
            manifest["card"] = {"file": CARD, **{k: getattr(card, k) for k in card.__slots__}}
        generations.publish(work, generation, manifest)
    yield generations, "0123456789abcdef"


def test_what_is_staged_is_fetched_whole(staged: tuple[Generations, str], tmp_path: Path) -> None:
    generations, ident = staged

    async def fetch() -> dict[str, tuple[int, bytes]]:
        server = HttpServer(HttpSettings((("127.0.0.1", 0),), lambda peer: True), CardRoutes(generations))
        server.bind()
        await server.start()
        answers = {}
        paths = ["noble/sdcard.img.xz", "noble/sdcard.img.xz.sha256", f"noble/{ident}/sdcard.img.xz", "os_list.json"]
        paths += [
            "bare/sdcard.img.xz",
            "noble/image.json",
            f"noble/{ident}/image.json",
            "noble/..%2fbare/sdcard.img.xz",
        ]
        paths += ["nosuch/sdcard.img.xz", "noble/ffffffffffffffff/sdcard.img.xz", "current/sdcard.img.xz"]
        try:
            async with aiohttp.ClientSession() as session:
                for path in paths:
                    async with session.get(f"http://{server.addresses[0]}/images/{path}") as answer:
                        answers[path] = (answer.status, await answer.read())
        finally:
            await server.stop(0)
        return answers

    answers = asyncio.run(fetch())
    status, packed = answers["noble/sdcard.img.xz"]
    assert status == 200 and answers[f"noble/{ident}/sdcard.img.xz"] == (200, packed)
    digest = hashlib.sha256(packed).hexdigest()
    assert answers["noble/sdcard.img.xz.sha256"] == (200, f"{digest}  sdcard.img.xz\n".encode())
    raw = lzma.decompress(packed)
    (tmp_path / "card.img").write_bytes(raw)
    assert seed(tmp_path / "card.img")["user-data"] == b"ours"
    (entry,) = json.loads(answers["os_list.json"][1])["os_list"]
    assert entry["url"].endswith(f"/images/noble/{ident}/sdcard.img.xz")
    assert (entry["image_download_size"], entry["image_download_sha256"]) == (len(packed), digest)
    assert (entry["extract_size"], entry["extract_sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert entry["release_date"] == "2026-01-02"
    refused = {path for path, answer in answers.items() if answer[0] == 404}
    assert refused == set(answers) - {f"noble/{ident}/sdcard.img.xz", *list(answers)[:4]}
