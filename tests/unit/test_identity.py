"""Serials, MACs, boot paths, and what a TFTP or HTTP path says of the machine that asks."""

import pytest

from netbootd.boot.contract import parse_request
from netbootd.model.identity import MacAddress, Serial
from netbootd.model.resource import BootPath


@pytest.mark.parametrize("text", ["abcd1234", "10000000ABCD1234", "0x10000000abcd1234", " ABCD1234 "])
def test_a_serial_counts_by_its_last_eight_digits(text):
    assert str(Serial.parse(text)) == "abcd1234"


@pytest.mark.parametrize("text", ["", "abcd123", "abcd12345", "ghij1234", "10000000abcd12345", "abcd1234\n\n5"])
def test_other_texts_are_no_serials(text):
    with pytest.raises(ValueError, match="serial"):
        Serial.parse(text)


def test_mac_addresses_have_one_form():
    assert MacAddress.parse("DC-A6-32-01-36-C2") == MacAddress.parse("dc:a6:32:01:36:c2")
    assert MacAddress.parse("DC-A6-32-01-36-C2").dashed == "dc-a6-32-01-36-c2"
    for text in ("dc:a6:32:01:36", "dc:a6-32:01:36:c2", "dca6320136c2", "dc:a6:32:01:36:c2:00"):
        with pytest.raises(ValueError, match="MAC"):
            MacAddress.parse(text)


@pytest.mark.parametrize(
    ("asked", "serial", "mac", "path"),
    [
        ("1a2b3c4d/start4.elf", "1a2b3c4d", "", "start4.elf"),
        ("/1A2B3C4D//overlays/./x.dtbo", "1a2b3c4d", "", "overlays/x.dtbo"),
        ("100000001a2b3c4d/config.txt", "1a2b3c4d", "", "config.txt"),
        ("dc-a6-32-01-36-c2/cmdline.txt", "", "dc:a6:32:01:36:c2", "cmdline.txt"),
        ("config.txt", "", "", "config.txt"),
        ("overlays/vc4.dtbo", "", "", "overlays/vc4.dtbo"),
        ("1a2b3c4d", "", "", "1a2b3c4d"),  # a file of that name: a folder alone is never asked for
        ("current\\vmlinuz", "", "", "current/vmlinuz"),
    ],
)
def test_the_path_names_the_node(asked, serial, mac, path):
    evidence, found = parse_request(asked, "tftp", "192.0.2.9", "192.0.2.1")
    assert (str(evidence.serial or ""), str(evidence.mac or ""), found) == (serial, mac, path)
    assert (evidence.address, evidence.local, evidence.protocol) == ("192.0.2.9", "192.0.2.1", "tftp")


@pytest.mark.parametrize(
    "asked", ["", "/", "..", "../etc/passwd", "a/../../b", "1a2b3c4d/../x", "a\x00b", "a\nb", "./."]
)
def test_paths_that_lead_nowhere_good_are_refused(asked):
    with pytest.raises(ValueError, match="boot file"):
        BootPath.parse(asked)
