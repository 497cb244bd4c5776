"""Real TFTP clients and racks of Pis against ``netbootd serve`` over good and bad wires."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support import tftp_load
from tests.support.bad_wire import beyond
from tests.support.netbootd import Netbootd
from tests.support.netlab import SERVER, Lab
from tests.support.processes import Argument, run, wait_until

LARGEST = 40_000
"""Octets of a Pi's files here: enough blocks to lose some of, and a boot of seconds on a bad wire."""

CLIENTS: dict[str, Callable[[str, Path], list[Argument]]] = {
    "tftp-hpa": lambda name, to: ["tftp", "-m", "binary", SERVER, "-c", "get", name, to],
    "atftp": lambda name, to: ["atftp", "-g", "-r", name, "-l", to, SERVER],
    "atftp-windows": lambda name, to: [
        *("atftp", "--option", "blksize 1428", "--option", "windowsize 8", "--option", "tsize 0"),
        *("-g", "-r", name, "-l", to, SERVER),
    ],
    "curl": lambda name, to: ["curl", "-sS", "--tftp-blksize", "1468", "-o", to, f"tftp://{SERVER}/{name}"],
    "curl-plain": lambda name, to: ["curl", "-sS", "--tftp-no-options", "-o", to, f"tftp://{SERVER}/{name}"],
    "busybox": lambda name, to: ["busybox", "tftp", "-g", "-b", "1468", "-r", name, "-l", to, SERVER],
}


class Served:
    """``netbootd serve`` in the lab, a folder of boot files and a host of the LAN."""

    def __init__(self, lab: Lab, folder: Path, *options: Argument) -> None:
        self.lab, self.root = lab, folder / "boot"
        self.root.mkdir()
        self.netbootd = Netbootd(lab, folder / "state", "[server]\ndrain_seconds = 1\n")
        self.netbootd.serve("--boot-files", self.root, "--nfs", "off", *options)
        self.host = lab.host("host", "192.0.2.10")

    def file(self, name: str, size: int) -> bytes:
        data = random.Random(size).randbytes(size)
        (self.root / name).write_bytes(data)
        return data

    def pis(self, namespace: str, root: Path, *options: Argument, status: int = 0) -> dict[str, Any]:
        """Let Pis boot, whose files lie below `root`."""
        argv: list[Argument] = [sys.executable, "-m", "tests.support.tftp_load", *options, "--root", root]
        done = run(argv, namespace=namespace, check=False, timeout=100)
        found: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == status, found
        return found

    def outcomes(self, count: int) -> Counter[str]:
        """How the requests ended, once there are so many events of them."""

        def seen() -> list[dict[str, Any]]:
            events = self.netbootd.events()
            return events if len(events) >= count else []

        return Counter(event["outcome"] for event in wait_until(seen, f"{count} events", timeout=20))


@pytest.fixture
def served(lab: Lab, tmp_path: Path) -> Served:
    return Served(lab, tmp_path)


def lose(namespace: str, percent: int) -> None:
    """Drop so many of the datagrams that come in there."""
    rules = f"""
        add table inet bad
        add chain inet bad in {{ type filter hook input priority 0; }}
        add rule inet bad in meta l4proto udp numgen random mod 100 < {percent} counter drop
    """
    run(["nft", "-f", "-"], namespace=namespace, stdin=rules)


def dropped(namespace: str) -> str:
    return run(["nft", "list", "ruleset"], namespace=namespace).stdout


def fetch(namespace: str, client: str, name: str, to: Path) -> bytes:
    run(CLIENTS[client](name, to), namespace=namespace, timeout=60)
    return to.read_bytes()


def fetch_all(namespace: str, name: str, folder: Path) -> dict[str, bytes]:
    """What every client got, all at once: where a datagram is lost, some wait five seconds."""
    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        running = {client: pool.submit(fetch, namespace, client, name, folder / client) for client in CLIENTS}
    return {client: future.result() for client, future in running.items()}


