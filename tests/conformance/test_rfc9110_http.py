"""RFC 9110: boot files, NoCloud documents and reports over HTTP, as curl and raw sockets meet them."""

import asyncio
import contextlib
import json
import os
import socket

import pytest

from netbootd.cloudinit.seed import DOCUMENTS, Seed
from netbootd.errors import ConfigError, DeniedError, HostError
from netbootd.httpd.bootfiles import BootFileRoutes
from netbootd.httpd.progress import ProgressRoutes
from netbootd.httpd.seed import SeedRoutes
from netbootd.httpd.server import HttpServer, HttpSettings
from netbootd.model.event import Outcome, Stage
from tests.support.booted import FolderFiles


class Gate:
    """Refuses documents with secrets."""

    def check(self, node, evidence, token, *, secret):
        if secret or token == "wrong":
            raise DeniedError("no")


class Site:
    def __init__(self, tmp_path):
        self.folder = tmp_path / "boot"
        self.folder.mkdir()
        self.files = FolderFiles(self.folder)
        self.allowed = True
        self.secrets = frozenset()
        self.fault = ""
        self.server = None

    async def build(self, node, evidence, token, document):
        if self.fault:
            raise ConfigError(self.fault)
        documents = {name: f"{name} of {node.name} at {evidence.local}\n".encode() for name in DOCUMENTS}
        documents["network-config"] = b""
        return Seed(documents=documents, uses_secrets=self.secrets, digest="d"), ""

    async def start(self, address="127.0.0.1", port=0):
        record = self.files.record
        self.server = HttpServer(
            HttpSettings(((address, port),), lambda peer: self.allowed),
            BootFileRoutes(self.files, record),
            SeedRoutes(self.files, self.build, Gate(), record),
            ProgressRoutes(self.files, record),
        )
        self.server.bind()
        await self.server.start()
        self.base = f"http://{self.server.addresses[0]}"

    async def curl(self, path, *options):
        """(status, headers in lower case, body) as curl got them."""
        process = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--show-error", "--max-time", "20", "--include", "--globoff", "--path-as-is"),
            *options,
            self.base + path,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        head, _, body = out.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), headers, body

    def outcomes(self):
        return [(event.path, event.outcome, event.stage, event.bytes) for event in self.files.events]


@pytest.fixture
async def site(tmp_path):
    site = Site(tmp_path)
    yield site
    if site.server:
        await site.server.stop(0.1)


async def test_a_file_whole_in_part_and_unchanged(site):
    data = os.urandom(3_000_000)
    (site.folder / "vmlinuz").write_bytes(data)
    await site.start()
    status, headers, body = await site.curl("/boot/1a2b3c4d/vmlinuz")
    assert (status, body) == (200, data)
    assert headers["content-length"] == str(len(data))
    assert headers["content-type"] == "application/octet-stream"
    status, part_headers, body = await site.curl("/boot/1a2b3c4d/vmlinuz", "--range", "1000-1999")
    assert (status, body) == (206, data[1000:2000])
    assert part_headers["content-range"] == f"bytes 1000-1999/{len(data)}"
    assert (await site.curl("/boot/1a2b3c4d/vmlinuz", "--range", "-5"))[2] == data[-5:]
    assert (await site.curl("/boot/1a2b3c4d/vmlinuz", "--range", "9999999-"))[0] == 416
    status, _, body = await site.curl("/boot/1a2b3c4d/vmlinuz", "-H", f"If-None-Match: {headers['etag']}")
    assert (status, body) == (304, b"")
    status, head_headers, _ = await site.curl("/boot/1a2b3c4d/vmlinuz", "--head")
    assert (status, head_headers["content-length"]) == (200, str(len(data)))
    assert site.outcomes()[0] == ("vmlinuz", Outcome.OK, Stage.KERNEL, len(data))
    assert (site.files.events[0].serial, site.files.events[0].address) == ("1a2b3c4d", "127.0.0.1")


