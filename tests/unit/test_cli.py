"""The command line: exit statuses, what is printed where, and what `--help` may import."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from netbootd.cli import main as program
from netbootd.cli.output import explain_error
from netbootd.logs import ConsoleFormatter
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
    assert json.loads(call("images", "prune", "--json")[1]) == {"pruned": [], "archives": []}


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


# ---------------------------------------------------------------- what the shared options do


def program_in(folder, *words, stdout=subprocess.PIPE, **environment):
    env = {**os.environ, "NETBOOTD_STATE": str(folder / "state"), **environment}
    command = [sys.executable, "-m", "netbootd", *words]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=folder, env=env, timeout=60)


def test_the_environment_names_configuration_and_state_and_options_come_first(tmp_path):
    (tmp_path / "one.toml").write_text("[tftp]\nport = 1\n")
    (tmp_path / "two.toml").write_text("[tftp]\nport = 2\n")
    shown = program_in(tmp_path, "config", "show", "--json", NETBOOTD_CONFIG="one.toml").stdout
    assert json.loads(shown)["tftp"]["port"] == 1
    shown = program_in(tmp_path, "-c", "two.toml", "config", "show", "--json", NETBOOTD_CONFIG="one.toml").stdout
    assert json.loads(shown)["tftp"]["port"] == 2
    assert json.loads(program_in(tmp_path, "config", "show", "--json", NETBOOTD_CONFIG="").stdout)["file"] is None


def test_output_that_nobody_takes_is_no_traceback(tmp_path):
    with open("/dev/full", "w") as full:
        done = program_in(tmp_path, "config", "show", stdout=full)
    assert (done.returncode, "Traceback" in done.stderr) == (4, False)
    assert "No space left" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = program_in(tmp_path, "config", "show", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_options_that_contradict_each_other_are_refused(call):
    assert call("-v", "-q", "status")[0] == 2
    assert call("-vv", "status")[0] == call("-q", "status")[0] == 0


def test_a_journal_that_is_not_there_is_an_error_that_says_so(call, monkeypatch, tmp_path):
    monkeypatch.setattr("netbootd.logs._JOURNAL_SOCKET", str(tmp_path / "nosuch"))
    status, out, err = call("--log-format", "journal", "status")
    assert (status, out) == (4, "")
    assert "--log-format text" in err


# ---------------------------------------------------------------- nodes, events


def seen(tmp_path, *records):
    database = Database(Layout(tmp_path / "state").database)
    database.write([], [NodeRecord(*record) for record in records])
    database.close()


def test_a_stranger_that_was_listed_afterwards_is_one_node(call, tmp_path):
    mac = "dc:a6:32:00:00:01"
    seen(
        tmp_path,
        ("1a2b3c4d", "pi-1a2b3c4d", "1a2b3c4d", mac, "192.0.2.9", "noble", "abc", "ready", "ok", 5.0, ""),
        ("dc-a6-32-00-00-01", "node-dc-a6-32-00-00-01", "", mac, "192.0.2.8", "noble", "abc", "root", "ok", 4.0, ""),
        ("ffffffff", "pi-ffffffff", "ffffffff", "", "192.0.2.7", "noble", "abc", "root", "ok", 4.0, ""),
    )
    text = (
        f'[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\nmac = "{mac}"\n[[node]]\nname = "new"\nserial = "00000000"\n'
    )
    (tmp_path / "netbootd.toml").write_text(text)
    nodes = json.loads(call("nodes", "list", "--json")[1])["nodes"]
    assert [(node["name"], node["stage"]) for node in nodes] == [
        ("valar-0", "ready"),
        ("new", None),
        ("pi-ffffffff", "root"),
    ]
    assert json.loads(call("status", "--json")[1])["nodes"] == nodes
    assert json.loads(call("nodes", "show", "valar-0", "--json")[1])["address"] == "192.0.2.9"


def test_events_of_a_node_that_there_is_not(call, tmp_path):
    (tmp_path / "netbootd.toml").write_text('[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\n')
    status, out, err = call("events", "--node", "valar-1")
    assert (status, out) == (8, "")
    assert "valar-1" in err
    for name in ("valar-0", "1a2b3c4d", "ffffffff", "pi-ffffffff", "DC:A6:32:00:00:01", "node-dc-a6-32-00-00-01"):
        assert call("events", "--node", name)[:2] == (0, "")  # configured, or may still come


def test_following_shows_what_comes_and_ends_with_an_interrupt(tmp_path):
    database = Database(Layout(tmp_path / "state").database)

    def event(number):
        return BootEvent(
            float(number), "tftp", f"file-{number}", Outcome.OK, Stage.FIRMWARE, "valar-0", "k", "1a2b3c4d"
        )

    database.write([event(1)], [])
    env = {**os.environ, "NETBOOTD_STATE": str(tmp_path / "state")}
    command = [sys.executable, "-m", "netbootd", "events", "--follow", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env
    ) as run:
        assert json.loads(run.stdout.readline())["path"] == "file-1"
        database.write([event(2)], [])
        assert json.loads(run.stdout.readline())["path"] == "file-2"
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=20)
    database.close()
    assert (run.returncode, out) == (130, "")
    assert "Traceback" not in err


def test_watching_goes_on_until_an_interrupt(tmp_path):
    (tmp_path / "netbootd.toml").write_text('[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\n')
    env = {**os.environ, "NETBOOTD_STATE": str(tmp_path / "state"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "netbootd", "status", "--watch"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env
    ) as run:
        assert run.stdout.readline().startswith("NODE")
        assert run.stdout.readline().startswith("valar-0")
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=20)
    assert (run.returncode, "Traceback" in err) == (130, False)


def test_explain_tells_where_a_file_comes_from(call, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.txt").write_text("mine")
    (tmp_path / "secret").write_text("s3cret")
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "user-data").write_text("#cloud-config\nhostname: x\n")
    (tmp_path / "ci" / "vendor-data").write_text("#cloud-config\ntoken: ${file:secret}\n")
    (tmp_path / "netbootd.toml").write_text(
        '[server]\naddress = "192.0.2.1"\n[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\n'
        'boot_files = ["own"]\ncloud_init = ["ci"]\n'
    )
    answer = json.loads(call("nodes", "explain", "VALAR-0", "config.txt", "--json")[1])
    assert (answer["layer"], answer["from"], answer["size"]) == ("node", str(tmp_path / "own" / "config.txt"), 4)
    answer = json.loads(call("nodes", "explain", "1a2b3c4d", "nocloud/user-data", "--json")[1])
    assert f"hostname: {tmp_path}/ci/user-data:2" in answer["keys"]
    assert "hostname: x" in answer["content"]
    status, out, _ = call("nodes", "explain", "valar-0", "nocloud/vendor-data")
    assert status == 0
    assert "${file:secret}" in out
    assert "s3cret" not in out
    assert call("nodes", "explain", "valar-0", "nocloud/network-config")[0] == 0
    for path in ("nosuch", "../x", "nocloud", "nocloud/x", ""):
        status, out, err = call("nodes", "explain", "valar-0", path)
        assert (status, out) == (8, ""), path
        assert err.startswith("netbootd: ")


def test_a_seed_on_a_disk_holds_the_four_documents(call, tmp_path):
    (tmp_path / "netbootd.toml").write_text(
        '[server]\naddress = "192.0.2.1"\n[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\n'
    )
    output = tmp_path / "seed.iso"
    (tmp_path / ".seed.iso.part").write_text("of a run that was cut short, for all to read")
    assert call("nodes", "seed", "valar-0", "--output", str(output))[0] == 0
    assert output.stat().st_mode & 0o077 == 0
    assert b"cidata" in output.read_bytes()[0x8000:0x8800]
    assert b"instance-id: 1a2b3c4d-" in output.read_bytes()
    for nowhere in (tmp_path / "nosuch" / "seed.iso", tmp_path / "netbootd.toml" / "seed.iso"):
        status, _, err = call("nodes", "seed", "valar-0", "--output", str(nowhere))
        assert (status, str(nowhere) in err) == (4, True)


def test_all_faults_of_file_and_documents_come_with_status_3(call, tmp_path):
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "user-data").write_text("a: ${file:one}\nb: ${env:NETBOOTD_NOBODY}\n")
    (tmp_path / "netbootd.toml").write_text('[defaults]\ncloud_init = ["ci"]\n')
    status, out, err = call("config", "check")
    assert (status, out) == (3, "")
    assert f"{tmp_path}/ci/user-data:1: ${{file:one}}" in err
    assert f"{tmp_path}/ci/user-data:2: ${{env:NETBOOTD_NOBODY}}" in err
    answer = json.loads(call("config", "check", "--json")[1])
    assert (Path(answer["config"]).name, len(answer["faults"])) == ("netbootd.toml", 2)
    (tmp_path / "netbootd.toml").write_text("[[[")
    assert len(json.loads(call("config", "check", "--json")[1])["faults"]) == 1


def test_what_an_error_quotes_drives_no_terminal_and_is_short(capsys):
    explain_error("Reading \x1b[2J\x9b\n/etc\u202e: " + "x" * 5000, ["one\rtwo"], "Try it.")
    lines = capsys.readouterr().err.splitlines()
    assert all(line.isprintable() and len(line) < 1100 for line in lines)
    assert lines[0].startswith("netbootd: Reading \\x1b[2J\\x9b\\n/etc\\u202e: xxx")
    assert lines[1:] == ["  one\\rtwo", "Try it."]


def test_what_a_log_line_quotes_drives_no_terminal():
    record = logging.LogRecord(
        "x", logging.WARNING, "", 0, "The attribute %s of a link", ("user.\x1b]0;evil\x07",), None
    )
    text = ConsoleFormatter().format(record)
    assert text.isprintable()
    assert text.endswith(r"warning: The attribute user.\x1b]0;evil\x07 of a link")
