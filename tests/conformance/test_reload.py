"""SIGHUP: a changed configuration is taken in without dropping a transfer, a faulty one is refused; sd_notify(3)."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.test_serve import PORTS, SERIAL, Server, Transfer
from tests.support.processes import wait_until


class Rack:
    """A server with a configuration, told to reload; what it tells the service manager is heard."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "netbootd.toml"
        self.cloud_init = folder / "cloud-init"
        self.cloud_init.mkdir()
        self.document("one")
        self.write("valar-0")
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(folder / "notify"))
        self.notified.settimeout(20)
        wrap = ("env", f"NOTIFY_SOCKET={folder}/notify", f"NETBOOTD_CONFIG={self.config}")
        self.server = Server(folder, *PORTS, wrap=wrap)
        self.server.ready()
        self.hear("READY=1")

    def write(self, name: str, more: str = "") -> None:
        self.config.write_text(
            f'[defaults]\ncloud_init = ["cloud-init"]\n{more}\n[[node]]\nname = "{name}"\nserial = "{SERIAL}"\n'
        )

    def document(self, hostname: str) -> None:
        (self.cloud_init / "user-data").write_text(f"#cloud-config\nfqdn: {hostname}\n")

    def hear(self, wanted: str) -> list[str]:
        """Notifications up to the one that is wanted, without the watchdog's."""
        heard: list[str] = []
        while not any(line.startswith(wanted) for line in heard):
            heard += self.notified.recv(4096).decode().splitlines()
        return heard

    def reload(self) -> None:
        began = time.monotonic_ns() // 1000
        self.server.process.send_signal(signal.SIGHUP)
        heard = self.hear("READY=1")
        assert heard[0] == "RELOADING=1"
        stamp = int(heard[1].removeprefix("MONOTONIC_USEC="))
        assert began <= stamp <= time.monotonic_ns() // 1000
        assert heard[2:] == ["READY=1"]

    def hostname(self) -> bytes:
        status, data = self.server.get(f"/nocloud/{SERIAL}/meta-data")
        assert status == 200
        return data

    def user_data(self) -> bytes:
        status, data = self.server.get(f"/nocloud/{SERIAL}/user-data")
        assert status == 200
        return data


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    made = Rack(tmp_path)
    yield made
    made.server.close()
    made.notified.close()


def test_a_changed_configuration_is_served_and_a_transfer_goes_on(rack: Rack) -> None:
    content = os.urandom(5000)
    (rack.server.files / "initrd.img").write_bytes(content)
    transfer = Transfer(rack.server.tftp(), f"/{SERIAL}/initrd.img")
    assert b"local-hostname: valar-0" in rack.hostname()
    rack.write("valar-9")
    rack.document("two")
    rack.reload()
    assert b"local-hostname: valar-9" in rack.hostname()
    assert b"fqdn: two" in rack.user_data()
    transfer.go_on()
    assert transfer.finish() == content
    assert rack.server.end() == 0


@pytest.mark.parametrize("fault", ["[tftp]\nprot = 69\n", "[defaults\n", '[[node]]\nname = "valar-1"\n'])
def test_a_faulty_configuration_leaves_the_old_one(rack: Rack, fault: str) -> None:
    with rack.config.open("a") as file:
        file.write(fault)
    rack.reload()
    assert "stays as it was" in rack.server.log.read_text()
    assert b"local-hostname: valar-0" in rack.hostname()
    rack.write("valar-2")
    rack.reload()
    assert b"local-hostname: valar-2" in rack.hostname()


def test_a_faulty_document_leaves_the_old_one(rack: Rack) -> None:
    rack.write("valar-9")
    (rack.cloud_init / "user-data").write_text("#cloud-config\nruncmd: {a: [\n")
    rack.reload()
    said = rack.server.log.read_text()
    assert "stays as it was" in said
    assert "user-data" in said
    assert b"local-hostname: valar-0" in rack.hostname()
    assert b"fqdn: one" in rack.user_data()  # also by a node that asks in the meantime
    assert "until this is mended" in rack.server.log.read_text()
    rack.document("three")
    assert b"fqdn: three" in rack.user_data()


def test_what_only_a_restart_changes_is_told_and_the_rest_taken_in(rack: Rack) -> None:
    port = rack.server.tftp()[1]
    rack.write("valar-3", "[tftp]\nport = 6969\nmax_windowsize = 1")
    rack.reload()
    said = rack.server.log.read_text()
    assert "Only a restart changes [tftp] port, [tftp] max_windowsize" in said
    assert rack.server.tftp()[1] == port
    assert b"local-hostname: valar-3" in rack.hostname()


def test_who_may_ask_is_taken_in(rack: Rack) -> None:
    assert rack.server.get("/nocloud/x/meta-data")[0] != 403
    rack.config.write_text('[server]\nallow = ["192.0.2.0/24"]\n')
    rack.reload()
    assert rack.server.get("/nocloud/x/meta-data")[0] == 403
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.3)
        client.sendto(struct.pack("!H", 1) + b"config.txt\0octet\0", rack.server.tftp())
        with pytest.raises(TimeoutError):
            client.recv(512)


def test_many_signals_at_once_are_one_or_more_reloads(rack: Rack) -> None:
    rack.write("valar-7")
    for _ in range(20):
        rack.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: b"valar-7" in rack.hostname(), "the new name")
    assert rack.server.end() == 0
    assert "Traceback" not in rack.server.log.read_text()
