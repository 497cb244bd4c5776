"""Makes the boot folder of a PC from an installation medium: kernel and initrd out of ``casper/``, and the ISO itself.

Ubuntu's live server boots from these three over HTTP (casper's ``url=`` fetches the whole ISO into memory), so nothing
of it is unpacked or patched. The ISO is not copied where it need not be: one that we downloaded gets a second name, and
the operator's own file is cloned where the file system can (ioctl_ficlone(2)), since they may change it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import threading
from pathlib import Path

from netbootd.errors import FormatError, VerificationError
from netbootd.formats.iso9660 import Iso9660, IsoFile, is_iso9660
from netbootd.formats.window import Window
from netbootd.images.decompress import Stopped
from netbootd.images.locations import is_file
from netbootd.images.progress import Progress
from netbootd.images.room import check_room
from netbootd.model.facts import PC, ImageFacts
from netbootd.model.image import Release

KERNEL, INITRD = "vmlinuz", "initrd"
_FOLDER = "casper"
_KERNELS = (KERNEL, "vmlinuz.efi")
_INITRDS = (INITRD, "initrd.gz", "initrd.lz", "initrd.img")
_TEXT_LIMIT = 1 << 20
_MANIFESTS = 32
_CHUNK = 8 << 20
_FICLONE = 0x40049409  # linux/fs.h
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK, errno.ENOTTY)
_INFO = re.compile(r"(Ubuntu)\b.*?(\d{2}\.\d{2})(?:\.\d{1,3})?.*?\b(amd64|arm64|riscv64|ppc64el|s390x)\b", re.ASCII)
_CLOUD_INIT = re.compile(r"^cloud-init(?:-base)?[ \t]+([0-9][A-Za-z0-9.+:~-]{0,80})\s*$", re.MULTILINE)


def is_iso(file_name: str) -> bool:
    """Whether a file is an ISO by its name, which is known before it is fetched."""
    return file_name.lower().endswith(".iso")


def holds_iso(path: Path) -> bool:
    """Whether a file is an ISO by its content."""
    with path.open("rb") as file:
        return is_iso9660(Window.whole(file.fileno()))


def export(archive: Path, release: Release, boot: Path, progress: Progress, stop: threading.Event) -> ImageFacts:
    """Fill the empty folder `boot` with kernel, initrd and ISO.

    :raises FormatError: `archive` is no ISO, or none with a casper
    :raises VerificationError: the operator's file has changed since its digest was worked out
    :raises HostError: the disk has no room
    :raises OSError: the disk fails
    """
    fd = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    try:
        name = _iso_name(release.file_name)
        progress.step("Reading the ISO")
        with Iso9660(Window.whole(fd)) as iso:
            files = iso.files(_FOLDER)
            kernel, initrd = _first(files, _KERNELS), _first(files, _INITRDS)
            if kernel is None or initrd is None:
                raise FormatError(
                    f"Reading {archive}: it has no {_FOLDER}/{KERNEL} with an {INITRD}, from which a PC could boot it.",
                    hint="Take the ISO of Ubuntu's live server.",
                )
            facts = _facts(iso, files, name)
        ours = not (release.own or is_file(release.url))
        linked = ours and _link(archive, boot / name)
        check_room(boot, kernel.size + initrd.size + (0 if linked else os.fstat(fd).st_size), "Publishing the ISO")
        progress.total(kernel.size + initrd.size)
        for file, target in ((kernel, KERNEL), (initrd, INITRD)):
            _copy_out(fd, file.offset, file.size, boot / target, progress, stop)
        if not linked:
            _take_in(fd, release, boot / name, progress, stop)
    finally:
        os.close(fd)
    return facts


def _iso_name(file_name: str) -> str:
    """What the ISO is called in the boot folder, fit for an URL on a kernel's command line."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", file_name)
    return name if is_iso(name) else f"{name}.iso"


def _first(files: dict[str, IsoFile], names: tuple[str, ...]) -> IsoFile | None:
    return next((files[name] for name in names if name in files and files[name].size), None)


def _facts(iso: Iso9660, files: dict[str, IsoFile], name: str) -> ImageFacts:
    """What the medium says of itself; ``.disk/info`` and the lists of packages beside its file systems."""
    about = iso.files(".disk").get("info")
    match = _INFO.search(iso.read(about, _TEXT_LIMIT).decode("utf-8", "replace")) if about else None
    version = ""
    lists = [file for path, file in sorted(files.items()) if path.endswith(".manifest") and file.size <= _TEXT_LIMIT]
    for file in lists[:_MANIFESTS]:
        if found := _CLOUD_INIT.search(iso.read(file, _TEXT_LIMIT).decode("utf-8", "replace")):
            version = found[1]
    return ImageFacts(
        os_id=match[1].lower() if match else "",
        os_version=match[2] if match else "",
        cmdline_path="",
        kernels=(KERNEL,),
        initramfs=(INITRD,),
        cloud_init_version=version,
        kind=PC,
        extra={"iso": name, **({"arch": match[3]} if match else {})},
    )


# --------------------------------------------------------------------------------------------------------------- bytes


def _link(source: Path, target: Path) -> bool:
    """Give the file a second name; False where that can't be."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _take_in(fd: int, release: Release, target: Path, progress: Progress, stop: threading.Event) -> None:
    """Clone or copy the operator's file, and see that it is what it was when its digest was worked out."""
    size = os.fstat(fd).st_size
    progress.step(f"Copying {target.name}")
    progress.total(size)
    digest = hashlib.sha256()
    _copy_out(fd, 0, size, target, progress, stop, digest)
    if digest.hexdigest() != release.sha256:
        raise VerificationError(
            f"Copying {release.file_name}: its sha256 is {digest.hexdigest()} now, {release.sha256} was expected.",
            hint="It was changed meanwhile: wait until it is whole, and run prepare again.",
        )


def _copy_out(
    fd: int,
    offset: int,
    size: int,
    target: Path,
    progress: Progress,
    stop: threading.Event,
    digest: hashlib._Hash | None = None,
) -> None:
    """Copy a range of `fd` into a new file, by the kernel where it can; the digest is of what was written."""
    out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(out, 0o644)
        cloned = offset == 0 and size == os.fstat(fd).st_size and _clone(fd, out)
        done = 0
        while done < size:
            if stop.is_set():
                raise Stopped
            count = min(_CHUNK, size - done)
            if not cloned:
                count = _copy(fd, offset + done, out, done, count)
            if digest is not None:
                digest.update(os.pread(out, count, done))
            done += count
            progress.advance(count)
    finally:
        os.close(out)


def _clone(fd: int, out: int) -> bool:
    try:
        fcntl.ioctl(out, _FICLONE, fd)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _copy(fd: int, offset: int, out: int, at: int, count: int) -> int:
    try:
        copied = os.copy_file_range(fd, out, count, offset, at)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        copied = 0
    if not copied:
        data = os.pread(fd, count, offset)
        copied = os.pwrite(out, data, at)
    if not copied:
        raise FormatError("Copying out of an ISO image: the file ends early.", hint="It was cut short meanwhile.")
    return copied