async def test_a_connection_serves_one_file_after_the_other(site, caplog):
    data = os.urandom(500_000)
    (site.folder / "initrd.img").write_bytes(data)
    await site.start()
    once = await site.curl("/boot/1a2b3c4d/initrd.img")
    url = f"{site.base}/boot/1a2b3c4d/initrd.img"
    code = ["--write-out", "%{num_connects}", "-o", "/dev/null"]
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", *code, url, "--next", "--silent", *code, url, "--next", "--silent", *code, url),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert (process.returncode, said) == (0, b"100")
    assert once[2] == data
    assert [event.outcome for event in site.files.events] == [Outcome.OK] * 4
    assert caplog.records == []


@pytest.mark.parametrize("name", ["vmlinuz", "cmdline.txt"])
async def test_conditions_and_ranges(site, name):
    (site.folder / "vmlinuz").write_bytes(b"0123456789")
    await site.start()
    path = f"/boot/1a2b3c4d/{name}"
    _, headers, whole = await site.curl(path)
    tag, date, size = headers["etag"], headers["last-modified"], len(whole)
    past, future = "Mon, 01 Jan 1990 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"

    async def asks(*lines):
        status, headers, body = await site.curl(path, *(word for line in lines for word in ("-H", line)))
        return status, body, headers.get("content-range")

    assert await asks(f"If-None-Match: {tag}") == (304, b"", None)
    assert await asks(f'If-None-Match: "other", W/{tag}') == (304, b"", None)
    assert await asks('If-None-Match: "other"', f"If-None-Match: {tag}") == (304, b"", None)
    assert (await asks('If-Match: "other"', f"If-Match: {tag}"))[0] == 200
    assert await asks("If-None-Match: *") == (304, b"", None)
    assert await asks('If-None-Match: "other"', f"If-Modified-Since: {future}") == (200, whole, None)
    assert await asks(f"If-Modified-Since: {date}") == (304, b"", None)
    assert (await asks(f"If-Modified-Since: {past}"))[0] == (304 if name == "cmdline.txt" else 200)
    assert await asks(f"If-Match: {tag}") == (200, whole, None)
    assert (await asks(f"If-Match: W/{tag}"))[0] == 412
    assert (await asks('If-Match: "other"'))[0] == 412
    assert (await asks(f"If-Unmodified-Since: {future}"))[0] == 200
    for asked, start, stop in (("2-4", 2, 5), ("2-", 2, size), ("-3", size - 3, size), ("0-999999", 0, size)):
        wanted = (206, whole[start:stop], f"bytes {start}-{stop - 1}/{size}")
        assert await asks(f"Range: bytes={asked}") == wanted
        assert await asks(f"Range: bytes={asked}", f"If-Range: {tag}") == wanted
        assert await asks(f"Range: bytes={asked}", f"If-Range: {date}") == wanted
        assert await asks(f"Range: bytes={asked}", 'If-Range: "other"') == (200, whole, None)
        assert await asks(f"Range: bytes={asked}", f"If-Range: W/{tag}") == (200, whole, None)
        assert await asks(f"Range: bytes={asked}", f"If-Range: {past}") in (
            (200, whole, None),
            wanted if name == "cmdline.txt" else (200, whole, None),
        )
    for asked in ("4-2", "abc", "-", "1-2,4-5", "1"):
        assert await asks(f"Range: bytes={asked}") == (200, whole, None)
    assert await asks("Range: lines=1-2") == (200, whole, None)
    for asked in (f"{size}-", "-0"):
        assert (await asks(f"Range: bytes={asked}"))[::2] == (416, f"bytes */{size}")


