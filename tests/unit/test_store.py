"""Generations appear whole or not at all; the database keeps events and nodes."""

import os

import pytest

from netbootd.errors import BusyError, HostError, NotFoundError, UsageError
from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.store.database import NODES_KEPT, Database, NodeRecord
from netbootd.store.generations import Generations, remove_tree
from netbootd.store.layout import Layout, check_name


@pytest.fixture
def store(tmp_path):
    return Generations(Layout(tmp_path))


def build(store, ident, created):
    generation = store.layout.generation("noble", ident)
    work = store.begin(generation)
    (work / "boot").mkdir()
    (work / "root").mkdir()
    store.publish(work, generation, {"created": created})
    return generation


def test_a_published_generation_is_current_and_an_earlier_one_comes_back(store):
    assert (store.names(), store.current("noble")) == ([], None)
    first, second = build(store, "bbbbbbbb", "2026-01-01"), build(store, "aaaaaaaa", "2026-02-01")
    assert store.names() == ["noble"]
    assert store.all("noble") == [first, second]
    assert store.current("noble") == second
    assert os.readlink(store.layout.current("noble")) == "aaaaaaaa"
    assert store.rollback("noble") == first
    assert store.current("noble") == first
    with pytest.raises(NotFoundError):
        store.rollback("noble")


def test_what_another_process_does_is_seen_at_once(store):
    first, second = build(store, "aaaaaaaa", "2026-01-01"), build(store, "bbbbbbbb", "2026-02-01")
    other = Generations(store.layout)
    assert (other.current("noble"), other.find("noble", "aaaaaaaa")) == (second, first)
    store.activate(first)
    assert other.current("noble") == first
    store.activate(second)
    assert other.current("noble") == second
    assert store.prune("noble", 1, ()) == [first]
    assert other.find("noble", "aaaaaaaa") is None
    remove_tree(store.layout.image("noble"))
    assert (other.current("noble"), other.find("noble", "bbbbbbbb")) == (None, None)
    assert build(store, "bbbbbbbb", "2026-03-01") == other.current("noble") == second


def test_what_an_interrupted_build_left_is_invisible_and_goes(store):
    first = build(store, "aaaaaaaa", "2026-01-01")
    left = store.begin(store.layout.generation("noble", "cccccccc"))
    (left / "root").mkdir()
    assert (store.all("noble"), store.find("noble", "cccccccc")) == ([first], None)
    store.begin(store.layout.generation("noble", "dddddddd"))
    assert not left.exists()


def test_prune_spares_the_current_the_newest_and_those_in_use(store):
    every = [build(store, f"{n:08x}", f"2026-01-0{n}") for n in range(1, 7)]
    store.activate(every[1])
    gone = store.prune("noble", 2, {every[2].id})
    assert gone == [every[0], every[3]]
    assert store.all("noble") == [every[1], every[2], every[4], every[5]]
    assert store.current("noble") == every[1]


def test_one_build_of_an_image_at_a_time(store):
    with store.locked("noble", "Building noble"), pytest.raises(BusyError) as caught, store.locked("noble", "Again"):
        pass
    assert caught.value.exit_status == 9
    with store.locked("noble", "Building noble"):
        pass


@pytest.mark.parametrize("name", ["", "..", "a/b", "current", ".hidden", "x" * 65, "a b", "a\n"])
def test_names_that_can_not_be_folders_are_refused(name):
    with pytest.raises(UsageError):
        check_name(name)


def event(number, node="a"):
    return BootEvent(
        float(number),
        "tftp",
        f"file-{number}",
        Outcome.OK,
        Stage.KERNEL,
        node=node,
        key=node,
        bytes=number,
        seconds=0.5,
    )


def test_events_come_back_oldest_first_and_by_node(tmp_path):
    path = tmp_path / "db" / "netbootd.db"
    writer = Database(path)
    writer.write([event(1), event(2, "b"), event(3)], [])
    reader = Database(path, readonly=True)
    assert [e for _, e in reader.events()] == [event(1), event(2, "b"), event(3)]
    assert [e.path for _, e in reader.events(node="a")] == ["file-1", "file-3"]
    assert [e.path for _, e in reader.events(limit=1)] == ["file-3"]
    last = max(number for number, _ in reader.events())
    writer.write([event(4)], [])
    assert [e.path for _, e in reader.events(after=last)] == ["file-4"]
    reader.close()
    writer.close()


def test_a_node_has_one_record_and_a_failed_batch_leaves_nothing(tmp_path):
    database = Database(tmp_path / "netbootd.db")
    record = NodeRecord("k", "n", "s", "m", "192.0.2.9", "noble", "g", "kernel", "ok", 5.0, "")
    database.write([], [record])
    database.write([event(1)], [record])
    assert database.nodes() == [record]
    database._db.execute("DROP TABLE nodes")
    with pytest.raises(HostError):
        database.write([event(2)], [record])
    assert [e.path for _, e in database.events()] == ["file-1"]
    database.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    database = Database(tmp_path / "netbootd.db")
    database._db.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(HostError, match="newer"):
        Database(tmp_path / "netbootd.db")
    (tmp_path / "rubbish.db").write_bytes(b"no database" * 100)
    with pytest.raises(HostError):
        Database(tmp_path / "rubbish.db")


# ---------------------------------------------------------------- deleting trees


def test_a_tree_goes_whole_and_nothing_beside_it(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    top = tmp_path / "top"
    (top / "a" / "b" / "a").mkdir(parents=True)
    (top / "a" / "file").write_text("x")
    (top / "link").symlink_to(kept)
    (top / "a" / "link").symlink_to("..")
    os.mkfifo(top / "a" / "b" / "pipe")
    (top / "a" / "shut").mkdir(mode=0o000)
    os.link(kept / "file", top / "hard")
    remove_tree(top)
    remove_tree(top)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").read_text() == "x"


@pytest.mark.parametrize("user", [0, 1000])
def test_a_tree_of_any_depth_goes(tmp_path, monkeypatch, user):
    monkeypatch.setattr("netbootd.store.generations.os.geteuid", lambda: user)
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python recurses, and than a path can name
        os.mkdir("down", dir_fd=here)
        below = os.open("down", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(top)
    assert not top.exists()


def test_what_can_not_be_deleted_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(HostError, match="Deleting"):
        remove_tree(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(HostError, match="Deleting"):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "file").exists()


def test_of_a_flood_of_nodes_those_seen_last_are_kept(tmp_path):
    database = Database(tmp_path / "db")
    for start in range(0, 2 * NODES_KEPT, 5_000):
        many = range(start, start + 5_000)
        database.write((), (NodeRecord(str(n), str(n), "", "", "", "", "", "", "", float(n), "") for n in many))
    kept = {int(record.key) for record in database.nodes()}
    assert NODES_KEPT // 2 < len(kept) <= NODES_KEPT
    assert kept == set(range(2 * NODES_KEPT - len(kept), 2 * NODES_KEPT))
