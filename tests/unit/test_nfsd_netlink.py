"""The netlink messages of family nfsd against what a kernel took and answered (tests/data/nfsd_netlink.json).

They were recorded on Debian's Linux 6.12 by sending these very requests: a request has to come out byte by byte as the
one that the kernel took, and its recorded answer has to be read right.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink import genlmsg

from netbootd.nfsd.kernel import control, messages
from netbootd.nfsd.kernel.control import Listener, NetlinkControl, PoolMode, Setup, Version
from netbootd.nfsd.kernel.messages import ANSWERS, Command

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "nfsd_netlink.json").read_text())
EXCHANGES = {exchange["name"]: exchange for exchange in RECORDED["exchanges"]}
_HEADER = struct.Struct("=IHHII")
_ERROR, _DONE = 2, 3

REQUESTS = {
    "threads of a server that does not run": messages.message(Command.THREADS_GET),
    "pool mode of it": messages.message(Command.POOL_MODE_GET),
    "set the pool mode": messages.pool_mode_set("global"),
    "enable 3 and 4.2": messages.version_set([(3, 0), (4, 2)]),
    "versions": messages.message(Command.VERSION_GET),
    "listen": messages.listener_set([("tcp", "0.0.0.0", 2049), ("tcp", "::", 2049)]),
    "run 8 threads": messages.threads_set([8], grace=10),
    "threads": messages.message(Command.THREADS_GET),
    "listeners": messages.message(Command.LISTENER_GET),
    "pool mode": messages.message(Command.POOL_MODE_GET),
    "calls": messages.message(Command.RPC_STATUS_GET),
    "versions while it runs, to no avail": messages.version_set([(3, 0)]),
    "stop": messages.threads_set([0]),
}


def parts(exchange: dict[str, Any]) -> list[tuple[int, bytes]]:
    """Type and bytes of each netlink message of a recorded answer."""
    found = []
    for datagram in map(bytes.fromhex, exchange["answers"]):
        position = 0
        while position < len(datagram):
            length, kind, *_ = _HEADER.unpack_from(datagram, position)
            found.append((kind, datagram[position : position + length]))
            position += length + 3 & ~3
    return found


def answers(name: str) -> list[genlmsg]:
    """The messages of the family in a recorded answer."""
    exchange = EXCHANGES[name]
    command = Command(bytes.fromhex(exchange["request"])[16])
    found = []
    for kind, data in parts(exchange):
        if kind not in (_ERROR, _DONE):
            message = ANSWERS[command](data)
            message.decode()
            found.append(message)
    return found


@pytest.mark.parametrize("name", EXCHANGES)
def test_requests_are_those_that_a_kernel_took(name: str) -> None:
    recorded = bytes.fromhex(EXCHANGES[name]["request"])
    _, kind, flags, sequence, pid = _HEADER.unpack_from(recorded)
    request = REQUESTS[name]
    request["header"].update({"type": kind, "flags": flags, "sequence_number": sequence, "pid": pid})
    request.reset()
    request.encode()
    assert bytes(request.data) == recorded


def test_every_command_was_recorded() -> None:
    assert {bytes.fromhex(exchange["request"])[16] for exchange in EXCHANGES.values()} == set(Command)


class Replayed(NetlinkControl):
    """Answers with what was recorded; what it is told is kept."""

    def __init__(self, *names: str) -> None:
        self._names = {Command(bytes.fromhex(EXCHANGES[name]["request"])[16]): name for name in names}
        self.told: list[genlmsg] = []

    def _ask(self, command: Command, flags: int = 0) -> list[genlmsg]:
        return answers(self._names[command])

    def _tell(self, request: genlmsg) -> None:
        self.told.append(request)


def test_a_kernels_answers_are_read() -> None:
    idle = Replayed("threads of a server that does not run", "pool mode of it")
    assert idle.threads() == 0
    assert idle.pool_mode() == PoolMode("global", 0)
    running = Replayed("threads", "versions", "listeners", "pool mode", "calls")
    assert running.threads() == 8
    assert running.versions() == {Version(3): True, Version(4, 0): False, Version(4, 1): False, Version(4, 2): True}
    assert sorted(running.listeners()) == [Listener("tcp", "0.0.0.0", 2049), Listener("tcp", "::", 2049)]
    assert running.pool_mode() == PoolMode("global", 1)


def test_a_call_under_way_is_read() -> None:
    """The machine had run for 1,189 seconds."""
    call = Replayed("calls").calls()[0]
    assert (call.program, call.version, call.client) == (100003, 3, "127.0.0.1")
    assert call.procedure == 6  # READ
    assert call.since == pytest.approx(1189.011206)


def test_a_start_tells_everything_in_the_order_that_the_kernel_wants() -> None:
    kernel = Replayed()
    kernel.start(Setup((Listener("tcp", "0.0.0.0", 2049),), 8, pool_mode="global"))
    kinds = [Command(request["cmd"]) for request in kernel.told]
    assert kinds == [Command.POOL_MODE_SET, Command.VERSION_SET, Command.LISTENER_SET, Command.THREADS_SET]


def test_a_refusal_carries_its_number() -> None:
    kind, data = parts(EXCHANGES["versions while it runs, to no avail"])[0]
    (number,) = struct.unpack_from("=i", data, 16)
    assert (kind, number) == (_ERROR, -16)  # EBUSY, as the hint below explains
    error = control.failure("Setting up", 16)
    assert error.errno == 16
    assert "runs already" in error.hint


@pytest.mark.parametrize(("address", "port"), [("192.0.2.7", 2049), ("2001:db8::7", 65535), ("::", 1), ("0.0.0.0", 0)])
def test_addresses_come_back(address: str, port: int) -> None:
    packed = messages.pack_address(address, port)
    assert len(packed) == 128  # struct sockaddr_storage
    assert messages.unpack_address(packed) == (address, port)
    assert messages.unpack_address(b"") == messages.unpack_address(bytes(128)) == ("", 0)
