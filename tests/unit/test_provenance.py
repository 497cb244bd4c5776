"""How an archive came to be trusted may change after the build, and archives go with the last image made of them."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from netbootd.store.archives import Archives
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout
from tests.support.live_iso import live_iso
from tests.support.publisher import sha256

ISO = "ubuntu-24.04.3-live-server-amd64.iso"


@pytest.fixture
def run(netbootd):
    """Run netbootd in an empty folder, for its JSON."""

    def call(*words, status=0):
        found, out, err = netbootd(*words)
        assert (found, "Traceback" in err) == (status, False), err
        return json.loads(out) if out.startswith("{") else out

    return call


# ------------------------------------------------------------------------------------------------------- verified


@pytest.fixture
def mirror(keys, tmp_path):
    """A folder laid out as the publisher's, with a signed list."""
    folder = tmp_path / "mirror" / "noble"
    folder.mkdir(parents=True)
    iso = live_iso(folder / ISO).read_bytes()
    sums = f"{sha256(iso)} *{ISO}\n".encode()
    (folder / "SHA256SUMS").write_bytes(sums)
    (folder / "SHA256SUMS.gpg").write_bytes(keys.sign(sums, "publisher"))
    (tmp_path / "ring.gpg").write_bytes(keys.export("publisher"))
    return folder.parent


def test_what_is_verified_later_is_verified(run, mirror):
    words = (
        "prepare",
        "--release",
        "noble",
        "--arch",
        "amd64",
        "--mirror",
        mirror,
        "--advertise",
        "192.0.2.1",
        "--json",
    )

    def source(*more):
        (made,) = run(*words, *more)["images"]
        told = json.loads((Path(made["path"]) / "image.json").read_text())
        return made["generation"], made["changed"], told["source"]

    first, changed, told = source("--insecure-skip-verify")
    assert (changed, told["verified"], told["key"]) == (True, False, "")
    assert source("--keyring", "ring.gpg", "--dry-run")[2]["verified"] is False
    ident, changed, told = source("--keyring", "ring.gpg")
    assert (ident, changed, told["verified"], len(told["key"])) == (first, False, True, 40)
    assert source("--insecure-skip-verify") == (first, False, told)  # what is known is not taken back
    assert "by key" in run("images", "list")
    left = sorted(path.name for path in Path("state/images/noble", first).iterdir())
    assert left == ["boot", "image.json"]


def test_a_generation_that_comes_back_is_vouched_for_too(run, mirror):
    words = ("prepare", "--release", "noble", "--arch", "amd64", "--mirror", mirror, "--json", "--advertise")
    (first,) = run(*words, "192.0.2.1", "--insecure-skip-verify")["images"]
    (other,) = run(*words, "192.0.2.2", "--keyring", "ring.gpg")["images"]
    (again,) = run(*words, "192.0.2.1", "--keyring", "ring.gpg")["images"]
    assert (again["generation"], again["changed"]) == (first["generation"], True)
    assert other["generation"] != first["generation"]
    assert json.loads((Path(again["path"]) / "image.json").read_text())["source"]["verified"] is True


# ------------------------------------------------------------------------------------------------------- archives


class Downloads:
    """Archives by hand, each a day older than the one before."""

    def __init__(self, state):
        self.layout = Layout(state)
        self._age = 0

    def add(self, text, name="x.img.xz"):
        data = text.encode() * 100
        path = self.layout.downloads / sha256(data) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._age += 86400
        os.utime(path, (2_000_000_000 - self._age,) * 2)
        return path

    def made_of(self, path, name, ident="0123456789abcdef", **more):
        generations = Generations(self.layout)
        generation = self.layout.generation(name, ident)
        source = {"source": {"sha256": path.parent.name}} if path else {}
        generations.publish(generations.begin(generation), generation, {"created": ident, **source, **more})


@pytest.fixture
def downloads(tmp_path):
    return Downloads(tmp_path / "state")


def test_archives_go_that_nothing_is_made_of(run, downloads):
    newest, needed, old, older = (downloads.add(text) for text in ("newest", "needed", "old", "older"))
    part = older.with_name("y.img.xz.part")
    part.write_bytes(b"a download that can be taken up again")
    downloads.made_of(needed, "noble")
    told = run("images", "prune", "--json")
    assert told == {
        "pruned": [],
        "archives": [{"sha256": old.parent.name, "path": str(old), "size": 300}],
    }
    assert [path.exists() for path in (newest, needed, old.parent, older, part)] == [True, True, False, True, True]
    part.unlink()
    assert "deleted x.img.xz" in run("images", "prune")
    assert not older.parent.exists()
    assert run("images", "prune") == "Nothing to delete.\n"
    assert newest.exists()


def test_an_archive_goes_with_the_last_generation_made_of_it(run, downloads):
    downloads.add("newest")
    archives = [downloads.add(text) for text in ("one", "two", "three")]
    for number, path in enumerate(archives, 1):
        downloads.made_of(path, "noble", f"{number:016x}")
    told = run("images", "prune", "--keep", "1", "--json")
    assert [old["generation"] for old in told["pruned"]] == [f"{number:016x}" for number in (1, 2)]
    assert {old["path"] for old in told["archives"]} == {str(path) for path in archives[:2]}
    assert archives[2].exists()


def test_archives_stay_where_an_image_does_not_say_what_it_is_made_of(run, downloads, capsys):
    downloads.add("newest")
    old = downloads.add("old")
    downloads.made_of(None, "noble")
    assert run("images", "prune", "--json")["archives"] == []
    assert old.exists()


def test_a_folder_that_is_downloaded_into_stays(downloads):
    downloads.add("newest")
    old = downloads.add("old")
    fd = os.open(old.parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert Archives(downloads.layout).prune(()) == []
    finally:
        os.close(fd)
    assert [archive.path for archive in Archives(downloads.layout).prune(())] == [old]


def test_nothing_is_pruned_while_an_image_is_built_for_the_first_time(run, downloads):
    """What it has fetched belongs to no generation yet."""
    downloads.add("newest")
    old = downloads.add("old")
    with Generations(downloads.layout).locked("new", "Building new"):
        run("images", "prune", status=9)
    assert old.exists()


def test_links_and_strange_names_are_no_archives(downloads, tmp_path):
    kept = downloads.add("newest")
    (downloads.layout.downloads / "url-0123").mkdir()
    (downloads.layout.downloads / ("0" * 64)).mkdir()
    (downloads.layout.downloads / ("0" * 64) / "link").symlink_to(kept)
    (downloads.layout.downloads / ("1" * 64)).write_text("no folder")
    archives = Archives(downloads.layout)
    assert [archive.path for archive in archives.all()] == [kept]
    assert [archives.find(text) for text in ("0" * 64, "1" * 64, "../..", "")] == [None] * 4
    assert archives.prune(()) == []
    assert Archives(Layout(tmp_path / "nosuch")).all() == []
