"""Listening sockets: which congestion control their connections have."""

from __future__ import annotations

import errno
import socket

import pytest

from netbootd.host.sockets import listen_tcp, pace_by_loss


class Listener:
    """A socket of a host with a given default, that allows some controls only (Linux's TCP_CONGESTION)."""

    def __init__(self, default: bytes, allowed: tuple[bytes, ...]) -> None:
        self.control, self.allowed = default, allowed

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
        return self.control.ljust(size, b"\0")

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        if value not in self.allowed:
            raise OSError(errno.EPERM, "Operation not permitted")
        self.control = value


@pytest.mark.parametrize(
    ("default", "allowed", "chosen"),
    [
        (b"bbr", (b"cubic", b"reno", b"bbr"), "cubic"),
        (b"bbr", (b"reno", b"bbr"), "reno"),
        (b"bbr2", (b"reno",), "reno"),
        (b"bbr", (), "bbr"),
        (b"cubic", (b"cubic", b"reno"), "cubic"),
        (b"dctcp", (b"cubic", b"reno"), "dctcp"),
    ],
)
def test_bbr_alone_is_replaced(default: bytes, allowed: tuple[bytes, ...], chosen: str) -> None:
    listener = Listener(default, allowed)
    assert pace_by_loss(listener) == chosen  # type: ignore[arg-type]
    assert listener.control == chosen.encode()


def test_connections_inherit_what_their_listener_has() -> None:
    with listen_tcp("127.0.0.1", 0, what="HTTP", option="--http-port") as listener:
        chosen = pace_by_loss(listener)
        with socket.create_connection(listener.getsockname()[:2]):
            listener.setblocking(True)
            connection, _ = listener.accept()
            with connection:
                control = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    assert control.partition(b"\0")[0].decode() == chosen
    assert not chosen.startswith("bbr")