def test_every_client_gets_every_kind_of_file(served: Served, tmp_path: Path) -> None:
    for size in (0, 1, 512, 1468, 1428 * 8, 200_001):
        data = served.file(f"file-{size}", size)
        for client in CLIENTS:
            if client == "curl" and not size:
                continue  # it takes a tsize of 0 for an error
            got = fetch(served.host, client, f"file-{size}", tmp_path / f"{client}-{size}")
            assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest(), (client, size)
    count = 6 * len(CLIENTS) - 1
    assert served.outcomes(count) == {"ok": count}


def test_every_client_says_that_a_file_is_missing(served: Served, tmp_path: Path) -> None:
    for client, argv in CLIENTS.items():
        done = run(argv("missing", tmp_path / client), namespace=served.host, check=False, timeout=30)
        said = (done.stdout + done.stderr).lower()
        assert "not found" in said or done.returncode in (1, 68), (client, done)
    assert served.outcomes(len(CLIENTS)) == {"miss": len(CLIENTS)}


def test_tftp_hpa_reads_a_text_as_netascii(served: Served, tmp_path: Path) -> None:
    text = b"".join(b"line %d\n" % number for number in range(5000))
    (served.root / "text").write_bytes(text)
    run(["tftp", "-m", "ascii", SERVER, "-c", "get", "text", tmp_path / "text"], namespace=served.host)
    assert (tmp_path / "text").read_bytes() == text


def test_every_client_gets_its_file_although_datagrams_are_lost(served: Served, tmp_path: Path) -> None:
    """1 in 100 each way, dropped by nftables."""
    data = served.file("initrd.img", 150_000)
    lose(served.host, 1)
    lose(served.lab.server, 1)
    assert fetch_all(served.host, "initrd.img", tmp_path) == dict.fromkeys(CLIENTS, data)
    again = [event for event in served.netbootd.events() if "sent again" in event["detail"]]
    assert again, dropped(served.host)


def test_every_client_gets_its_file_over_a_wire_that_delays_doubles_and_reorders(
    served: Served, tmp_path: Path
) -> None:
    wire = ["--delay", "0.001", "--jitter", "0.001", "--duplicate", "0.03", "--reorder", "0.03", "--loss", "0.005"]
    namespace = beyond(served.lab, "far", "192.0.2.20", *wire)
    data = served.file("initrd.img", 150_000)
    assert fetch_all(namespace, "initrd.img", tmp_path) == dict.fromkeys(CLIENTS, data)


def test_blocks_are_as_large_as_the_mtu_allows(served: Served) -> None:
    served.file("kernel", 50_000)
    oacks = []
    for mtu in (1500, 1400):
        run(["ip", "-n", served.lab.server, "link", "set", "br0", "mtu", str(mtu)])
        run(["ip", "-n", served.host, "link", "set", "eth0", "mtu", str(mtu)])
        for extra in ([], ["--windowsize", "16"]):
            asked = ["get", f"{SERVER}:69", "kernel", "--blksize", "1468", *extra]
            oacks += served.pis(served.host, served.root, *asked)["oacks"]
    assert oacks == [
        "blksize=1468",
        "blksize=1468 windowsize=16",
        "blksize=1368",
        "blksize=1368 windowsize=16",
    ]


def test_no_round_trip_of_a_long_way_is_too_long_for_the_timer(served: Served) -> None:
    """120 ms there and back: nothing may be sent twice."""
    namespace = beyond(served.lab, "far", "192.0.2.20", "--delay", "0.06")
    served.file("kernel", 8_000)
    found = served.pis(namespace, served.root, "get", f"{SERVER}:69", "kernel", "--client-timeout", "3")
    assert (found["ok"], found["dup_blocks"]) == (1, 0)


