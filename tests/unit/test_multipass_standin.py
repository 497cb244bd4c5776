"""The stand-in of Multipass itself: it refuses what Multipass refuses, in its words and with its exit statuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.multipass_standin import BRIDGED_LINUX_NETWORKS, LINUX_NETWORKS, Standin
from tests.support.processes import run

LAUNCH = ("launch", "26.04", "--name", "vm")


@pytest.fixture
def standin(tmp_path: Path) -> Standin:
    return Standin(tmp_path / "multipass", BRIDGED_LINUX_NETWORKS)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("frobnicate",), 1, "Unknown command or alias 'frobnicate'"),
        (("list", "--nonsense"), 1, "Unknown option 'nonsense'."),
        (("list", "--nonsense", "-x"), 1, "Unknown options: nonsense, x."),
        (("list", "--format"), 1, "Missing value after '--format'."),
        (("list", "--format", "xml"), 1, "Invalid format type given."),
        (("list", "vm"), 1, "This command takes no arguments"),
        (("launch", "a", "b"), 1, "Too many arguments supplied"),
        (("launch", "--cpus", "none"), 1, "invalid CPU count 'none'"),
        (("launch", "--memory", "lots"), 1, "lots is not a valid memory size"),
        (("launch", "--network", "mode=auto"), 1, "need at least a 'name' field"),
        (("launch", "--network", "name=br0,mode=often"), 1, "Bad network mode 'often'"),
        (("launch", "--network", "name=br0,mac=1:2"), 1, "Invalid MAC address: 1:2"),
        (("launch", "--network", "name=br0,speed=1"), 1, "Bad network field: speed"),
        (("launch", "--timeout", "0"), 1, "--timeout value has to be a positive integer"),
        (("launch", "--cloud-init", "/nowhere"), 1, "Please ensure that Multipass can read it."),
        (("launch", "--network", "name=eth9"), 2, "Invalid network options"),
        (("launch", "--memory", "1M"), 2, "Invalid memory size value supplied: 1M."),
        (("launch", "--name", "1st"), 2, "Invalid instance name supplied: 1st"),
        (("launch", "warty"), 2, 'Unable to find an image matching "warty"'),
        (("exec", "vm"), 1, "Wrong number of arguments"),
        (("exec", "vm", "ls", "-l"), 1, 'Options to the inner command should come after "--"'),
        (("exec", "vm", "--", "ls"), 2, 'instance "vm" does not exist'),
        (("start", "vm"), 2, "Instance 'vm' does not exist."),
        (("stop", "vm"), 2, 'instance "vm" does not exist'),
        (("stop",), 1, "Name argument or --all is required"),
        (("delete", "vm"), 2, 'instance "vm" does not exist'),
        (("transfer", "-", "file"), 1, "Target must be inside an instance"),
        (("get", "local.nonsense"), 1, "Unrecognized settings key: 'local.nonsense'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_multipass_refuses(words: tuple[str, ...], status: int, says: str, standin: Standin) -> None:
    done = run([standin.program, *words], check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    assert standin.read()["instances"] == {}


def test_states_follow_each_other_as_multipass_has_them(standin: Standin) -> None:
    def call(*words: str) -> tuple[int, str]:
        done = run([standin.program, *words], check=False)
        return done.returncode, done.stdout + done.stderr

    def state() -> str:
        (row,) = json.loads(call("list", "--format", "json")[1])["list"]
        assert set(row) == {"name", "state", "ipv4", "release", "zone"}
        assert bool(row["ipv4"]) == (row["state"] == "Running")
        return str(row["state"])

    assert call(*LAUNCH) == (0, "Launched: vm in zone1\n")
    assert state() == "Running"
    assert call(*LAUNCH)[0] == 2
    assert call("exec", "vm", "--", "sh", "-c", "exit 7")[0] == 7  # the command's own
    assert call("stop", "vm")[0] == 0
    assert state() == "Stopped"
    assert call("exec", "vm", "--", "true")[0] == 0  # src/client/cli/cmd/exec.cpp: started for it
    assert state() == "Running"
    assert call("delete", "vm")[0] == 0
    assert state() == "Deleted"
    assert 'instance "vm" is deleted' in call("exec", "vm", "--", "true")[1]
    assert "already exists" in call(*LAUNCH)[1]
    assert call("delete", "--purge", "vm")[0] == 0
    assert json.loads(call("list", "--format", "json")[1]) == {"list": []}


def test_a_bridge_is_asked_for_on_a_terminal_only(tmp_path: Path) -> None:
    standin = Standin(tmp_path / "multipass", LINUX_NETWORKS)
    done = run([standin.program, *LAUNCH, "--network", "eth0"], check=False)
    assert (done.returncode, "Missing bridges" in done.stderr) == (2, True)
    for answer, status in (("no", 2), ("yes", 0)):
        script = f"{standin.program} {' '.join(LAUNCH)} --network eth0"
        done = run(["script", "-qec", script, "/dev/null"], stdin=f"{answer}\n", check=False)
        assert "Do you want to continue (yes/no)?" in done.stdout
        assert done.returncode == status, done.stdout


def test_without_its_daemon_only_the_version_answers(standin: Standin) -> None:
    standin.change(daemon=False)
    assert json.loads(run([standin.program, "version", "--format", "json"]).stdout) == {"multipass": "1.16.3"}
    done = run([standin.program, "list", "--format", "json"], check=False)
    assert done.returncode == 2  # include/multipass/cli/dispatch_rpc.h makes it a NOT_FOUND
    assert done.stderr.startswith("list failed: cannot connect to the multipass socket\n")


def test_every_answer_cites_where_it_is_from() -> None:
    text = (Path(__file__).parents[1] / "support/multipass_standin/client.py").read_text()
    methods = re.findall(r"    def (\w+)\(self.*?\n(?=    def |\n\ndef |\Z)", text, re.DOTALL)
    bodies = re.split(r"\n    def ", text)
    commands = {"version", "networks", "list", "get", "launch", "start", "stop", "delete", "exec", "shell", "transfer"}
    assert commands <= set(methods)
    for body in bodies:
        if body.split("(")[0] in commands:
            assert re.search(r"\w+\.(?:cpp|h|md)", body), body[:60]
