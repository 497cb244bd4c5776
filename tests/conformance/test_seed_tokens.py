"""Tokens of a node's cloud-init documents, as a running service gives and takes them: one a boot, in cmdline.txt."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbootd.model.facts import ImageFacts
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout
from tests.conformance.test_serve import PORTS, SERIAL, Server, Transfer

CONFIG = """
[http]
seed_tokens = true
[defaults]
image = "noble"
cloud_init = ["cloud-init"]
[[node]]
name = "valar-0"
serial = "1a2b3c4d"
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "netbootd.toml").write_text(CONFIG)
    (tmp_path / "cloud-init").mkdir()
    (tmp_path / "secret").write_text("open sesame\n")
    (tmp_path / "cloud-init" / "user-data").write_text("#cloud-config\nfqdn: ${file:secret}\n")
    store = Generations(Layout(tmp_path / "state"))
    generation = store.layout.generation("noble", "0123456789abcdef")
    work = store.begin(generation)
    (work / "boot").mkdir()
    (work / "root").mkdir()
    (work / "boot" / "config.txt").write_text("arm_64bit=1\n")
    facts = ImageFacts(cmdline_base="console=tty1", kernels=("vmlinuz",))
    store.publish(work, generation, {"name": "noble", "created": "2026-01-01", "facts": facts.as_dict()})
    found = Server(tmp_path, *PORTS, wrap=("env", f"NETBOOTD_CONFIG={tmp_path / 'netbootd.toml'}"))
    yield found
    found.close()


def seed_of(server: Server) -> str:
    """The path of the seed, from the node's command line."""
    line = Transfer(server.tftp(), f"{SERIAL}/cmdline.txt").finish().decode()
    match = re.search(r" ds=nocloud;s=http://[^/ ]+(/nocloud/1a2b3c4d/[0-9a-f]{32}/)( |$)", line.rstrip("\n"))
    assert match, line
    return match[1]


def phone_home(server: Server) -> None:
    url = f"http://{server.ready()['http'][0]}/phone-home/{SERIAL}"
    with urllib.request.urlopen(url, data=b"instance_id=i&hostname=valar-0", timeout=10) as answer:
        assert answer.status < 300


def test_a_boot_has_a_token_of_its_own_and_nothing_comes_without_it(server: Server) -> None:
    Transfer(server.tftp(), f"{SERIAL}/config.txt").finish()
    first = seed_of(server)
    assert seed_of(server) == first  # the same boot
    for document in ("meta-data", "user-data", "vendor-data", "network-config"):
        assert server.get(first + document)[0] == 200
        assert server.get(f"/nocloud/{SERIAL}/{document}")[0] == 403
        assert server.get(f"/{document}")[0] == 403
        assert server.get(f"/nocloud/{SERIAL}/{'0' * 32}/{document}")[0] == 403
        assert server.get(first.replace(SERIAL, "99999999") + document)[0] == 403
    assert b"open sesame" in server.get(first + "user-data")[1]
    assert b"ssh_keys" in server.get(first + "vendor-data")[1]

    phone_home(server)
    assert server.get(first + "meta-data")[0] == 200  # cloud-init may look again while the node runs
    Transfer(server.tftp(), f"{SERIAL}/config.txt").finish()  # switched on again
    second = seed_of(server)
    assert second != first
    assert (server.get(first + "user-data")[0], server.get(second + "user-data")[0]) == (403, 200)


def test_the_state_holds_no_secret_and_the_log_no_token(server: Server) -> None:
    Transfer(server.tftp(), f"{SERIAL}/config.txt").finish()
    seed = seed_of(server)
    assert server.get(seed + "user-data")[0] == 200
    assert server.end() == 0
    token = seed.rstrip("/").rpartition("/")[2].encode()
    written = b"".join(path.read_bytes() for path in server.state.rglob("*") if path.is_file())
    assert b"open sesame" not in written
    assert token not in server.log.read_bytes()
    assert b"open sesame" not in server.log.read_bytes()
