"""Downloads: from where they broke off, whatever the server does, and never anything but the file that was wanted."""

import asyncio
import fcntl
import gzip
import json
import os
import random
import shutil
import sys
import textwrap
from collections import namedtuple

import pytest

from netbootd.errors import (
    BusyError,
    HostError,
    NetworkError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from netbootd.images import download, web
from netbootd.images.download import fetch
from netbootd.images.patience import Patience
from netbootd.model.image import Release
from tests.support.publisher import MODIFIED, Publisher, Reply, Told, sha256, times

QUICK = Patience(
    tries=4,
    first_delay=0.001,
    longest_delay=0.01,
    longest_retry_after=2.0,
    connect_seconds=2.0,
    silence_seconds=0.2,
    slow_bytes=1000,
    slow_seconds=0.2,
    busy_seconds=0.2,
)
DATA = random.Random(1).randbytes(3_000_000)
NAME = "ubuntu-24.04.3-preinstalled-server-arm64+raspi.img.xz"
PATH = "/releases/noble/release/ubuntu-24.04.3-preinstalled-server-arm64%2Braspi.img.xz"
DIGEST = sha256(DATA)


@pytest.fixture
async def publisher(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with Publisher() as publisher:
        publisher.files["/releases/noble/release/" + NAME] = DATA
        yield publisher


@pytest.fixture
def told():
    return Told()


def release(publisher, digest=DIGEST, path=PATH, size=0):
    return Release("Ubuntu", publisher.url + path, NAME, digest, size, verified=True, key="K")


async def get(publisher, tmp_path, told, **changes):
    return await fetch(release(publisher, **changes), tmp_path / "downloads", told, patience=QUICK)


def leave_part(tmp_path, publisher, data, *, path=PATH, **changes):
    """An unfinished download as a killed process leaves it."""
    folder = tmp_path / "downloads" / DIGEST
    folder.mkdir(parents=True)
    (folder / f"{NAME}.part").write_bytes(data)
    origin = {"url": publisher.url + path, "etag": f'"{DIGEST[:16]}"', "modified": MODIFIED, "size": len(DATA)}
    (folder / f"{NAME}.part.json").write_text(json.dumps({**origin, "encoding": "", **changes}))


def cut_at(count):
    def rule(request, reply):
        reply.cut = count
        return reply

    return rule


async def test_a_download_is_filed_under_its_digest_and_not_fetched_again(publisher, tmp_path, told):
    path = await get(publisher, tmp_path, told)
    assert path == tmp_path / "downloads" / DIGEST / NAME
    assert path.read_bytes() == DATA
    assert os.listdir(path.parent) == [NAME]
    assert publisher.paths() == [PATH]
    assert publisher.requests[0].headers["accept-encoding"] == "identity"
    assert (told.done, told.whole) == (len(DATA), len(DATA))
    publisher.files.clear()
    assert await get(publisher, tmp_path, told) == path
    assert len(publisher.requests) == 1


async def test_a_cached_file_counts_under_any_name_and_a_damaged_one_is_fetched_anew(publisher, tmp_path, told):
    path = await get(publisher, tmp_path, told)
    other = path.rename(path.with_name("other.img.xz"))
    assert await get(publisher, tmp_path, told) == other
    other.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    path = await get(publisher, tmp_path, told)
    assert path.read_bytes() == DATA
    assert os.listdir(path.parent) == [NAME]
    assert "damaged" in told.notes[0]


async def test_a_broken_connection_is_taken_up_where_it_broke(publisher, tmp_path, told):
    publisher.rules.append(times(1, cut_at(1_000_000)))
    path = await get(publisher, tmp_path, told)
    assert path.read_bytes() == DATA
    first, second = publisher.ranges(NAME)
    assert first == ""
    assert second == "bytes=1000000-"
    assert publisher.requests[1].headers["if-range"] == f'"{DIGEST[:16]}"'
    assert told.done == len(DATA)


async def test_a_date_serves_where_there_is_no_strong_etag(publisher, tmp_path, told):
    publisher.etags = False
    publisher.rules.append(times(1, cut_at(10)))
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.requests[1].headers["if-range"] == MODIFIED
    weak = {"ETag": 'W/"x"', "Last-Modified": ""}
    publisher.rules = [
        lambda _, reply: Reply(reply.status, {**reply.headers, **weak}, reply.body),
        times(1, cut_at(10)),
    ]
    shutil.rmtree(tmp_path / "downloads")
    publisher.requests.clear()
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert "if-range" not in publisher.requests[1].headers


async def test_the_rest_of_an_earlier_run_is_all_that_is_asked_for(publisher, tmp_path, told):
    leave_part(tmp_path, publisher, DATA[:2_000_000])
    path = await get(publisher, tmp_path, told)
    assert path.read_bytes() == DATA
    assert publisher.ranges(NAME) == ["bytes=2000000-"]
    assert (told.done, told.whole) == (1_000_000, 1_000_000)  # so the rate and the time left are the network's
    assert os.listdir(path.parent) == [NAME]


async def test_a_file_that_was_whole_already_needs_no_byte(publisher, tmp_path, told):
    leave_part(tmp_path, publisher, DATA)
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.ranges(NAME) == [f"bytes={len(DATA)}-"]


async def test_another_mirror_goes_on_with_what_the_first_one_sent(publisher, tmp_path, told):
    leave_part(tmp_path, publisher, DATA[:5000], url="http://elsewhere.invalid/x", etag='"other"')
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.ranges(NAME) == ["bytes=5000-"]
    assert "if-range" not in publisher.requests[0].headers


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": 1}', '{"url": "x", "etag": "a\\nb"}', "[" * 50_000])
async def test_an_unfinished_file_without_a_readable_note_is_not_trusted(publisher, tmp_path, told, note):
    leave_part(tmp_path, publisher, b"x" * 1000)
    (tmp_path / "downloads" / DIGEST / f"{NAME}.part.json").write_text(note)
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.ranges(NAME) == [""]


async def test_garbled_bytes_of_an_earlier_run_cost_one_more_download(publisher, tmp_path, told):
    leave_part(tmp_path, publisher, b"\0" * 1_000_000)  # a power cut does that
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.ranges(NAME) == ["bytes=1000000-", ""]
    assert any("don't fit together" in note for note in told.notes)


async def test_more_than_the_whole_is_thrown_away(publisher, tmp_path, told):
    leave_part(tmp_path, publisher, DATA + b"more")
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.ranges(NAME) == [f"bytes={len(DATA) + 4}-", ""]


async def test_a_server_that_ignores_ranges(publisher, tmp_path, told):
    leave_part(tmp_path, publisher, DATA[:1000])
    publisher.rules.append(lambda request, reply: Reply(200, {}, DATA))
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert (told.done, told.whole) == (len(DATA), len(DATA))


async def test_a_file_that_changed_on_the_server_is_fetched_whole(publisher, tmp_path, told):
    leave_part(tmp_path, publisher, b"old" * 1000, etag='"old"')
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.requests[0].headers["if-range"] == '"old"'
    assert len(publisher.requests) == 1


async def test_a_part_of_another_file_is_not_mixed_in(publisher, tmp_path, told):
    """A server that ignores If-Range, and one that answers with another range than was asked for."""
    leave_part(tmp_path, publisher, b"old" * 1000, etag='"old"')

    def ignore(request, reply):
        if request.range:
            start = int(request.range[6:-1])
            headers = {"ETag": '"new"', "Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
            return Reply(206, headers, DATA[start:])
        return None

    publisher.rules.append(ignore)
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.ranges(NAME) == ["bytes=3000-", ""]
    assert told.notes == [f"0 MiB of {NAME} are here already."]  # told by the ETag, not by the digest at the end
    for wrong in ("bytes 0-2999999/3000000", "bytes x", "", "items 5-9/10"):
        shutil.rmtree(tmp_path / "downloads")
        leave_part(tmp_path, publisher, DATA[:3000])
        rule = lambda _, reply, wrong=wrong: Reply(206, {"Content-Range": wrong}, DATA)  # noqa: E731
        publisher.rules = [times(1, rule)]
        publisher.requests.clear()
        assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
        assert publisher.ranges(NAME) == ["bytes=3000-", ""]


async def test_a_server_that_sends_less_than_it_was_asked_for_is_asked_again(publisher, tmp_path, told):
    def small(request, reply):
        start = int(request.range[6:-1]) if request.range else 0
        end = min(len(DATA), start + 1_200_000)
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(DATA)}"}
        return Reply(206, headers, DATA[start:end]) if request.range else None

    leave_part(tmp_path, publisher, DATA[:10])
    publisher.rules.append(small)
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA


async def test_unasked_parts_and_endless_416_end(publisher, tmp_path, told):
    for wrong in (Reply(206, {"Content-Range": "bytes 0-9/10"}, b"x" * 10), Reply(416)):
        publisher.requests.clear()
        publisher.rules = [lambda _, __, wrong=wrong: wrong]
        with pytest.raises(NetworkError):
            await get(publisher, tmp_path, told)
        assert len(publisher.requests) == QUICK.tries


async def test_a_wrong_digest_is_refused_and_nothing_of_it_stays(publisher, tmp_path, told):
    with pytest.raises(VerificationError) as error:
        await get(publisher, tmp_path, told, digest="0" * 64)
    assert DIGEST in error.value.message
    assert os.listdir(tmp_path / "downloads" / ("0" * 64)) == []
    assert len(publisher.requests) == 1


@pytest.mark.parametrize("rule", [cut_at(0), cut_at(5), lambda _, reply: Reply(200, {}, reply.body, length=10**7)])
async def test_a_server_that_never_sends_the_whole_is_given_up(publisher, tmp_path, told, rule):
    publisher.files["/releases/noble/release/" + NAME] = b"y" * 500
    publisher.rules += [rule, lambda request, reply: cut_at(0)(request, reply) if request.range else None]
    with pytest.raises(NetworkError) as error:
        await get(publisher, tmp_path, told)
    assert f"{QUICK.tries} tries" in error.value.message
    assert error.value.hint
    assert len(publisher.requests) == QUICK.tries


async def test_progress_is_not_failure(publisher, tmp_path, told):
    """A line that breaks every megabyte gets there, however few tries in a row are allowed."""
    publisher.files["/releases/noble/release/" + NAME] = data = random.Random(2).randbytes(9 << 20)
    publisher.rules.append(cut_at((1 << 20) + 1))
    path = await get(publisher, tmp_path, told, digest=sha256(data))
    assert path.read_bytes() == data
    assert len(publisher.requests) > QUICK.tries


async def test_a_body_without_a_length_that_ends_early_is_taken_up(publisher, tmp_path, told):
    publisher.rules.append(times(1, lambda _, reply: Reply(200, reply.headers, DATA[:1000], length=-1)))
    assert (await get(publisher, tmp_path, told, size=len(DATA))).read_bytes() == DATA
    assert publisher.ranges(NAME) == ["", "bytes=1000-"]


async def test_silence_and_a_trickle_end_a_try(publisher, tmp_path, told):
    def silent(request, reply):
        reply.cut, reply.hold = 1000, asyncio.Event()
        return reply

    publisher.rules.append(times(1, silent))
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert "silent" in told.notes[0]


async def test_a_trickle_ends_a_try(publisher, tmp_path, told, monkeypatch):
    """Bytes that come far too seldom: told by their rate, not by silence."""
    Clock = namedtuple("Clock", ["monotonic"])
    now = iter(range(0, 100_000, 70))
    monkeypatch.setattr(download, "time", Clock(lambda: float(next(now))))
    publisher.rules.append(times(1, cut_at(100)))
    patience = Patience(tries=4, first_delay=0.001, longest_delay=0.01)
    publisher.rules.append(times(1, lambda _, reply: reply))
    path = await fetch(release(publisher), tmp_path / "downloads", told, patience=patience)
    assert path.read_bytes() == DATA
    assert "only 100 bytes came in" in told.notes[0]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_busy_server_is_asked_again_as_it_says(publisher, tmp_path, told, status):
    publisher.rules.append(times(2, lambda *_: Reply(status, {"Retry-After": "0"})))
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert len(publisher.requests) == 3
    publisher.rules = [lambda *_: Reply(status, {"Retry-After": "3600"})]
    with pytest.raises(NetworkError, match="3600 s"):
        await get(publisher, tmp_path, told, digest="1" * 64)


def test_the_waits_grow_and_have_jitter_and_honour_the_server():
    retries = web.Retries(Patience(first_delay=1.0, longest_delay=8.0), "http://h/")
    fault = web.Transient("x")
    for failures, most in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8)):
        retries.failures = failures
        delays = {retries.delay(fault) for _ in range(50)}
        assert len(delays) > 10
        assert most / 2 <= min(delays)
        assert max(delays) <= most
    assert retries.delay(web.Transient("x", 77.0)) == 77.0
    assert web._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert web._retry_after("12") == 12
    assert web._retry_after("soon") == 0
    assert web._retry_after("Wed, 21 Oct 2099 07:28:00 GMT") > 10**9


@pytest.mark.parametrize(("status", "error"), [(404, NotFoundError), (410, NotFoundError), (403, NetworkError)])
async def test_what_will_not_pass_is_not_tried_again(publisher, tmp_path, told, status, error):
    publisher.rules.append(lambda *_: Reply(status))
    with pytest.raises(error, match=PATH):
        await get(publisher, tmp_path, told)
    assert len(publisher.requests) == 1


async def test_an_answer_that_is_no_http(publisher, tmp_path, told):
    async def rubbish(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n\0\1")
        writer.close()

    async with await asyncio.start_server(rubbish, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        odd = Release("x", f"http://127.0.0.1:{port}/x", "x", DIGEST, 0, verified=True, key="")
        with pytest.raises(NetworkError, match="not proper HTTP; 4 tries"):
            await fetch(odd, tmp_path, told, patience=QUICK)


async def test_nobody_there(publisher, tmp_path, told):
    gone = Release("x", "http://127.0.0.1:1/x.img.xz", "x.img.xz", DIGEST, 0, verified=True, key="")
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1:1/x\.img\.xz.*no connection.*; 3 tries"):
        await fetch(gone, tmp_path, told, patience=QUICK)


async def test_redirects_are_followed_and_what_is_quoted_stays_so(publisher, tmp_path, told):
    publisher.files["/b+c/" + NAME] = DATA

    def rule(request, reply):
        if request.path.startswith("/releases"):
            return Reply(302, {"Location": "/hop%2Bhop?x=%2B"})
        if request.path.startswith("/hop"):
            return Reply(307, {"Location": publisher.url + "/b%2Bc/" + NAME.replace("+", "%2B")})
        return None

    publisher.rules = [rule, times(1, cut_at(1000), NAME)]
    publisher.rules[1] = times(1, lambda request, reply: cut_at(1000)(request, reply) if "b%2Bc" in request.path else 0)
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    end = "/b%2Bc/" + NAME.replace("+", "%2B")
    assert publisher.paths()[:3] == [PATH, "/hop%2Bhop?x=%2B", end]


@pytest.mark.parametrize("to", ["/again", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://", "http://[::bad/"])
async def test_redirects_that_lead_nowhere(publisher, tmp_path, told, to):
    publisher.rules.append(lambda *_: Reply(301, {"Location": to}))
    with pytest.raises(NetworkError, match="redirects"):
        await get(publisher, tmp_path, told)
    assert len(publisher.requests) <= 11


@pytest.mark.parametrize("digest", [DIGEST, ""])
async def test_encryption_is_given_up_only_where_a_digest_judges(publisher, tmp_path, told, digest, monkeypatch):
    publisher.files["/there"] = DATA
    publisher.rules.append(times(1, lambda *_: Reply(302, {"Location": "/there"})))
    asked = []
    real = web._redirected
    monkeypatch.setattr(
        web, "_redirected", lambda *args, downgrade: asked.append(downgrade) or real(*args, downgrade=0)
    )
    await get(publisher, tmp_path, told, digest=digest)
    assert asked == [bool(digest)]


def test_redirects_from_https_to_http():
    assert web._redirected("https://a/x", "http://b/y", downgrade=True) == "http://b/y"
    with pytest.raises(NetworkError, match="not encrypted"):
        web._redirected("https://a/x", "http://b/y", downgrade=False)
    assert web._redirected("http://a/x", "//b/y", downgrade=False) == "http://b/y"


async def test_an_encoding_that_nobody_asked_for_is_undone(publisher, tmp_path, told):
    packed = gzip.compress(DATA, 1)
    publisher.rules.append(lambda request, _: Reply(200, {"Content-Encoding": "gzip"}, packed))
    path = await get(publisher, tmp_path, told, size=len(DATA))
    assert path.read_bytes() == DATA
    assert os.listdir(path.parent) == [NAME]
    publisher.rules = [lambda request, _: Reply(200, {"Content-Encoding": "gzip"}, packed[:-9])]
    with pytest.raises(VerificationError):
        await get(publisher, tmp_path, told, digest="2" * 64)
    assert os.listdir(tmp_path / "downloads" / ("2" * 64)) == []


async def test_an_encoding_that_only_names_the_file_is_left_alone(publisher, tmp_path, told):
    packed = gzip.compress(DATA, 1)
    publisher.rules.append(lambda request, _: Reply(200, {"Content-Encoding": "x-gzip"}, packed))
    assert (await get(publisher, tmp_path, told, digest=sha256(packed))).read_bytes() == packed


async def test_a_stream_without_end_is_ended(publisher, tmp_path, told):
    publisher.rules.append(lambda *_: Reply(200, {}, b"z" * (3 << 20), length=-1))
    with pytest.raises(VerificationError, match="no end"):
        await get(publisher, tmp_path, told, size=1000)
    assert os.listdir(tmp_path / "downloads" / DIGEST) == []


async def test_the_disks_room_is_looked_at_before(publisher, tmp_path, told, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1_999_999))
    leave_part(tmp_path, publisher, DATA[:1_000_000])
    with pytest.raises(HostError, match=r"needs 2 MiB"):
        await get(publisher, tmp_path, told)
    assert (tmp_path / "downloads" / DIGEST / f"{NAME}.part").stat().st_size == 1_000_000


async def test_a_full_disk_keeps_what_is_there(publisher, tmp_path, told, monkeypatch):
    real = os.pwrite

    def full(fd, data, offset):
        if offset > 1_000_000:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(HostError, match="No space left") as error:
        await get(publisher, tmp_path, told)
    assert "--state" in error.value.hint
    monkeypatch.undo()
    publisher.requests.clear()
    assert (await get(publisher, tmp_path, told)).read_bytes() == DATA
    assert publisher.requests[0].range


async def test_without_a_digest_the_file_gets_its_own(publisher, tmp_path, told):
    publisher.rules.append(times(1, cut_at(1000)))
    path = await get(publisher, tmp_path, told, digest="")
    assert path == tmp_path / "downloads" / DIGEST / NAME
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path / "downloads") == [DIGEST]
    assert publisher.ranges(NAME) == ["", "bytes=1000-"]


async def test_without_a_digest_nothing_is_put_together_on_a_guess(publisher, tmp_path, told):
    def bare(request, reply):
        return Reply(200, {}, reply.body) if reply.status == 200 else None

    publisher.rules += [bare, times(1, cut_at(1000))]
    assert (await get(publisher, tmp_path, told, digest="")).read_bytes() == DATA
    assert publisher.ranges(NAME) == ["", ""]


async def test_a_mirror_that_is_a_folder_is_used_where_it_lies(tmp_path, told):
    source = tmp_path / "a mirror" / NAME
    source.parent.mkdir()
    source.write_bytes(DATA)
    local = Release("x", source.as_uri(), NAME, DIGEST, 0, verified=True, key="")
    assert await fetch(local, tmp_path / "downloads", told) == source
    assert not (tmp_path / "downloads").exists()
    source.write_bytes(DATA[:-1])
    with pytest.raises(VerificationError):
        await fetch(local, tmp_path / "downloads", told)
    source.unlink()
    with pytest.raises(NotFoundError):
        await fetch(local, tmp_path / "downloads", told)
    os.mkfifo(source)
    with pytest.raises(UsageError):
        await fetch(local, tmp_path / "downloads", told)


async def test_a_password_in_the_url_is_used_and_told_to_nobody(publisher, tmp_path, told):
    publisher.rules.append(times(1, cut_at(1000)))
    url = publisher.url.replace("http://", "http://me:geheim@")
    secret = Release("x", url + PATH, NAME, DIGEST, 0, verified=True, key="")
    seen = []
    publisher.rules.append(
        lambda *_: seen.extend(p.read_text() for p in (tmp_path / "d" / DIGEST).glob("*.json")) or None
    )
    await fetch(secret, tmp_path / "d", told, patience=QUICK)
    assert publisher.requests[1].headers["authorization"] == "Basic bWU6Z2VoZWlt"
    assert seen
    assert "geheim" not in "".join(seen + told.notes + told.steps)


async def test_a_proxy_of_the_environment_is_used(publisher, tmp_path, told, monkeypatch):
    monkeypatch.setenv("http_proxy", publisher.url)
    publisher.files["http://images.invalid/x.img.xz"] = DATA
    distant = Release("x", "http://images.invalid/x.img.xz", "x.img.xz", DIGEST, 0, verified=True, key="")
    assert (await fetch(distant, tmp_path, told, patience=QUICK)).read_bytes() == DATA
    assert publisher.paths() == ["http://images.invalid/x.img.xz"]


# --------------------------------------------------------------------------------------------------- two at once


async def test_a_second_download_of_the_same_waits_and_fetches_nothing(publisher, tmp_path, told):
    gate = asyncio.Event()

    def held(request, reply):
        reply.cut, reply.hold = 1000, gate
        return reply

    publisher.rules.append(times(1, held))
    patience = Patience(busy_seconds=30)
    wanted = release(publisher)
    first = asyncio.create_task(fetch(wanted, tmp_path / "downloads", Told(), patience=patience))
    while not publisher.requests:
        await asyncio.sleep(0.01)
    second = asyncio.create_task(fetch(wanted, tmp_path / "downloads", told, patience=patience))
    while not told.notes:
        await asyncio.sleep(0.01)
    gate.set()
    assert await first == await second
    assert len(publisher.requests) == 1
    assert "waiting" in told.notes[0]


async def test_a_lock_that_is_held_for_nothing_is_not_waited_for_for_ever(publisher, tmp_path, told, monkeypatch):
    monkeypatch.setattr(download, "_POLL", 0.02)
    folder = tmp_path / "downloads" / DIGEST
    folder.mkdir(parents=True)
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            await get(publisher, tmp_path, told)
    finally:
        os.close(fd)
    assert publisher.requests == []


FETCH = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from netbootd.images.download import fetch
    from netbootd.images.progress import Silent
    from netbootd.model.image import Release
    url, name, digest, folder = sys.argv[1:]
    release = Release("x", url, name, digest, 0, verified=True, key="")
    print(asyncio.run(fetch(release, Path(folder), Silent())))
""")


async def start(publisher, tmp_path):
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FETCH, publisher.url + PATH, NAME, DIGEST, str(tmp_path / "downloads")),
        stdout=asyncio.subprocess.PIPE,
    )


async def test_after_kill_9_only_the_rest_is_asked_for(publisher, tmp_path):
    def held(request, reply):
        reply.cut, reply.hold = 2_000_000, asyncio.Event()
        return reply

    publisher.rules.append(times(1, held))
    process = await start(publisher, tmp_path)
    part = tmp_path / "downloads" / DIGEST / f"{NAME}.part"
    while not (part.exists() and part.stat().st_size == 2_000_000):
        await asyncio.sleep(0.01)
    process.kill()
    await process.communicate()
    process = await start(publisher, tmp_path)
    out, _ = await process.communicate()
    assert out.decode().strip() == str(part.with_name(NAME))
    assert part.with_name(NAME).read_bytes() == DATA
    assert os.listdir(part.parent) == [NAME]
    assert publisher.ranges(NAME) == ["", "bytes=2000000-"]


async def test_two_processes_at_once_fetch_it_once(publisher, tmp_path):
    processes = [await start(publisher, tmp_path) for _ in range(2)]
    results = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0] == results[1]
    assert len(publisher.requests) == 1
