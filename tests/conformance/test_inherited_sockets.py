"""Sockets that systemd hands in (sd_listen_fds(3)): each is used by its name, a protocol without one is left out."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.test_serve import SERIAL, Server, Transfer
from tests.support.processes import run

KINDS = {
    "tftp": (socket.SOCK_DGRAM,),
    "http": (socket.SOCK_STREAM,),
    "nfs": (socket.SOCK_STREAM,),
    "portmap": (socket.SOCK_STREAM, socket.SOCK_DGRAM),
}


class Handed(contextlib.ExitStack):
    """Sockets as systemd would open them from the units in systemd/: dual-stack, the portmapper's two on one port."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.ports: dict[str, int] = {}
        self.sockets: list[tuple[str, socket.socket]] = []
        for name in names:
            for kind in KINDS[name]:
                sock = self.enter_context(socket.socket(socket.AF_INET6, kind))
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.bind(("::", self.ports.get(name, 0)))
                self.ports[name] = sock.getsockname()[1]
                if kind == socket.SOCK_STREAM:
                    sock.listen()
                self.sockets.append((name, sock))

    def wrap(self) -> tuple[str, ...]:
        fds = [str(sock.fileno()) for _, sock in self.sockets]
        # first out of the way, then to where systemd puts them: from 3 on, in order
        moves = "".join(f'exec {100 + i}<&"${i + 1}"; ' for i in range(len(fds)))
        moves += "".join(f"exec {3 + i}<&{100 + i} {100 + i}<&-; " for i in range(len(fds)))
        script = f'{moves}shift {len(fds)}; LISTEN_PID=$$ exec "$@"'
        names = ":".join(name for name, _ in self.sockets)
        return ("env", f"LISTEN_FDS={len(fds)}", f"LISTEN_FDNAMES={names}", "bash", "-c", script, "bash", *fds)


@pytest.fixture
def hand_in(tmp_path: Path):
    with contextlib.ExitStack() as stack:

        def start(*names: str, options: tuple[str, ...] = ()) -> tuple[Server, Handed]:
            handed = stack.enter_context(Handed(*names))
            fds = tuple(sock.fileno() for _, sock in handed.sockets)
            server = Server(tmp_path, *options, wrap=handed.wrap(), pass_fds=fds)
            stack.callback(server.close)
            return server, handed

        yield start


def test_every_protocol_is_served_on_its_own(hand_in: Callable[..., tuple[Server, Handed]]) -> None:
    server, handed = hand_in("nfs", "portmap", "http", "tftp")
    (server.files / "config.txt").write_bytes(b"x")
    told = server.ready()
    assert told["nfs"] == {
        "backend": "embedded",
        "port": handed.ports["nfs"],
        "mount_port": handed.ports["nfs"],
        "portmap_port": handed.ports["portmap"],
    }
    address = ("127.0.0.1", handed.ports["tftp"])
    assert Transfer(address, f"/{SERIAL}/config.txt").finish() == b"x"
    http = f"http://127.0.0.1:{handed.ports['http']}/healthz"
    assert run(["curl", "-s", http]).stdout == "ok\n"
    with socket.create_connection(("127.0.0.1", handed.ports["nfs"]), timeout=5):
        pass
    assert server.end() == 0


@pytest.mark.parametrize("missing", ["tftp", "http", "nfs", "portmap"])
def test_a_port_that_systemd_could_not_open_stops_its_own_protocol(
    missing: str, hand_in: Callable[..., tuple[Server, Handed]]
) -> None:
    server, handed = hand_in(*(name for name in KINDS if name != missing))
    (server.files / "config.txt").write_bytes(b"x")
    told = server.ready()
    assert (told["tftp"] == []) == (missing == "tftp")
    assert (told["http"] == []) == (missing == "http")
    assert (told["nfs"] is None) == (missing == "nfs")
    if missing == "portmap":
        assert told["nfs"]["portmap_port"] is None
    if missing != "tftp":
        assert Transfer(("127.0.0.1", handed.ports["tftp"]), f"/{SERIAL}/config.txt").finish() == b"x"
    assert f"netbootd-{missing}.socket" in server.log.read_text()
    assert server.end() == 0
