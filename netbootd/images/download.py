"""Fetches a release's archive into ``downloads/<sha256>/``, from where it broke off, and lets nothing else in there.

What lies there under its own name has had the right digest once. It is read again before it is used (a second for a
gigabyte, once a build): disks rot and people tidy up; a damaged one is fetched anew instead of failing every build.
A file of a mirror that is a folder is checked and used where it lies.

Without a digest to expect (an index that tells but the extracted image's, or --insecure-skip-verify) the unfinished
file lies in a folder named after its URL, and moves to its own digest's when it is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from netbootd.errors import BusyError, FormatError, HostError, VerificationError
from netbootd.images.digests import file_digest
from netbootd.images.locations import is_file, path_of, public
from netbootd.images.partfile import Origin, PartFile, disk_error
from netbootd.images.patience import PATIENCE, Patience
from netbootd.images.progress import Progress
from netbootd.model.image import Release
from netbootd.store.layout import NOT_FINISHED
from netbootd.store.locks import exclusive_folder

if TYPE_CHECKING:
    import aiohttp

LIMIT = 64 << 30
"""Bytes that an archive of unknown size may have."""

_GAIN = 1 << 20  # so many new bytes, and the failures so far are forgotten
_POLL = 0.25
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)\Z")
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's window bits


async def fetch(release: Release, downloads: Path, progress: Progress, *, patience: Patience = PATIENCE) -> Path:
    """The release's archive on this host, with the right digest.

    :param downloads: the state's folder for them, made where it is missing
    :returns: ``downloads/<sha256>/<file name>``, or the file itself where the release lies on this host; the folder's
        name is the digest where the release had none
    :raises NetworkError: the server can't be reached or does not give the file, also not when asked again
    :raises NotFoundError: there is no such file
    :raises VerificationError: what came is not the file that is wanted; it is deleted
    :raises HostError: the disk has no room, or fails; what has come is kept
    :raises BusyError: another process is at the same file, and gets nowhere
    """
    if is_file(release.url):
        return await _local(release, progress)
    ident = release.sha256 or f"url-{hashlib.sha256(release.url.encode()).hexdigest()[:32]}"
    folder = downloads / ident
    try:
        async with _locked(folder, release, progress, patience):
            found = await _cached(folder, release, progress) if release.sha256 else None
            return found or await _Download(release, folder, progress, patience).run()
    except OSError as error:
        if isinstance(error, HostError) or not _of_disk(error):
            raise
        raise disk_error(error, f"Downloading to {folder}") from error


def _of_disk(error: OSError) -> bool:
    return not isinstance(error, ConnectionError)  # NetworkError is one


async def _local(release: Release, progress: Progress) -> Path:
    path = path_of(release.url)
    if not release.own:
        progress.step(f"Checking {path.name}")
        digest, _ = await file_digest(path, progress)
        if release.sha256 and digest != release.sha256:
            raise VerificationError(
                f"Reading {path}: its sha256 is {digest}, {release.sha256} was expected.",
                hint="The mirror's file is damaged or not whole yet; copy it again.",
            )
    return path


@asynccontextmanager
async def _locked(folder: Path, release: Release, progress: Progress, patience: Patience) -> AsyncIterator[None]:
    """Hold the folder. Wait for another process that downloads the same, as long as it gets on."""
    doing = f"Downloading {release.file_name}"
    seen, deadline, told = -1, 0.0, False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = exclusive_folder(folder, doing)
        try:
            lock.__enter__()
            if folder.is_dir():
                break
            lock.__exit__(None, None, None)  # it went with the download of the process that we waited for
            continue
        except BusyError:
            size = _amount(folder)
            if size != seen:
                seen, deadline = size, time.monotonic() + patience.busy_seconds
            elif time.monotonic() > deadline:
                raise
        if not told:
            told = True
            progress.step(f"Waiting for {release.file_name}")
            progress.note(f"Another netbootd process is downloading {release.file_name}; waiting for it.")
        await asyncio.sleep(_POLL)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _amount(folder: Path) -> int:
    """Bytes of the files in a folder that others change."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries)
    except FileNotFoundError:
        return 0


