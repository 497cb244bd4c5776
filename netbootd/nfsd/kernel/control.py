"""The switches of the kernel's NFS server, behind one interface: generic netlink, or files where that has no commands.

`open_control` takes netlink where the kernel has the family ``nfsd`` with its commands (Linux 6.10 and later), else
/proc/fs/nfsd (`netbootd.nfsd.kernel.procfs`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from netbootd.errors import HostError
from netbootd.nfsd.kernel import messages
from netbootd.nfsd.kernel.messages import Command


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A version of the NFS protocol: 3.0, 4.2."""

    major: int
    minor: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" if self.major >= 4 else str(self.major)


V3, V4_2 = Version(3), Version(4, 2)


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A socket on which the kernel serves NFS. `address` is empty where the kernel doesn't tell it."""

    transport: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class PoolMode:
    """How threads are shared out, and into how many pools."""

    mode: str
    pools: int


@dataclass(frozen=True, slots=True)
class Setup:
    """How the server is to run. `grace`: for how many seconds after a start NFSv4 clients may claim what they had.

    `pool_mode` is left as it is where it is empty.
    """

    listeners: tuple[Listener, ...]
    threads: int
    versions: tuple[Version, ...] = (V3, V4_2)
    grace: int = 10
    pool_mode: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the kernel is answering. `since`: when it came, by the kernel's CLOCK_MONOTONIC, in seconds."""

    program: int
    version: int
    procedure: int
    client: str
    since: float


class ServerControl(Protocol):
    """What can be asked of, and told to, the kernel's server.

    Every call may raise HostError with what the kernel said.
    """

    name: str

    def threads(self) -> int:
        """How many threads serve; 0: the server doesn't run."""

    def versions(self) -> dict[Version, bool]:
        """Which versions this kernel has, and whether each is enabled."""

    def listeners(self) -> list[Listener]:
        """Where it listens."""

    def pool_mode(self) -> PoolMode | None:
        """How its threads are shared out, None where the kernel doesn't tell."""

    def calls(self) -> list[Call]:
        """The calls under way; empty where the kernel doesn't tell."""

    def start(self, setup: Setup) -> None:
        """Set everything and run. Only while no thread runs."""

    def stop(self) -> None:
        """End the server; its listeners are forgotten."""


class NetlinkControl:
    """By generic netlink. Reading takes no rights, setting takes CAP_NET_ADMIN."""

    name = "netlink"

    def threads(self) -> int:
        """See `ServerControl`."""
        return sum(sum(answer.get_attrs("NFSD_A_SERVER_THREADS")) for answer in self._ask(Command.THREADS_GET))

    def versions(self) -> dict[Version, bool]:
        """See `ServerControl`."""
        found = {}
        for answer in self._ask(Command.VERSION_GET):
            for inner in answer.get_attrs("NFSD_A_SERVER_PROTO_VERSION"):
                version = Version(inner.get_attr("NFSD_A_VERSION_MAJOR"), inner.get_attr("NFSD_A_VERSION_MINOR") or 0)
                found[version] = bool(inner.get_attrs("NFSD_A_VERSION_ENABLED"))
        return found

    def listeners(self) -> list[Listener]:
        """See `ServerControl`."""
        found = []
        for answer in self._ask(Command.LISTENER_GET):
            for inner in answer.get_attrs("NFSD_A_SERVER_SOCK_ADDR"):
                address, port = messages.unpack_address(bytes(inner.get_attr("NFSD_A_SOCK_ADDR") or b""))
                found.append(Listener(str(inner.get_attr("NFSD_A_SOCK_TRANSPORT_NAME") or ""), address, port))
        return found

    def pool_mode(self) -> PoolMode | None:
        """See `ServerControl`."""
        try:
            answers = self._ask(Command.POOL_MODE_GET)
        except HostError as error:
            if error.errno == errno.EOPNOTSUPP:  # Linux 6.10 doesn't have it yet
                return None
            raise
        return next(
            (PoolMode(a.get_attr("NFSD_A_POOL_MODE_MODE"), a.get_attr("NFSD_A_POOL_MODE_NPOOLS")) for a in answers),
            None,
        )

    def calls(self) -> list[Call]:
        """See `ServerControl`."""
        return [call_of(answer) for answer in self._ask(Command.RPC_STATUS_GET, NLM_F_REQUEST | NLM_F_DUMP)]

    def start(self, setup: Setup) -> None:
        """See `ServerControl`."""
        if setup.pool_mode:
            self._tell(messages.pool_mode_set(setup.pool_mode))
        self._tell(messages.version_set([(version.major, version.minor) for version in setup.versions]))
        self._tell(messages.listener_set([(one.transport, one.address, one.port) for one in setup.listeners]))
        try:
            self._tell(messages.threads_set([setup.threads], grace=setup.grace))
        except HostError:
            self.stop()  # what listens already would stay
            raise

    def stop(self) -> None:
        """See `ServerControl`."""
        self._tell(messages.threads_set([0]))

    def _ask(self, command: Command, flags: int = NLM_F_REQUEST) -> list[genlmsg]:
        with _socket(command) as sock, _failures(f"Asking the kernel's NFS server ({command.name})"):
            return list(sock.nlm_request(messages.message(command), msg_type=sock.prid, msg_flags=flags))

    def _tell(self, request: genlmsg) -> None:
        command = Command(request["cmd"])
        with _socket(command) as sock, _failures(f"Setting up the kernel's NFS server ({command.name})"):
            list(sock.nlm_request(request, msg_type=sock.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK))


