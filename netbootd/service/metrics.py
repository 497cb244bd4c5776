"""What monitoring may ask of the running service, in Prometheus' text format (by prometheus-client).

Requests and their durations are counted as boot events pass by; what the servers count themselves is read when asked.
Names follow prometheus.io/docs/practices/naming. No label holds what a peer can choose: a flood of made-up serials
makes no new series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from netbootd import __version__
from netbootd.model.event import BootEvent, Outcome, Stage

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
"""Bounds of the histogram: a miss takes less than a millisecond, firmware gives up on a file after 30 s."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers of the moment come from.

    `tftp` are the counters of `netbootd.tftpd.stats.COUNTERS` and ``open``; `http` and `nfs` those of the connections
    (``open``, ``accepted``, ``refused``, and more); `stages` is the stage of every node that was seen.
    """

    tftp: Callable[[], Mapping[str, int]]
    http: Callable[[], Mapping[str, int]]
    nfs: Callable[[], Mapping[str, int]]
    stages: Callable[[], Iterable[str]]


class Metrics:
    """The metrics of one service."""

    def __init__(self, sources: Sources) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = CounterMetric(
            "netbootd_requests", "Requests of nodes by protocol and outcome", ["protocol", "outcome"], registry=None
        )
        self._bytes = CounterMetric(
            "netbootd_sent_bytes", "Bytes of files and documents that were sent", ["protocol"], registry=None
        )
        self._durations = Histogram(
            "netbootd_request_seconds",
            "Time from a request to its end, of those that were answered whole",
            ["protocol"],
            buckets=_SECONDS,
            registry=None,
        )
        self._counters: dict[tuple[str, Outcome], CounterMetric] = {}
        for metric in (self._requests, self._bytes, self._durations):
            self._registry.register(metric)
        self._registry.register(_Moment(sources))

    def observe(self, event: BootEvent) -> None:
        """Count one boot event."""
        counter = self._counters.get((event.protocol, event.outcome))
        if counter is None:
            counter = self._requests.labels(event.protocol, event.outcome)
            self._counters[event.protocol, event.outcome] = counter
        counter.inc()
        if event.bytes:
            self._bytes.labels(event.protocol).inc(event.bytes)
        if event.outcome is Outcome.OK:
            self._durations.labels(event.protocol).observe(event.seconds)

    def render(self) -> tuple[bytes, str]:
        """The text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Moment:
    """A collector of what others count."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("netbootd_build_info", "The version that runs", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield from _tftp(self._sources.tftp())
        yield from _connections("http", "HTTP", self._sources.http())
        yield from _connections("nfs", "NFS", self._sources.nfs())
        nodes = GaugeMetricFamily("netbootd_nodes", "Nodes by the stage that they have reached", labels=["stage"])
        counts = Counter(self._sources.stages())
        for stage in Stage:
            nodes.add_metric([stage], counts[stage])
        yield nodes


_TFTP_SAYS = {
    "transfers": "Files sent whole over TFTP",
    "bytes": "Octets of files that TFTP clients acknowledged",
    "retransmits": "TFTP datagrams that were sent again",
    "misses": "TFTP requests for files that are not there",
    "probes": "TFTP requests that ended with the file's size",
    "aborted": "TFTP transfers that the client broke off",
    "errors": "TFTP transfers that failed, refusals included",
    "malformed": "Datagrams on the TFTP port that are no request",
    "strangers": "TFTP datagrams from a port or host that they should not come from",
    "refused": "TFTP requests from addresses that are not served",
    "limited": "TFTP requests that a limit turned away",
}


def _tftp(counted: Mapping[str, int]) -> Iterator[Metric]:
    for name, says in _TFTP_SAYS.items():
        yield CounterMetricFamily(f"netbootd_tftp_{name}", says, value=counted.get(name, 0))
    yield GaugeMetricFamily("netbootd_tftp_open_transfers", "TFTP transfers under way", value=counted.get("open", 0))


def _connections(prefix: str, protocol: str, counted: Mapping[str, int]) -> Iterator[Metric]:
    for name, value in counted.items():
        if name == "open":
            says = f"{protocol} connections at this moment"
            yield GaugeMetricFamily(f"netbootd_{prefix}_open_connections", says, value=value)
        else:
            yield CounterMetricFamily(f"netbootd_{prefix}_{name}", f"{protocol}: {name.replace('_', ' ')}", value=value)
