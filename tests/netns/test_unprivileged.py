"""``netbootd prepare --unprivileged`` and ``serve`` by a real plain user: NFS shows what the kernel showed of it.

Starts as root, because the image's truth is the kernel's own mount, and because what it compares with is made by root.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netbootd.store.generations import remove_tree
from tests.support import nfs_wire as nfs
from tests.support.image_cache import DiskImage, tiny_image
from tests.support.manifest import read_manifest, sha256_of, walk_root
from tests.support.netbootd import NETBOOTD
from tests.support.nfs_server import serving
from tests.support.nfs_view import END, WHOLE, differences, view
from tests.support.nfs_wire import Client, auth_sys, opaque, u32, u64
from tests.support.processes import REPOSITORY, Program, run, wait_until

UID = 61234  # nobody's
_PREPARE = ("prepare", "--source", "disk.img", "--name", "noble", "--advertise", "192.0.2.1", "--json")
_PORTS = ("--bind", "127.0.0.1", "--tftp-port", "0", "--http-port", "0", "--nfs-port", "0", "--portmap-port", "off")


@dataclass(frozen=True)
class Home:
    """A folder of the plain user's with the image in it."""

    path: Path

    @property
    def state(self) -> Path:
        return self.path / "state"

    def words(self, *words: object) -> list[str]:
        command = [sys.executable, "-m", "tests.support.plain_user", UID, "--state", self.state, *words]
        return [str(word) for word in command]

    def netbootd(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run netbootd as the user, whatever comes of it."""
        env = {"PYTHONPATH": str(REPOSITORY), "HOME": str(self.path)}
        return run(self.words(*words), cwd=self.path, env=env, check=False, timeout=300)

    def serve(self, *options: object) -> Program:
        ready = self.path / "ready.json"
        ready.unlink(missing_ok=True)
        env = {"PYTHONPATH": str(REPOSITORY), "HOME": str(self.path)}
        words = self.words("serve", *_PORTS, "--ready-file", ready, *options)
        program = Program(words, self.path / "serve.log", cwd=self.path, env=env)
        wait_until(ready.exists, "ready file of netbootd serve", timeout=60, alive=[program])
        return program

    @asynccontextmanager
    async def client(self, credential: bytes = b""):
        port = json.loads((self.path / "ready.json").read_text())["nfs"]["port"]
        async with await Client.connect(port, credential=credential) as client:
            yield client


@pytest.fixture(scope="module")
def image() -> DiskImage:
    return tiny_image()


@pytest.fixture(scope="module")
def new_home(image: DiskImage) -> Iterator[Callable[[], Home]]:
    """Makes folders that the plain user can reach, which pytest's own are not."""
    made = []

    def make() -> Home:
        folder = Path(tempfile.mkdtemp(prefix="netbootd-plain-"))
        made.append(folder)
        run(["cp", "--sparse=always", image.path, folder / "disk.img"])
        os.chown(folder, UID, UID)
        return Home(folder)

    yield make
    for folder in made:
        remove_tree(folder)


@pytest.fixture(scope="module")
def home(new_home: Callable[[], Home]) -> Home:
    return new_home()


@pytest.fixture(scope="module")
def generation(home: Home) -> Path:
    done = home.netbootd(*_PREPARE, "--unprivileged")
    assert done.returncode == 0, done.stderr
    (made,) = json.loads(done.stdout)["images"]
    assert made["changed"] is True
    return Path(made["path"])


@pytest.fixture(scope="module")
def by_root(image: DiskImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same image prepared by root, as it lies on disk."""
    state = tmp_path_factory.mktemp("state")
    words = [str(image.path) if word == "disk.img" else word for word in _PREPARE]
    return Path(json.loads(run([*NETBOOTD, "--state", state, *words], cwd=state).stdout)["images"][0]["path"])


def patched(generation: Path) -> set[str]:
    paths = {patch["path"] for patch in json.loads((generation / "image.json").read_text())["patches"]}
    return {path.removeprefix("root/") for path in paths if path.startswith("root/")}


# ---------------------------------------------------------------- making


def test_without_the_option_it_is_refused_before_the_first_byte(new_home: Callable[[], Home]) -> None:
    home = new_home()
    done = home.netbootd(*_PREPARE)
    assert done.returncode == 4
    assert "a plain user can't keep its owners" in done.stderr and "device nodes" in done.stderr
    assert "--unprivileged" in done.stderr and "Traceback" not in done.stderr
    image = home.state / "images" / "noble"
    assert [path.name for path in image.iterdir() if path.name != ".lock"] == []


def test_nothing_of_the_image_s_rights_is_on_disk(generation: Path) -> None:
    """All is the user's, nothing is set-id, a device or a pipe; others get no more than the image gives others."""
    truth = read_manifest(tiny_image().root_manifest)
    new = patched(generation)
    seen = 0
    for folder, folders, files in os.walk(os.fsencode(generation / "root")):
        for name in (b"", *folders, *files):
            status = os.lstat(os.path.join(folder, name))
            assert (status.st_uid, status.st_gid) == (UID, UID)
            assert stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
            if not stat.S_ISLNK(status.st_mode):
                assert status.st_mode & 0o7022 == 0
                path = os.fsdecode(os.path.relpath(os.path.join(folder, name), os.fsencode(generation / "root")))
                if path not in new:
                    mode = int(truth["" if path == "." else path]["mode"], 8)
                    assert status.st_mode & 0o005 == mode & 0o005, path
            seen += 1
    assert seen > 1000


def test_image_json_says_so_and_the_id_is_another(generation: Path, home: Home, by_root: Path) -> None:
    manifest = json.loads((generation / "image.json").read_text())
    assert manifest["unprivileged"] is True
    assert generation.name != by_root.name
    assert "unprivileged" not in json.loads((by_root / "image.json").read_text())
    shown = home.netbootd("images", "show", "noble")
    assert "--unprivileged" in shown.stdout
    (row,) = json.loads(home.netbootd("images", "list", "--json").stdout)["images"]
    assert row["unprivileged"] is True


def test_the_same_again_does_nothing(generation: Path, home: Home) -> None:
    done = home.netbootd(*_PREPARE, "--unprivileged")
    (made,) = json.loads(done.stdout)["images"]
    assert (made["generation"], made["changed"]) == (generation.name, False)


def test_root_with_the_option_makes_the_same_record(generation: Path, tmp_path: Path, image: DiskImage) -> None:
    words = [str(image.path) if word == "disk.img" else word for word in _PREPARE]
    state = tmp_path / "state"
    done = run([*NETBOOTD, "--state", state, *words, "--unprivileged"], cwd=tmp_path)
    made = Path(json.loads(done.stdout)["images"][0]["path"])
    assert (made / "attributes").read_bytes() == (generation / "attributes").read_bytes()
    assert not any(stat.S_ISCHR(path.lstat().st_mode) for path in (made / "root" / "t").rglob("*"))


# ---------------------------------------------------------------- served


async def test_nfs_shows_what_the_kernel_showed_of_the_image(generation: Path, home: Home, image: DiskImage) -> None:
    truth = {row.pop("path"): row for row in map(json.loads, image.root_manifest.read_text().splitlines())}
    changed = patched(generation)
    with home.serve():
        async with home.client() as client:
            seen = await view(client, os.fsencode(generation / "root"))
    assert len(seen) > 1000
    assert {row["type"] for row in seen.values()} == {"file", "dir", "link", "char", "block", "fifo", "sock"}
    assert any(int(row["mode"], 8) & 0o4000 for row in seen.values())
    assert differences(truth, seen, changed) == []
    for path, row in truth.items():
        if row["type"] == "file" and row["size"] > WHOLE and path not in changed:
            with (generation / "root" / path).open("rb") as file:
                ends = [os.pread(file.fileno(), END, place) for place in (0, row["size"] - END)]
            assert seen[path]["ends"] == ends
            assert sha256_of(generation / "root" / path) == row["sha256"]


async def test_a_difference_would_be_found(generation: Path, home: Home, image: DiskImage) -> None:
    truth = {row.pop("path"): row for row in map(json.loads, image.root_manifest.read_text().splitlines())}
    row = truth["etc/hostname"]
    for key, value in (("mode", "0600"), ("uid", 7), ("gid", 7), ("mtime_ns", 1), ("size", 1), ("sha256", "")):
        assert differences({"x": row | {key: value}}, {"x": {**row, "acls": []}}, set()) != []
    assert differences({"x": row}, {}, set()) == ["x is in one of both only"]


async def test_what_was_patched_is_as_root_has_it(generation: Path, home: Home, by_root: Path) -> None:
    """New files are root's with their mode, replaced ones keep what they had: as in the tree that root makes."""
    changed = patched(generation)
    assert changed == patched(by_root) and changed
    expected = dict(walk_root(by_root / "root"))
    with home.serve():
        async with home.client() as client:
            seen = await view(client, os.fsencode(generation / "root"))
    assert seen.keys() == expected.keys()
    for path in changed & seen.keys():
        assert {key: seen[path].get(key) for key in ("type", "mode", "uid", "gid", "target", "size", "sha256")} == {
            key: expected[path].get(key) for key in ("type", "mode", "uid", "gid", "target", "size", "sha256")
        }, path


async def test_rights_are_the_record_s_though_the_process_owns_all(generation: Path, home: Home) -> None:
    export = os.fsencode(generation / "root")
    with home.serve():
        async with home.client() as client:
            shadow = await client.walk(await client.mount(export), "etc/shadow")
            root_home = await client.walk(await client.mount(export), "root")

            async def reads(uid: int, gid: int = 100) -> int:
                return await client.status(nfs.READ, opaque(shadow) + u64(0) + u32(10), auth_sys(uid, gid))

            assert (await client.getattr(shadow)).mode == 0o640
            assert [await reads(0), await reads(1000, 42), await reads(1000), await reads(UID, UID)] == [
                nfs.OK,
                nfs.OK,
                nfs.ACCES,
                nfs.ACCES,
            ]
            assert await client.access(shadow, credential=auth_sys(1000, 42)) == 0x01
            assert await client.access(shadow, credential=auth_sys(UID, UID)) == 0
            look = opaque(root_home) + opaque(b"x")
            assert await client.status(nfs.LOOKUP, look, auth_sys(1000)) == nfs.ACCES
            assert await client.status(nfs.LOOKUP, look, auth_sys(0)) == nfs.NOENT


async def test_everybody_may_do_what_they_may_in_root_s_tree(generation: Path, home: Home, by_root: Path) -> None:
    """ACCESS of every entry for some callers, beside the same image in a tree that has its owners, modes and ACLs."""
    with home.serve():
        async with home.client() as client, serving(by_root / "root") as other, await other.client() as theirs:
            ours = await rights(client, os.fsencode(generation / "root"))
            assert ours == await rights(theirs, os.fsencode(by_root / "root"))
    assert len(set(ours.values())) > 5


CALLERS = (auth_sys(0), auth_sys(1000, 1000), auth_sys(1001, 42, (1002, 1003)), auth_sys(UID, UID))


async def rights(client: Client, export: bytes) -> dict[bytes, tuple[int, ...]]:
    found: dict[bytes, tuple[int, ...]] = {}
    folders = [(b"", await client.mount(export))]
    while folders:
        path, handle = folders.pop()
        found[path] = tuple([await client.access(handle, credential=caller) for caller in CALLERS])
        if (await client.getattr(handle)).type == 2:
            entries = await client.list_all(handle, 32768, plus=True)
            folders += [(path + b"/" + e.name, e.handle) for e in entries if e.name not in (b".", b"..")]
    return found


async def test_a_device_can_not_be_read_and_is_not_a_file(generation: Path, home: Home, image: DiskImage) -> None:
    rows = [row for row in map(json.loads, image.root_manifest.read_text().splitlines()) if row["type"] == "char"]
    with home.serve():
        async with home.client() as client:
            top = await client.mount(os.fsencode(generation / "root"))
            for row in rows:
                handle = await client.walk(top, row["path"])
                assert await client.status(nfs.READ, opaque(handle) + u64(0) + u32(10)) == nfs.INVAL


async def test_handles_survive_the_server(generation: Path, home: Home) -> None:
    with home.serve() as program:
        async with home.client() as client:
            top = await client.mount(os.fsencode(generation / "root"))
            shadow = await client.walk(top, "etc/shadow")
            before = await client.getattr(shadow)
        program.kill()
    with home.serve():
        async with home.client() as client:
            assert await client.getattr(shadow) == before


async def test_a_damaged_record_serves_nothing(home: Home, generation: Path, tmp_path: Path) -> None:
    """Rather than a tree in which everything is open to everybody."""
    record = generation / "attributes"
    good = record.read_bytes()
    try:
        for bad in (good[:-1], None):
            record.unlink()
            if bad is not None:
                record.write_bytes(bad)
            with home.serve() as program:
                async with home.client() as client:
                    assert await client.mount_status(os.fsencode(generation / "root")) == 5
                assert "can't be served over NFS" in program.output() and "Traceback" not in program.output()
            record.write_bytes(good)
    finally:
        record.write_bytes(good)
        os.chown(record, UID, UID)


async def test_what_was_put_there_since_is_root_s_alone(home: Home, generation: Path) -> None:
    """A file of which the record knows nothing, and one that stands for a device and is not empty any more."""
    new = generation / "root" / "etc" / "new"
    new.write_bytes(b"?")
    new.chmod(0o4777)
    try:
        with home.serve():
            async with home.client() as client:
                handle = await client.walk(await client.mount(os.fsencode(generation / "root")), "etc/new")
                its = await client.getattr(handle)
        assert (its.type, its.mode, its.uid, its.gid) == (1, 0o600, 0, 0)
    finally:
        new.unlink()


def test_the_kernel_s_server_is_refused(home: Home, generation: Path) -> None:
    done = home.netbootd("serve", *_PORTS, "--nfs", "kernel")
    assert done.returncode == 4
    assert "noble was made with --unprivileged" in done.stderr and "--nfs embedded" in done.stderr


# ---------------------------------------------------------------- deleting


def test_the_user_can_prune_it(new_home: Callable[[], Home]) -> None:
    home = new_home()
    ids = []
    for _ in range(2):
        done = home.netbootd(*_PREPARE, "--unprivileged", "--force")
        assert done.returncode == 0, done.stderr
        ids.append(json.loads(done.stdout)["images"][0]["generation"])
    done = home.netbootd("images", "prune", "--keep", "1", "--json")
    assert [gone["generation"] for gone in json.loads(done.stdout)["pruned"]] == ids[:1], done.stderr
    left = [path.name for path in (home.state / "images" / "noble").iterdir()]
    assert sorted(left) == sorted([".lock", "current", ids[1]])
