"""What is wrong with this host, and what to do about it: ports, privileges, NFS, addresses, room, clock, configuration.

Every check is a function that yields findings and changes nothing. None waits for longer than a few seconds.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from netbootd.config.loader import warnings
from netbootd.config.schema import Config
from netbootd.errors import HostError, NetbootdError
from netbootd.host.kernel import has_nfs_server
from netbootd.host.links import address_to_advertise, local_addresses
from netbootd.nfsd.kernel.client import SOCKET, PrivilegedPart
from netbootd.service.exports import unprivileged_images
from netbootd.service.reload import reread
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout

Level = Literal["ok", "warning", "error"]

IMAGE_BYTES = 10 << 30
"""Room for one image: the archive, the tree, and the tree of the next generation."""
_BUILD_YEAR = 2025
_BIND_CAPABILITY = 10  # linux/capability.h: CAP_NET_BIND_SERVICE
_FIRST_PORT = "/proc/sys/net/ipv4/ip_unprivileged_port_start"  # Documentation/networking/ip-sysctl.rst
_TFTP_PORT = 69  # the lowest of ours
_READ_CAPABILITY = 2  # CAP_DAC_READ_SEARCH


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `message` is a sentence; `remedy` another, empty where nothing is wrong."""

    check: str
    level: Level
    message: str
    remedy: str = ""


def examine(read: Callable[[], Config], layout: Layout) -> list[Finding]:
    """Look at everything.

    :param read: gives the configuration; where it is faulty, the rest is looked at by the defaults
    """
    findings = []
    try:
        config = reread(read)
        findings += list(configuration(config))
    except NetbootdError as error:
        findings.append(
            Finding(
                "configuration", "error", " ".join((error.message, *error.details)), "netbootd config check tells all."
            )
        )
        config = Config(None, Path.cwd())
    for check in (ports, privileges, nfs, addresses, images):
        findings += list(check(config, layout))
    return findings + list(room(layout)) + list(clock())


def configuration(config: Config) -> Iterator[Finding]:
    """What is allowed and yet probably not meant."""
    notes = warnings(config)
    where = str(config.path or "the built-in defaults")
    if not notes:
        yield Finding("configuration", "ok", f"{where}: no faults.")
    for note in notes:
        yield Finding("configuration", "warning", note, "netbootd config show tells what is in effect.")


# -------------------------------------------------------------------- ports


def ports(config: Config, layout: Layout) -> Iterator[Finding]:
    """Whether each port can be had, or is ours already."""
    wanted = [("TFTP", socket.SOCK_DGRAM, config.tftp.port, "[tftp] port"), *_tcp_ports(config)]
    for name, kind, port, key in wanted:
        if port == 0:
            continue
        proto = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
        what = f"{name}'s port {port} ({proto})"
        problem = _bind_problem(kind, port)
        if problem == 0:
            yield Finding("ports", "ok", f"{what} is free.")
        elif problem == errno.EADDRINUSE:
            holder = _holder(proto.lower(), port)
            if "netbootd" in holder or _unit_active(_SOCKET_OF[name]):
                yield Finding("ports", "ok", f"{what} is netbootd's.")
            elif name == "portmapper":
                yield Finding(
                    "ports", "warning", f"{what} is held by {holder or 'another program'}.",
                    "As root, netbootd registers there; else stop rpcbind, or set [nfs] portmap_port = \"off\".",
                )  # fmt: skip
            else:
                yield Finding(
                    "ports", "error", f"{what} is held by {holder or 'another program'}.",
                    f"Stop it (ss -lntup shows more), or set {key}.",
                )  # fmt: skip
        elif problem in (errno.EACCES, errno.EPERM):
            yield Finding(
                "ports", "warning", f"{what} takes root to open.",
                f"Install the units (sudo netbootd doctor --install-units), run as root, or set {key}.",
            )  # fmt: skip
        else:
            yield Finding("ports", "error", f"{what} can't be opened: {os.strerror(problem)}.", f"Set {key}.")


_SOCKET_OF = {
    "TFTP": "netbootd-tftp.socket",
    "HTTP": "netbootd-http.socket",
    "NFS": "netbootd-nfs.socket",
    "portmapper": "netbootd-portmap.socket",
}


def _tcp_ports(config: Config) -> list[tuple[str, int, int, str]]:
    found = [("HTTP", int(socket.SOCK_STREAM), config.http.port, "[http] port")]
    if config.nfs.backend in ("auto", "embedded") and not _unit_active("netbootd-nfs.service"):
        found.append(("NFS", int(socket.SOCK_STREAM), config.nfs.port, "[nfs] port"))
    if config.nfs.backend != "off" and config.nfs.portmap_port is not None:
        found.append(("portmapper", int(socket.SOCK_STREAM), config.nfs.portmap_port, "[nfs] portmap_port"))
    return found


