"""ISO 9660: files are found where other tools say that they lie, and no image costs more than a refusal."""

import os
import random
import re
import resource
import struct
import time

import pytest

from netbootd.errors import FormatError
from netbootd.formats.iso9660 import SECTOR, Iso9660, is_iso9660
from netbootd.formats.window import Window
from tests.support.live_iso import INFO, INITRD, KERNEL, MAKERS, live_iso
from tests.support.processes import run


def opened(path, look):
    """What `look` makes of the ISO at `path`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with Iso9660(Window.whole(fd)) as iso:
            return look(iso)
    finally:
        os.close(fd)


def casper(path):
    return opened(path, lambda iso: iso.files("casper"))


@pytest.mark.parametrize("maker", MAKERS)
def test_files_lie_where_they_are_said_to(tmp_path, maker):
    path = live_iso(tmp_path / "x.iso", maker=maker)
    data = path.read_bytes()
    found = casper(path)
    for name, content in (("vmlinuz", KERNEL), ("initrd", INITRD)):
        file = found[name]
        assert (file.path, file.size) == (f"casper/{name}", len(content))
        assert data[file.offset : file.offset + file.size] == content
    assert opened(path, lambda iso: iso.files("nosuch")) == {}
    if maker != "xorriso plain":  # whose names can't begin with a dot
        assert opened(path, lambda iso: iso.read(iso.files(".disk")["info"], 100)) == INFO


def test_where_xorriso_says_they_lie(tmp_path):
    path = live_iso(tmp_path / "x.iso", maker="xorriso")
    said = run(["xorriso", "-indev", path, "-find", "/casper", "-type", "f", "-exec", "report_lba"]).stdout
    extents = {m[3]: (int(m[1]), int(m[2])) for m in re.finditer(r"(\d+) , +\d+ , +(\d+) , '/casper/(.*)'", said)}
    found = {name: (file.offset // SECTOR, file.size) for name, file in casper(path).items()}
    assert found == extents and len(found) == 5


def test_links_folders_and_large_files_are_no_small_files(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "folder").mkdir()
    (tmp_path / "t" / "real").write_bytes(b"x" * 100)
    (tmp_path / "t" / "link").symlink_to("real")
    run(["xorriso", "-as", "mkisofs", "-quiet", "-r", "-o", tmp_path / "x.iso", tmp_path / "t"])
    assert list(opened(tmp_path / "x.iso", lambda iso: iso.files(""))) == ["real"]
    with pytest.raises(FormatError, match="100 bytes"):
        opened(tmp_path / "x.iso", lambda iso: iso.read(iso.files("")["real"], 99))


def test_what_is_no_iso(tmp_path):
    path = tmp_path / "x"
    for data in (b"", b"CD001", bytes(40_000), b"\xff" * 40_000):
        path.write_bytes(data)
        with path.open("rb") as file:
            assert not is_iso9660(Window.whole(file.fileno()))
        with pytest.raises(FormatError, match="ISO"):
            casper(path)


def test_one_that_was_cut_short(tmp_path):
    path = live_iso(tmp_path / "x.iso", maker="xorriso")
    data = path.read_bytes()
    last = max(file.offset for file in casper(path).values())
    for size in (16 * SECTOR + 10, 17 * SECTOR, 20 * SECTOR, last + 1):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            casper(path)


def test_a_file_beyond_the_end_is_refused(tmp_path):
    path = live_iso(tmp_path / "x.iso")
    data = bytearray(path.read_bytes())
    size = struct.pack("<I", len(KERNEL)) + struct.pack(">I", len(KERNEL))
    at = data.index(size)
    data[at : at + 8] = struct.pack("<I", 1 << 31) + struct.pack(">I", 1 << 31)
    path.write_bytes(data)
    with pytest.raises(FormatError):
        casper(path)


def test_directories_without_end_are_bounded_in_time_and_memory(tmp_path):
    """A gigabyte of zeros is what a root directory of that size costs on disk, and here: nothing."""
    path = live_iso(tmp_path / "x.iso")
    data = bytearray(path.read_bytes())
    record = 16 * SECTOR + 156  # the root's record in the volume descriptor (ECMA-119 section 8.4.18)
    size = 1 << 30
    data[record + 10 : record + 18] = struct.pack("<I", size) + struct.pack(">I", size)
    path.write_bytes(data)
    os.truncate(path, 1 << 31)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(FormatError):
        casper(path)
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_more_names_than_a_medium_has(tmp_path):
    files = {f"casper/{'n' * 200}{number:05}": b"" for number in range(300)}
    path = live_iso(tmp_path / "x.iso", files)
    assert len(casper(path)) == 300
    data = bytearray(path.read_bytes())
    folder = data.index(b"n" * 100) // SECTOR * SECTOR
    block = bytes(data[folder : folder + SECTOR])
    data += block * 2500  # 5 MB of a directory, each block of it good
    size, extent = 2500 * SECTOR, (len(data) - 2500 * SECTOR) // SECTOR
    record = 16 * SECTOR + 156
    data[record + 2 : record + 10] = struct.pack("<I", extent) + struct.pack(">I", extent)
    data[record + 10 : record + 18] = struct.pack("<I", size) + struct.pack(">I", size)
    path.write_bytes(data)
    with pytest.raises(FormatError):
        casper(path)


@pytest.mark.parametrize("maker", ["pycdlib", "xorriso", "genisoimage joliet"])
def test_flipped_bytes_are_refused_or_harmless(tmp_path, maker):
    path = live_iso(tmp_path / "x.iso", maker=maker)
    whole = path.read_bytes()
    structures = min(file.offset for file in casper(path).values())
    rng = random.Random(maker)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(16 * SECTOR, structures)] = rng.randrange(256)
        path.write_bytes(data)
        try:
            for file in casper(path).values():
                assert file.offset >= 0
                assert not file.size or file.offset + file.size <= len(data)
        except FormatError as error:
            refused += 1
            assert "\n" not in error.message
            assert len(error.message) < 400
    assert refused
