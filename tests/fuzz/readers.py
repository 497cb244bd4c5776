"""The readers, each as a function of an input's bytes: it reads all there is, and raises what the reader raises."""

from __future__ import annotations

import functools
import os
import random
import shutil
import tempfile
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netbootd.errors import NetbootdError
from netbootd.formats import cmdline, configtxt, elf, fstab, initramfs
from netbootd.formats.bootroot import find_boot_and_root
from netbootd.formats.ext4 import Ext4
from netbootd.formats.fat import Fat
from netbootd.formats.fatwrite import put_files
from netbootd.formats.iso9660 import Iso9660
from netbootd.formats.partitions import read_table
from netbootd.formats.treeattributes import TreeAttributes
from netbootd.formats.window import Window
from netbootd.images import verify
from netbootd.images.catalog import oslist, raspios, ubuntu
from netbootd.images.decompress import decompress
from netbootd.images.decompress.landing import LandedWindow, LandingFile
from netbootd.images.documents import Document
from netbootd.images.export import export_ext4, export_fat
from netbootd.images.progress import Silent
from netbootd.nfsd.kernel import caches, messages, procfs, protocol
from netbootd.tftpd import options, packets
from tests.fuzz import patching, seeds
from tests.fuzz.ext4sums import mend_ext4
from tests.fuzz.rpcserver import answer_calls, calls

_LIMIT = 64 << 20  # bytes of an unpacked image here, so that a bomb is refused before it fills the disk
_WRITTEN = {
    "user-data": b"#cloud-config\n" * 90,
    "a-new-file.txt": b"n" * 700,
    "config.txt": b"",
    "meta-data": b"m" * 9,
}


@functools.cache
def _scratch() -> str | None:
    """Memory as a folder, twenty times as fast as a disk; None where it keeps no attributes (before Linux 6.6)."""
    try:
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
            os.setxattr(file.name, "user.test", b"")
    except OSError:
        return None
    return "/dev/shm"


@dataclass(frozen=True, slots=True)
class Harness:
    """One reader.

    :param run: reads an input, with an empty folder of its own to work in
    :param seeds: makes right inputs, given an empty folder
    :param allowed: what it may raise
    :param mutations: of a bounded run, so many as take about a second of a processor
    :param mend: makes checksums right again that stand before what is to be read
    """

    run: Callable[[bytes, Path], None]
    seeds: Callable[[Path], list[bytes]]
    mutations: int
    allowed: tuple[type[Exception], ...] = (NetbootdError,)
    mend: Callable[[bytes], bytes] | None = None

    def read(self, data: bytes) -> None:
        """Run it on an input, in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="netbootd-fuzz-", dir=_scratch()) as folder:
            self.run(data, Path(folder))

    def made_seeds(self) -> list[bytes]:
        """The right inputs, made in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="netbootd-seeds-") as folder:
            return self.seeds(Path(folder))

    def mended(self, data: bytes) -> bytes:
        """An input after a change, with right checksums where they would keep it from what is to be read."""
        return self.mend(data) if self.mend else data


