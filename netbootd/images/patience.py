"""How long a server is waited for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds, and how often to try. There is no limit for a whole file: only silence and a trickle end a transfer.

    `tries` failures in a row end it, `vain_tries` where the server was never reached. `slow_bytes` must come in every
    `slow_seconds`. A server that asks for more than `longest_retry_after` is not waited for.
    """

    tries: int = 5
    vain_tries: int = 3
    first_delay: float = 0.5
    longest_delay: float = 30.0
    longest_retry_after: float = 120.0
    connect_seconds: float = 10.0
    silence_seconds: float = 30.0
    slow_bytes: int = 64 * 1024
    slow_seconds: float = 60.0
    busy_seconds: float = 300.0
    """How long another process may hold a download without getting on before the wait for it ends."""


PATIENCE = Patience()
