"""Trees whose attributes lie in a record beside them: made, patched, found again, and kept from the kernel's server.

That all this comes out right for a real plain user and a whole image is tested in tests/netns/test_unprivileged.py.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from netbootd.config.schema import Config, NfsConfig, ServerConfig
from netbootd.errors import FormatError, HostError, NotFoundError
from netbootd.formats.treeattributes import Attributes, TreeAttributes
from netbootd.images import target
from netbootd.images.build import generation_id
from netbootd.images.dressing import RecordDressing, mode_on_disk
from netbootd.images.export import export_ext4
from netbootd.images.patches.tree import Tree
from netbootd.images.target import check_target
from netbootd.model.image import ImageSpec, Release
from netbootd.model.network import ServerAddress
from netbootd.nfsd.attributes import NF3CHR, NF3DIR, NF3LNK, NF3REG
from netbootd.nfsd.kernel.book import ExportBook
from netbootd.nfsd.tree import scan
from netbootd.service import doctor, supervisor
from netbootd.service.exports import GenerationExports, unprivileged_images
from netbootd.service.supervisor import ServeOptions, Service
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout
from tests.support.ext4_images import make, opened
from tests.support.live_iso import live_iso
from tests.support.processes import run

FSID = b"12345678"
SHADOW = Attributes(stat.S_IFREG | 0o640, 0, 42, xattrs=(("user.a", b"x"),))
NULL = Attributes(stat.S_IFCHR | 0o666, 0, 0, 1, 3)
FOLDER = Attributes(stat.S_IFDIR | 0o755)


@pytest.mark.parametrize(
    ("mode", "on_disk"),
    [
        (stat.S_IFREG | 0o644, 0o644),
        (stat.S_IFREG | 0o640, 0o600),
        (stat.S_IFREG | 0o4755, 0o755),
        (stat.S_IFREG | 0o000, 0o600),
        (stat.S_IFREG | 0o666, 0o644),
        (stat.S_IFREG | 0o711, 0o711),
        (stat.S_IFDIR | 0o1777, 0o755),
        (stat.S_IFDIR | 0o000, 0o700),
        (stat.S_IFDIR | 0o2750, 0o700),
        (stat.S_IFCHR | 0o666, 0o644),
    ],
)
def test_on_disk_others_have_what_they_had_and_the_maker_all(mode, on_disk):
    assert mode_on_disk(mode) == on_disk


# ---------------------------------------------------------------- exporting


def test_an_export_notes_what_it_does_not_keep(tmp_path):
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc" / "shadow").write_text("secret")
    (source / "etc" / "again").hardlink_to(source / "etc" / "shadow")
    (source / "link").symlink_to("etc")
    image = make(tmp_path / "image", source, size="4M")
    sets = ("sif etc/shadow mode 0104640", "sif etc/shadow uid 1000", "sif etc/shadow gid 42", "sif link uid 7")
    for command in (*sets, "mknod console c 5 1", "mknod pipe p", "ea_set etc/shadow user.a x", "sif etc mode 040500"):
        run(["debugfs", "-w", "-R", command, image])
    out = tmp_path / "out"
    out.mkdir()
    record = TreeAttributes()
    with opened(image) as fs:
        counts = export_ext4(fs, out, lambda count: None, RecordDressing(record))
    assert (counts.files, counts.hard_links, counts.nodes, counts.symlinks) == (1, 1, 2, 1)
    shadow = Attributes(stat.S_IFREG | 0o4640, 1000, 42, xattrs=(("user.a", b"x"),))
    assert record.get(b"etc/shadow") == record.get(b"etc/again") == shadow
    assert record.get(b"etc").mode == stat.S_IFDIR | 0o500
    assert record.get(b"link")[:2] == (stat.S_IFLNK | 0o777, 7)
    console = record.get(b"console")
    assert (console.type, console.major, console.minor) == (stat.S_IFCHR, 5, 1)
    assert record.get(b"pipe").type == stat.S_IFIFO
    assert record.get(b"").type == stat.S_IFDIR
    assert len(record) == len([out, *out.rglob("*")])
    for path in (out / "console", out / "pipe"):
        assert stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size == 0
    assert stat.S_IMODE((out / "etc").stat().st_mode) == 0o700
    assert stat.S_IMODE((out / "etc" / "shadow").stat().st_mode) == 0o600
    assert os.listxattr(out / "etc" / "shadow") == []
    assert (out / "etc" / "again").samefile(out / "etc" / "shadow")


def test_the_store_need_not_keep_what_is_noted(tmp_path, monkeypatch):
    def refused(place: Path) -> bool:
        raise OSError(1, "Operation not permitted")

    for what in target._ATTEMPTS.keys() - target._CONTENT:
        monkeypatch.setitem(target._ATTEMPTS, what, refused)
    check_target(tmp_path, recorded=True)
    with pytest.raises(HostError):
        check_target(tmp_path)
    monkeypatch.setitem(target._ATTEMPTS, "holes", refused)
    with pytest.raises(HostError, match=r"this store can't keep its holes\.") as caught:
        check_target(tmp_path, recorded=True)
    assert "--state" in caught.value.hint


def test_the_id_is_another():
    release = Release("t", "u", "f", "00", 1, True, "")
    arguments = (ImageSpec("noble"), release, ServerAddress("192.0.2.1"), Path("/state"), "")
    assert generation_id(*arguments) != generation_id(*arguments, recorded=True)


def test_a_pc_s_image_has_no_root_to_record(netbootd, tmp_path):
    live_iso(tmp_path / "x.iso")
    words = ("prepare", "--source", tmp_path / "x.iso", "--name", "pc", "--arch", "amd64", "--advertise", "192.0.2.1")
    made = [netbootd(*words, "--json", *more) for more in ((), ("--unprivileged",))]
    assert [status for status, _, _ in made] == [0, 0], made
    first, second = (json.loads(out)["images"][0] for _, out, _ in made)
    assert (second["generation"], second["changed"]) == (first["generation"], False)
    assert not (Path("state/images/pc/current") / "attributes").exists()


# ---------------------------------------------------------------- patching


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "shadow").write_text("old")
    (folder / "etc" / "null").touch()
    (folder / "etc" / "link").symlink_to("shadow")
    return folder


@pytest.fixture
def record():
    made = TreeAttributes()
    link = Attributes(stat.S_IFLNK | 0o777, 5, 5)
    for path, its in {b"": FOLDER, b"etc": FOLDER, b"etc/shadow": SHADOW, b"etc/null": NULL, b"etc/link": link}.items():
        made.set(path, its)
    return made


def test_a_replaced_file_keeps_what_it_had(root, record):
    with Tree(root, "root", record) as tree:
        tree.write("etc/shadow", "new", "why")
        tree.append("etc/shadow", b"er", "why")
    assert record.get(b"etc/shadow") == SHADOW
    assert (root / "etc/shadow").read_text() == "newer"
    status = (root / "etc/shadow").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())


def test_what_is_new_is_root_s(root, record):
    with Tree(root, "root", record) as tree:
        tree.write("etc/new/deep/file", "x", "why", mode=0o4750)
        tree.symlink("etc/masked", "/dev/null", "why")
        tree.folder_at("etc/folder", "why", mode=0o700)
    assert record.get(b"etc/new/deep/file") == Attributes(stat.S_IFREG | 0o4750)
    assert record.get(b"etc/new") == record.get(b"etc/new/deep") == Attributes(stat.S_IFDIR | 0o755)
    assert record.get(b"etc/masked") == Attributes(stat.S_IFLNK | 0o777)
    assert record.get(b"etc/folder") == Attributes(stat.S_IFDIR | 0o700)
    for path in (root / "etc").rglob("*"):
        assert path.lstat().st_uid == os.geteuid()
    assert stat.S_IMODE((root / "etc/new/deep/file").stat().st_mode) == 0o700


def test_a_link_and_a_file_that_change_places_change_their_attributes(root, record):
    with Tree(root, "root", record) as tree:
        tree.write("etc/link", "a file now", "why", mode=0o600)
        tree.symlink("etc/shadow", "elsewhere", "why")
        tree.symlink("etc/null", "was a device", "why")
    assert record.get(b"etc/link") == Attributes(stat.S_IFREG | 0o600)
    assert record.get(b"etc/shadow") == record.get(b"etc/null") == Attributes(stat.S_IFLNK | 0o777)


def test_what_goes_is_forgotten(root, record):
    with Tree(root, "root", record) as tree:
        tree.remove("etc", "why")
        assert {patch.path: patch.before for patch in tree.patches}["root/etc/null"] == "(a character device)"
    assert len(record) == 1
    assert list(root.iterdir()) == []


def test_a_device_is_a_device_although_a_file_stands_for_it(root, record):
    with Tree(root, "root", record) as tree:
        assert not tree.is_file("etc/null") and tree.read("etc/null") is None and tree.is_there("etc/null")
        with pytest.raises(FormatError, match="a character device, not a file"):
            tree.write("etc/null", "x", "why")


# ---------------------------------------------------------------- served


@pytest.fixture
def served(root, record, tmp_path):
    def index():
        path = tmp_path / "attributes"
        path.write_bytes(record.encode())
        return scan(os.fsencode(root), FSID, os.fsencode(path))

    return index


def facts(tree, path):
    number = 0
    for name in path.split("/"):
        number = tree.lookup(number, name.encode())
    its = tree.facts(number)
    return its.type, its.mode, its.uid, its.gid


def test_the_index_is_by_the_record(served, record):
    record.set(b"etc/shadow", SHADOW._replace(xattrs=(("system.posix_acl_access", b"acl"),)))
    tree = served()
    assert facts(tree, "etc/shadow") == (NF3REG, 0o640, 0, 42)
    assert facts(tree, "etc/null") == (NF3CHR, 0o666, 0, 0)
    assert facts(tree, "etc/link") == (NF3LNK, 0o777, 5, 5)
    shadow = tree.lookup(tree.lookup(0, b"etc"), b"shadow")
    assert tree.acls(shadow) == (b"acl", b"")
    os.close(tree.open(shadow))
    with pytest.raises(FileNotFoundError):
        tree.open(tree.lookup(tree.lookup(0, b"etc"), b"null"))
    tree.close()


@pytest.mark.parametrize(
    ("change", "path", "shown"),
    [
        (lambda root, record: (root / "etc/null").write_text("x"), "etc/null", (NF3REG, 0o600, 0, 0)),
        (lambda root, record: record.remove(b"etc/shadow"), "etc/shadow", (NF3REG, 0o600, 0, 0)),
        (lambda root, record: record.remove(b"etc"), "etc", (NF3DIR, 0o700, 0, 0)),
        (lambda root, record: record.set(b"etc/shadow", FOLDER), "etc/shadow", (NF3REG, 0o600, 0, 0)),
        (lambda root, record: record.set(b"etc", SHADOW), "etc", (NF3DIR, 0o700, 0, 0)),
        (lambda root, record: record.set(b"etc", NULL), "etc", (NF3DIR, 0o700, 0, 0)),
        (lambda root, record: record.set(b"etc/link", NULL), "etc/link", (NF3LNK, 0o777, 0, 0)),
    ],
)
def test_where_tree_and_record_disagree_only_root_gets_in(served, root, record, caplog, change, path, shown):
    change(root, record)
    tree = served()
    assert facts(tree, path) == shown
    assert "1 entries" in caplog.text
    tree.close()


def test_what_is_root_s_alone_has_no_acl(served, root, record):
    """Which would let others in: the record speaks of a folder where there is a file by now."""
    record.set(b"etc/shadow", FOLDER._replace(xattrs=(("system.posix_acl_access", b"acl"),)))
    tree = served()
    assert tree.acls(tree.lookup(tree.lookup(0, b"etc"), b"shadow")) is None
    tree.close()


def test_without_its_record_a_tree_is_not_served(served, root, tmp_path):
    with pytest.raises(FileNotFoundError):
        scan(os.fsencode(root), FSID, os.fsencode(tmp_path / "nothing"))
    (tmp_path / "broken").write_bytes(b"nbattrs1")
    with pytest.raises(OSError, match="broken"):
        scan(os.fsencode(root), FSID, os.fsencode(tmp_path / "broken"))


# ---------------------------------------------------------------- who may serve it


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "state")


def published(layout, ident, **said):
    generations = Generations(layout)
    generation = layout.generation("noble", ident)
    with generations.locked("noble", "Building"):
        work = generations.begin(generation)
        (work / "root").mkdir()
        (work / "boot").mkdir()
        generations.publish(work, generation, {"created": ident, **said})
    return generation


def test_a_generation_says_what_it_is(layout):
    plain, recorded = published(layout, "aaaaaaaa"), published(layout, "bbbbbbbb", unprivileged=True)
    lost = published(layout, "cccccccc")
    (lost.path / "image.json").write_text("{")
    kept = published(layout, "dddddddd")
    kept.attributes.touch()
    generations = Generations(layout)
    assert [generations.unprivileged(each) for each in (plain, recorded, lost, kept)] == [False, True, False, True]
    lost.attributes.touch()
    assert generations.unprivileged(lost)
    (recorded.path / "image.json").unlink()
    assert generations.unprivileged(recorded)  # known from before


def test_the_kernel_is_given_none_of_those(layout):
    plain, recorded = published(layout, "aaaaaaaa"), published(layout, "bbbbbbbb", unprivileged=True)
    exports = GenerationExports(Generations(layout))
    assert {export.generation: export.attributes for export in exports.all()} == {
        plain.id: None,
        recorded.id: os.fsencode(recorded.attributes),
    }
    found = exports.find(os.fsencode(recorded.root))
    assert found and found.attributes == os.fsencode(recorded.attributes)
    book = ExportBook(exports.all)
    book.refresh()
    assert [grant.path for grant in book.roots()] == [os.fsencode(plain.root)]
    assert book.of("noble", recorded.id) is None


def test_doctor_and_the_current_generation(layout, tmp_path, monkeypatch):
    config = Config(None, tmp_path, nfs=NfsConfig(backend="kernel"))
    published(layout, "bbbbbbbb", unprivileged=True)
    (found,) = doctor.nfs(config, layout)
    assert (found.level, "noble" in found.message, "embedded" in found.remedy) == ("error", True, True)
    monkeypatch.setattr(doctor, "SOCKET", tmp_path)  # the privileged part seems to be there
    (found,) = doctor.nfs(replace(config, nfs=NfsConfig()), layout)
    assert (found.level, "has to serve noble" in found.message) == ("warning", True)
    assert "stop netbootd-nfs" in found.remedy
    published(layout, "cccccccc")
    assert unprivileged_images(Generations(layout)) == []
    (found,) = doctor.nfs(replace(config, nfs=NfsConfig()), layout)
    assert "privileged part" in found.message


class PlayedPart:
    """The kernel's server can be had."""

    def start(self, addresses, port):
        return {"running": True, "exports_by": "caches"}

    def handle(self, image, generation, below, address):
        raise NotFoundError("nobody mounts")