def test_one_lost_block_costs_far_less_than_a_second(served: Served) -> None:
    """100 kB in lock-step at 1 % loss each way: the median of what others need 2 to 3.3 s for."""
    served.file("kernel", 100_000)
    faults = ["--loss", "0.01", "--loss-tx", "0.01", "--client-timeout", "1"]
    asked = ["get", f"{SERVER}:69", "kernel", "--clients", "8", "--count", "2", "--tsize", *faults]
    found = served.pis(served.host, served.root, *asked)
    assert found["ok"] == 16
    assert found["dropped"] > 16
    assert found["latency"]["p50_ms"] < 1000


@pytest.fixture
def rack(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Served, Path]:
    """64 Pis' files for the load generator, and the same served to every node."""
    sizes = {name: min(size, LARGEST) for name, size in tftp_load.PI_FILES.items()}
    monkeypatch.setattr(tftp_load, "PI_FILES", sizes)
    tree = tmp_path / "tree"
    tree.mkdir()
    tftp_load.make_pi_tree(str(tree), 64)
    for path in (tree / ".pi").rglob("*"):
        if path.is_file():
            target = served.root / path.relative_to(tree / ".pi")
            target.parent.mkdir(exist_ok=True)
            os.link(path, target)
    os.link(tree / "bootcode.bin", served.root / "bootcode.bin")
    return served, tree


def boot(rack: tuple[Served, Path], model: str, clients: int, *faults: str) -> dict[str, Any]:
    served, tree = rack
    asked = ["pi", f"{SERVER}:69", "--model", model, "--clients", str(clients), "--client-timeout", "0.5", *faults]
    found = served.pis(served.host, tree, *asked)
    assert (found["booted"], found["failed"], found["hash_bad"], found["option_errors"]) == (clients, 0, 0, 0), found
    wanted = Counter(kind for _, kind, _ in tftp_load.SCRIPTS[model])
    assert found["hash_ok"] == wanted["get"] * clients
    return found


MODELS = pytest.mark.parametrize("model", sorted(tftp_load.SCRIPTS))


@MODELS
def test_racks_boot_without_a_block_sent_twice(rack: tuple[Served, Path], model: str) -> None:
    requests = 0
    for clients in (16, 64):
        found = boot(rack, model, clients)
        requests += clients * len(tftp_load.SCRIPTS[model])
        if found["dup_blocks"]:  # a machine that stood still for a fifth of a second looks like a loss; not twice
            found = boot(rack, model, clients)
            requests += clients * len(tftp_load.SCRIPTS[model])
        assert (found["dup_blocks"], found["gaps"]) == (0, 0)
    outcomes = rack[0].outcomes(requests)
    assert not {"aborted", "failed"} & set(outcomes), outcomes


@MODELS
@pytest.mark.parametrize("clients", [16, 64])
def test_racks_boot_although_the_wire_is_bad(rack: tuple[Served, Path], model: str, clients: int) -> None:
    """5 % lost each way for a small rack, 1 % for a large one; 1 % doubled, 1 % reordered."""
    loss = {16: "0.05", 64: "0.01"}[clients]
    faults = ["--loss", loss, "--loss-tx", loss, "--dup", "0.01", "--reorder", "0.01", "--dup-tx", "0.01"]
    found = boot(rack, model, clients, *faults)
    assert min(found["dropped"], found["duplicated"], found["reordered"]) > 0


def test_many_misses_are_answered_while_pis_boot(rack: tuple[Served, Path]) -> None:
    served, _ = rack
    namespace = served.lab.host("curious", "192.0.2.30")
    argv: list[Argument] = [sys.executable, "-m", "tests.support.tftp_load", "rate", f"{SERVER}:69", "no/such/file"]
    asking = served.lab.start(namespace, [*argv, "--rate", "1000", "--duration", "4"], "asking")
    boot(rack, "pi4", 16)
    assert asking.wait(30) == 0
    found = json.loads(asking.output())
    assert (found["not_found"], found["failed"]) == (4000, 0)
