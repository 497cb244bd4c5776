"""quickstart: what it runs, in which order, and how it ends; with a stand-in for netbootd, and with netbootd itself."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

STAND_IN = """#!/bin/sh
echo "$*" >> "$CALLS"
[ "$1" != -q ] || shift
case $1 in
config) exit "${CONFIG_STATUS:-0}" ;;
prepare) exit "${PREPARE_STATUS:-0}" ;;
images) echo '{"images": [{"name": "noble", "current": '"${CURRENT:-true}"'}]}' ;;
serve)
    while [ $# -gt 0 ]; do
        [ "$1" != --ready-file ] || { trap 'exit 0' TERM; echo '{}' > "$2"; while :; do sleep 0.05; done; }
        shift
    done ;;
esac
"""


class Checkout:
    """A folder with quickstart and an environment that is made already."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        shutil.copy(ROOT / "quickstart", folder)
        (folder / "setup.cfg").touch()
        (folder / "netbootd.toml").write_text("")
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "netbootd").write_text(program)
        (programs / "netbootd").chmod(0o755)
        (folder / ".venv" / "quickstart.stamp").touch()

    def run(self, *words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "CALLS": str(self.calls_file)}
        kept["NETBOOTD_STATE"] = str(self.folder / "state")
        return subprocess.run(
            [self.folder / "quickstart", *words],
            cwd=cwd or self.folder,
            env={**kept, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[str]:
        """The command lines of netbootd so far, the trial's ready file aside."""
        return [line.partition(" --ready-file")[0] for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path, STAND_IN)


def test_it_checks_first_and_then_prepares_and_serves(checkout: Checkout) -> None:
    done = checkout.run("--source", "my image's.img", "--", "--http-port", "8080")
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.calls == [
        "config check",
        "-q serve --http-port 8080",
        "prepare --source my image's.img",
        "serve --http-port 8080",
    ]


@pytest.mark.parametrize(
    ("environment", "status", "last"),
    [
        ({"CONFIG_STATUS": "3"}, 3, "config check"),
        ({"PREPARE_STATUS": "6"}, 6, "prepare"),
        ({"PREPARE_STATUS": "5", "CURRENT": "false"}, 5, "images list --json"),
        ({"PREPARE_STATUS": "5", "CURRENT": "true"}, 0, "serve"),
    ],
    ids=["faulty configuration", "not verified", "no network", "no network, prepared before"],
)
def test_it_ends_with_the_status_of_what_failed(
    checkout: Checkout, environment: dict[str, str], status: int, last: str
) -> None:
    assert checkout.run(**environment).returncode == status
    assert checkout.calls[-1] == last


def test_its_own_configuration_is_used_wherever_it_is_called_from(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (folder := tmp_path / "checkout").mkdir()
    checkout = Checkout(folder, '#!/bin/sh\necho "${NETBOOTD_CONFIG:-none}" >> "$CALLS"\nexit 3\n')
    checkout.run(cwd=elsewhere)
    checkout.run(cwd=folder)
    checkout.run(cwd=elsewhere, NETBOOTD_CONFIG="/mine.toml")
    (elsewhere / "netbootd.toml").touch()
    checkout.run(cwd=elsewhere)
    assert checkout.calls == [str(folder / "netbootd.toml"), "none", "/mine.toml", "none"]


def test_a_taken_port_is_told_before_anything_is_downloaded(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, f'#!/bin/sh\necho "$*" >> "$CALLS"\nexec {sys.executable} -m netbootd "$@"\n')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        ports = ("--bind", "127.0.0.1", "--tftp-port", "0", "--http-port", port, "--nfs", "off")
        done = checkout.run("--", *ports, PYTHONPATH=str(ROOT))
    assert done.returncode == 4
    assert port in done.stderr
    assert "--http-port" in done.stderr
    assert "nobody can log in" in done.stderr
    assert [call.split()[0] for call in checkout.calls] == ["config", "-q"]


def test_without_a_suitable_python_it_says_what_to_do(checkout: Checkout) -> None:
    (checkout.folder / ".venv" / "quickstart.stamp").unlink()
    tools = checkout.folder / "tools"
    tools.mkdir()
    for name in ("dirname", "cat", "sed"):
        (tools / name).symlink_to(shutil.which(name) or "")
    done = checkout.run(PATH=str(tools))  # no Python there, no apt-get, and no id, so not root
    assert done.returncode == 4
    assert "python3-venv" in done.stderr
    assert "PYTHON=" in done.stderr