@pytest.mark.parametrize(
    ("backend", "recorded", "served_by"),
    [
        ("auto", True, "embedded"),
        ("auto", False, "kernel"),
        ("embedded", True, "embedded"),
        ("kernel", False, "kernel"),
    ],
)
async def test_who_serves_nfs(layout, tmp_path, monkeypatch, backend, recorded, served_by):
    service = service_of(layout, tmp_path, monkeypatch, backend)
    published(layout, "bbbbbbbb", unprivileged=recorded)
    await service._open()
    try:
        assert service.ready()["nfs"]["backend"] == served_by
    finally:
        await service._drain()
        service._database.close()
        service._neighbours.close()
        service._allowed.close()


async def test_the_kernel_alone_is_refused(layout, tmp_path, monkeypatch):
    service = service_of(layout, tmp_path, monkeypatch, "kernel")
    published(layout, "bbbbbbbb", unprivileged=True)
    with pytest.raises(HostError, match="noble was made with --unprivileged") as caught:
        await service._open()
    assert caught.value.exit_status == 4 and "--nfs embedded" in caught.value.hint
    service._database.close()
    service._neighbours.close()
    service._allowed.close()


def service_of(layout, tmp_path, monkeypatch, backend):
    monkeypatch.setattr(supervisor, "SOCKET", tmp_path)
    monkeypatch.setattr("netbootd.nfsd.kernel.server.PrivilegedPart", PlayedPart)
    config = Config(None, tmp_path, server=ServerConfig(address="127.0.0.1"), nfs=NfsConfig(backend=backend))
    options = ServeOptions(binds=("127.0.0.1",), tftp_port=0, http_port=0, nfs_port=0, mount_port=0, portmap_port="off")
    return Service(config, layout, options, lambda: config)
