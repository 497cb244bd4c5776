"""Archives: what xz, gzip, zstd, zip and tar pack comes out equal; what they refuse is refused here too."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import random
import struct
import subprocess
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from netbootd.errors import FormatError, HostError, NotFoundError, VerificationError
from netbootd.images.decompress import Stopped, decompress, sparse, xz
from netbootd.images.progress import Silent

MIB = 1 << 20


def make_image(size: int = MIB + 4096, seed: int = 1) -> bytes:
    """Something like a disk: a boot signature, data of several kinds, long runs of zeros, an odd end."""
    rng = random.Random(seed)
    data = bytearray(size)
    data[510:512] = b"\x55\xaa"
    data[2048:60_000] = rng.randbytes(60_000 - 2048)
    text = b"the quick brown fox jumps over the lazy dog %d\n"
    data[400_000:600_000] = b"".join(text % i for i in range(10_000))[:200_000]
    data[-700:] = rng.randbytes(700)
    return bytes(data[:size])


IMAGE = make_image()


def run(*command: str, data: bytes = IMAGE) -> bytes:
    return subprocess.run(command, input=data, check=True, capture_output=True).stdout


def accepts(*command: str, data: bytes) -> bool:
    return subprocess.run(command, input=data, check=False, capture_output=True).returncode == 0


def unpack(data: bytes, tmp_path: Path, **options: object) -> bytes:
    """Decompress `data`; the image's bytes. The scratch folder must be empty before and after."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    path = tmp_path / "archive"
    path.write_bytes(data)
    try:
        with decompress(path, scratch, progress=Silent(), **options) as image:  # type: ignore[arg-type]
            assert list(scratch.iterdir()) == []
            return image.window.read(0, image.size)
    finally:
        assert list(scratch.iterdir()) == []


