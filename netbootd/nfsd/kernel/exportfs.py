"""Exports by nfs-utils' exportfs(8), for hosts where rpc.mountd answers the kernel's caches already.

Two programs that answer the same caches refuse each other's exports, so here rpc.mountd goes on answering, and learns
of ours by exportfs. What others have exported is left alone: ours are told by their paths.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import subprocess
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from netbootd.errors import HostError
from netbootd.nfsd.kernel import caches
from netbootd.nfsd.kernel.book import ExportBook

_log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ETAB = Path("/var/lib/nfs/etab")
_ANSWERERS = ("rpc.mountd", "nfsv4.exportd")
_SECONDS = 20.0
_ATTEMPTS = 2


def answerer(proc: Path = Path("/proc")) -> str:
    """The program that answers the kernel's export caches already; "" for none."""
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "comm").read_text().strip()
            except OSError:  # it has ended
                continue
            if name in _ANSWERERS:
                return name
    return ""


class Exportfs:
    """Keeps rpc.mountd's table equal to the book, as far as it is ours.

    :param networks: gives the networks that may use the exports
    :param ours: every path that we ever export begins with this
    """

    def __init__(
        self, book: ExportBook, networks: Callable[[], Iterable[Network]], ours: bytes, etab: Path = ETAB
    ) -> None:
        self._book = book
        self._networks = networks
        self._ours = ours
        self._etab = etab

    def reconcile(self) -> None:
        """Export what is missing, take back what is too much.

        :raises HostError: exportfs(8) fails
        """
        self._book.refresh()
        clients = [client_of(network) for network in self._networks()]
        wanted = {(client, grant.path): grant for grant in self._book.roots() for client in clients}
        ports = "secure" if self._book.secure else "insecure"
        have = self._exported()
        for client, path in sorted(set(have) - set(wanted)):
            _run("-u", f"{client}:{os.fsdecode(path)}")
        for key in sorted(key for key in wanted if ports not in have.get(key, ())):
            client, path = key
            identity = uuid.UUID(bytes=wanted[key].uuid)
            options = f"ro,no_root_squash,no_subtree_check,{ports},insecure_locks,sec=sys,fsid={identity}"
            _run("-o", options, f"{client}:{os.fsdecode(path)}")

    def withdraw(self) -> None:
        """Take back everything of ours. What fails twice is logged: the rest, and whoever ends, must go on."""
        failed: HostError | None = None
        for _ in range(_ATTEMPTS):
            failed = None
            for client, path in self._exported():
                try:
                    _run("-u", f"{client}:{os.fsdecode(path)}")
                except HostError as error:  # on a busy host it may have run out of time
                    failed = error
            if failed is None:
                return
        _log.error("Some exports are left: %s", failed)

    def _exported(self) -> dict[tuple[str, bytes], list[str]]:
        """Our exports in rpc.mountd's table: (client, path), and the words of its options."""
        try:
            lines = self._etab.read_bytes().splitlines()
        except OSError:
            return {}
        found = {}
        for line in lines:
            path, _, rest = line.partition(b"\t")
            path = caches.split(path)[0] if path else b""
            if path.startswith(self._ours + b"/"):
                client, _, options = rest.decode().partition("(")
                found[bracketed(client), path] = options.rstrip(")").split(",")
        return found


def client_of(network: Network) -> str:
    """A network as exportfs(8) takes it before a path: IPv6 in brackets."""
    return bracketed(str(network))


def bracketed(client: str) -> str:
    """An IPv6 address or network in brackets; anything else as it is."""
    address, slash, length = client.partition("/")
    return f"[{address}]{slash}{length}" if ":" in address and not address.startswith("[") else client


def _run(*words: str) -> None:
    command: Sequence[str] = ("exportfs", *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"Running exportfs: {error}.", hint="It comes with nfs-kernel-server (nfs-utils).") from error
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