async def test_a_file_that_is_cut_short_ends_the_connection_and_nothing_else(site):
    big = site.folder / "big"
    with big.open("wb") as file:
        file.truncate(400_000_000)
    await site.start()
    host, port = site.server.addresses[0].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /boot/1a2b3c4d/big HTTP/1.1\r\nHost: x\r\n\r\n")
    got = len(await reader.read(1000))
    os.truncate(big, 1000)
    with contextlib.suppress(ConnectionError):
        while data := await asyncio.wait_for(reader.read(1 << 20), 10):
            got += len(data)
    writer.close()
    assert got < 400_000_000
    assert [event.outcome for event in site.files.events] == [Outcome.FAILED]
    assert "cut short" in site.files.events[0].detail
    assert (await site.curl("/healthz"))[0] == 200


async def test_a_rendered_file_is_the_nodes_own(site):
    await site.start()
    status, headers, body = await site.curl("/boot/1A2B3C4D/cmdline.txt")
    assert (status, body) == (200, b"serial=1a2b3c4d server=127.0.0.1\n")
    assert (await site.curl("/boot/1a2b3c4d/cmdline.txt", "-H", f"If-None-Match: {headers['etag']}"))[0] == 304
    assert (await site.curl("/boot/cmdline.txt"))[2] == b"serial=None server=127.0.0.1\n"


@pytest.mark.parametrize(
    "path", ["/boot/../../etc/passwd", "/boot/%2e%2e/%2e%2e/etc/passwd", "/boot/a/..%2f..%2fetc/passwd", "/boot/", "/x"]
)
async def test_there_is_nothing_outside(site, path):
    await site.start()
    status, _, body = await site.curl(path)
    assert status == 404
    assert b"root:" not in body


async def test_what_is_missing_or_denied_says_nothing_of_the_server(site):
    site.files.denied.add("secret.txt")
    site.files.refused.add("ffffffff")
    await site.start()
    for path, wanted in (("1a2b3c4d/nothing", 404), ("1a2b3c4d/secret.txt", 403), ("ffffffff/config.txt", 403)):
        status, _, body = await site.curl("/boot/" + path)
        assert status == wanted
        assert str(site.folder).encode() not in body
    assert [event.outcome for event in site.files.events] == [Outcome.MISS, Outcome.MISS]


async def test_all_four_documents_are_always_there(site):
    await site.start()
    for name in DOCUMENTS:
        for path in (f"/nocloud/1a2b3c4d/{name}", f"/nocloud/dc-a6-32-00-00-01/{name}", f"/{name}"):
            status, headers, body = await site.curl(path)
            assert status == 200
            assert headers["content-length"] == str(len(body))
            assert name == "network-config" or body.startswith(f"{name} of node-".encode())
    assert (await site.curl("/nocloud/1a2b3c4d/other"))[0] == 404
    assert (await site.curl("/nocloud/nonsense/meta-data"))[0] == 404
    seeds = [event for event in site.files.events if event.stage is Stage.SEED]
    assert {event.path for event in seeds} == {"nocloud/meta-data"}


async def test_a_document_with_a_secret_is_refused_and_the_refusal_is_an_event(site):
    site.secrets = frozenset({"user-data"})
    await site.start()
    assert (await site.curl("/nocloud/1a2b3c4d/user-data"))[0] == 403
    assert (await site.curl("/nocloud/1a2b3c4d/meta-data"))[0] == 200
    assert (await site.curl("/nocloud/1a2b3c4d/wrong/meta-data"))[0] == 403
    refused = [event for event in site.files.events if event.outcome is Outcome.FAILED]
    assert [(event.path, event.bytes) for event in refused] == [("nocloud/user-data", 0), ("nocloud/meta-data", 0)]


async def test_a_fault_in_a_document_is_our_error_and_keeps_its_words_to_the_log(site):
    site.fault = "cloud-init/base/user-data: line 3: no"
    await site.start()
    status, _, body = await site.curl("/nocloud/1a2b3c4d/user-data")
    assert (status, body) == (500, b"internal error\n")
    assert site.files.events[0].detail == site.fault


