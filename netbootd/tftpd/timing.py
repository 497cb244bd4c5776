"""When to send again: round-trip estimation and back-off.

After RFC 6298 (smoothed time and variation, Karn's rule is the caller's), with what boot firmware adds: a Pi 3 gives up
about a second after a lost packet, a Pi 4 may hang on a block that comes twice. So the timer stays far below a second,
and a patience (the least wait) guards against clients that merely paused: it starts at TCP's customary 200 ms, halves
when a loss was real, and doubles when a retransmission proved unneeded.
"""

from __future__ import annotations

INITIAL = 0.5
"""Seconds to wait for a client that was never measured."""

PATIENCE, MIN_PATIENCE, MAX_PATIENCE = 0.2, 0.05, 0.8
MAX_WAIT = 4.0
"""Longest wait for the answer to a first sending, seconds."""


class RoundTrip:
    """What is known about the way to one client; handed on from one transfer to its next."""

    __slots__ = ("patience", "smoothed", "variation", "wait")

    def __init__(self) -> None:
        self.smoothed = 0.0
        self.variation = 0.0
        self.patience = PATIENCE
        self.wait = INITIAL
        """Seconds until an unanswered packet is sent again."""

    def continued(self) -> RoundTrip:
        """A copy for the client's next transfer."""
        copy = RoundTrip()
        copy.smoothed, copy.variation = self.smoothed, self.variation
        copy.patience, copy.wait = self.patience, self.wait
        return copy

    @property
    def measured(self) -> bool:
        """Whether there was any sample."""
        return self.smoothed > 0.0

    def sample(self, seconds: float) -> None:
        """Take in the time between a packet that was sent once and its answer."""
        seconds = max(seconds, 1e-6)
        if self.smoothed == 0.0:
            self.smoothed, self.variation = seconds, seconds / 2
        elif 2 * seconds < self.smoothed:
            # Much quicker than thought: what made it seem slow was an ACK that got lost and that the client repeated
            # in its own time. Forget that at once, or each loss from now on costs as much as that one did.
            self.smoothed = (self.smoothed + seconds) / 2
            self.variation /= 2
        else:
            error = seconds - self.smoothed
            self.smoothed += error / 8
            self.variation += (abs(error) - self.variation) / 4
        self._update()

    def lost(self) -> None:
        """A retransmission was needed: its first sending never arrived."""
        self.patience = max(self.patience / 2, MIN_PATIENCE)
        self._update()

    def spurious(self) -> None:
        """A retransmission was not needed: the client answered both sendings."""
        self.patience = min(self.patience * 2, MAX_PATIENCE)
        self._update()

    def unsure(self) -> None:
        """A packet sent twice has its answer: where nothing was ever measured, keep what the back-off has learnt."""
        if not self.measured:
            self.wait = min(self.wait * 2, MAX_WAIT)

    def _update(self) -> None:
        if self.measured:
            # Half a round trip more than RFC 6298, for paths so steady that the variation vanishes.
            self.wait = min(max(self.patience, 1.5 * self.smoothed + 4 * self.variation), MAX_WAIT)
