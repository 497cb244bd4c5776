"""Who a request comes from."""

import pytest

from netbootd.boot.identify import STRANGERS_KEPT, Identities
from netbootd.errors import DeniedError
from netbootd.model.identity import Evidence, MacAddress, Serial
from netbootd.model.node import Node

SERIAL, MAC = Serial("1a2b3c4d"), MacAddress("dc:a6:32:00:00:01")
OTHER_MAC = MacAddress("dc:a6:32:00:00:99")


def make(nodes=(), neighbours=None, refuse=False):
    table = neighbours if neighbours is not None else {}
    return Identities(nodes, stranger_image="noble", refuse_strangers=refuse, mac_of=table.get), table


def node(name="valar-0", **values):
    return Node(name=name, image="noble", hostname=name, configured=True, **values)


def test_a_configured_serial_is_that_node_and_its_address_is_learnt():
    identities, _ = make([node(serial=SERIAL)])
    named = identities.identify(Evidence("tftp", "192.0.2.9", serial=SERIAL))
    assert (named.name, named.configured, named.address) == ("valar-0", True, "192.0.2.9")
    assert identities.identify(Evidence("nfs", "192.0.2.9")).name == "valar-0"
    assert not identities.identify(Evidence("nfs", "192.0.2.10")).configured


def test_the_neighbour_table_tells_a_node_that_is_configured_by_mac():
    identities, _ = make([node(mac=MAC)], {"192.0.2.9": MAC})
    assert identities.identify(Evidence("tftp", "192.0.2.9")).name == "valar-0"
    assert identities.identify(Evidence("tftp", "192.0.2.9", serial=SERIAL)).name == "valar-0"


def test_serial_counts_before_mac():
    identities, _ = make([node("by-serial", serial=SERIAL), node("by-mac", mac=MAC)], {"192.0.2.9": MAC})
    assert identities.identify(Evidence("tftp", "192.0.2.9", serial=SERIAL)).name == "by-serial"
    assert identities.identify(Evidence("http", "192.0.2.9")).name == "by-mac"


def test_a_mac_configured_for_another_serial_does_not_catch_this_one():
    identities, _ = make([node(serial=Serial("99999999"), mac=MAC)], {"192.0.2.9": MAC})
    assert identities.identify(Evidence("tftp", "192.0.2.9", serial=SERIAL)).name == "pi-1a2b3c4d"


def test_an_address_is_let_go_when_another_machine_has_it():
    identities, table = make([node(serial=SERIAL)], {"192.0.2.9": MAC})
    identities.identify(Evidence("tftp", "192.0.2.9", serial=SERIAL))
    assert identities.identify(Evidence("nfs", "192.0.2.9")).name == "valar-0"
    table["192.0.2.9"] = OTHER_MAC
    assert identities.identify(Evidence("nfs", "192.0.2.9")).name == "node-dc-a6-32-00-00-99"


def test_another_machine_can_not_take_a_nodes_address_by_naming_it():
    identities, _ = make([node(serial=SERIAL, mac=MAC)], {"192.0.2.66": OTHER_MAC})
    identities.identify(Evidence("http", "192.0.2.66", serial=SERIAL))
    assert identities.identify(Evidence("http", "192.0.2.66")).name != "valar-0"


def test_a_stranger_is_one_node_by_serial_and_then_by_mac():
    identities, _ = make([], {"192.0.2.9": MAC})
    first = identities.identify(Evidence("tftp", "192.0.2.9", serial=SERIAL))
    again = identities.identify(Evidence("http", "192.0.2.9"))
    by_mac = identities.identify(Evidence("tftp", "192.0.2.77", mac=MAC))
    assert first.name == again.name == by_mac.name == "pi-1a2b3c4d"
    assert {first.key, again.key, by_mac.key} == {"1a2b3c4d"}


def test_strangers_are_refused_where_the_configuration_says_so():
    identities, _ = make([node(serial=SERIAL)], refuse=True)
    assert identities.identify(Evidence("tftp", "192.0.2.9", serial=SERIAL)).configured
    with pytest.raises(DeniedError):
        identities.identify(Evidence("tftp", "192.0.2.10", serial=Serial("ffffffff")))


def test_made_up_serials_do_not_fill_the_memory():
    identities, _ = make([node(serial=SERIAL)])
    for number in range(STRANGERS_KEPT + 100):
        identities.identify(Evidence("tftp", f"10.0.{number >> 8}.{number & 255}", serial=Serial(f"{number:08x}")))
    assert len(identities._strangers) <= STRANGERS_KEPT
    assert len(identities._at_address) <= STRANGERS_KEPT


def test_a_node_is_found_by_what_people_write():
    identities, _ = make([node(serial=SERIAL, mac=MAC)])
    for text in ("valar-0", "VALAR-0", "1a2b3c4d", "100000001A2B3C4D", "DC:A6:32:00:00:01", "dc-a6-32-00-00-01"):
        assert identities.find(text).name == "valar-0"
    assert identities.find("nobody") is None
