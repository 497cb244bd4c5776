"""What a TFTP server counts, for metrics and for people. The counters live in fbtftp's ``ServerStats``."""

from __future__ import annotations

from netbootd.tftpd.source import ServerStats

COUNTERS = (
    "requests",  # read requests looked at
    "transfers",  # files sent whole
    "bytes",  # octets of files that were acknowledged
    "retransmits",  # datagrams sent again
    "misses",  # no such file
    "probes",  # size asked for, then ended by the client
    "aborted",  # broken off by the client
    "errors",  # failures of ours, refusals included
    "malformed",  # datagrams that are no TFTP request
    "strangers",  # datagrams from a port or host that they should not come from
    "refused",  # requests from addresses that are not served
    "limited",  # requests dropped or turned away by a limit
)


class TftpStats:
    """Counters since the start, and `open`, the number of transfers under way."""

    def __init__(self) -> None:
        self.counters = ServerStats()  # type: ignore[no-untyped-call]
        self.open = 0

    def add(self, name: str, amount: int = 1) -> None:
        """Raise a counter of `COUNTERS`."""
        self.counters.increment_counter(name, amount)  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> int:
        return int(self.counters.get_counter(name))  # type: ignore[no-untyped-call]

    def snapshot(self) -> dict[str, int]:
        """All of `COUNTERS`, and ``open``."""
        return {**{name: self[name] for name in COUNTERS}, "open": self.open}
