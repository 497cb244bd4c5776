"""Addresses and ports as they are written into what a node gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """How a node reaches us: our address and the ports that differ from the standard's.

    `portmap_port` is None where no portmapper answers.
    """

    address: str
    http_port: int = 80
    nfs_port: int = 2049
    mount_port: int = 2049
    portmap_port: int | None = 111

    @property
    def http_base(self) -> str:
        """``http://ADDRESS[:PORT]`` without a slash at the end."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}" if self.http_port == 80 else f"http://{host}:{self.http_port}"
