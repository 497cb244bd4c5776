"""The four documents of a node's seed: whose they are, what they depend on, what a change of a folder does."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from netbootd import assets
from netbootd.cloudinit.check import check
from netbootd.cloudinit.seed import DOCUMENTS, SeedBuilder, fields_of
from netbootd.config.loader import load
from netbootd.errors import ConfigError
from netbootd.model.identity import MacAddress, Serial
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node

SERVER = ServerAddress("192.0.2.1", 8080)
NODE = Node("valar-0", "noble", "aule", serial=Serial("1a2b3c4d"), mac=MacAddress("dc:a6:32:01:36:c2"))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK6s4jHSegfy0SAoWUX6+IWE2cXAyExgB0Kq6RjV0jdS ${node:name} someone"


@dataclass
class Defaults:
    user: str = "ubuntu"
    ssh_authorized_keys: tuple[Path, ...] = ()
    cloud_init: tuple[Path, ...] = ()


@dataclass
class Settings:
    base: Path
    defaults: Defaults = field(default_factory=Defaults)
    nodes: tuple = ()


class Configured:
    """What the configuration has of a node."""

    def __init__(self, node):
        self._node = node

    def node(self, default_image):
        return self._node


@pytest.fixture
def world(tmp_path):
    """Settings with one folder, a key, and `put` to write a document into a folder."""
    settings = Settings(tmp_path)
    (tmp_path / "key.pub").write_text(KEY + "\n")
    settings.defaults.ssh_authorized_keys = (tmp_path / "key.pub", tmp_path / "not-there.pub")
    settings.defaults.cloud_init = (tmp_path / "base",)
    (tmp_path / "base").mkdir()

    def put(text, document="user-data", folder="base"):
        path = tmp_path / folder / document
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path.parent

    settings.put = put
    return settings


def build(settings, node=NODE, server=SERVER):
    return SeedBuilder(settings).build(node, server)


def read(seed, name):
    return yaml.safe_load(seed.document(name))


def test_all_four_are_there_even_where_there_is_nothing_to_say(world):
    seed = build(world)
    assert tuple(seed.documents) == DOCUMENTS
    assert seed.document("network-config") == b""
    assert seed.document("user-data").startswith(b"#cloud-config\n")
    assert seed.document("vendor-data").startswith(b"#cloud-config\n")


def test_the_user_has_the_configured_keys_and_no_password(world):
    user = read(build(world), "user-data")["user"]
    assert user["name"] == "ubuntu"
    assert user["lock_passwd"] is True
    assert user["ssh_authorized_keys"] == [KEY]  # a comment that looks like a reference stays a comment
    assert not {"passwd", "plain_text_passwd", "hashed_passwd"} & set(user)


def test_vendor_data_reports_to_us_and_user_data_stays_the_operators(world):
    world.put("#cloud-config\nruncmd: [mine]\n")
    seed = build(world)
    vendor = read(seed, "vendor-data")
    assert vendor["reporting"]["netbootd"]["endpoint"] == "http://192.0.2.1:8080/events/1a2b3c4d"
    assert vendor["reporting"]["netbootd"]["type"] == "webhook"
    assert vendor["phone_home"]["url"] == "http://192.0.2.1:8080/phone-home/1a2b3c4d"
    assert set(read(seed, "user-data")) == {"user", "runcmd"}


def test_layers_lie_over_each_other(world, tmp_path):
    world.put("hostname: from-base\nruncmd: [base]\nuser: {gecos: mine}\n")
    world.put("local-hostname: other\nregion: here\n", "meta-data")
    node = Node(
        "a", "noble", "a", serial=Serial("1a2b3c4d"), cloud_init=(world.put("hostname: a\nruncmd: [a]\n", folder="a"),)
    )
    seed = build(world, node)
    values = read(seed, "user-data")
    assert (values["hostname"], values["runcmd"], values["user"]["gecos"]) == ("a", ["base", "a"], "mine")
    assert values["user"]["name"] == "ubuntu"
    assert read(seed, "meta-data")["local-hostname"] == "other"
    assert read(seed, "meta-data")["region"] == "here"
    assert read(build(world), "user-data")["hostname"] == "from-base"


def test_where_each_value_came_from(world, tmp_path):
    world.put("#cloud-config\nhostname: x\n")
    told = {origin.key: str(origin.place) for origin in SeedBuilder(world).explain(NODE, "user-data")}
    assert told["hostname"] == f"{tmp_path}/base/user-data:2"
    assert told["user.name"] == "[defaults]"


def test_a_script_as_user_data_passes_and_the_user_comes_with_the_vendor_data(world):
    world.put("#!/bin/sh\necho ${node:name} ${HOME}\n")
    seed = build(world)
    assert seed.document("user-data") == b"#!/bin/sh\necho valar-0 ${HOME}\n"
    vendor = read(seed, "vendor-data")
    assert vendor["user"]["ssh_authorized_keys"] == [KEY]
    assert "phone_home" in vendor


def test_a_script_as_vendor_data_is_the_operators_alone(world):
    world.put("#!/bin/sh\n", "vendor-data")
    assert build(world).document("vendor-data") == b"#!/bin/sh\n"


# ---------------------------------------------------------------- host keys


HOST_KEYS = {"ed25519": ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END\n", "ssh-ed25519 AAAA\n")}


def with_keys(settings):
    seed = SeedBuilder(settings).build(NODE, SERVER, HOST_KEYS)
    return seed, yaml.safe_load(seed.document("vendor-data"))


def test_host_keys_are_handed_out_in_vendor_data_alone(world):
    plain, (seed, vendor) = build(world), with_keys(world)
    private, public = HOST_KEYS["ed25519"]
    assert vendor.pop("ssh_keys") == {"ed25519_private": private, "ed25519_public": public}
    assert vendor == read(plain, "vendor-data")
    assert {name for name in DOCUMENTS if seed.document(name) != plain.document(name)} == {"vendor-data"}
    assert (seed.digest, seed.uses_secrets) == (plain.digest, plain.uses_secrets)  # the next boot has the same


def test_host_keys_of_the_operator_stay_the_only_ones(world):
    world.put("#cloud-config\nssh_keys: {rsa_private: mine}\n", "vendor-data")
    assert with_keys(world)[1]["ssh_keys"] == {"rsa_private": "mine"}
    world.put("#cloud-config\nssh_keys: {rsa_private: '${node:name}'}\n", "vendor-data")
    assert with_keys(world)[1]["ssh_keys"] == {"rsa_private": "valar-0"}
    world.put("#cloud-config\nssh_keys: {}\n", "vendor-data")
    assert with_keys(world)[1]["ssh_keys"] == {}


def test_host_keys_do_not_spoil_a_script(world):
    world.put("#!/bin/sh\n", "vendor-data")
    assert SeedBuilder(world).build(NODE, SERVER, HOST_KEYS).document("vendor-data") == b"#!/bin/sh\n"


def test_host_keys_in_a_template(world):
    world.put("## template: jinja\n#cloud-config\na: '{{ v1.region }}'\n", "vendor-data")
    assert with_keys(world)[1]["ssh_keys"]["ed25519_private"] == HOST_KEYS["ed25519"][0]


# ---------------------------------------------------------------- identity


def test_the_instance_id_is_the_serial_and_the_configuration(world):
    first = read(build(world), "meta-data")["instance-id"]
    assert first.startswith("1a2b3c4d-")
    assert read(build(world), "meta-data")["instance-id"] == first
    assert read(build(world, server=ServerAddress("198.51.100.7")), "meta-data")["instance-id"] == first
    world.put("#cloud-config\nruncmd: [more]\n")
    second = read(build(world), "meta-data")["instance-id"]
    assert second != first
    other = Node("valar-1", "noble", "aule", serial=Serial("2a2b3c4d"))
    assert read(build(world, other), "meta-data")["instance-id"].startswith("2a2b3c4d-")


def test_the_instance_id_does_not_tell_of_secrets(world, tmp_path):
    world.put("#cloud-config\npassword: ${file:secret}\n")
    (tmp_path / "secret").write_text("one")
    first = build(world)
    (tmp_path / "secret").write_text("two")
    second = build(world)
    assert read(first, "user-data")["password"] == "one"
    assert read(second, "user-data")["password"] == "two"
    assert first.digest == second.digest


def test_which_documents_hold_secrets(world, tmp_path, monkeypatch):
    monkeypatch.setenv("NETBOOTD_TEST", "x")
    (tmp_path / "secret").write_text("one")
    assert build(world).uses_secrets == frozenset()
    world.put("#cloud-config\na: ${file:secret}\n")
    world.put("a: ${env:NETBOOTD_TEST}\n", "network-config")
    world.put("#cloud-config\na: ${node:name}\n", "vendor-data")
    assert build(world).uses_secrets == {"user-data", "network-config"}
    assert "a: one" not in SeedBuilder(world).unfilled(NODE, "user-data")
    assert "${file:secret}" in SeedBuilder(world).unfilled(NODE, "user-data")


def test_the_fields_of_a_node():
    assert fields_of(NODE, SERVER, "i") == {
        "name": "valar-0",
        "hostname": "aule",
        "id": "1a2b3c4d",
        "key": "1a2b3c4d",
        "serial": "1a2b3c4d",
        "mac": "dc:a6:32:01:36:c2",
        "address": "",
        "image": "noble",
        "instance_id": "i",
        "server": "192.0.2.1",
        "url": "http://192.0.2.1:8080",
    }


def test_two_nodes_are_told_apart(world):
    world.put("#cloud-config\nhostname: ${node:hostname}\n")
    builder = SeedBuilder(world)
    other = Node("valar-1", "noble", "vala-1", mac=MacAddress("dc:a6:32:01:36:c3"))
    assert read(builder.build(NODE, SERVER), "user-data")["hostname"] == "aule"
    assert read(builder.build(other, SERVER), "user-data")["hostname"] == "vala-1"
    assert "/events/dc-a6-32-01-36-c3" in builder.build(other, SERVER).document("vendor-data").decode()


# ---------------------------------------------------------------- changes and faults


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(world, tmp_path, monkeypatch):
    builder = SeedBuilder(world)
    world.put("#cloud-config\na: 1\n")
    assert read(builder.build(NODE, SERVER), "user-data")["a"] == 1
    world.put("#cloud-config\na: 22\n")
    assert read(builder.build(NODE, SERVER), "user-data")["a"] == 22
    (tmp_path / "key.pub").unlink()
    assert "ssh_authorized_keys" not in read(builder.build(NODE, SERVER), "user-data")["user"]
    monkeypatch.setattr("netbootd.cloudinit.seed.read_part", None)
    assert read(builder.build(NODE, SERVER), "user-data")["a"] == 22


def test_all_faults_of_all_folders_are_told(world, tmp_path):
    world.put("a: [1\n")
    world.put("b: 1\nb: 2\n", "meta-data")
    node = Node("x", "noble", "x", serial=Serial("1a2b3c4d"), cloud_init=(tmp_path / "gone",))
    with pytest.raises(ConfigError) as caught:
        build(world, node)
    text = "\n".join(caught.value.details)
    assert len(caught.value.details) == 3
    for part in ("base/user-data:2", "base/meta-data:2", "gone: the cloud-init folder is not there"):
        assert part in text


def test_all_that_is_missing_in_all_documents_is_told(world):
    world.put("a: ${file:one}\n")
    world.put("a: ${file:two}\n", "meta-data")
    with pytest.raises(ConfigError) as caught:
        build(world)
    assert len(caught.value.details) == 2


@pytest.mark.timeout(10)
def test_what_is_no_file_is_refused(world, tmp_path):
    os.mkfifo(tmp_path / "base" / "user-data")
    with pytest.raises(ConfigError, match="not a file"):
        build(world)
    (tmp_path / "base" / "user-data").unlink()
    (tmp_path / "base" / "user-data").mkdir()
    with pytest.raises(ConfigError, match="not a file"):
        build(world)


def test_a_document_that_is_too_large_is_refused(world, tmp_path):
    (tmp_path / "base" / "user-data").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger"):
        build(world)


# ---------------------------------------------------------------- config check


def test_check_looks_at_every_node_and_says_each_fault_once(world, tmp_path):
    nodes = [Node(f"n{n}", "noble", f"n{n}", serial=Serial(f"0000000{n}")) for n in range(4)]
    world.nodes = tuple(map(Configured, nodes))
    assert check(world) == []
    world.put("#cloud-config\nruncmd: echo\nhostname: 'no host'\nwrite_files: [{path: relative}]\n")
    world.put("version: 7\n", "network-config")
    faults = check(world)
    assert len(faults) == 4
    assert all(fault.startswith("n0, n1 and 3 more: ") for fault in faults)
    world.put("#cloud-config\na: ${file:gone}\nb: ${env:NETBOOTD_NOBODY}\n")
    assert len([fault for fault in check(world) if "user-data" in fault]) == 2


def test_network_configurations_in_both_forms(world):
    for text in ("version: 2\nethernets: {}\n", "network: {version: 1, config: []}\n", "network: {config: disabled}\n"):
        world.put(text, "network-config")
        assert check(world) == []


def test_what_ships_is_without_fault_for_every_node(tmp_path):
    assert check(load(assets.find("netbootd.toml"))) == []
    text = '[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\ncloud_init = ["{}"]\n'
    (tmp_path / "netbootd.toml").write_text(text.format(assets.find("cloud-init", "nodes", "valar-0")))
    config = load(tmp_path / "netbootd.toml")
    assert check(config) == []
    seed = SeedBuilder(config).build(config.nodes[0].node("noble"), SERVER)
    values = read(seed, "user-data")
    assert (values["hostname"], values["ssh_pwauth"], values["timezone"]) == ("valar-0", False, "Europe/Berlin")
    assert len(values["write_files"]) == 2