def tar_of(*members: tuple[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("folder/link")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
        archive.addfile(link)
    return buffer.getvalue()


def zip_of(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


HALF = len(IMAGE) // 2
LONG = "a-folder-with-a-long-name/" * 6 + "disk.img"
GOOD: dict[str, Callable[[], bytes]] = {
    "plain": lambda: IMAGE,
    "xz": lambda: run("xz", "-1"),
    "xz -9": lambda: run("xz", "-9"),
    "xz blocks": lambda: run("xz", "-1", "-T1", "--block-size=262144"),
    "xz threads": lambda: run("xz", "-1", "-T2", "--block-size=400000"),
    "xz block list": lambda: run("xz", "-1", "--block-list=100,65536,300000"),
    "xz streams": lambda: run("xz", "-1", data=IMAGE[:HALF]) + run("xz", "-1", data=IMAGE[HALF:]),
    "xz streams and padding": lambda: (
        run("xz", "-1", data=IMAGE[:HALF]) + bytes(8) + run("xz", "-1", data=IMAGE[HALF:]) + bytes(4 + 2**17)
    ),
    "xz empty streams": lambda: run("xz", data=b"") + run("xz", "-1") + run("xz", data=b""),
    "xz no check": lambda: run("xz", "-1", "-Cnone"),
    "xz crc32": lambda: run("xz", "-1", "-Ccrc32"),
    "xz sha256": lambda: run("xz", "-1", "-Csha256", "--block-size=500000"),
    "xz checks mixed": lambda: run("xz", "-Csha256", data=IMAGE[:HALF]) + run("xz", "-Ccrc32", data=IMAGE[HALF:]),
    "xz filters": lambda: run("xz", "--delta=dist=4", "--x86", "--lzma2=preset=1"),
    "gzip": lambda: run("gzip", "-1"),
    "gzip members": lambda: run("gzip", "-1", data=IMAGE[:HALF]) + run("gzip", data=IMAGE[HALF:]),
    "gzip padded": lambda: run("gzip", "-1") + bytes(200_000),
    "zstd": lambda: run("zstd", "-q"),
    "zstd check": lambda: run("zstd", "-q", "--check", "-T2"),
    "zstd frames": lambda: run("zstd", "-q", data=IMAGE[:HALF]) + run("zstd", "-q", data=IMAGE[HALF:]),
    "zstd skippable first": lambda: b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + run("zstd", "-q"),
    "zstd skippable last": lambda: run("zstd", "-q") + b"\x5f\x2a\x4d\x18\x00\x00\x00\x00",
    "zstd long": lambda: run("zstd", "-q", "--long=27"),
    "zip": lambda: zip_of(("disk.img", IMAGE)),
    "zip stored": lambda: zip_of(("disk.img", IMAGE), method=zipfile.ZIP_STORED),
    "zip tool": lambda: run("zip", "-q", "-", "-"),
    "zip with a readme": lambda: zip_of(
        ("a/readme.txt", b"hello"), ("a/disk.img", IMAGE), ("__MACOSX/._disk.img", b"x")
    ),
    "tar": lambda: tar_of(("disk.img", IMAGE)),
    "tar dotted": lambda: tar_of(("./disk.img", IMAGE), ("./readme", b"hello")),
    "tar pax": lambda: tar_of((LONG, IMAGE), ("readme", b"hello"), format=tarfile.PAX_FORMAT),
    "tar gnu long name": lambda: tar_of((LONG, IMAGE), ("readme", b"hello")),
    "tar ustar": lambda: tar_of(("a/disk", IMAGE), format=tarfile.USTAR_FORMAT),
    "tar.xz": lambda: run("xz", "-1", data=tar_of(("disk.img", IMAGE))),
    "tar.gz": lambda: run("gzip", "-1", data=tar_of(("readme", b"hello"), ("disk.img", IMAGE))),
}


@functools.cache
def good(name: str) -> bytes:
    return GOOD[name]()


@pytest.mark.parametrize("name", GOOD)
def test_what_the_tools_pack_comes_out_equal(name: str, tmp_path: Path) -> None:
    data = good(name)
    digest, extract = hashlib.sha256(data).hexdigest(), hashlib.sha256(IMAGE).hexdigest()
    assert unpack(data, tmp_path, sha256=digest) == IMAGE
    if not name.startswith("tar.") and not name.startswith("tar"):
        assert unpack(data, tmp_path, sha256=digest.upper(), extract_sha256=extract) == IMAGE
        with pytest.raises(VerificationError, match="the image's sha256"):
            unpack(data, tmp_path, extract_sha256="00" * 32)
    with pytest.raises(VerificationError, match="was expected"):
        unpack(data, tmp_path, sha256="00" * 32)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same(workers: int, tmp_path: Path) -> None:
    data = run("xz", "-1", "--block-size=65536") + run(
        "xz", "-0", "--block-size=100000", data=make_image(MIB // 2 + 1, 2)
    )
    assert unpack(data, tmp_path, workers=workers) == IMAGE + make_image(MIB // 2 + 1, 2)


@pytest.mark.parametrize("name", ["xz", "xz blocks", "gzip", "zstd", "zip"])
def test_zeros_take_no_room(name: str, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(good(name))
    with decompress(tmp_path / "archive", tmp_path, progress=Silent()) as image:
        assert image.size == len(IMAGE)
        assert os.fstat(image.fd).st_blocks * 512 <= 60_000 + 200_000 + 700 + 5 * 65536


def test_a_hole_at_the_end_counts(tmp_path: Path) -> None:
    data = make_image()[:MIB] + bytes(2 * MIB + 3)
    for packer in (("xz", "-1"), ("xz", "-1", "--block-size=1MiB"), ("gzip", "-1"), ("zstd", "-q")):
        assert unpack(run(*packer, data=data), tmp_path) == data


def test_a_plain_image_is_read_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(IMAGE)
    with decompress(path, tmp_path, progress=Silent()) as image:
        assert (os.fstat(image.fd).st_ino, image.offset, image.kind) == (path.stat().st_ino, 0, "plain")
    image.close()


# ------------------------------------------------------------------------------------------------------ refusals


def judge(data: bytes, tmp_path: Path) -> bytes | None:
    """The image, or None where it is refused as broken."""
    try:
        return unpack(data, tmp_path)
    except FormatError as error:
        assert error.exit_status == 7
        return None


@pytest.mark.parametrize("name", ["xz", "xz blocks", "xz streams and padding", "gzip", "zstd check", "zip", "tar"])
def test_every_cut_is_refused(name: str, tmp_path: Path) -> None:
    data = good(name).rstrip(b"\0")
    rng = random.Random(3)
    for length in [0, 1, 5, 6, 12, 31, 32, 511, len(data) - 1, len(data) - 4, *rng.sample(range(len(data)), 12)]:
        assert judge(data[:length], tmp_path) is None, length


@pytest.mark.parametrize("name", ["xz", "xz blocks", "gzip", "zstd check"])
@pytest.mark.parametrize("rest", [b"\n", b"garbage, as it were", b"\xfd7zXZ\x00", b"\x00\x00\x00\x01", bytes(9) + b"x"])
def test_something_behind_the_end_is_refused(name: str, rest: bytes, tmp_path: Path) -> None:
    assert judge(good(name) + rest, tmp_path) is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_stream_padding_is_judged_as_xz_does(count: int, tmp_path: Path) -> None:
    data = run("xz", "-1") + bytes(count) + run("xz", "-1", data=make_image(MIB // 2 + 1, 2))
    assert (judge(data, tmp_path) is not None) == accepts("xz", "-t", data=data) == (count % 4 == 0)


@pytest.mark.parametrize("name", ["xz", "xz block list", "xz streams", "xz sha256"])
def test_flipped_bits_are_refused(name: str, tmp_path: Path) -> None:
    """Wherever: header, block, check, index, footer. xz itself is the judge of what is still whole."""
    data = good(name)
    rng = random.Random(name)
    ends = [*range(36), *(len(data) - i for i in range(1, 60))]
    for at in rng.sample(ends, 16) + rng.sample(range(len(data)), 8):
        hurt = bytearray(data)
        hurt[at] ^= 1 << rng.randrange(8)
        assert not accepts("xz", "-t", "-F", "xz", data=bytes(hurt))
        assert judge(bytes(hurt), tmp_path) is None, at


@pytest.mark.parametrize("name", ["gzip", "zstd check", "zip", "tar pax"])
def test_flipped_bits_elsewhere_never_pass_as_something_else(name: str, tmp_path: Path) -> None:
    data = good(name)
    rng = random.Random(name)
    for at in [*range(24), *rng.sample(range(len(data)), 24)]:
        hurt = bytearray(data)
        hurt[at] ^= 1 << rng.randrange(8)
        found = judge(bytes(hurt), tmp_path)
        assert found is None or found == IMAGE or name == "tar pax", at  # tar has no check of its members' data


NOT_IMAGES = {
    "nothing": b"",
    "one byte": b"\x55",
    "zeros": bytes(MIB),
    "text": b"hello\n" * 9999,
    "random": random.Random(5).randbytes(MIB),
    "bzip2": b"BZh91AY&SY" + bytes(512),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(MIB),
    "lz4": b"\x04\x22\x4d\x18" + bytes(512),
    "old lzma": b"\x5d\x00\x00\x80\x00" + bytes(512),
    "qcow2": b"QFI\xfb" + bytes(512),
    "empty zip": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("name", NOT_IMAGES)
@pytest.mark.parametrize("packer", [(), ("xz", "-0"), ("gzip", "-1"), ("zstd", "-q")])
def test_what_is_no_disk_image_is_refused(name: str, packer: tuple[str, ...], tmp_path: Path) -> None:
    data = NOT_IMAGES[name]
    with pytest.raises(FormatError) as error:
        unpack(run(*packer, data=data) if packer else data, tmp_path)
    assert error.value.hint
    if name == "bzip2" and not packer:
        assert "bzip2" in str(error.value)


def test_an_archive_without_an_image_inside_ends_at_its_first_piece(tmp_path: Path) -> None:
    """A bomb of zeros is given up at once, not when the limit is reached."""
    data = run("xz", "-0", "--block-size=1MiB", data=bytes(16 * MIB))
    seen = Counting()
    (tmp_path / "bomb").write_bytes(data)
    with pytest.raises(FormatError, match="partition table"):
        decompress(tmp_path / "bomb", tmp_path, progress=seen, workers=1)
    assert seen.done <= 2 * MIB


@pytest.mark.parametrize("name", ["xz", "xz blocks", "gzip", "zstd", "zip"])
def test_a_bomb_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"large"):
        unpack(good(name), tmp_path, limit=len(IMAGE) - 1)
    assert unpack(good(name), tmp_path, limit=len(IMAGE)) == IMAGE


def forged_index(data: bytes, records: list[tuple[int, int]]) -> bytes:
    """`data`, a stream of one block, with another index whose checksums are right."""
    size = (int.from_bytes(data[-8:-4], "little") + 1) * 4
    index = b"\0" + xz._varint_bytes(len(records))
    index += b"".join(xz._varint_bytes(a) + xz._varint_bytes(b) for a, b in records)
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", zlib.crc32(index))
    tail = struct.pack("<I", len(index) // 4 - 1) + data[-4:-2]
    return data[: -12 - size] + index + struct.pack("<I", zlib.crc32(tail)) + tail + b"YZ"


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    data = run("xz", "-1", "--block-size=16MiB")
    [block] = xz.blocks(lambda offset, length: data[offset : offset + length], len(data))
    assert unpack(forged_index(data, [(block.length, block.size)]), tmp_path) == IMAGE
    for record in (
        (block.length, block.size - 1),
        (block.length, block.size + 1),
        (block.length, 1),
        (block.length, 0),
        (block.length, 1 << 62),
        (block.length - 4, block.size),
        (block.length + 4, block.size),
        (5, block.size),
        (0, block.size),
        (1 << 62, block.size),
    ):
        assert judge(forged_index(data, [record]), tmp_path) is None, record
    assert judge(forged_index(data, [(block.length, block.size)] * 2), tmp_path) is None
    assert judge(forged_index(data, []), tmp_path) is None
    halves = [(block.length // 8 * 4, block.size // 2), (block.length - block.length // 8 * 4, -(-block.size // 2))]
    assert judge(forged_index(data, halves), tmp_path) is None


def test_a_dictionary_that_would_eat_the_memory_is_refused(tmp_path: Path) -> None:
    data = bytearray(run("xz", "-1"))
    length = (data[12] + 1) * 4
    assert data[13] == 0 and data[14] == 0x21  # one filter, LZMA2; then the length and the dictionary's size
    data[16] = 40
    data[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(data[12 : 12 + length - 4]))
    assert accepts("xz", "-t", "--memlimit-decompress=8GiB", data=bytes(data))
    with pytest.raises(FormatError, match="memory"):
        unpack(bytes(data), tmp_path)


def test_a_window_that_would_eat_the_memory_is_refused(tmp_path: Path) -> None:
    assert judge(run("zstd", "-q", "--long=31", "--no-content-size"), tmp_path) is None


@pytest.mark.parametrize("tool", [("gzip", "-1"), ("zstd", "-q", "--no-check")])
def test_a_flood_of_empty_members_is_refused(tool: tuple[str, ...], tmp_path: Path) -> None:
    data = run(*tool) + run(*tool, data=b"") * 12_000
    assert judge(data, tmp_path) is None


def test_a_flood_of_streams_or_blocks_is_refused(tmp_path: Path) -> None:
    assert judge(run("xz", "-1") + run("xz", data=b"") * 17_000, tmp_path) is None
    data = run("xz", "-1", "--block-size=16MiB")
    assert judge(forged_index(data, [(5, 1)] * 300_000), tmp_path) is None


ZIPS = {
    "two images": zip_of(("a.img", IMAGE), ("b.img", IMAGE)),
    "two files": zip_of(("a.txt", b"1"), ("b.txt", b"2")),
    "a text": zip_of(("a.txt", b"hello" * 99)),
    "a folder": zip_of(("a/", b"")),
    "only hidden files": zip_of((".disk.img", IMAGE)),
    "bzip2 inside": zip_of(("a.img", IMAGE), method=zipfile.ZIP_BZIP2),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_without_exactly_one_image_is_refused(name: str, tmp_path: Path) -> None:
    assert judge(ZIPS[name], tmp_path) is None


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="encrypted"):
        unpack(run("zip", "-q", "-P", "secret", "-", "-"), tmp_path)


def test_a_zip_with_an_endless_directory_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO(zip_of(("disk.img", IMAGE)))
    data = bytearray(buffer.getvalue() + b"")
    end = data.rindex(b"PK\x05\x06")
    data[end:end] = bytes(8 * MIB)
    at = data.rindex(b"PK\x05\x06")
    struct.pack_into("<I", data, at + 12, 8 * MIB + struct.unpack_from("<I", data, at + 12)[0])
    with pytest.raises(FormatError, match=r"^Unpacking zip: its directory is absurdly"):
        unpack(bytes(data), tmp_path)


def changed_zip(where: bytes, offset: int, value: bytes) -> bytes:
    """A zip with other bytes in its directory, counted from the last place of `where`."""
    data = bytearray(zip_of(("disk.img", IMAGE)))
    at = data.rindex(where) + offset
    data[at : at + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        changed_zip(b"PK\x01\x02", 6, b"\x7f\0"),  # the version that is needed
        changed_zip(b"PK\x01\x02", 28, b"\0\0\0\0\x08\0"),  # the lengths of the name, the extra field and the comment
        changed_zip(b"PK\x05\x06", 16, b"\xff\xff\xff\x7f"),  # where the directory begins
    ],
)
def test_a_zip_with_a_damaged_directory_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"Unpacking zip: (?!Unpacking)"):
        unpack(data, tmp_path)


TARS = {
    "two images": lambda: tar_of(("a.img", IMAGE), ("b.img", IMAGE)),
    "no file": lambda: tar_of(),
    "a text": lambda: tar_of(("a.txt", b"hello" * 99)),
    "a long header": lambda: tar_of(("x" * 70_000 + ".img", IMAGE)),
    "many members": lambda: tar_of(*((f"f{i}", b"") for i in range(10_001))),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_without_exactly_one_image_is_refused(name: str, tmp_path: Path) -> None:
    assert judge(TARS[name](), tmp_path) is None


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_a_sparse_tar_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(IMAGE[:60_000])
        file.truncate(8 * MIB)
    data = run("tar", "-C", str(tmp_path), f"--format={kind}", "-Scf", "-", "disk.img")
    assert len(data) < MIB
    with pytest.raises(FormatError, match="sparse"):
        unpack(data, tmp_path)


def test_a_pax_record_with_an_endless_length_is_refused(tmp_path: Path) -> None:
    record = b"1" * 6000 + b" path=disk.img\n"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(6144, b"\0") + tar_of(("disk.img", IMAGE))
    with pytest.raises(FormatError, match="extended header is damaged"):
        unpack(data, tmp_path)


@pytest.mark.parametrize("size", [b"99999999999", b"-1", b"1" * 5000, "²".encode(), b""])
def test_a_pax_size_that_lies_is_refused(size: bytes, tmp_path: Path) -> None:
    body = b" size=" + size + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", length
    record = str(length).encode() + body
    head = info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)
    member = tarfile.TarInfo("disk.img")
    member.size = len(IMAGE)
    whole = member.tobuf(tarfile.USTAR_FORMAT) + IMAGE + bytes(-len(IMAGE) % 512) + bytes(1024)
    assert judge(whole, tmp_path) == IMAGE
    assert judge(head + whole, tmp_path) is None


# --------------------------------------------------------------------------------------------------- host and stop


class Counting(Silent):
    def __init__(self) -> None:
        self.done = 0
        self.totals: list[int | None] = []

    def advance(self, amount: int) -> None:
        self.done += amount

    def total(self, amount: int | None) -> None:
        self.totals.append(amount)


@pytest.mark.parametrize("name", ["xz", "xz blocks", "gzip", "zstd frames", "zip"])
def test_progress_ends_where_it_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(good(name))
    seen = Counting()
    decompress(tmp_path / "archive", tmp_path, progress=seen).close()
    assert seen.totals == [seen.done]


@pytest.mark.parametrize("name", ["plain", "xz", "xz blocks", "gzip", "zip"])
@pytest.mark.parametrize("sha256", ["", "00" * 32])
def test_stop_ends_the_work(name: str, sha256: str, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        unpack(good(name), tmp_path, stop=stop, sha256=sha256)


def test_an_archive_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(good("xz blocks"))

    class Meddling(Silent):
        def total(self, amount: int | None) -> None:
            os.utime(path, (1, 1))

    with pytest.raises(FormatError, match="changed"):
        decompress(path, tmp_path, progress=Meddling())


@pytest.mark.parametrize("name", ["xz", "xz blocks", "gzip"])
def test_a_full_disk_is_the_hosts_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(HostError, match="room") as error:
            unpack(good(name), tmp_path)
    assert error.value.exit_status == 4
    monkeypatch.setattr(sparse, "RESERVE", 1 << 60)
    with pytest.raises(HostError, match="room"):
        unpack(good(name), tmp_path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        decompress(tmp_path / "nothing", tmp_path, progress=Silent())
    with pytest.raises(HostError):
        decompress(tmp_path, tmp_path, progress=Silent())
    (tmp_path / "archive").write_bytes(good("gzip"))
    with pytest.raises(HostError):
        decompress(tmp_path / "archive", tmp_path / "nowhere", progress=Silent())


def test_a_file_system_without_nameless_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: object, flags: int, mode: int = 0o777, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    assert unpack(good("gzip"), tmp_path) == IMAGE


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_names_in_messages_are_short_and_quoted(pack: Callable[..., bytes], count: int, tmp_path: Path) -> None:
    members = [("\x1b[31m\n" + "x" * 60_000 + f"{number}.img", b"text" * 200) for number in range(count)]
    packed = bytearray(pack(*members))
    if pack is zip_of and count == 1:
        packed[packed.rindex(b"PK\x01\x02") + 16] ^= 1  # its checksum
    with pytest.raises(FormatError) as caught:
        unpack(bytes(packed), tmp_path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000
