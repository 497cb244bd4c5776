"""The TFTP servers of the benchmark: ours and the peers, and where the peers come from.

What isn't installed is unpacked from Debian's packages (tftpd-hpa and atftpd can't be installed beside each other).
Those of sid want a newer libc than this host's: they run with sid's own loader and libraries, unpacked beside them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.setting import version_line
from tests.support.processes import run

ADDRESS = "127.0.0.1"
_SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} sid main\n"
_SID = "sid"


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is started on `port`, and what names its version."""

    name: str
    argv: tuple[str, ...]
    port: int
    version: str
    env: dict[str, str] | None = None


def servers(root: Path, folder: Path) -> list[Server]:
    """Ours and the peers, each serving `root`; what isn't installed was unpacked below `folder`."""
    ours = ("serve", "--bind", ADDRESS, "--tftp-port", "7010", "--http-port", "0", "--nfs", "off")
    layers = ("--boot-files", str(root), "--boot-files", str(root / ".pi"))
    argv = (sys.executable, "-m", "netbootd", "-q", "--state", str(folder / "state"), *ours, *layers)
    fbtftp = f"fbtftp {run([sys.executable, '-m', 'pip', 'show', 'fbtftp']).stdout.split()[3]}"
    static = (sys.executable, "-m", "tests.benchmarks.fbtftp_static", ADDRESS, "7003", str(root))
    wrap = next(folder.glob("usr/lib/*/libwrap.so.0"), None)
    libraries = {"LD_LIBRARY_PATH": str(wrap.parent)} if wrap else {}
    sid = folder / _SID
    library = next(sid.glob("usr/lib/*-linux-gnu"))
    loader = (str(next(library.glob("ld-linux-*.so.*"))), "--library-path", f"{library}:{library / 'systemd'}")
    dnsmasq = (*loader, str(sid / "usr/sbin/dnsmasq"))
    return [
        Server("netbootd", argv, 7010, ""),
        Server("netbootd-uvloop", argv, 7010, f"uvloop {version('uvloop')}", {"NETBOOTD_LOOP": "uvloop"}),
        _hpa("tftpd-hpa", (_program(folder, "in.tftpd"),), root, _package_version("tftpd-hpa"), libraries),
        _dnsmasq("dnsmasq", ("dnsmasq",), root),
        _atftpd(_program(folder, "atftpd"), root, libraries),
        Server("fbtftp", static, 7003, fbtftp),
        _hpa("tftpd-hpa-sid", (*loader, str(sid / "usr/sbin/in.tftpd")), root, _sid_version(sid, "tftpd-hpa")),
        _dnsmasq("dnsmasq-sid", dnsmasq, root),
    ]


def _hpa(name: str, program: tuple[str, ...], root: Path, version: str, env: dict[str, str] | None = None) -> Server:
    return Server(name, (*program, "-L", "-a", f"{ADDRESS}:7001", "-s", str(root), "-u", "root"), 7001, version, env)


def _dnsmasq(name: str, program: tuple[str, ...], root: Path) -> Server:
    options = ("-k", "-C", "/dev/null", "-p", "0", "--enable-tftp", f"--tftp-root={root}", "--tftp-max=300")
    quiet = ("--quiet-tftp", f"--listen-address={ADDRESS}", "--bind-interfaces", "--user=root", "--pid-file=")
    version = version_line([*program, "--version"]).rpartition(" ")[2]
    return Server(name, (*program, *options, *quiet, "--log-facility=-"), 69, f"dnsmasq {version}")


def _atftpd(program: str, root: Path, env: dict[str, str]) -> Server:
    daemon = ("--daemon", "--no-fork", "--bind-address", ADDRESS, "--port", "7002", "--verbose=1")
    options = ("--maxthread", "300", "--user", "root.root", "--logfile", "/dev/null")
    return Server("atftpd", (program, *daemon, *options, str(root)), 7002, _package_version("atftpd"), env)


def unpack_peers(folder: Path) -> None:
    """Get those of the peers that aren't installed from Debian's packages, below `folder`."""
    for package, program in (("tftpd-hpa", "in.tftpd"), ("atftpd", "atftpd")):
        if not (Path("/usr/sbin") / program).exists():
            run(["apt-get", "download", "-qq", package, "libwrap0"], cwd=folder)
    for archive in folder.glob("*.deb"):
        run(["dpkg", "-x", archive, folder])
    _unpack_sid(folder / _SID, "tftpd-hpa", "dnsmasq-base")


def _unpack_sid(folder: Path, *packages: str) -> None:
    """Packages of sid and all that they need, with an apt that knows nothing of this host's."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(_SOURCE.format(mirror=_mirror()))
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    run([*apt, "update"])
    run([*apt, "install", "--download-only", "--yes", "--no-install-recommends", *packages])
    for archive in (folder / "cache" / "archives").glob("*.deb"):
        run(["dpkg", "-x", archive, folder])


def _mirror() -> str:
    """Where this host has its Debian packages from."""
    for line in run(["apt-cache", "policy"]).stdout.splitlines():
        address = next((word for word in line.split() if word.startswith(("http://", "https://"))), "")
        if address.rstrip("/").endswith("/debian"):
            return address
    return "http://deb.debian.org/debian"


def _program(folder: Path, name: str) -> str:
    installed = Path("/usr/sbin") / name
    return str(installed if installed.exists() else folder / "usr/sbin" / name)


def _package_version(package: str) -> str:
    policy = run(["apt-cache", "policy", package]).stdout.split()
    return f"{package} {policy[policy.index('Candidate:') + 1]}"


def _sid_version(folder: Path, package: str) -> str:
    """From the name of the archive, which has the version's ``:`` as ``%3a``."""
    archive = next((folder / "cache" / "archives").glob(f"{package}_*.deb"))
    return f"{package} {archive.name.split('_')[1].replace('%3a', ':')}"
