"""Who may read a node's documents, and who is known as the node."""

import pytest

from netbootd.boot.identify import Identities
from netbootd.errors import DeniedError
from netbootd.model.identity import Evidence, MacAddress, Serial
from netbootd.model.node import Node
from netbootd.service.access import SeedGate

MAC, OTHER = MacAddress("dc:a6:32:00:00:01"), MacAddress("dc:a6:32:00:00:99")
BOTH = Node("both", "noble", "both", serial=Serial("1a2b3c4d"), mac=MAC, configured=True)
SERIAL_ONLY = Node("serial-only", "noble", "x", serial=Serial("2a2b3c4d"), configured=True)
STRANGER = Node("pi-3a2b3c4d", "noble", "x", serial=Serial("3a2b3c4d"), mac=MAC)
TABLE = {"192.0.2.9": MAC, "192.0.2.66": OTHER}


def gate(token_of=None):
    identities = Identities([BOTH, SERIAL_ONLY], stranger_image="noble", refuse_strangers=False, mac_of=TABLE.get)
    return SeedGate(identities, TABLE.get, token_of)


def may(gate, node, address="192.0.2.9", token="", *, secret):
    try:
        gate.check(node, Evidence("http", address, serial=node.serial), token, secret=secret)
    except DeniedError:
        return False
    return True


@pytest.mark.parametrize(
    ("node", "address", "known"),
    [
        (BOTH, "192.0.2.9", True),
        (BOTH, "192.0.2.66", False),  # another machine that names the node
        (BOTH, "198.51.100.1", False),  # from another subnet: the neighbour table does not know
        (SERIAL_ONLY, "192.0.2.9", False),  # a serial is no secret
        (STRANGER, "192.0.2.9", False),  # its MAC was learnt from itself
    ],
)
def test_without_tokens_a_secret_goes_to_the_configured_mac(node, address, known):
    assert may(gate(), node, address, secret=True) is known
    assert may(gate(), node, address, secret=False)
    assert (gate().doubt(node, Evidence("http", address), "") == "") is known


def test_a_token_where_none_are_in_use_is_refused():
    assert not may(gate(), BOTH, token="x", secret=False)


@pytest.mark.parametrize("secret", [True, False])
def test_with_tokens_every_document_goes_to_the_present_boots_alone(secret):
    tokens = {"both": "t0ken", "serial-only": ""}
    guarded = gate(lambda node: tokens.get(node.name, ""))
    assert may(guarded, BOTH, "198.51.100.1", "t0ken", secret=secret)
    for node, token in ((BOTH, ""), (BOTH, "T0KEN"), (BOTH, "\udcff"), (SERIAL_ONLY, ""), (STRANGER, "t0ken")):
        assert not may(guarded, node, token=token, secret=secret)
        assert guarded.doubt(node, Evidence("http", "192.0.2.9"), token)