def _bind_problem(kind: int, port: int) -> int:
    """0 where the port can be had, else the error's number. Nothing listens in the meantime."""
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 -- looked at, not served
            if kind == socket.SOCK_STREAM:
                probe.listen(1)
        except OSError as error:
            return error.errno or errno.EINVAL
    return 0


def _holder(proto: str, port: int) -> str:
    """The program behind a port as ss(8) tells; "" where it doesn't (it takes root to see others' programs)."""
    said = _output("ss", "-H", "-lnp", f"--{proto}", f"sport = :{port}")
    _, marker, rest = said.partition('users:(("')
    return rest.split('"')[0] if marker else ""


def _unit_active(unit: str) -> bool:
    return _output("systemctl", "is-active", unit).strip() == "active"


def _output(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


# -------------------------------------------------------------------- rights


def privileges(config: Config, layout: Layout) -> Iterator[Finding]:
    """Whether whoever runs this could serve and prepare by hand; under the units neither right is needed."""
    root = os.geteuid() == 0
    if root:
        yield Finding("privileges", "ok", "This is root: all ports, and root trees as they are in the image.")
    else:
        able = _capable(_BIND_CAPABILITY) or int(_read(_FIRST_PORT) or 1024) <= _TFTP_PORT
        yield Finding(
            "privileges",
            "ok" if able else "warning",
            "A plain user" + (", who may open ports below 1024." if able else ": no ports below 1024, and "
            "prepare keeps the owners of an image's files only with --unprivileged, beside them."),
            "" if able else "Use the units (sudo netbootd doctor --install-units), or sudo.",
        )  # fmt: skip
    if _unit_active("netbootd.service"):
        yield Finding("privileges", "ok", "netbootd.service is active, as the unprivileged user netbootd.")
    db = layout.database.parent
    if db.exists() and not os.access(db, os.R_OK | os.X_OK):
        yield Finding("privileges", "warning", f"{db} can't be read by you.", "Run netbootd status with sudo.")


def _capable(number: int) -> bool:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return bool(mask >> number & 1)


# -------------------------------------------------------------------- NFS, addresses, images


def nfs(config: Config, layout: Layout) -> Iterator[Finding]:
    """Who serves root file systems, and whether the kernel's server is in the way or at hand."""
    backend = config.nfs.backend
    recorded = unprivileged_images(Generations(layout))
    if backend == "off":
        yield Finding("nfs", "warning", "NFS is off: nodes have no root file system.", 'Set [nfs] backend = "auto".')
    elif recorded and backend == "kernel":
        yield Finding(
            "nfs", "error",
            f"The kernel's NFS server can't serve what was made with --unprivileged: {', '.join(recorded)}.",
            'Prepare it as root without --unprivileged, or set [nfs] backend = "embedded".',
        )  # fmt: skip
    elif recorded and backend == "auto" and SOCKET.exists():
        yield Finding(
            "nfs", "warning",
            f"netbootd's own NFS server has to serve {', '.join(recorded)}, made with --unprivileged, and the"
            " privileged part for the kernel's runs.",
            "Prepare it as root without --unprivileged; or sudo systemctl stop netbootd-nfs, and restart netbootd.",
        )  # fmt: skip
    elif SOCKET.exists() and backend != "embedded":
        yield from _kernel_nfs()
    elif backend == "kernel":
        known = has_nfs_server()
        yield Finding(
            "nfs", "error",
            "netbootd-nfs.service, the privileged part of serving by the kernel's NFS server, does not run"
            + ("." if known else ", and this kernel has no NFS server."),
            "sudo netbootd doctor --install-units; sudo systemctl restart netbootd-nfs netbootd"
            if known else 'Set [nfs] backend = "embedded".',
        )  # fmt: skip
    else:
        threads = _read("/proc/fs/nfsd/threads")
        if threads not in ("", "0") and config.nfs.port == 2049:
            yield Finding(
                "nfs",
                "error",
                f"The kernel's NFS server runs ({threads} threads) and has the port that netbootd's own wants.",
                "sudo systemctl disable --now nfs-server, or set [nfs] port, or backend to kernel.",
            )
        else:
            yield Finding("nfs", "ok", "NFS is served by netbootd's own server; the kernel's is not needed.")


def _kernel_nfs() -> Iterator[Finding]:
    """What the privileged part tells of the kernel's server."""
    try:
        told = PrivilegedPart().status()
    except (PermissionError, HostError):
        yield Finding("nfs", "warning", "The privileged part for NFS does not answer you.", "Run it with sudo.")
        return
    if not told["running"]:
        yield Finding(
            "nfs", "warning", "The kernel's NFS server does not run (yet).", "journalctl -u netbootd-nfs -u netbootd"
        )
        return
    who = "others have started" if told["adopted"] else "netbootd has started"
    how = "by netlink" if told["by"] == "netlink" else "by /proc/fs/nfsd, since this kernel has no netlink commands"
    exports = "rpc.mountd's table" if told["exports_by"] == "exportfs" else "the kernel's caches"
    yield Finding(
        "nfs", "ok",
        f"NFS is served by the kernel's server, which {who}: {told['threads']} threads, versions "
        f"{', '.join(told['versions'])}, managed {how}; {told['exports']} generations exported through {exports}.",
    )  # fmt: skip


def addresses(config: Config, layout: Layout) -> Iterator[Finding]:
    """Which address nodes are told, and whether it is this host's."""
    server = config.server
    try:
        told = address_to_advertise("", str(server.address or ""), server.interface, ())
    except HostError as error:
        yield Finding("addresses", "error", error.message, error.hint)
        return
    own = {local.address: local for local in local_addresses()}
    if told not in own:
        yield Finding(
            "addresses",
            "error",
            f"Nodes are told {told}, which is no address of this host.",
            "Correct [server] address.",
        )
        return
    others = [local.address for local in own.values() if local.is_global and local.network.version == 4]
    if len(others) > 1 and not server.address and not server.interface:
        yield Finding(
            "addresses",
            "warning",
            f"Nodes are told {told}, the default route's, of {', '.join(others)}.",
            "Where that is not the nodes' network, set [server] address or interface.",
        )
    else:
        yield Finding("addresses", "ok", f"Nodes are told {told} ({own[told].interface}).")


def images(config: Config, layout: Layout) -> Iterator[Finding]:
    """Whether there is something to boot."""
    generations = Generations(layout)
    prepared = {name for name in generations.names() if generations.current(name)}
    wanted = [image.name for image in config.images] or ([] if prepared else ["noble"])
    missing = [name for name in wanted if name not in prepared]
    if missing:
        yield Finding(
            "images", "warning", f"Not prepared yet: {', '.join(missing)}.", f"netbootd prepare {' '.join(missing)}"
        )
    if prepared:
        yield Finding("images", "ok", f"Prepared: {', '.join(sorted(prepared))}.")


# -------------------------------------------------------------------- room, clock


def room(layout: Layout) -> Iterator[Finding]:
    """Whether the state folder's disk has room for an image, and inodes for its files."""
    folder = next(path for path in (layout.state, *layout.state.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    inodes = os.statvfs(folder)
    where = f"{free / 1e9:.1f} GB are free below {layout.state}"
    if free < IMAGE_BYTES:
        yield Finding(
            "room", "warning", f"{where}; an image takes about {IMAGE_BYTES >> 30} GiB while it is built.",
            "netbootd images prune, or --state (NETBOOTD_STATE) on a larger disk.",
        )  # fmt: skip
    elif inodes.f_files and inodes.f_favail < 300_000:
        yield Finding(
            "room", "warning", f"{inodes.f_favail} files can still be made below {layout.state}; an image has 200,000.",
            "netbootd images prune, or another file system.",
        )  # fmt: skip
    else:
        yield Finding("room", "ok", f"{where}.")


def clock() -> Iterator[Finding]:
    """Whether the clock is right: certificates and signatures are judged by it."""
    year = time.gmtime().tm_year
    if year < _BUILD_YEAR:
        yield Finding(
            "clock",
            "error",
            f"The clock says {year}: downloads and signatures will fail.",
            "sudo timedatectl set-ntp true",
        )
        return
    synchronized = Path("/run/systemd/timesync/synchronized").exists()
    said = _output("timedatectl", "show", "--property=NTPSynchronized", "--value").strip()
    if synchronized or said == "yes":
        yield Finding("clock", "ok", "The clock is set by NTP.")
    elif said == "no":
        yield Finding(
            "clock",
            "warning",
            "The clock is not set by NTP (yet).",
            "sudo timedatectl set-ntp true, or install chrony.",
        )
    else:
        yield Finding("clock", "ok", f"The clock says {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC.")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
