"""Which generations nodes may still read: by what was recorded of boots and mounts, and by who is connected right now.

NFSv3 has no list of who has mounted what. A node that was seen with a generation uses it until it is seen with another.
An address that is connected to the NFS port, or has NFSv4 state, and of which nothing is recorded may use any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from netbootd.errors import HostError
from netbootd.host.connections import peers_of
from netbootd.nfsd.kernel.client import SOCKET, PrivilegedPart
from netbootd.store.database import NodeRecord


@dataclass(frozen=True, slots=True)
class Usage:
    """`generations`: (image, id) of those in use; `strangers`: addresses that may use any, so that all are in use."""

    generations: frozenset[tuple[str, str]]
    strangers: tuple[str, ...] = ()

    def in_use(self, image: str, every: Collection[str]) -> set[str]:
        """Of all generations of an image (their ids), those that must stay."""
        if self.strangers:
            return set(every)
        return {ident for name, ident in self.generations if name == image}


def usage_of(records: Collection[NodeRecord], connected: Collection[str]) -> Usage:
    """What is in use, by records of nodes and the addresses that are connected."""
    known = {record.address for record in records if record.generation}
    strangers = sorted(address for address in set(connected) - known)
    return Usage(frozenset((record.image, record.generation) for record in records), tuple(strangers))


def connected_clients(port: int, peers: Callable[[int], set[str]] = peers_of) -> set[str]:
    """The addresses that use NFS at this moment.

    :raises HostError: the kernel doesn't tell
    """
    found = set(peers(port))
    if SOCKET.exists():
        try:
            found |= set(PrivilegedPart().nfs4_clients())
        except HostError:  # it doesn't run, or it is not for us to ask: then the connections have to do
            return found
    return found
