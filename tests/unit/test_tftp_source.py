"""Where the bytes of a transfer come from: fbtftp's contract, netascii, mappings that survive, small streams."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from fbtftp.base_handler import ResponseData, StringResponseData
from fbtftp.netascii import NetasciiReader
from hypothesis import given
from hypothesis import strategies as st

from netbootd.errors import BusyError, DeniedError, FormatError, NotFoundError
from netbootd.model.event import Stage
from netbootd.model.resource import BootPath, ByteSource, FileSource, MemorySource, Resource
from netbootd.tftpd.packets import Mode
from netbootd.tftpd.source import MAPPED_FROM, Contents, NetasciiSource, Opener, StreamedPayload, refusal


def resource(source: ByteSource, etag: str = "1") -> Resource:
    return Resource(BootPath("a"), source.size(), 0, etag, "test", "a", Stage.FIRMWARE, lambda: source)


def on_disk(path: Path) -> Resource:
    def opened() -> ByteSource:
        return FileSource(os.open(path, os.O_RDONLY))

    return Resource(BootPath("a"), path.stat().st_size, 0, "1", "test", str(path), Stage.FIRMWARE, opened)


def whole(contents: Contents, step: int = 1000) -> bytes:
    """As a socket sees it: nothing may look into a mapping, so the kernel copies."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        parts = []
        for at in range(0, contents.size, step):
            left.sendmsg([contents.payload[at : at + step]])
            parts.append(right.recv(step))
        return b"".join(parts)


def test_sources_written_for_fbtftp_can_be_served() -> None:
    source: ByteSource = StringResponseData("hello")
    contents = Opener().open(resource(source), Mode.OCTET, 512)
    assert (contents.size, bytes(contents.payload[0:512])) == (5, b"hello")
    assert issubclass(NetasciiSource, ResponseData)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"\0", b"a", b"bc" * 300]), max_size=400).map(b"".join))
def test_netascii_is_fbtftps_and_its_size_is_right(text: bytes) -> None:
    reference = NetasciiReader(MemorySource(text))
    size = reference.size()
    wanted = b"".join(iter(lambda: bytes(reference.read(512)), b""))
    source = NetasciiSource(lambda: MemorySource(text))
    assert source.size() == len(wanted) == size
    assert b"".join(iter(lambda: source.read(700), b"")) == wanted
    source.close()


def test_the_size_of_a_text_is_counted_once() -> None:
    opened = []

    def counted() -> ByteSource:
        opened.append(1)
        return MemorySource(b"a\n" * 50_000)

    text = Resource(BootPath("a"), 100_000, 0, "1", "test", "a", Stage.FIRMWARE, counted)
    opener = Opener()
    for _ in range(3):
        contents = opener.open(text, Mode.NETASCII, 512)
        assert contents.size == 150_000
        contents.close()
    assert len(opened) == 4


@pytest.mark.parametrize("size", [0, 1, MAPPED_FROM - 1, MAPPED_FROM, MAPPED_FROM + 1, 300_000])
def test_small_files_are_held_and_large_ones_mapped(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    contents = Opener().open(on_disk(tmp_path / "a"), Mode.OCTET, 512)
    assert isinstance(contents.payload, memoryview) == (size >= MAPPED_FROM)
    assert (contents.size, whole(contents)) == (size, data)
    assert contents.intact()
    contents.close()
    contents.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_one_mapping_serves_all_and_goes_with_the_last(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(200_000))
    opener, before = Opener(), descriptors()
    many = [opener.open(on_disk(tmp_path / "a"), Mode.OCTET, 512) for _ in range(50)]
    assert descriptors() <= before + 2  # the file's, and that which Python's mmap keeps
    for contents in many:
        contents.close()
    assert descriptors() == before
    assert not opener._mappings


def test_a_replaced_file_goes_on_with_its_old_bytes(tmp_path: Path) -> None:
    old, new = os.urandom(100_000), os.urandom(90_000)
    path = tmp_path / "a"
    path.write_bytes(old)
    opener = Opener()
    first = opener.open(on_disk(path), Mode.OCTET, 512)
    (tmp_path / "b").write_bytes(new)
    (tmp_path / "b").replace(path)
    second = opener.open(on_disk(path), Mode.OCTET, 512)
    assert (whole(first), whole(second)) == (old, new)
    assert first.intact()
    assert second.intact()


def test_a_file_written_over_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(os.urandom(100_000))
    os.utime(path, ns=(0, 0))
    contents = Opener().open(on_disk(path), Mode.OCTET, 512)
    with path.open("r+b") as stream:
        stream.write(b"new")
    assert not contents.intact()


def test_a_file_cut_short_fails_in_the_kernel_and_not_by_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(os.urandom(200_000))
    contents = Opener().open(on_disk(path), Mode.OCTET, 512)
    os.truncate(path, 10)
    with pytest.raises(OSError, match="Bad address"):
        whole(contents)
    assert not contents.intact()
    contents.close()


class Endless:
    """A large source that counts what is read of it, and may end early."""

    def __init__(self, size: int, really: int | None = None) -> None:
        self._size, self._left = size, size if really is None else really
        self.closed = False

    def read(self, n: int, /) -> bytes:
        n = min(n, self._left)
        self._left -= n
        return bytes(n)

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self.closed = True


def test_a_stream_keeps_little_of_what_it_has_sent() -> None:
    payload = StreamedPayload(Endless(50 << 20), 50 << 20, keep=8 * 1468)
    for at in range(0, 20 << 20, 1468):
        payload[at : at + 1468]
        assert len(payload._data) < 300_000
    assert len(payload[at - 7 * 1468 : at]) == 7 * 1468  # a window back


def test_a_source_that_ends_early_is_told_from_a_whole_one() -> None:
    opener = Opener()
    small = Endless(1000, really=999)
    with pytest.raises(EOFError):
        opener.open(resource(small), Mode.OCTET, 512)
    assert small.closed
    large = Endless(1 << 20, really=1 << 19)
    contents = opener.open(resource(large), Mode.OCTET, 512)
    with pytest.raises(EOFError):
        for at in range(0, 1 << 20, 512):
            contents.payload[at : at + 512]
    contents.close()
    assert large.closed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("/srv/secret is missing"), 1),
        (FileNotFoundError(2, "no", "/srv/secret"), 1),
        (DeniedError("/srv/secret"), 2),
        (PermissionError(13, "no", "/srv/secret"), 2),
        (BusyError("/srv/secret"), 0),
        (FormatError("/srv/secret"), 0),
        (OSError(5, "EIO", "/srv/secret"), 0),
        (KeyError("/srv/secret"), 0),
    ],
)
def test_refusals_name_nothing_of_the_server(error: Exception, code: int) -> None:
    number, text = refusal(error)
    assert number == code
    assert "srv" not in text
