"""The metrics as Prometheus' own parser reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.service.metrics import Metrics, Sources
from netbootd.tftpd.stats import COUNTERS, TftpStats


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample by name and label values."""
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def make(stats: TftpStats | None = None, stages: tuple[str, ...] = ()) -> Metrics:
    tftp = (stats or TftpStats()).snapshot
    return Metrics(Sources(tftp, lambda: {"open": 3, "accepted_connections": 7}, dict, lambda: stages))


def event(outcome: Outcome, *, size: int = 0, seconds: float = 0.0) -> BootEvent:
    return BootEvent(0.0, "tftp", "vmlinuz", outcome, serial="1a2b3c4d", bytes=size, seconds=seconds)


def test_every_counter_of_the_tftp_server_is_there() -> None:
    stats = TftpStats()
    for number, name in enumerate(COUNTERS):
        stats.add(name, number + 1)
    stats.open = 4
    samples = read(make(stats))
    for number, name in enumerate(COUNTERS):
        if name != "requests":  # netbootd_requests_total has them, by outcome
            assert samples[f"netbootd_tftp_{name}_total",] == number + 1
    assert samples["netbootd_tftp_open_transfers",] == 4


def test_nodes_are_counted_by_stage_and_a_stage_without_nodes_is_zero() -> None:
    samples = read(make(stages=("ready", "ready", "kernel")))
    assert {stage: samples["netbootd_nodes", stage] for stage in Stage} == {
        "firmware": 0,
        "kernel": 1,
        "root": 0,
        "seed": 0,
        "ready": 2,
    }


def test_events_become_requests_bytes_and_durations() -> None:
    metrics = make()
    metrics.observe(event(Outcome.OK, size=1000, seconds=0.3))
    metrics.observe(event(Outcome.OK, size=500, seconds=40.0))
    metrics.observe(event(Outcome.MISS))
    samples = read(metrics)
    assert samples["netbootd_requests_total", "ok", "tftp"] == 2
    assert samples["netbootd_requests_total", "miss", "tftp"] == 1
    assert samples["netbootd_sent_bytes_total", "tftp"] == 1500
    assert samples["netbootd_request_seconds_count", "tftp"] == 2
    assert samples["netbootd_request_seconds_bucket", "0.5", "tftp"] == 1


def test_a_peer_can_make_no_new_series() -> None:
    metrics = make()
    metrics.observe(event(Outcome.OK))
    before = set(read(metrics))
    for number in range(50):
        metrics.observe(BootEvent(0.0, "tftp", f"file-{number}", Outcome.OK, node=f"pi-{number}", serial=f"{number}"))
    assert set(read(metrics)) == before
