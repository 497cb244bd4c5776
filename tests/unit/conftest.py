"""What several unit tests need: netbootd's command line in an empty folder, a publisher to ask, keys to sign with."""

from __future__ import annotations

import asyncio
import threading

import pytest

from netbootd.cli import main as program
from netbootd.images import web
from tests.support.openpgp import Keys
from tests.support.publisher import Publisher


@pytest.fixture
def netbootd(capsys, tmp_path, monkeypatch):
    """Run netbootd in an empty folder, with `state` as its state: (exit status, stdout, stderr). Retries don't wait."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web.Retries, "delay", lambda self, fault: 0.0)
    for name in ("NETBOOTD_CONFIG", "NETBOOTD_STATE"):
        monkeypatch.delenv(name, raising=False)

    def call(*words):
        with pytest.raises(SystemExit) as caught:
            program.main(["--state", "state", *map(str, words)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


@pytest.fixture
def publisher(monkeypatch):
    """A publisher in a thread of its own, since a command has its own event loop; no proxy stands before it."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = Publisher()
    asyncio.run_coroutine_threadsafe(made.__aenter__(), loop).result(10)
    yield made
    asyncio.run_coroutine_threadsafe(made.__aexit__(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="module")
def keys():
    """Keys with one that a publisher signs by, called "publisher"."""
    made = Keys()
    made.new("publisher")
    yield made
    made.close()
