"""How far a node has come, and the single observed steps that tell so."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Stage(enum.StrEnum):
    """The stages of a boot, in order. A stage is reached by the event in the comment."""

    FIRMWARE = "firmware"  # any boot file was asked for
    KERNEL = "kernel"  # the kernel was sent whole
    ROOT = "root"  # MOUNT of the root file system
    SEED = "seed"  # cloud-init read its meta-data
    READY = "ready"  # cloud-init phoned home

    @property
    def rank(self) -> int:
        """Position in the order of a boot, from 0."""
        return _RANKS[self]


_RANKS = {stage: rank for rank, stage in enumerate(Stage)}


class Outcome(enum.StrEnum):
    """How one step ended."""

    OK = "ok"
    MISS = "miss"  # no such file; normal for optional firmware files
    PROBE = "probe"  # asked for the size, then ended the transfer: normal for firmware
    ABORTED = "aborted"  # the peer broke off
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class BootEvent:
    """One observed step of one node. `time` is seconds since the epoch, `seconds` the duration, `bytes` the payload."""

    time: float
    protocol: str
    path: str
    outcome: Outcome
    stage: Stage | None = None
    node: str = ""
    key: str = ""
    serial: str = ""
    mac: str = ""
    address: str = ""
    image: str = ""
    generation: str = ""
    bytes: int = 0
    seconds: float = 0.0
    detail: str = ""
