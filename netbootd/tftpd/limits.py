"""Who may ask, and how often: the guard in front of the TFTP server. The time is an argument.

Requests above a limit are dropped without an answer, so that a flood draws nothing. Memory is bounded: only the
addresses that asked last are remembered.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address

from netbootd.tftpd.settings import Network, TftpSettings

_REMEMBERED = 4096

log = logging.getLogger(__name__)


class TokenBucket:
    """`rate` a second, and `burst` at once."""

    __slots__ = ("burst", "rate", "tokens", "updated")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst = rate, burst
        self.tokens, self.updated = burst, now

    def take(self, now: float) -> bool:
        """Take one, if there is one."""
        self.tokens = min(self.burst, self.tokens + (now - self.updated) * self.rate)
        self.updated = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Guard:
    """Decides for each request whether it is looked at."""

    def __init__(self, settings: TftpSettings, now: float) -> None:
        self._allow = settings.allow
        self._rate = settings.requests_per_second
        self._all = TokenBucket(settings.total_requests_per_second, 2 * settings.total_requests_per_second, now)
        self._clients: OrderedDict[str, TokenBucket] = OrderedDict()
        self._verdicts: OrderedDict[str, bool] = OrderedDict()

    def allowed(self, address: str) -> bool:
        """Whether the operator serves this address (an IP literal without a zone)."""
        if self._allow is None:
            return True
        if not isinstance(self._allow, tuple):
            return _asked(self._allow, address)
        known = self._verdicts.get(address)
        if known is None:
            known = self._verdicts[address] = _within(address, self._allow)
            if len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)
        return known

    def admit(self, address: str, now: float) -> bool:
        """Whether this address, and all together, are still within their rate."""
        bucket = self._clients.get(address)
        if bucket is None:
            bucket = self._clients[address] = TokenBucket(self._rate, 2 * self._rate, now)
            if len(self._clients) > _REMEMBERED:
                self._clients.popitem(last=False)
        else:
            self._clients.move_to_end(address)
        return bucket.take(now) and self._all.take(now)


def _within(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed.version == network.version and parsed in network for network in networks)


def _asked(allow: Callable[[str], bool], address: str) -> bool:
    try:
        return bool(allow(address))
    except Exception:
        log.exception("Deciding whether %s may ask failed; it may not", address)
        return False
