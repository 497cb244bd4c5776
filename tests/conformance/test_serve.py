"""``netbootd serve`` as a process: readiness, signals, ports that are taken, sockets that are handed in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import run, wait_until

PORTS = ("--tftp-port", "0", "--http-port", "0", "--nfs-port", "0", "--portmap-port", "0")
SERIAL = "1a2b3c4d"
RRQ, DATA, ACK, ERROR = 1, 3, 4, 5


class Server:
    """One running ``netbootd serve`` on loopback, as a plain process without a configuration."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        bind: tuple[str, ...] = ("127.0.0.1",),
        wrap: tuple[str, ...] = (),
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir(exist_ok=True)
        self.ready_file = folder / "ready.json"
        self.state = folder / "state"
        given = [
            *(word for address in bind for word in ("--bind", address)),
            *("--boot-files", str(self.files), "--ready-file", str(self.ready_file)),
            *options,
        ]
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*wrap, sys.executable, "-m", "netbootd", "--state", str(self.state), "serve", *given],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "NETBOOTD_CONFIG": "", "PYTHONPATH": os.getcwd()},
                pass_fds=pass_fds,
            )

    def ready(self) -> dict[str, Any]:
        wait_until(lambda: self.ready_file.exists() or self.process.poll() is not None, "ready file", timeout=30)
        assert self.process.poll() is None, self.log.read_text()
        told: dict[str, Any] = json.loads(self.ready_file.read_text())
        return told

    def tftp(self) -> tuple[str, int]:
        (where,) = self.ready()["tftp"]
        address, _, port = where.rpartition(":")
        return address, int(port)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://{self.ready()['http'][0]}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def events(self) -> list[dict[str, Any]]:
        said = run([sys.executable, "-m", "netbootd", "--state", self.state, "events", "--json"]).stdout
        return [json.loads(line) for line in said.splitlines()]

    def end(self, number: int = signal.SIGTERM, timeout: float = 15) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*options: str, **more: Any) -> Server:
        started.append(Server(tmp_path, *options, **more))
        return started[-1]

    yield start
    for server in started:
        server.close()


class Transfer:
    """A TFTP client that takes its time: a block each time it is asked for one."""

    def __init__(self, server: tuple[str, int], name: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.data = b""
        self.done = False
        self.socket.sendto(struct.pack("!H", RRQ) + name.encode() + b"\0octet\0", server)
        try:
            self._take(1)
        except BaseException:
            self.socket.close()
            raise

    def _take(self, wanted: int) -> None:
        while True:
            packet, peer = self.socket.recvfrom(1024)
            opcode, number = struct.unpack_from("!HH", packet)
            assert opcode == DATA, packet
            if number == wanted:
                break
        self.data += packet[4:]
        self.done = len(packet) < 516
        self._peer, self._number = peer, number
        if self.done:
            self.acknowledge()

    def acknowledge(self) -> None:
        self.socket.sendto(struct.pack("!HH", ACK, self._number), self._peer)

    def go_on(self) -> None:
        self.acknowledge()
        self._take(self._number + 1)

    def finish(self) -> bytes:
        while not self.done:
            self.go_on()
        self.socket.close()
        return self.data


def test_the_ready_file_tells_what_is_open(serve) -> None:
    server = serve(*PORTS)
    told = server.ready()
    assert set(told) == {"pid", "tftp", "http", "nfs", "dhcp"}
    assert told["pid"] == server.process.pid
    assert told["dhcp"] is None
    assert set(told["nfs"]) == {"backend", "port", "mount_port", "portmap_port"}
    assert told["nfs"]["backend"] == "embedded"
    for port in (told["nfs"]["port"], told["nfs"]["mount_port"], told["nfs"]["portmap_port"]):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert server.get("/healthz") == (200, b"ok\n")
    assert server.end() == 0
    assert not server.ready_file.exists()


def test_it_works_without_configuration_and_image(serve) -> None:
    server = serve(*PORTS)
    (server.files / "config.txt").write_bytes(b"arm_64bit=1\n")
    assert Transfer(server.tftp(), f"/{SERIAL}/config.txt").finish() == b"arm_64bit=1\n"
    assert server.get(f"/boot/{SERIAL}/config.txt") == (200, b"arm_64bit=1\n")
    for document in ("meta-data", "user-data", "vendor-data", "network-config"):
        assert server.get(f"/nocloud/{SERIAL}/{document}")[0] == 200
    status, text = server.get("/metrics")
    assert status == 200
    assert b"netbootd_tftp_transfers_total 1.0\n" in text
    assert b'netbootd_nodes{stage="seed"} 1.0\n' in text
    assert server.end(signal.SIGINT) == 0
    seen = [(event["serial"], event["protocol"], event["path"], event["outcome"]) for event in server.events()]
    assert (SERIAL, "tftp", "config.txt", "ok") in seen
    assert (SERIAL, "http", "nocloud/meta-data", "ok") in seen


def test_without_a_bind_every_address_of_this_host_is_served(serve) -> None:
    server = serve(*PORTS, bind=())
    (server.files / "config.txt").write_bytes(b"x")
    told = server.ready()
    assert any(where.startswith("0.0.0.0:") for where in told["tftp"])
    (port,) = {int(where.rpartition(":")[2]) for where in told["http"] if where.startswith("0.0.0.0:")}
    with urllib.request.urlopen(f"http://127.0.0.2:{port}/healthz", timeout=10) as answer:
        assert answer.read() == b"ok\n"
    (tftp,) = {int(where.rpartition(":")[2]) for where in told["tftp"] if where.startswith("0.0.0.0:")}
    assert Transfer(("127.0.0.2", tftp), "config.txt").finish() == b"x"
    assert server.end() == 0
    assert "Traceback" not in server.log.read_text()


def test_sigterm_lets_an_open_transfer_finish_and_takes_no_new_one(serve) -> None:
    server = serve(*PORTS)
    content = os.urandom(5000)
    (server.files / "initrd.img").write_bytes(content)
    address = server.tftp()
    http = server.ready()["http"][0].rpartition(":")[2]
    transfer = Transfer(address, f"/{SERIAL}/initrd.img")
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in server.log.read_text(), "stopping", timeout=10)
    with pytest.raises(AssertionError, match=r"\\x00\\x05"):  # an ERROR, where DATA would come
        Transfer(address, f"/{SERIAL}/initrd.img")
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(http)), timeout=2)
    assert server.process.poll() is None
    assert transfer.finish() == content
    assert server.process.wait(10) == 0
    assert [event["outcome"] for event in server.events() if event["path"] == "initrd.img"] == ["failed", "ok"]


