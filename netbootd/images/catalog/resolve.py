"""From what the operator wants to the archive: by a release's name, an URL, or a file."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from netbootd.errors import NetbootdError, NotFoundError, UsageError, VerificationError
from netbootd.images.catalog import raspios, ubuntu
from netbootd.images.catalog.names import RaspiosName, UbuntuName, arch_of, parse, suggestion
from netbootd.images.catalog.offers import list_offers, stem
from netbootd.images.catalog.oslist import Entry, Index
from netbootd.images.catalog.publishers import Publishers
from netbootd.images.catalog.ubuntu import UbuntuImage
from netbootd.images.digests import check_hex, file_digest
from netbootd.images.documents import Document, Documents
from netbootd.images.locations import below, file_name, is_file, location, path_of, public, reference
from netbootd.images.patience import PATIENCE, Patience
from netbootd.images.progress import Progress
from netbootd.images.verify import verify_detached
from netbootd.model.image import ImageSpec, Release

_PC = "amd64"
_ARCHES = ("arm64", "armhf", _PC)


async def resolve(
    spec: ImageSpec,
    *,
    mirror: str | None,
    keyring: Path | None,
    skip_verify: bool,
    progress: Progress,
    patience: Patience = PATIENCE,
) -> Release:
    """The archive that `spec` means. Nothing of it is fetched; a file of the operator's own is read for its digest.

    :param mirror: an URL, a folder or an index that replaces the publishers
    :param keyring: the operator's own keys, beside the pinned one
    :param skip_verify: take what can't be shown to be authentic, say so, and mark it not verified
    :returns: with an empty `sha256` only where nobody tells it: the index has but the extracted image's digest, or
        `skip_verify` is set
    :raises NotFoundError: no such release or file; the hint says what there is
    :raises VerificationError: not authentic by the rules of the operator's contract, or another digest than demanded
    :raises NetworkError: a server can't be reached
    :raises UsageError: an architecture, URL or digest that makes no sense
    """
    demanded = check_hex(spec.sha256)
    checks = _Checks(keyring, skip_verify, progress)
    if spec.source:
        return await _source(location(spec.source, "--source"), demanded, checks)
    arch = arch_of(spec.arch)
    if arch not in _ARCHES:
        raise UsageError(
            f"Looking up {spec.release}: releases for {spec.arch} can't be prepared, only for {', '.join(_ARCHES)}.",
            hint="--source takes the image of any architecture.",
        )
    publishers = Publishers.at(Documents(patience, progress.note), mirror)
    progress.step(f"Looking up {spec.release}")
    release = await _Lookup(publishers, spec.release, arch, checks).run()
    if demanded and release.sha256 and release.sha256 != demanded:
        raise VerificationError(
            f"Looking up {spec.release}: the publisher's sha256 of {release.file_name} is {release.sha256}, "
            f"{demanded} was demanded.",
            hint="A newer image may have been published: pin the release (24.04.3), or drop --sha256.",
        )
    if not release.sha256 and not demanded and is_file(release.url):
        digest, size = await file_digest(path_of(release.url), progress)
        return replace(release, sha256=digest, size=size, own=True)
    return replace(release, sha256=release.sha256 or demanded)


async def _source(url: str, demanded: str, checks: _Checks) -> Release:
    name = file_name(url)
    if not is_file(url):
        if not demanded:
            checks.waive(
                VerificationError(
                    f"Building from {public(url)}: nothing says that what comes from there is authentic.",
                    hint="Give its digest with --sha256, or accept the risk with --insecure-skip-verify.",
                )
            )
        return Release(name, url, name, demanded, 0, verified=bool(demanded), key="")
    path = path_of(url)
    checks.progress.step(f"Reading {path.name}")
    digest, size = await file_digest(path, checks.progress)
    if demanded and digest != demanded:
        raise VerificationError(
            f"Reading {path}: its sha256 is {digest}, {demanded} was expected.",
            hint="The file is damaged or another one; fetch it again, or correct the digest.",
        )
    return Release(name, url, name, digest, size, verified=True, key="", own=True)


@dataclass(frozen=True, slots=True)
class _Checks:
    """How authenticity is judged in this run."""

    keyring: Path | None
    skip: bool
    progress: Progress

    def waive(self, error: VerificationError) -> None:
        """Go on without, where the operator said so; else raise `error`."""
        if not self.skip:
            raise error
        self.progress.note(f"NOT VERIFIED, as told by --insecure-skip-verify: {error.message}")

    async def signed(self, sums: Document, url: str, documents: Documents) -> str:
        """The fingerprint of the trusted key that signed the list at `url`, empty where that is waived."""
        try:
            try:
                signature = await documents.read(f"{url}.gpg", ubuntu.LIMIT)
            except NotFoundError:
                raise VerificationError(
                    f"Verifying {public(url)}: there is no signature ({ubuntu.SUMS}.gpg) beside it.",
                    hint="Try another mirror, or accept the risk with --insecure-skip-verify.",
                ) from None
            return await asyncio.to_thread(
                verify_detached, sums.data, signature.data, what=public(url), keyring=self.keyring
            )
        except VerificationError as error:
            self.waive(error)
            return ""


@dataclass(frozen=True, slots=True)
class _Lookup:
    """The search for one release."""

    publishers: Publishers
    wanted: str
    arch: str
    checks: _Checks

    async def run(self) -> Release:
        """The release, wherever it is offered.

        :raises NotFoundError: nowhere
        """
        name = parse(self.wanted)
        if isinstance(name, RaspiosName):
            return await self._raspios(name)
        if isinstance(name, UbuntuName):
            return await self._ubuntu(name)
        if self.publishers.mirror:
            if (release := await self._other()) is not None:
                return release
            raise await self._absent(public(self.publishers.mirror))
        raise NotFoundError(f"There is no release {self.wanted}.", hint=suggestion(self.wanted))

    # ---------------------------------------------------------------------------------------------------- Ubuntu

    async def _ubuntu(self, name: UbuntuName) -> Release:
        if self.arch == _PC:
            base, sums_url, which = self.publishers.ubuntu_isos, ubuntu.iso_sums_url, ubuntu.recognise_iso
        else:
            base, sums_url, which = self.publishers.ubuntu, ubuntu.sums_url, ubuntu.recognise
        seen: list[UbuntuImage] = []
        for folder in name.folders if base else []:
            url = sums_url(base, folder)
            try:
                sums = await self.publishers.documents.read(url, ubuntu.LIMIT)
            except NotFoundError:
                continue
            listed = ubuntu.parse_sums(sums.data, which)
            image = ubuntu.newest(listed, name, self.arch)
            if image is not None:
                key = await self.checks.signed(sums, url, self.publishers.documents)
                return _signed_release(image, below(url.rpartition("/")[0], image.file_name), key)
            seen += listed
        if self.publishers.mirror:
            release = await self._ubuntu_by_index(name) or await self._other()
            if release is not None:
                return release
        where = public(self.publishers.mirror or base)
        if seen:
            there = sorted({f"{image.name} ({image.arch})" for image in seen})
            raise NotFoundError(
                f"Looking up {self.wanted}: {where} has the release, but no image for {name.shown} {self.arch}.",
                hint=suggestion(self.wanted, there),
            )
        raise await self._absent(where)

    async def _ubuntu_by_index(self, name: UbuntuName) -> Release | None:
        """An Ubuntu that a mirror offers in its list of Raspberry Pi Imager; what counts as verified is the same."""
        found: dict[str, Entry] = {}
        for entry in (await self._index_if_any()).entries:
            if name.version or f"/{name.codename}/" in entry.url:  # the file's name has but the version
                found.setdefault(file_name(entry.url), entry)
        image = ubuntu.newest([i for known in found if (i := ubuntu.recognise(known))], name, self.arch)
        if image is None:
            return None
        entry = found[image.file_name]
        url = reference(entry.url, ubuntu.SUMS)
        try:
            sums = await self.publishers.documents.read(url, ubuntu.LIMIT)
        except NotFoundError:
            sums = None
        listed = ubuntu.parse_sums(sums.data) if sums is not None else []
        signed = next((known for known in listed if known.file_name == image.file_name), None)
        if sums is None or signed is None:
            self.checks.waive(
                VerificationError(
                    f"Verifying {public(entry.url)}: no {ubuntu.SUMS} beside it lists it.",
                    hint="Try another mirror, or accept the risk with --insecure-skip-verify.",
                )
            )
            return replace(_listed_release(entry, image.title), verified=False)
        key = await self.checks.signed(sums, url, self.publishers.documents)
        return _signed_release(signed, entry.url, key)

    # ------------------------------------------------------------------------------------------- the Imager's list

    async def _raspios(self, name: RaspiosName) -> Release:
        index = await self._index()
        image = raspios.choose(index.entries, name, self.arch)
        if image is None:
            there = sorted({f"{known.name} ({known.arch})" for known in raspios.newest(index.entries)})
            raise NotFoundError(
                f"Looking up {self.wanted}: {public(index.url)} has no Raspberry Pi OS {name.shown} for {self.arch}.",
                details=index.problems,
                hint=suggestion(self.wanted, there),
            )
        return self._listed(image.entry, f"{image.entry.title} ({image.suite}, {image.arch}, {image.date})")

    async def _other(self) -> Release | None:
        """An image of the operator's own index, by its file's name without endings, or by its title."""
        wanted = self.wanted.lower()
        index = await self._index_if_any()
        for entry in index.entries:
            if wanted in (stem(entry.url).lower(), entry.title.lower()):
                return self._listed(entry, entry.title)
        return None

    def _listed(self, entry: Entry, title: str) -> Release:
        known = entry.sha256 or entry.extract_sha256  # either is checked before anything is built of it
        if ubuntu.recognise(file_name(entry.url)) is not None or not entry.trusted or not known:
            why = "the list that names it did not come by HTTPS"
            if not known:
                why = "the list gives no sha256 for it"
            elif entry.trusted:
                why = "an Ubuntu image counts by its signature; ask for it by its release"
            self.checks.waive(
                VerificationError(
                    f"Verifying {public(entry.url)}: {why}.",
                    hint="Try another mirror, or accept the risk with --insecure-skip-verify.",
                )
            )
            return replace(_listed_release(entry, title), verified=False)
        return _listed_release(entry, title)

    async def _index(self) -> Index:
        try:
            return await self.publishers.index()
        except NotFoundError as error:
            raise NotFoundError(
                f"Looking up {self.wanted}: {public(self.publishers.index_url)} is not there.",
                hint="Does --mirror name the folder that has this file?",
            ) from error

    async def _index_if_any(self) -> Index:
        try:
            return await self.publishers.index()
        except NotFoundError:
            return Index(self.publishers.index_url, (), ())

    async def _absent(self, where: str) -> NotFoundError:
        """Why nothing was found, with what there is."""
        try:
            offered = [offer.name for offer in (await list_offers(self.publishers)).offers]
        except NetbootdError:
            offered = []
        return NotFoundError(
            f"Looking up {self.wanted}: {where} has no such release.", hint=suggestion(self.wanted, offered)
        )


def _signed_release(image: UbuntuImage, url: str, key: str) -> Release:
    return Release(image.title, url, image.file_name, image.sha256, 0, verified=bool(key), key=key)


def _listed_release(entry: Entry, title: str) -> Release:
    return Release(
        title=title,
        url=entry.url,
        file_name=file_name(entry.url),
        sha256=entry.sha256,
        size=entry.size,
        verified=True,
        key="",
        extract_sha256=entry.extract_sha256,
    )
