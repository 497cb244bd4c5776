"""Reads the publishers' small documents (lists of checksums, indexes), from the network or from a folder."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from netbootd.errors import FormatError, HostError, NetworkError, NotFoundError
from netbootd.images.locations import is_file, path_of, public
from netbootd.images.patience import PATIENCE, Patience

_DOCUMENT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Document:
    """What was read. `url` is where it came from in the end, after redirects."""

    url: str
    data: bytes


class Documents:
    """Reads documents, each at most once.

    :param tell: takes a sentence for the person who waits
    """

    def __init__(self, patience: Patience = PATIENCE, tell: Callable[[str], None] = lambda _: None) -> None:
        self._patience = patience
        self._tell = tell
        self._read: dict[str, Document] = {}

    async def read(self, url: str, limit: int) -> Document:
        """The document at `url`.

        :param limit: bytes that it may have
        :raises NotFoundError: there is none
        :raises NetworkError: the server can't be reached or refuses
        :raises HostError: the file can't be read
        :raises FormatError: it is larger than `limit`
        """
        known = self._read.get(url)
        if known is None:
            known = _local(url, limit) if is_file(url) else await self._remote(url, limit)
            self._read[url] = known
        return known

    async def _remote(self, url: str, limit: int) -> Document:
        from netbootd.images import web

        retries = web.Retries(self._patience, url)
        async with web.session(self._patience, decode=True) as client:
            while True:
                try:
                    async with (
                        asyncio.timeout(_DOCUMENT_SECONDS),
                        web.get(client, url, {}, downgrade=False) as (response, at),
                    ):
                        if response.status != 200:
                            raise NetworkError(f"Fetching {public(url)}: the server answered {response.status}.")
                        data = b""
                        async for chunk in response.content.iter_any():
                            data += chunk
                            if len(data) > limit:
                                raise _too_large(url, limit)
                        return Document(at, data)
                except web.Transient as fault:
                    await retries.wait(fault, self._tell)
                except TimeoutError:
                    late = web.Transient(f"it did not come within {_DOCUMENT_SECONDS:.0f} s")
                    await retries.wait(late, self._tell)


def _local(url: str, limit: int) -> Document:
    path = path_of(url)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise HostError(f"Reading {path}: it is not a file.")
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"Reading {path}: there is no such file.") from None
    except OSError as error:
        if isinstance(error, HostError):
            raise
        raise HostError(f"Reading {path}: {error.strerror}.") from error
    if len(data) > limit:
        raise _too_large(url, limit)
    return Document(url, data)


def _too_large(url: str, limit: int) -> FormatError:
    return FormatError(
        f"Reading {public(url)}: it is larger than {limit >> 10} KiB, which no such list is.",
        hint="Try another mirror.",
    )
