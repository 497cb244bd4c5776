"""The unprivileged end of the socket: asks the privileged part, one connection a question."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netbootd.errors import HostError
from netbootd.nfsd.kernel import protocol

SOCKET = Path("/run/netbootd-nfs/socket")
"""Where the privileged part listens (systemd/netbootd-nfs.service)."""

_SECONDS = 60.0  # a start waits for the kernel


class PrivilegedPart:
    """Asks for what takes rights. Every call blocks: for a thread. Every call may raise HostError."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path

    def start(self, addresses: Sequence[str], port: int) -> dict[str, Any]:
        """Let the kernel serve there; gives the status. May be called again."""
        return self._ask(protocol.Start(tuple(addresses), port))

    def handle(self, image: str, generation: str, below: Sequence[bytes], address: str) -> bytes:
        """The NFSv3 file handle of a folder in a generation's root.

        :raises NotFoundError: there is none
        """
        return bytes.fromhex(self._ask(protocol.Handle(image, generation, tuple(below), address))["handle"])

    def register(self, mount_port: int) -> None:
        """Tell the host's rpcbind where MOUNT is answered."""
        self._ask(protocol.Register(mount_port))

    def status(self) -> dict[str, Any]:
        """How things are: see `KernelNfs.status`."""
        return self._ask(protocol.Status())

    def nfs4_clients(self) -> list[str]:
        """The addresses of clients with NFSv4 state."""
        return [str(address) for address in self._ask(protocol.Clients())["nfs4"]]

    def _ask(self, request: protocol.Request) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_SECONDS)
                sock.connect(str(self._path))
                sock.send(protocol.encode_request(request))
                packet = sock.recv(protocol.LIMIT)
        except OSError as error:
            raise HostError(
                f"Asking the privileged part for NFS at {self._path}: {error.strerror or error}.",
                hint="Start it (sudo systemctl start netbootd-nfs), or use --nfs embedded.",
            ) from error
        return protocol.parse_answer(packet)