async def _cached(folder: Path, release: Release, progress: Progress) -> Path | None:
    """The archive, if it is there whole, under any name (mirrors may differ in it); a damaged one is deleted."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: (entry.name != release.file_name, entry.name))
    for entry in found:
        if entry.name.endswith(NOT_FINISHED) or not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            continue
        path = Path(entry.path)
        progress.step(f"Checking {entry.name}, downloaded before")
        progress.total(entry.stat().st_size)
        digest, _ = await file_digest(path, progress)
        if digest == release.sha256:
            return path
        progress.note(f"{path} is damaged; fetching it anew.")
        path.unlink()
    return None


class _Download:
    """One archive on its way into `folder`, whose lock is held."""

    def __init__(self, release: Release, folder: Path, progress: Progress, patience: Patience) -> None:
        self._release = release
        self._folder = folder
        self._progress = progress
        self._patience = patience
        self._before = 0  # bytes of an earlier run, which the progress leaves out: its rate is the network's
        self._resumed = False  # bytes of two responses are in the file
        self._whole = False  # it is fetched whole, because the pieces did not fit together
        self._total = 0  # bytes of the whole, 0 where nobody says

    @property
    def _doing(self) -> str:
        return f"Downloading {public(self._release.url)}"

    async def run(self) -> Path:
        """See `fetch`."""
        part = PartFile(self._folder, self._release.file_name)
        try:
            if part.path.stat().st_size:
                self._progress.step(f"Taking up {self._release.file_name}")
            await part.take_up(self._progress)
            self._progress.step(f"Downloading {self._release.file_name}")
            self._before = part.size
            self._tell_total(self._release.size)
            if part.size:
                self._progress.note(f"{part.size >> 20} MiB of {self._release.file_name} are here already.")
            while True:
                await self._transfer(part)
                final = await self._judge(part)
                if final is not None:
                    return final
        finally:
            part.close()

    # ------------------------------------------------------------------------------------------------------ digest

    async def _judge(self, part: PartFile) -> Path | None:
        """The finished file; None where it shall be fetched whole once more."""
        wanted = self._release.sha256
        got = part.digest.hexdigest()
        encoding = part.origin.encoding if part.origin else ""
        packed = not self._release.file_name.endswith((".gz", ".tgz"))  # else the encoding may just tell what it is
        if encoding in _ENCODINGS and (got != wanted if wanted else packed):
            got = await asyncio.to_thread(self._decode, part, encoding, wanted)
        if not wanted:
            folder = self._folder.parent / got
            folder.mkdir(exist_ok=True)
            final = folder / self._release.file_name
            part.finish(final)
            shutil.rmtree(self._folder, ignore_errors=True)
            return final
        if got == wanted:
            final = self._folder / self._release.file_name
            part.finish(final)
            self._sweep(final)
            return final
        if self._resumed and not self._whole:
            self._progress.note(f"The pieces of {self._release.file_name} don't fit together; fetching it whole.")
            self._start_anew(part, None)
            self._whole, self._resumed = True, False
            return None
        size = part.size
        part.discard()
        raise VerificationError(
            f"{self._doing}: the sha256 of the {size} bytes that came is {got}, {wanted} was expected. "
            "They were deleted.",
            hint="The server's file is damaged or not the published one: try again later, or another mirror.",
        )

    def _decode(self, part: PartFile, encoding: str, wanted: str) -> str:
        """Undo a Content-Encoding that the server applied unasked, where that is what was wanted; the digest then."""
        decoder = zlib.decompressobj(_ENCODINGS[encoding])
        plain = PartFile(self._folder, f"{self._release.file_name}.decoded")
        try:
            plain.restart(None)
            with part.path.open("rb") as source:
                while data := source.read(1 << 18):
                    while data:
                        plain.write(decoder.decompress(data, 1 << 20))
                        data = decoder.unconsumed_tail
                        if plain.size > LIMIT:
                            raise zlib.error("too large")
            if not decoder.eof:
                raise zlib.error("cut short")
        except zlib.error:
            plain.discard()
            return part.digest.hexdigest()
        finally:
            digest = plain.digest.hexdigest()
            size = plain.size
            plain.close()
        if wanted and digest != wanted:
            plain.discard()
            return part.digest.hexdigest()
        plain.path.replace(part.path)
        part.reopen(size)
        return digest

    def _sweep(self, final: Path) -> None:
        """Delete what other, unfinished attempts at the same archive left."""
        for path in list(self._folder.iterdir()):
            if path != final and path.name.endswith(NOT_FINISHED):
                path.unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------------------------- transfer

    async def _transfer(self, part: PartFile) -> None:
        """Ask until all of it has come."""
        from netbootd.images import web

        url = self._release.url
        retries = web.Retries(self._patience, url)
        best = part.size
        async with web.session(self._patience, decode=False) as client:
            while True:
                try:
                    headers = self._range(part)
                    async with web.get(client, url, headers, downgrade=bool(self._release.sha256)) as (response, _):
                        if self._begin(part, response, asked=bool(headers)):
                            await self._receive(part, response)
                            if part.size < self._total and part.digest.hexdigest() != self._release.sha256:
                                raise web.Transient(f"it ended at {part.size} of {self._total} bytes")
                            return
                        if part.size:  # it was whole already
                            return
                except web.Transient as fault:
                    if part.size >= best + _GAIN:
                        best = part.size
                        retries.succeeded()
                    await retries.wait(fault, self._progress.note)

    def _range(self, part: PartFile) -> dict[str, str]:
        """What to ask for. Another URL's bytes may be gone on with where a digest will judge the whole."""
        origin = part.origin
        if not part.size or origin is None:
            return {}
        same = origin.url == public(self._release.url)
        if self._release.sha256 == "" and not (same and origin.validator):
            self._start_anew(part, None)
            return {}
        headers = {"Range": f"bytes={part.size}-"}
        if same and origin.validator:
            headers["If-Range"] = origin.validator
        return headers

    def _begin(self, part: PartFile, response: aiohttp.ClientResponse, *, asked: bool) -> bool:
        """Look at the response's head and make the file fit; False where no body is wanted: whole, or ask anew."""
        from netbootd.images import web

        given = self._origin(response)
        if response.status == 416:
            match = _UNSATISFIED.match(response.headers.get("Content-Range", ""))
            whole = match is not None and int(match[1]) == part.size
            if not asked:
                raise web.Transient("the server answered 416 to a request for the whole")
            if not whole:
                self._start_anew(part, None)
            self._resumed = True
            return False
        if response.status == 206:
            match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if not asked or match is None or int(match[1]) != part.size or self._changed(part.origin, given):
                self._start_anew(part, None)
                if not asked:
                    raise web.Transient("the server sent a part though the whole was asked for")
                return False
            self._resumed = True
            total = int(match[3]) if match[3] != "*" else 0
        else:
            self._start_anew(part, given)
            self._resumed = False
            total = given.size
        if not total and not given.encoding:
            total = self._release.size
        self._total = total
        self._tell_total(total)
        self._check_room(total, part.size)
        return True

    def _tell_total(self, total: int) -> None:
        self._progress.total(total - self._before if total > self._before else None)

    def _start_anew(self, part: PartFile, origin: Origin | None) -> None:
        self._progress.advance(self._before - part.size)
        self._before = 0
        part.restart(origin)

    @staticmethod
    def _changed(before: Origin | None, now: Origin) -> bool:
        """Whether a part comes from another file than what is here, by the same server's own words."""
        if before is None or before.url != now.url:
            return before is None
        return bool(before.etag and now.etag and before.etag != now.etag) or before.encoding != now.encoding

    def _origin(self, response: aiohttp.ClientResponse) -> Origin:
        headers = response.headers
        length = headers.get("Content-Length", "")
        return Origin(
            url=public(self._release.url),
            etag=headers.get("ETag", "")[:256],
            modified=headers.get("Last-Modified", "")[:64],
            size=int(length) if length.isascii() and length.isdigit() and response.status == 200 else 0,
            encoding=headers.get("Content-Encoding", "").strip().lower()[:32].replace("identity", ""),
        )

    def _check_room(self, total: int, here: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if total - here > free:
            raise HostError(
                f"{self._doing} needs {(total - here + (1 << 20) - 1) >> 20} MiB, "
                f"and {self._folder} has {free >> 20} MiB free.",
                hint="Free some room (netbootd images prune), or choose another disk with --state.",
            )

    async def _receive(self, part: PartFile, response: aiohttp.ClientResponse) -> None:
        from netbootd.images import web

        ceiling = LIMIT
        if self._release.size and not (part.origin and part.origin.encoding):
            ceiling = 2 * self._release.size + _GAIN
        began, come = time.monotonic(), 0
        async for data in response.content.iter_any():
            try:
                part.write(data)
            except OSError as error:
                raise disk_error(error, f"{self._doing} to {part.path}") from error
            self._progress.advance(len(data))
            if part.size > ceiling:
                part.discard()
                fault = VerificationError if self._release.sha256 else FormatError
                raise fault(
                    f"{self._doing}: more than {ceiling >> 20} MiB came, and no end. They were deleted.",
                    hint="The server's file is not the published one: try another mirror.",
                )
            come += len(data)
            now = time.monotonic()
            if now - began > self._patience.slow_seconds:
                if come < self._patience.slow_bytes:
                    raise web.Transient(f"only {come} bytes came in {now - began:.0f} s")
                began, come = now, 0
