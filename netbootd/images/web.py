"""The client's side of HTTP (RFC 9110): one request that follows redirects, and how long to keep trying.

Only aiohttp's own faults and those of the network below it are caught here, and told apart: `Transient` for what may go
away by itself, a `NetbootdError` for what will not. Proxies and their exceptions come from the environment
(``https_proxy``, ``no_proxy``), credentials from the URL or ~/.netrc.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from netbootd import __version__
from netbootd.errors import NetbootdError, NetworkError, NotFoundError
from netbootd.images.locations import on_wire, public
from netbootd.images.patience import Patience

_REDIRECTS = 10
_MOVED = (301, 302, 303, 307, 308)
_ABSENT = (404, 410)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_WANTED = (200, 206, 416)


class Transient(Exception):  # noqa: N818 - a reason to try again, not yet a failure
    """The request failed in a way that may pass.

    `retry_after`: seconds that the server asked for, 0 if it did not; `connected`: whether there was a server at all.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, *, connected: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.connected = connected


@asynccontextmanager
async def session(patience: Patience, *, decode: bool) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that waits as long as `patience` says, for silence and never for the whole.

    :param decode: undo a Content-Encoding; False for files, whose bytes are what counts
    """
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=patience.connect_seconds, sock_read=patience.silence_seconds
    )
    async with aiohttp.ClientSession(
        timeout=timeout,
        trust_env=True,
        auto_decompress=decode,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"netbootd/{__version__}", "Accept-Encoding": "identity"},
        read_bufsize=1 << 20,
    ) as client:
        yield client


@asynccontextmanager
async def get(
    client: aiohttp.ClientSession, url: str, headers: Mapping[str, str], *, downgrade: bool
) -> AsyncIterator[tuple[aiohttp.ClientResponse, str]]:
    """The response (200, 206 or 416) and the URL it came from, after at most ten redirects.

    :param downgrade: whether https may redirect to http: only where a known digest judges the bytes
    :raises Transient: worth another try; within the body of the ``with``, too
    :raises NotFoundError: 404 or 410
    :raises NetworkError: anything else
    """
    at = url
    try:
        for _ in range(_REDIRECTS + 1):
            async with client.get(URL(on_wire(at), encoded=True), headers=headers, allow_redirects=False) as response:
                if response.status in _MOVED and "Location" in response.headers:
                    at = _redirected(at, response.headers["Location"], downgrade=downgrade)
                    continue
                _judge(response, at)
                yield response, at
                return
        raise NetworkError(
            f"Fetching {public(url)}: it redirects more than {_REDIRECTS} times.", hint="Try another mirror."
        )
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
        raise NetworkError(
            f"Fetching {public(at)}: no safe connection ({error}).",
            hint="Is this host's clock right, and is ca-certificates installed? A proxy may need its own certificate.",
        ) from error
    except aiohttp.InvalidURL as error:
        raise NetworkError(f"Fetching {public(at)}: this is not a valid URL.", hint="Check --mirror.") from error
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        if isinstance(error, NetbootdError):  # the caller's, from within the body; some are an OSError, too
            raise
        absent = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
        raise Transient(_reason(error), connected=not absent) from error


def _redirected(at: str, location: str, *, downgrade: bool) -> str:
    try:
        to = urljoin(at, location)
        scheme = urlsplit(to).scheme.lower()
        valid = scheme in ("http", "https") and bool(urlsplit(to).hostname)
    except ValueError:
        valid, scheme, to = False, "", location
    if not valid:
        raise NetworkError(
            f"Fetching {public(at)}: it redirects to {public(to)[:200]!r}, which is not followed.",
            hint="Try another mirror.",
        )
    if scheme == "http" and at.lower().startswith("https:") and not downgrade:
        raise NetworkError(
            f"Fetching {public(at)}: it redirects to {public(to)}, which is not encrypted.", hint="Try another mirror."
        )
    return to


def _judge(response: aiohttp.ClientResponse, at: str) -> None:
    status = response.status
    if status in _WANTED:
        return
    told = f"{status} {response.reason or ''}".strip()
    if status in _ABSENT:
        raise NotFoundError(f"Fetching {public(at)}: the server has no such file ({told}).")
    if status in _PASSING:
        raise Transient(f"the server answered {told}", _retry_after(response.headers.get("Retry-After", "")))
    hint = "Try again later, or another mirror."
    if status in (401, 403, 407):
        hint = "Does the server, or the proxy between, want credentials (~/.netrc, or in the URL)?"
    raise NetworkError(f"Fetching {public(at)}: the server answered {told}.", hint=hint)


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After header, which has seconds or a date (RFC 9110 section 10.2.3)."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection to {error.host} ({error.os_error.strerror or error.os_error})"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection, and no refusal either"
    if isinstance(error, TimeoutError):
        return "the server is silent"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke in the middle"
    if isinstance(error, aiohttp.ClientResponseError):
        return "what the server answered is not proper HTTP"
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclass(slots=True)
class Retries:
    """Counts failures in a row, and waits between them: exponentially longer, with jitter (RFC 9110 has no rule)."""

    patience: Patience
    url: str
    failures: int = 0
    _reached: bool = False

    def succeeded(self) -> None:
        """Something was gained: begin to count anew."""
        self.failures = 0
        self._reached = True

    async def wait(self, fault: Transient, tell: Callable[[str], None]) -> None:
        """Say so, and sleep before the next try.

        :param tell: takes a sentence for the person who waits
        :raises NetworkError: there were enough tries, or the server wants to be left alone for too long
        """
        self.failures += 1
        self._reached |= fault.connected
        hint = "Check the network and the proxy, try again later, or name another server with --mirror."
        if fault.retry_after > self.patience.longest_retry_after:
            raise NetworkError(
                f"Fetching {public(self.url)}: {fault.reason}, and to come back in {fault.retry_after:.0f} s.",
                hint=hint,
            ) from fault
        if self.failures >= (self.patience.tries if self._reached else self.patience.vain_tries):
            raise NetworkError(
                f"Fetching {public(self.url)}: {fault.reason}; {self.failures} tries.", hint=hint
            ) from fault
        delay = self.delay(fault)
        tell(f"Fetching {public(self.url)}: {fault.reason}; trying again in {delay:.1f} s.")
        await asyncio.sleep(delay)

    def delay(self, fault: Transient) -> float:
        """Seconds until the next try."""
        longest = min(self.patience.longest_delay, self.patience.first_delay * 2.0 ** max(0, self.failures - 1))
        return max(fault.retry_after, longest * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, hides nothing
