"""What `config show` prints is itself a configuration with the same effect."""

import dataclasses
import json
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netbootd.config.loader import load
from netbootd.config.schema import Config
from netbootd.config.show import as_dict, as_toml

FULL = """
[server]
address = "192.0.2.1"
interface = "eth0"
allow = ["192.0.2.0/24", "2001:db8::/32"]
drain_seconds = 2.5
[tftp]
port = 6969
data_ports = "5000-5100"
max_blksize = 1024
[http]
seed_tokens = true
[nfs]
portmap_port = "off"
secure = true
[defaults]
image = "b"
unknown_nodes = "refuse"
boot_files = ["."]
[[image]]
name = "a"
release = "noble"
config_append = "dtoverlay=x\\ndtparam=y"
cmdline_append = "quiet splash"
[[image]]
name = "b"
source = "dir/b.img"
[[node]]
name = "valar-0"
serial = "100000001A2B3C4D"
mac = "DC-A6-32-01-36-C2"
[[node]]
name = "valar-1"
mac = "dc:a6:32:01:36:c3"
image = "a"
hostname = "one"
[vm]
address = "192.0.2.9/24"
gateway = "192.0.2.254"
nameservers = ["192.0.2.254", "2001:db8::1"]
mac = "52:54:00:00:00:01"
"""


def reloaded(config, tmp_path):
    path = tmp_path / "shown" / "netbootd.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(as_toml(config))
    return load(path)


def same(first, second):
    """The same effect: all but the file's own name."""
    names = [field.name for field in dataclasses.fields(Config) if field.name not in ("path", "base")]
    return [name for name in names if getattr(first, name) != getattr(second, name)]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "netbootd.toml"
    path.write_text(FULL)
    return load(path)


def test_what_is_shown_reads_back_with_the_same_effect(config, tmp_path):
    again = reloaded(config, tmp_path)
    assert same(config, again) == ["nodes"]  # which are shown with the names and images that they had by default
    assert [node.node("b") for node in again.nodes] == [node.node("b") for node in config.nodes]
    assert same(again, reloaded(again, tmp_path)) == []


def test_the_defaults_read_back(tmp_path):
    assert same(load(None), reloaded(load(None), tmp_path)) == []


def test_programs_get_every_table_and_key(config):
    shown = json.loads(json.dumps(as_dict(config)))
    assert list(shown) == ["file", "server", "tftp", "http", "nfs", "dhcp", "defaults", "image", "node", "vm"]
    assert shown["file"].endswith("/netbootd.toml")
    assert shown["server"]["allow"] == ["192.0.2.0/24", "2001:db8::/32"]
    assert (shown["tftp"]["data_ports"], shown["nfs"]["portmap_port"]) == ("5000-5100", "off")
    assert [(node["hostname"], node["image"], node["serial"], node["mac"]) for node in shown["node"]] == [
        ("valar-0", "b", "1a2b3c4d", "dc:a6:32:01:36:c2"),
        ("one", "a", None, "dc:a6:32:01:36:c3"),
    ]
    assert shown["image"][1]["source"].endswith("/dir/b.img")
    assert shown["vm"]["address"] == "192.0.2.9/24"


def test_people_get_what_is_decided_later_as_a_comment():
    text = as_toml(load(None))
    tomllib.loads(text)
    assert text.startswith("# built-in defaults")
    assert "\n# allow: the server's own subnets\n" in text
    assert "\n# max_blksize: the MTU's\n" in text
    assert '\nimage = ""  # the only prepared image, else noble\n' in text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.text(st.characters(codec="utf-8")))
def test_any_text_survives(tmp_path, text):
    from netbootd.config.show import _toml

    assert tomllib.loads(f"x = {_toml(text)}") == {"x": text}
