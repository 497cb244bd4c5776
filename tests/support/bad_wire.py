"""A wire that delays, doubles, reorders and loses Ethernet frames, between two taps of one namespace.

    python -m tests.support.bad_wire TAP TAP [--delay S] [--jitter S] [--duplicate P] [--reorder P] [--loss P]

`beyond` puts a host of the lab behind such a wire. A tap takes no offloads, so that the kernel has cut what it sends in
one piece before the frames come here.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import sys
import time

from tests.support.netlab import LENGTH, Lab
from tests.support.processes import Argument, read_text, run, wait_until

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_FRAME = 2048
_READY = "forwarding"


def beyond(lab: Lab, name: str, address: str, *faults: Argument, mtu: int = 1500) -> str:
    """The namespace of a host whose ``tap1`` has `address`, behind a bad wire to the lab's bridge.

    :param faults: options of this module's command
    """
    namespace = lab.client(name)  # br0 without an address joins the uplink and tap0
    # Nobody may answer ARP for the address of tap1 but through it.
    run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore"], namespace=namespace)
    run(["ip", "-n", namespace, "tuntap", "add", "tap1", "mode", "tap"])
    run(["ip", "-n", namespace, "link", "set", "tap1", "mtu", str(mtu), "up"])
    run(["ip", "-n", namespace, "addr", "add", f"{address}/{LENGTH}", "dev", "tap1"])
    argv: list[Argument] = [sys.executable, "-m", "tests.support.bad_wire", "tap0", "tap1", *faults]
    program = lab.start(namespace, argv, f"bad-wire-{name}")
    wait_until(lambda: _READY in read_text(program.log), f"bad wire of {name}", alive=[program])
    return namespace


def attach(name: str) -> int:
    """A descriptor for the frames of an existing tap."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return fd


def forward(first: int, second: int, options: argparse.Namespace) -> None:
    """Carry frames both ways, for ever."""
    dice, order = random.Random(options.seed), itertools.count()
    waiting: list[tuple[float, int, int, bytes]] = []
    while True:
        patience = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else None
        for fd in select.select([first, second], [], [], patience)[0]:
            frame = os.read(fd, _FRAME)
            now = time.monotonic()
            if dice.random() < options.loss:
                continue
            for _ in range(1 + (dice.random() < options.duplicate)):
                late = 0.003 if dice.random() < options.reorder else 0.0
                due = now + options.delay + late + dice.random() * options.jitter
                heapq.heappush(waiting, (due, next(order), second if fd == first else first, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, fd, frame = heapq.heappop(waiting)
            try:
                os.write(fd, frame)
            except BlockingIOError:
                pass  # a full queue loses, as on any wire


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("taps", nargs=2)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each way")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds at most, in addition")
    for name in ("duplicate", "reorder", "loss"):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="P", help="share of the frames")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    first, second = map(attach, options.taps)
    print(_READY, flush=True)
    forward(first, second, options)


if __name__ == "__main__":
    main()
