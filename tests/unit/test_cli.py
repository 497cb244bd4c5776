"""The command line: exit statuses, what is printed where, and what `--help` may import."""

import json
import subprocess
import sys

import pytest

from netbootd.cli import main as program
from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.store.database import Database, NodeRecord
from netbootd.store.layout import Layout

HEAVY = ("aiohttp", "pyroute2", "pycdlib", "construct", "fbtftp", "yaml", "asyncio", "sqlite3", "pysequoia")


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name in ("NETBOOTD_CONFIG", "NETBOOTD_STATE"):
        monkeypatch.delenv(name, raising=False)

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            program.main(["--state", str(tmp_path / "state"), *words])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["-h"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom netbootd.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"
    assert "netbootd" in done.stdout


def test_help_lists_what_there_is_and_nothing_of_what_is_to_come(call):
    status, out, _ = call("--help")
    assert status == 0
    for name in ("prepare", "serve", "status", "nodes", "images", "events", "config"):
        assert f"\n  {name} " in out
    assert call("serve", "--help")[1].count("--dhcp") == 0
    assert "\n  check " not in out


@pytest.mark.parametrize("name", list(program.COMMANDS))
def test_every_command_has_help(call, name):
    status, out, err = call(name, "--help")
    assert (status, err) == (0, "")
    assert "Usage: netbootd " + name in out


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["nonsense"], 2),
        (["serve", "--tftp-port", "70000"], 2),
        (["serve", "--bind", "nowhere"], 2),
        (["serve", "--portmap-port", "maybe"], 2),
        (["serve", "--tftp-data-ports", "9-1"], 2),
        (["prepare", "--release", "noble", "--source", "x.img"], 2),
        (["prepare", "noble", "--release", "noble"], 2),
        (["prepare", "--release", "noble", "--name", "../x"], 2),
        (["prepare", "--sha256", "00"], 2),
        (["prepare", "nosuch"], 8),
        (["-c", "nosuch.toml", "config", "check"], 3),
        (["images", "show", "nosuch"], 8),
        (["images", "rollback", "nosuch"], 8),
        (["nodes", "show", "nosuch"], 8),
    ],
)
def test_failures_have_the_contracts_status_and_one_paragraph(call, words, status):
    code, out, err = call(*words)
    assert (code, out) == (status, "")
    assert err.strip()
    assert "Traceback" not in err
    assert "\n\n" not in err.strip() or status == 2  # click shows the usage before its sentence


def test_an_empty_state_is_no_error(call):
    assert call("status", "--json")[:2] == (0, '{\n  "nodes": []\n}\n')
    assert call("nodes", "list")[0] == 0
    assert call("events")[:2] == (0, "")
    assert json.loads(call("images", "list", "--json")[1]) == {"images": []}
    assert json.loads(call("images", "prune", "--json")[1]) == {"pruned": []}


def test_status_and_events_say_what_the_database_has(call, tmp_path):
    (tmp_path / "netbootd.toml").write_text('[[node]]\nname = "valar-0"\nserial = "100000001A2B3C4D"\n')
    database = Database(Layout(tmp_path / "state").database)
    record = NodeRecord(
        *("1a2b3c4d", "valar-0", "1a2b3c4d", "", "192.0.2.9", "noble", "abc", "kernel", "ok"), 5.0, "", "secret-token"
    )
    stranger = NodeRecord(
        *("ffffffff", "pi-ffffffff", "ffffffff", "", "192.0.2.8", "noble", "abc", "ready", "ok"),
        6.0,
        "",
        "secret-token",
    )
    event = BootEvent(
        *(5.0, "tftp", "vmlinuz", Outcome.OK, Stage.KERNEL, "valar-0", "1a2b3c4d", "1a2b3c4d"), bytes=9, seconds=0.5
    )
    database.write([event], [record, stranger])
    database.close()
    nodes = json.loads(call("status", "--json")[1])["nodes"]
    assert [(node["name"], node["stage"], node["address"]) for node in nodes] == [
        ("valar-0", "kernel", "192.0.2.9"),
        ("pi-ffffffff", "ready", "192.0.2.8"),
    ]
    wanted = ["name", "serial", "mac", "address", "image", "generation", "stage", "outcome", "last_seen", "detail"]
    assert list(nodes[0]) == wanted
    for words in (["status"], ["status", "--json"], ["nodes", "show", "valar-0"]):
        status, out, _ = call(*words)
        assert status == 0
        assert "secret-token" not in out
    rows = [json.loads(line) for line in call("events", "--json", "--node", "100000001A2B3C4D")[1].splitlines()]
    assert [list(row) for row in rows] == [
        ["time", "node", "serial", "protocol", "stage", "path", "bytes", "seconds", "outcome", "detail"]
    ]
    assert (rows[0]["path"], rows[0]["stage"], rows[0]["outcome"]) == ("vmlinuz", "kernel", "ok")
    assert call("events", "--node", "pi-ffffffff")[1] == ""


def test_a_faulty_configuration_is_told_whole(call, tmp_path):
    (tmp_path / "netbootd.toml").write_text('[server]\ndrain_secs = 3\n[tftp]\nport = "x"\n')
    status, out, err = call("config", "check")
    assert (status, out) == (3, "")
    assert "drain_seconds" in err
    assert "[tftp]: port" in err
    faults = json.loads(call("config", "check", "--json")[1])["faults"]
    assert len(faults) == 2


def test_the_built_in_defaults_are_without_fault(call):
    assert call("config", "check")[0] == 0
    assert json.loads(call("config", "show", "--json")[1])["tftp"]["port"] == 69
