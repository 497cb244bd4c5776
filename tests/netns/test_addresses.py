"""Which address is told to nodes, and who is a neighbour: asked of a real kernel in namespaces of our own."""

import json
import sys

import pytest

from tests.support.processes import run

_ASK = """
import json, sys
from netbootd.errors import HostError
from netbootd.host.links import AllowedPeers, Neighbours, address_to_advertise
explicit, configured, interface, binds, neighbours, peers = json.loads(sys.argv[1])
try:
    address = address_to_advertise(explicit, configured, interface, binds)
except HostError as error:
    address = f"status {error.exit_status}"
table, allowed = Neighbours(), AllowedPeers(None, interface)
macs = [str(table.mac_of(neighbour)) for neighbour in neighbours]
print(json.dumps([address, macs, [allowed(peer) for peer in peers]]))
table.close(), allowed.close()
"""


def ask(namespace, *, explicit="", configured="", interface="", binds=(), neighbours=(), peers=()):
    words = json.dumps([explicit, configured, interface, list(binds), list(neighbours), list(peers)])
    return json.loads(run(["ip", "netns", "exec", namespace, sys.executable, "-c", _ASK, words]).stdout)


def ip(namespace, *words):
    run(["ip", "-n", namespace, *words])


@pytest.fixture
def host(lab):
    """A host with two addresses on two interfaces and no default route."""
    namespace = lab.host("two", "192.0.2.20")
    ip(namespace, "link", "add", "wan0", "type", "bridge")
    ip(namespace, "addr", "add", "198.51.100.7/24", "dev", "wan0")
    ip(namespace, "link", "set", "wan0", "up")
    return namespace


def test_the_order_of_what_is_written_down(host):
    assert ask(host)[0] == "status 4"  # two global addresses, and nothing to choose by
    assert ask(host, binds=["0.0.0.0", "198.51.100.7"])[0] == "198.51.100.7"
    assert ask(host, interface="eth0", binds=["198.51.100.7"])[0] == "192.0.2.20"
    assert ask(host, configured="203.0.113.1", interface="eth0")[0] == "203.0.113.1"
    assert ask(host, explicit="203.0.113.2", configured="203.0.113.1")[0] == "203.0.113.2"
    assert ask(host, interface="nosuch0")[0] == "status 4"
    ip(host, "route", "add", "default", "via", "198.51.100.1", "metric", "50")
    ip(host, "route", "add", "default", "via", "192.0.2.1", "metric", "100")
    assert ask(host)[0] == "198.51.100.7"
    assert ask(host, binds=["192.0.2.20"])[0] == "192.0.2.20"


def test_an_interface_by_its_mac_is_the_only_network_that_is_answered(host):
    """A virtual machine with a NAT of its own, which has the default route, and the bridged card."""
    ip(host, "route", "add", "default", "via", "198.51.100.1")
    mac = run(["ip", "netns", "exec", host, "cat", "/sys/class/net/eth0/address"]).stdout.strip()
    peers = ["192.0.2.99", "198.51.100.99", "127.0.0.1"]
    for interface in ("eth0", mac, mac.upper()):
        assert ask(host, interface=interface, peers=peers) == ["192.0.2.20", [], [True, False, True]]
    assert ask(host, peers=peers) == ["198.51.100.7", [], [True, True, True]]
    assert ask(host, interface="02:ff:ff:ff:ff:fe", peers=peers)[2] == [False, False, True]


def test_the_only_global_address_is_the_one(lab):
    assert ask(lab.host("one", "192.0.2.21"))[0] == "192.0.2.21"


def test_neighbours_and_own_subnets(host):
    ip(host, "neigh", "add", "192.0.2.99", "lladdr", "dc:a6:32:01:36:c2", "dev", "eth0")
    ip(host, "neigh", "add", "192.0.2.98", "lladdr", "dc:a6:32:01:36:c3", "nud", "failed", "dev", "eth0")
    macs, allowed = ask(
        host,
        binds=["192.0.2.20"],
        neighbours=["192.0.2.99", "192.0.2.98", "192.0.2.97"],
        peers=["192.0.2.99", "198.51.100.200", "127.0.0.1", "203.0.113.9", "2001:db8::1", "nonsense"],
    )[1:]
    assert macs == ["dc:a6:32:01:36:c2", "None", "None"]
    assert allowed == [True, True, True, False, False, False]