def test_a_second_signal_ends_at_once(serve) -> None:
    server = serve(*PORTS)
    (server.files / "initrd.img").write_bytes(bytes(5000))
    transfer = Transfer(server.tftp(), f"/{SERIAL}/initrd.img")
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in server.log.read_text(), "stopping", timeout=10)
    began = time.monotonic()
    server.end(signal.SIGTERM, timeout=5)
    assert time.monotonic() - began < 5
    assert "Traceback" not in server.log.read_text()
    transfer.socket.close()


@pytest.mark.parametrize("option", ["--tftp-port", "--http-port", "--nfs-port", "--mount-port", "--portmap-port"])
def test_a_taken_port_is_status_4_and_names_the_option(option: str, serve) -> None:
    kind = socket.SOCK_DGRAM if option == "--tftp-port" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = str(taken.getsockname()[1])
        server = serve(*PORTS, option, port)
        assert server.process.wait(20) == 4
    said = server.log.read_text()
    assert port in said
    assert option in said
    assert "Traceback" not in said
    assert not server.ready_file.exists()


def test_it_serves_on_sockets_that_are_handed_in(serve) -> None:
    """As systemd does (sd_listen_fds(3)): by name, from descriptor 3 on, for this process."""
    with contextlib.ExitStack() as stack:
        tftp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        http = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        for each in (tftp, http):
            each.bind(("127.0.0.1", 0))
        http.listen()
        script = 'exec 3<&"$1" 4<&"$2"; shift 2; LISTEN_PID=$$ exec "$@"'
        fds = (str(tftp.fileno()), str(http.fileno()))
        environment = ("env", "LISTEN_FDS=2", "LISTEN_FDNAMES=tftp:http")
        wrap = (*environment, "bash", "-c", script, "bash", *fds)
        server = serve("--nfs", "off", "--tftp-port", "1", wrap=wrap, pass_fds=(tftp.fileno(), http.fileno()))
        (server.files / "config.txt").write_bytes(b"x")
        told = server.ready()
        assert told["tftp"] == [f"127.0.0.1:{tftp.getsockname()[1]}"]
        assert told["http"] == [f"127.0.0.1:{http.getsockname()[1]}"]
        assert told["nfs"] is None
        assert Transfer(server.tftp(), "config.txt").finish() == b"x"
        assert server.get("/healthz")[0] == 200
        assert server.end() == 0


def test_uvloop_serves_the_same_where_it_is_asked_for(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOOTD_LOOP", "uvloop")
    server = serve()
    content = os.urandom(3_000_000)
    (server.files / "kernel").write_bytes(content)
    transfer = Transfer(server.tftp(), "kernel")
    assert "uvloop" in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert server.get(f"/boot/{SERIAL}/kernel") == (200, content)
    assert transfer.finish() == content
    assert server.end() == 0


@pytest.mark.parametrize("name", ["trio", "uvloop"])
def test_a_loop_that_is_not_there_is_told(serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError")  # the service's folder comes first among its modules
    monkeypatch.setenv("NETBOOTD_LOOP", name)
    server = serve()
    assert server.process.wait(30) == 2
    log = server.log.read_text()
    assert f"NETBOOTD_LOOP={name}: " in log
    assert "Traceback" not in log