@contextmanager
def _window(data: bytes) -> Iterator[Window]:
    fd = os.memfd_create("input")
    try:
        os.write(fd, data)
        yield Window.whole(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- disks and file systems


def _partitions(data: bytes, folder: Path) -> None:
    with _window(data) as window:
        table = read_table(window)
        for part in table.partitions:
            assert 0 < part.offset < part.end <= len(data)


def _bootroot(data: bytes, folder: Path) -> None:
    with _window(data) as window:
        boot, root = find_boot_and_root(window, read_table(window))
        assert boot != root


def _fat(data: bytes, folder: Path) -> None:
    with _window(data) as window:
        fat = Fat(window)
        assert fat.used_bytes >= 0
        for entry in fat.walk():
            if not entry.is_dir:
                assert sum(len(chunk) for chunk in fat.chunks(entry)) == entry.size


def _fat_writing(data: bytes, folder: Path) -> None:
    """What is written is read back, and no other file has changed."""
    with _window(data) as window:
        edits = put_files(window, _WRITTEN)
        before = _fat_files(window)
        for edit in edits:
            os.pwrite(window.fd, edit.data, edit.offset)
        after = _fat_files(window)
        names = {name.upper() for name in _WRITTEN}
        assert {k: v for k, v in before.items() if k not in names} == {k: v for k, v in after.items() if k not in names}
        assert {name.upper(): data for name, data in _WRITTEN.items()}.items() <= after.items()


def _fat_files(window: Window) -> dict[str, bytes]:
    fat = Fat(window)
    return {entry.path.upper(): b"".join(fat.chunks(entry)) for entry in fat.walk() if not entry.is_dir}


def _fat_export(data: bytes, folder: Path) -> None:
    with _window(data) as window:
        _confined(folder, lambda target: export_fat(Fat(window), target, lambda _: None))


def _ext4(data: bytes, folder: Path) -> None:
    with _window(data) as window:
        fs = Ext4(window)
        left = 4 << 20  # bytes of content that are looked at: holes may be as large as they like
        for entry in fs.walk():
            inode = entry.inode
            assert inode.mtime_ns is not None and inode.rdev >= 0 and isinstance(inode.crtime_ns, int | None)
            fs.moved(entry.extents)
            for offset, length, disk in entry.extents:
                if disk is not None and left > 0:
                    assert offset >= 0 and len(fs.read(disk, min(length, left))) == min(length, left)
                    left -= length


def _ext4_export(data: bytes, folder: Path) -> None:
    with _window(data) as window:
        _confined(folder, lambda target: export_ext4(Ext4(window), target, lambda _: None))


def _confined(folder: Path, export: Callable[[Path], object]) -> None:
    """Export into a folder, and see that nothing comes beside it."""
    target = folder / "above" / "target"
    target.mkdir(parents=True)
    try:
        export(target)
    finally:
        assert os.listdir(folder) == ["above"] and os.listdir(folder / "above") == ["target"]


def _landing(data: bytes, folder: Path) -> None:
    """An image that comes in pieces reads as it is, and what its files get is what its reader says."""
    numbers = random.Random(zlib.crc32(data))
    size = numbers.choice((4096, 10_007, 65_536, 200_000))
    pieces = list(range(0, len(data), size))
    if numbers.random() < 0.4:
        numbers.shuffle(pieces)
    target = LandingFile(folder, _LIMIT, folder / "landing")
    try:
        for at in pieces:
            target.write(at, data[at : at + size])
        target.finish()
        window = LandedWindow(target.fd, 0, target.size, target.landed)
        read = window.read(0, len(data))
        assert read == data, f"it differs from byte {next(i for i in range(len(data)) if read[i] != data[i])} on"
        root = max(read_table(window).partitions, key=lambda part: part.size)
        _compare_exports(data, window, root.offset, root.size, folder)
    finally:
        target.landed.close()
        os.close(target.fd)


def _compare_exports(data: bytes, landed: LandedWindow, offset: int, size: int, folder: Path) -> None:
    """Export from the landed files and from the image as it is: the same files come of it, or the same refusal."""
    trees: list[dict[str, bytes] | str] = []
    with _window(data) as plain:
        for name, window in (("plain", plain), ("landed", landed)):
            target = folder / name
            target.mkdir()
            try:
                export_ext4(Ext4(window.sub(offset, size)), target, lambda _: None)
            except NetbootdError as error:
                trees.append(type(error).__name__)
            else:
                trees.append(_content(target))
            shutil.rmtree(target)
    assert trees[0] == trees[1]


def _content(folder: Path) -> dict[str, bytes]:
    found = {}
    for base, _, files in os.walk(folder):
        for name in files:
            path = Path(base, name)
            if path.is_file() and not path.is_symlink():
                found[os.path.relpath(path, folder)] = _without_holes(path)
    return found


def _without_holes(path: Path) -> bytes:
    """The first bytes of a file and its size: with holes it may be larger than memory."""
    with path.open("rb") as file:
        return b"%d " % path.stat().st_size + file.read(1 << 20)


def _iso9660(data: bytes, folder: Path) -> None:
    with _window(data) as window, Iso9660(window) as iso:
        for name in ("casper", "", ".disk", "nothing"):
            for file in iso.files(name).values():
                iso.read(file, 1 << 20)


# ---------------------------------------------------------------- archives and texts


def _decompress(data: bytes, folder: Path) -> None:
    path = folder / "archive"
    path.write_bytes(data)
    with decompress(path, folder, progress=Silent(), limit=_LIMIT, workers=1) as image:
        assert len(image.window.read(0, image.size)) == image.size
    assert os.listdir(folder) == ["archive"]


def _initramfs(data: bytes, folder: Path) -> None:
    rest = memoryview(data)

    def read(size: int) -> bytes:
        nonlocal rest
        piece, rest = bytes(rest[:size]), rest[size:]
        return piece

    contents = initramfs.look(read, lambda name, size: size < 1 << 16)
    for name in contents.members:
        contents.get(name)
        contents.text(name)
    contents.below("usr/lib/modules")


def _elf(data: bytes, folder: Path) -> None:
    program = elf.read(data)
    assert len(program.needed) <= 4096 and all(program.search)


def _attributes(data: bytes, folder: Path) -> None:
    known = TreeAttributes.parse(data)
    again = TreeAttributes.parse(known.encode())
    assert len(again) == len(known)


def _configtxt(data: bytes, folder: Path) -> None:
    text = data.decode("latin-1")
    for board in configtxt.BOARDS:
        settings = configtxt.evaluate(text, board, serial=0x10000000, partition=1, include=_included(text))
        settings.boot_files(lambda path: len(path) % 2 == 0)
    configtxt.append(text, ["dtparam=x"])


def _included(text: str) -> Callable[[str], str | None]:
    """Files by name: one that is the first one again, others that end."""
    return lambda name: text if name == "config.txt" else "dtparam=x\n" if name.isascii() else None


def _cmdline(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", "surrogateescape")
    line = cmdline.base_of(text)
    assert "\n" not in line
    for word in cmdline.words(line):
        cmdline.name_of(word)
    cmdline.value_of(line, "root")
    fstab.without_disks(text)


def _catalogue(data: bytes, folder: Path) -> None:
    async def read(url: str, limit: int) -> Document:
        return Document(url, data)

    index = _result(oslist.load(f"https://mirror.example/{oslist.INDEX}", read, named=True))
    for image in raspios.newest(index.entries):
        assert image.name.isprintable()


def _result(waiting: Coroutine[Any, Any, oslist.Index]) -> oslist.Index:
    """What a coroutine returns that never has to wait."""
    try:
        waiting.send(None)
    except StopIteration as done:
        index: oslist.Index = done.value
        return index
    raise AssertionError("it waits for something")


def _sums(data: bytes, folder: Path) -> None:
    for image in (*ubuntu.parse_sums(data), *ubuntu.parse_sums(data, ubuntu.recognise_iso)):
        assert image.name.isprintable() and image.title.isprintable()
    verify.parse_status(data.decode("utf-8", "replace"))
    verify.sequoia(b"data", verify.dearmor(data), verify.dearmor(data))


# ---------------------------------------------------------------- wires


def _tftp(data: bytes, folder: Path) -> None:
    packets.opcode_of(data)
    packets.decode_error(data)
    if packets.opcode_of(data) == packets.Opcode.ERROR:
        return
    request = packets.parse_request(data)
    agreement = options.negotiate(request.options, 1 << 20, max_blksize=1468, max_windowsize=64)
    assert 8 <= agreement.blksize <= 1468 and 1 <= agreement.windowsize <= 64
    packets.encode_oack(agreement.accepted)


def _channel(data: bytes, folder: Path) -> None:
    messages.unpack_address(data)
    readers: tuple[Callable[[], object], ...] = (
        lambda: caches.split(data),
        lambda: procfs.parse_versions(data.decode("latin-1")),
        lambda: procfs.parse_ports(data.decode("latin-1")),
        lambda: protocol.parse_request(data),
        lambda: protocol.parse_answer(data),
    )
    for read in readers:
        try:
            read()
        except NetbootdError:
            pass
        except ValueError as error:
            if read is not readers[0]:  # caches.split says so
                raise AssertionError from error


def _rpc(data: bytes, folder: Path) -> None:
    answer_calls(data)


HARNESSES: dict[str, Harness] = {
    "partitions": Harness(_partitions, seeds.partitions, 1000, mend=seeds.mend_gpt),
    "bootroot": Harness(_bootroot, seeds.disks, 600),
    "fat": Harness(_fat, seeds.fat, 400),
    "fat-writing": Harness(_fat_writing, seeds.fat, 240),
    "fat-export": Harness(_fat_export, seeds.fat, 400),
    "ext4": Harness(_ext4, seeds.ext4, 600),
    "ext4-checksums": Harness(_ext4, seeds.ext4_with_checksums, 300, mend=mend_ext4),
    "ext4-journal": Harness(_ext4, seeds.journal, 400),
    "ext4-export": Harness(_ext4_export, seeds.ext4, 120),
    "landing": Harness(_landing, seeds.landing, 120),
    "iso9660": Harness(_iso9660, seeds.iso9660, 400),
    "xz": Harness(_decompress, seeds.xz, 600, mend=seeds.mend_xz),
    "streams": Harness(_decompress, seeds.streams, 600),
    "containers": Harness(_decompress, seeds.containers, 600),
    "initramfs": Harness(_initramfs, seeds.initramfs, 800),
    "elf": Harness(_elf, seeds.elf, 600),
    "attributes": Harness(_attributes, seeds.attributes, 1200, mend=seeds.mend_attributes),
    "configtxt": Harness(_configtxt, seeds.configtxt, 600),
    "cmdline": Harness(_cmdline, seeds.cmdline, 1000),
    "patches": Harness(patching.patch, patching.seeds, 100),
    "catalogue": Harness(_catalogue, seeds.catalogue, 1000),
    "sums": Harness(_sums, seeds.sums, 1000),
    "tftp": Harness(_tftp, seeds.tftp, 1600, (packets.PacketError,)),
    "nfs-channel": Harness(_channel, seeds.channel, 1000),
    "nfs-calls": Harness(_rpc, calls, 1600),
}
"""All of them by name."""
