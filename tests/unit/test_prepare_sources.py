"""``netbootd prepare`` with sources that are no good: the contract's exit status, one paragraph, nothing published."""

import asyncio
import bz2
import lzma
import os
import signal
import sys

import pytest

from tests.support.processes import Program, wait_until
from tests.support.publisher import sha256

IMAGE = b"\0" * 100_000
PACKED = lzma.compress(IMAGE)
NAME = "ubuntu-24.04.3-preinstalled-server-arm64+raspi.img.xz"


@pytest.fixture
def publisher(publisher):
    """It has one image of Ubuntu's, an empty index, and a file."""
    publisher.ubuntu("noble", {NAME: PACKED})
    publisher.index([])
    publisher.files["/x.img.xz"] = PACKED
    return publisher


@pytest.fixture
def prepare(netbootd):
    """Run ``netbootd prepare`` in an empty folder: (exit status, stdout, stderr)."""
    return lambda *words: netbootd("prepare", "--advertise", "192.0.2.1", *words)


def refused(result, status):
    """The last lines of stderr are the paragraph; nothing is published."""
    code, out, err = result
    assert (code, out) == (status, ""), err
    assert "Traceback" not in err
    paragraph = err.partition("netbootd: ")[2]
    assert 20 < len(paragraph) < 1200
    assert "\n\n" not in paragraph.strip()
    for _, folders, _ in os.walk("state/images"):
        assert "root" not in folders
    return paragraph


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["nosuch.img"], 8),
        (["file:///nosuch.img"], 8),
        (["x.img/inner"], 8),
        (["folder"], 2),
        (["fifo"], 2),
        (["/dev/null"], 2),
        (["ftp://h/x.img"], 2),
        (["http://"], 2),
        (["x.img", "--sha256", "xyz"], 2),
        (["x.img.xz", "--sha256", "0" * 64], 6),
        (["x.img.xz", "--sha256", "0" * 64, "--insecure-skip-verify"], 6),
        (["short.img.xz"], 7),
        (["short.img.xz", "--sha256", sha256(PACKED)], 6),
        (["text.img"], 7),
        (["empty.img"], 7),
        (["x.img.bz2"], 7),
        (["x.img.xz"], 7),  # unpacks to zeros: no partition table
        (["http://127.0.0.1:1/x.img.xz"], 6),
        (["http://127.0.0.1:1/x.img.xz", "--sha256", "0" * 64], 5),
    ],
)
def test_bad_files_and_urls(prepare, tmp_path, words, status):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, data in [
        ("x.img", IMAGE),
        ("x.img.xz", PACKED),
        ("short.img.xz", PACKED[:-20]),
        ("text.img", b"no image " * 1000),
        ("empty.img", b""),
        ("x.img.bz2", bz2.compress(IMAGE)),
    ]:
        (tmp_path / name).write_bytes(data)
    refused(prepare("--name", "bad", "--source", *words), status)


def test_bad_urls(prepare, publisher):
    url = publisher.url + "/x.img.xz"
    assert "--sha256" in refused(prepare("--source", url), 6)
    assert publisher.requests == []
    refused(prepare("--source", url, "--sha256", "0" * 64), 6)
    assert not any(files for _, _, files in os.walk("state/downloads"))
    refused(prepare("--source", publisher.url + "/nosuch.img.xz", "--sha256", "0" * 64), 8)
    refused(prepare("--source", url, "--sha256", sha256(PACKED)), 7)
    code, _, err = prepare("--source", url, "--insecure-skip-verify")
    assert code == 7
    assert "NOT VERIFIED" in err


def test_an_interrupt_keeps_what_has_come(publisher, tmp_path):
    def held(request, reply):
        reply.cut, reply.hold = len(PACKED) // 2, asyncio.Event()
        return reply

    publisher.rules.append(held)
    digest = sha256(PACKED)
    argv = [sys.executable, "-m", "netbootd", "--state", tmp_path / "state", "prepare", "--advertise", "192.0.2.1"]
    argv += ["--source", publisher.url + "/x.img.xz", "--sha256", digest]
    part = tmp_path / "state" / "downloads" / digest / "x.img.xz.part"
    with Program(argv, tmp_path / "log", cwd=tmp_path) as program:
        wait_until(lambda: part.exists() and part.stat().st_size, "half of the file", alive=[program])
        program.signal(signal.SIGINT)
        assert program.wait(10) == 130
    assert "Traceback" not in program.output()
    assert part.read_bytes() == PACKED[: len(PACKED) // 2]
    publisher.rules.clear()
    with Program(argv, tmp_path / "log", cwd=tmp_path) as program:
        assert program.wait(20) == 7  # zeros are no disk
    assert publisher.ranges("x.img.xz") == ["", f"bytes={len(PACKED) // 2}-"]


def test_bad_releases(prepare, publisher, tmp_path):
    mirror = ("--mirror", publisher.url)
    assert "--insecure-skip-verify" in refused(prepare("--release", "noble", *mirror), 6)
    assert "noble" in refused(prepare("--release", "nobel", *mirror), 8)
    refused(prepare("--release", "24.04.9", *mirror), 8)
    refused(prepare("--release", "raspios-trixie", *mirror), 8)
    refused(prepare("--release", "noble", "--mirror", "http://127.0.0.1:1"), 5)
    refused(prepare("--release", "noble", "--mirror", str(tmp_path / "nosuch")), 8)
    refused(prepare("--release", "noble", "--mirror", "ftp://h"), 2)
    refused(prepare("--release", "noble", "--arch", "riscv64", *mirror), 2)
    refused(prepare("--release", "noble", "--arch", "amd64", *mirror), 8)
    publisher.files[f"/releases/noble/release/{NAME}"] = PACKED[:-1]
    refused(prepare("--release", "noble", "--insecure-skip-verify", *mirror), 6)
    del publisher.files[f"/releases/noble/release/{NAME}"]
    refused(prepare("--release", "noble", "--insecure-skip-verify", *mirror), 8)