async def test_reports_of_a_node_are_events(site):
    await site.start()
    report = {"name": "modules-final", "description": "running", "event_type": "finish", "result": "FAIL"}
    post = ("-X", "POST", "--data-binary")
    assert (await site.curl("/events/1a2b3c4d", *post, json.dumps(report)))[0] == 204
    home = "hostname=valar-0&instance_id=i-1&pub_key_rsa=ssh-rsa+AAA%0A"
    assert (await site.curl("/phone-home/1a2b3c4d", *post, home))[0] == 204
    assert (await site.curl("/phone-home/127.0.0.1", *post, home))[0] == 204
    first, second, third = site.files.events
    assert (first.path, first.outcome, first.stage) == ("events/modules-final", Outcome.FAILED, None)
    assert (second.path, second.outcome, second.stage, second.serial) == (
        *("phone-home", Outcome.OK, Stage.READY),
        "1a2b3c4d",
    )
    assert second.detail == "hostname valar-0, instance_id i-1"
    assert third.address == "127.0.0.1"


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '"x"', "[" * 5000, "\xff\xfe"])
async def test_a_report_that_is_none_is_refused(site, body):
    await site.start()
    assert (await site.curl("/events/1a2b3c4d", "-X", "POST", "--data-binary", body))[0] == 400
    assert site.files.events == []


async def test_words_of_a_node_become_one_short_line(site):
    await site.start()
    report = {"name": "a\r\nb\x1b[2J" + "x" * 1000, "event_type": 5, "description": None}
    await site.curl("/events/1a2b3c4d", "-X", "POST", "--data-binary", json.dumps(report))
    assert site.files.events[0].path.isprintable()
    assert len(site.files.events[0].path) <= 220


async def test_a_body_without_end_is_cut_off(site):
    (site.folder / "large").write_bytes(b"x" * 300_000)
    await site.start()
    status, _, _ = await site.curl("/events/1a2b3c4d", "-H", "Expect:", "--data-binary", f"@{site.folder}/large")
    assert status == 413


async def test_strangers_get_nothing(site):
    site.allowed = False
    await site.start()
    for path in ("/boot/config.txt", "/nocloud/1a2b3c4d/meta-data", "/healthz"):
        assert (await site.curl(path))[0] == 403
    assert site.files.events == []


async def test_rubbish_does_not_end_the_server(site, caplog):
    await site.start()
    host, port = site.server.addresses[0].rsplit(":", 1)
    for rubbish in (
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" + os.urandom(200),
        b"A" * 70_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /events/1a2b3c4d HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /events/1a2b3c4d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=5) as peer, contextlib.suppress(ConnectionError):
            peer.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(peer, rubbish)
            await asyncio.sleep(0.02)
    assert (await site.curl("/healthz"))[::2] == (200, b"ok\n")
    assert caplog.records == []


async def test_a_client_that_goes_away_in_the_middle_is_a_failed_event(site, caplog):
    (site.folder / "big").write_bytes(bytes(80_000_000))
    await site.start()
    host, port = site.server.addresses[0].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /boot/1a2b3c4d/big HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.read(1000)
    writer.transport.abort()
    for _ in range(100):
        if site.files.events:
            break
        await asyncio.sleep(0.05)
    assert [event.outcome for event in site.files.events] == [Outcome.FAILED]
    assert caplog.records == []


async def test_ipv6_and_the_address_that_was_asked(site):
    await site.start("::1")
    assert (await site.curl("/boot/1a2b3c4d/cmdline.txt"))[2] == b"serial=1a2b3c4d server=::1\n"


async def test_a_taken_port_is_named_with_the_option_that_moves_it(site, tmp_path):
    await site.start()
    port = int(site.server.addresses[0].rsplit(":", 1)[1])
    (tmp_path / "other").mkdir()
    other = Site(tmp_path / "other")
    with pytest.raises(HostError, match=str(port)) as caught:
        await other.start(port=port)
    assert "--http-port" in caught.value.hint
