"""The workstation's commands where Python has nothing of Linux's own: what Windows and macOS lack is taken away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.multipass_standin import WINDOWS_NETWORKS, Standin

ABSENT_MODULES = {
    # pip does not install the first two there (setup.cfg); the others are in no Windows Python
    "windows": (
        *(
            "pyroute2",
            "pysequoia",
            "fcntl",
            "grp",
            "pwd",
            "resource",
            "termios",
            "tty",
            "pty",
            "posix",
            "spwd",
            "syslog",
        ),
        *("readline", "curses", "crypt", "nis"),
    ),
    "macos": ("pyroute2", "pysequoia", "spwd"),
}
ABSENT_NAMES = {
    # https://docs.python.org/3/library/os.html and socket.html: "Availability: Unix", "Availability: Linux"
    "windows": {
        "os": (
            *("geteuid", "getuid", "getgid", "getegid", "fork", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK"),
            *("chown", "lchown", "mkfifo", "mknod", "pread", "pwrite", "sendfile", "copy_file_range", "setxattr"),
            *("getxattr", "listxattr", "statvfs", "uname", "fchmod", "fchown", "openpty", "wait4", "posix_fallocate"),
            *("SEEK_DATA", "SEEK_HOLE", "pipe2", "sched_getaffinity", "eventfd", "memfd_create", "register_at_fork"),
        ),
        "socket": ("AF_UNIX", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "SO_REUSEPORT", "CMSG_SPACE", "sethostname"),
        "signal": ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "pthread_sigmask", "setitimer"),
        "select": ("epoll", "poll"),
    },
    "macos": {
        "os": (
            *("copy_file_range", "setxattr", "getxattr", "listxattr", "sched_getaffinity", "eventfd", "memfd_create"),
            *("posix_fallocate",),
        ),
        "socket": ("SOCK_CLOEXEC", "SOCK_NONBLOCK"),
        "select": ("epoll",),
    },
}

BAR = """
import builtins, importlib.abc, json, sys
system, barred, names, argv = json.loads(sys.argv[1])
class Bar(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in barred:
            raise ModuleNotFoundError(f"No module named {name!r} (it is barred)", name=name)
sys.meta_path.insert(0, Bar())
# what the standard library itself has loaded and uses stays its own; ours must not find it
import subprocess, tempfile, tarfile, gzip, shutil, asyncio, socket, signal, select, logging, sqlite3, ipaddress
for name in barred:
    sys.modules.pop(name, None)
REAL = builtins.__import__
for module, attributes in names.items():
    there = sys.modules[module]
    class Lacking(type(there)):
        def __getattribute__(self, name, _lacks=frozenset(attributes)):
            if name in _lacks:
                caller = sys._getframe(1).f_globals.get("__name__", "")
                if caller.partition(".")[0] == "netbootd":
                    raise AttributeError(f"module {self.__name__} has no attribute {name!r} (it is barred)")
            return super().__getattribute__(name)
    there.__class__ = Lacking
import click
sys.platform = system
from netbootd.cli.main import main
main(argv)
"""
SYSTEMS = {"windows": "win32", "macos": "darwin"}


@pytest.fixture
def call(tmp_path: Path):
    standin = Standin(tmp_path / "multipass", WINDOWS_NETWORKS)
    (tmp_path / "netbootd.toml").write_text(
        '[defaults]\nuser = "rack"\n[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\n'
    )

    def run(system: str, *words: str) -> subprocess.CompletedProcess[str]:
        given = json.dumps([SYSTEMS[system], ABSENT_MODULES[system], ABSENT_NAMES[system], words])
        return subprocess.run(
            [sys.executable, "-c", BAR, given],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "NETBOOTD_MULTIPASS": str(standin.program)},
        )

    return run


@pytest.mark.parametrize("system", ["windows", "macos"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--help",), "Commands:"),
        (("vm", "--help"), "Multipass"),
        (("vm", "up", "--dry-run"), "#cloud-config"),
        (("vm", "status"), "absent"),
        (("config", "check"), "no faults"),
        (("config", "show"), "[vm]"),
        (("--log-format", "json", "-v", "config", "show", "--json"), '"vm"'),
    ],
    ids=" ".join,
)
def test_the_workstation_s_commands_need_nothing_of_linux(system: str, words: tuple[str, ...], says: str, call) -> None:
    done = call(system, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert says in done.stdout


def test_a_whole_run_needs_nothing_of_linux(call) -> None:
    done = call("windows", "vm", "up", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["address"]


@pytest.mark.parametrize("words", [("serve",), ("prepare",), ("status",), ("doctor",)], ids=" ".join)
def test_what_only_linux_can_do_says_so(words: tuple[str, ...], call) -> None:
    done = call("windows", *words)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "netbootd vm" in done.stderr


def test_the_bar_bars(call) -> None:
    """The test's own tool: without it the rest would pass for nothing."""
    code = BAR.replace("from netbootd.cli.main import main\nmain(argv)", "import pyroute2")
    given = json.dumps(["win32", ABSENT_MODULES["windows"], ABSENT_NAMES["windows"], []])
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True)
    assert "barred" in done.stderr
    code = BAR.replace("main(argv)", "from netbootd.store import layout; layout.default_state()")
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True)
    assert "has no attribute 'geteuid' (it is barred)" in done.stderr