def call_of(answer: genlmsg) -> Call:
    """A call, of one message of the dump."""
    client = answer.get_attr("NFSD_A_RPC_STATUS_SADDR4") or answer.get_attr("NFSD_A_RPC_STATUS_SADDR6") or ""
    return Call(
        int(answer.get_attr("NFSD_A_RPC_STATUS_PROG") or 0),
        int(answer.get_attr("NFSD_A_RPC_STATUS_VERSION") or 0),
        int(answer.get_attr("NFSD_A_RPC_STATUS_PROC") or 0),
        str(client),
        (answer.get_attr("NFSD_A_RPC_STATUS_SERVICE_TIME") or 0) / 1e6,
    )


@contextmanager
def _socket(command: Command) -> Iterator[Any]:
    """A socket of the family for one request: the kind of an answer follows from what was asked."""
    sock = GenericNetlinkSocket()
    try:
        sock.bind(messages.FAMILY, messages.ANSWERS[command])
        yield sock
    finally:
        sock.close()


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise failure(doing, int(error.code)) from error
    except OSError as error:
        raise failure(doing, error.errno or errno.EIO) from error


def failure(doing: str, number: int) -> HostError:
    """What to tell of an error number of the kernel."""
    hints = {
        errno.EPERM: "The privileged part (netbootd-nfs.service) needs CAP_NET_ADMIN and CAP_SYS_ADMIN.",
        errno.EADDRINUSE: "Another program has the port: stop it (ss -ltnp shows it), or choose another by --nfs-port.",
        errno.EBUSY: "The kernel's NFS server runs already; stop it, or let netbootd use it as it is.",
        errno.ECONNREFUSED: "The kernel registers NFSv3 with rpcbind: start rpcbind, or stop what holds its socket.",
    }
    error = HostError(f"{doing}: {os.strerror(number)}.", hint=hints.get(number, ""))
    error.errno = number
    return error


def netlink_commands() -> bool:
    """Whether the family is there with the commands that are needed (before Linux 6.10 it has rpc-status alone)."""
    try:
        NetlinkControl().threads()
        NetlinkControl().listeners()
    except (HostError, NetlinkError, OSError):
        return False
    return True


def open_control(proc: Path) -> ServerControl:
    """The way to the kernel's server that this kernel has.

    :param proc: where the file system ``nfsd`` is mounted
    :raises HostError: neither is there
    """
    from netbootd.nfsd.kernel.procfs import ProcControl

    if netlink_commands():
        return NetlinkControl()
    control = ProcControl(proc)
    control.threads()
    return control
