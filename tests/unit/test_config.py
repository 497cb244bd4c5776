"""netbootd.toml: every fault at once, each with its key; defaults that serve."""

import os
import string
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbootd import assets
from netbootd.config.loader import SYSTEM_FILE, discover, load, warnings
from netbootd.config.schema import Config
from netbootd.config.tables import suggestion
from netbootd.config.values import shown, visible
from netbootd.errors import ConfigError
from netbootd.model.identity import MacAddress, Serial

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK6s4jHSegfy0SAoWUX6+IWE2cXAyExgB0Kq6RjV0jdS someone\n"

# The example of the operator's contract, its folders and key beside it.
CONTRACT = """
[server]
address = "192.168.1.66"
interface = ""
allow = ["192.168.1.0/24"]
drain_seconds = 30
[tftp]
port = 69
single_port = false
data_ports = ""
max_blksize = 1468
max_windowsize = 64
[http]
port = 80
seed_tokens = false
[nfs]
backend = "auto"
port = 2049
portmap_port = 111
secure = false
[dhcp]
mode = "off"
[defaults]
image = "noble"
user = "ubuntu"
ssh_authorized_keys = ["id_ed25519.pub"]
cloud_init = ["cloud-init/base", "cloud-init/overlays/netboot"]
boot_files = []
unknown_nodes = "serve"
[[image]]
name = "noble"
release = "noble"
arch = "arm64"
sd_image = false
cmdline_append = ""
config_append = ""
[[node]]
name = "valar-0"
serial = "1a2b3c4d"
image = "noble"
hostname = "valar-0"
cloud_init = ["cloud-init/nodes/valar-0"]
boot_files = []
cmdline_append = ""
[vm]
name = "netbootd"
release = "26.04"
cpus = 4
memory = "4G"
disk = "20G"
network = ""
mac = ""
address = "192.168.1.66/24"
gateway = "192.168.1.1"
nameservers = ["192.168.1.1"]
"""


@pytest.fixture
def write(tmp_path):
    """Write netbootd.toml, its keys and folders beside it."""
    (tmp_path / "id_ed25519.pub").write_text(KEY)
    for folder in ("cloud-init/base", "cloud-init/overlays/netboot", "cloud-init/nodes/valar-0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "user-data").write_text("#cloud-config\n")

    def write(text):
        path = tmp_path / "netbootd.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def faults(write):
    """The faults of a configuration, one line each."""

    def faults(text):
        with pytest.raises(ConfigError) as caught:
            load(write(text))
        assert caught.value.exit_status == 3
        for line in (caught.value.message, *caught.value.details, caught.value.hint):
            assert line.isprintable()  # one paragraph, and nothing that a terminal would act on
        return list(caught.value.details)

    return faults


def test_the_contracts_example_is_read_whole(write, tmp_path):
    config = load(write(CONTRACT))
    assert (config.server.address, config.server.allow) == ("192.168.1.66", (ip_network("192.168.1.0/24"),))
    assert (config.tftp.data_ports, config.tftp.max_blksize, config.nfs.portmap_port) == (None, 1468, 111)
    assert config.defaults.cloud_init == (tmp_path / "cloud-init/base", tmp_path / "cloud-init/overlays/netboot")
    assert config.defaults.ssh_authorized_keys == (tmp_path / "id_ed25519.pub",)
    node = config.nodes[0].node("other")
    assert (node.name, node.serial, node.image, node.configured) == ("valar-0", Serial("1a2b3c4d"), "noble", True)
    assert node.cloud_init == (tmp_path / "cloud-init/nodes/valar-0",)
    assert str(config.vm.address) == "192.168.1.66/24"
    assert config.vm.mac is None
    assert warnings(config) == []


def test_the_defaults_are_the_contracts():
    config = load(None)
    assert (config.path, config.server.address, config.server.allow, config.server.drain_seconds) == (
        None,
        "",
        None,
        30,
    )
    assert (config.tftp.port, config.tftp.single_port, config.tftp.max_blksize, config.tftp.max_windowsize) == (
        *(69, False, None),
        64,
    )
    assert (config.http.port, config.http.seed_tokens) == (80, False)
    assert (config.nfs.backend, config.nfs.port, config.nfs.portmap_port) == ("auto", 2049, 111)
    assert config.nfs.secure is False
    assert (config.dhcp.mode, config.defaults.user, config.defaults.unknown_nodes) == ("off", "ubuntu", "serve")
    assert (config.defaults.image, config.defaults.boot_files, config.images, config.nodes) == ("", (), (), ())
    assert [path.name for path in config.defaults.cloud_init] == ["base", "netboot"]
    assert all((path / "user-data").is_file() for path in config.defaults.cloud_init)
    assert (config.vm.name, config.vm.release, config.vm.cpus, config.vm.memory, config.vm.disk) == (
        *("netbootd", "26.04", 4, "4G"),
        "20G",
    )


def test_an_empty_file_has_the_defaults(tmp_path):
    (tmp_path / "netbootd.toml").write_text("")
    config, builtin = load(tmp_path / "netbootd.toml"), load(None)
    for name in ("server", "tftp", "http", "nfs", "dhcp", "defaults", "images", "nodes", "vm"):
        assert getattr(config, name) == getattr(builtin, name)


def test_the_example_that_ships_is_without_fault():
    config = load(assets.find("netbootd.toml"))
    assert [image.name for image in config.images] == ["noble"]


def test_a_mark_and_line_ends_of_windows_are_passed_over(write):
    assert load(write(b"\xef\xbb\xbf[tftp]\r\nport = 6969\r\n")).tftp.port == 6969


# ---------------------------------------------------------------- which file


def test_which_file_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NETBOOTD_CONFIG", raising=False)
    assert discover() == (SYSTEM_FILE if SYSTEM_FILE.is_file() else None)
    (tmp_path / "netbootd.toml").write_text("")
    assert discover() == Path("netbootd.toml")
    monkeypatch.setenv("NETBOOTD_CONFIG", "by-environment.toml")
    assert discover() == Path("by-environment.toml")
    assert discover(Path("by-option.toml")) == Path("by-option.toml")


def test_relative_paths_are_relative_to_the_file(write, tmp_path, monkeypatch):
    path = write('[defaults]\ncloud_init = ["cloud-init/base"]\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (folder,) = load(Path(os.path.relpath(path))).defaults.cloud_init
    assert folder.is_absolute()
    assert folder.resolve() == tmp_path / "cloud-init/base"


def test_the_shipped_folders_are_found_from_any_place(tmp_path):
    (tmp_path / "netbootd.toml").write_text('[defaults]\ncloud_init = ["cloud-init/base/"]\n')
    assert load(tmp_path / "netbootd.toml").defaults.cloud_init == (assets.find("cloud-init", "base"),)


def test_a_tilde_is_a_home_and_under_sudo_the_callers(tmp_path, monkeypatch, write):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load(write('[defaults]\nssh_authorized_keys = ["~/id_ed25519.pub", "~/nothing.pub"]\n'))
    assert config.defaults.ssh_authorized_keys == (tmp_path / "id_ed25519.pub", tmp_path / "nothing.pub")
    assert [text for text in warnings(config) if "nothing.pub is not there" in text]


# ---------------------------------------------------------------- what is not TOML


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server", "Expected ']'"),
        ("x = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("x = " + "9" * 5000, "digits"),
        (b"\xff", "UTF-8"),
        (b"x = 1\x00", "line 1"),
        ("a = 1\na = 2", "overwrite"),
        (b"#" * (1 << 21), "larger"),
        ('x = "\x1b[2J"', "line 1"),
    ],
)
def test_what_is_not_toml_is_one_sentence(write, text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        load(write(text))
    assert caught.value.message.isprintable()
    assert str(write(text)) in caught.value.message


@pytest.mark.parametrize("path", ["nosuch.toml", ".", "netbootd.toml/below", "x" * 300])
def test_a_file_that_can_not_be_read_is_named(write, tmp_path, path):
    write("")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / path)
    assert str(tmp_path / path) in caught.value.message


# ---------------------------------------------------------------- faults


def test_all_faults_are_told_at_once_each_with_its_key(faults):
    assert faults(
        """
        [server]
        address = "nowhere"
        drain_secs = 3
        [tftp]
        port = "x"
        [htpt]
        port = 80
        [[image]]
        relase = "noble"
        [[node]]
        name = "valar-0"
        mac = "01:00:5e:00:00:01"
        cloud_init = ["nosuch"]
        """
    ) == [
        '[server]: address: "nowhere" is not an IP address such as "192.168.1.66"',
        '[server]: drain_secs: unknown key; did you mean "drain_seconds"?',
        '[tftp]: port: "x" is not a whole number from 0 to 65535',
        "[[image]] 1: name: is missing",
        '[[image]] 1: release: is missing: a release such as "noble", or source, a file or an URL',
        '[[image]] 1: relase: unknown key; did you mean "release"?',
        '[[node]] 1 (valar-0): mac: "01:00:5e:00:00:01" is not the MAC address of one machine',
        '[[node]] 1 (valar-0): cloud_init: a list of 1 holds "nosuch", '
        "which is not a folder: FOLDER/nosuch is not there",
        '[htpt]: unknown table; did you mean "http"?',
    ]


@pytest.fixture(autouse=True)
def short_paths(monkeypatch, request):
    """Faults compare without the test's own folder in them."""
    if "tmp_path" not in request.fixturenames:
        return
    folder = str(request.getfixturevalue("tmp_path"))
    monkeypatch.setattr(
        "netbootd.config.tables.visible", lambda text, real=visible: real(text.replace(folder, "FOLDER"))
    )


ONE_FAULT = [
    ("[server]\naddress = 5", "[server]: address: 5 is not an IP address"),
    ('[server]\naddress = "0.0.0.0"', "not the address of a host"),
    ('[server]\naddress = "255.255.255.255"', "not the address of a host"),
    ('[server]\naddress = "224.0.0.1"', "not the address of a host"),
    ('[server]\naddress = "fe80::1%eth0"', "has a zone"),
    ("[server]\nallow = []", "lets nobody in"),
    ('[server]\nallow = ["192.168.1.7/24"]', 'did you mean "192.168.1.0/24"?'),
    ('[server]\nallow = "192.168.1.0/24"', "is not a list in square brackets"),
    ("[server]\ndrain_seconds = -1", "seconds from 0"),
    ("[server]\ndrain_seconds = inf", "seconds from 0"),
    ("[server]\ndrain_seconds = nan", "seconds from 0"),
    ("[server]\ndrain_seconds = true", "true is not a number of seconds"),
    ("[tftp]\nport = 65536", "from 0 to 65535"),
    ("[tftp]\nport = true", "true is not a whole number"),
    ("[tftp]\nport = 69.0", "69.0 is not a whole number"),
    ("[tftp]\nport = 1979-05-27", "1979-05-27 is not a whole number"),
    ("[tftp]\nport = 0x" + "f" * 5000, "a number of very many digits is not a whole number"),
    ("[tftp]\nsingle_port = 1", "neither true nor false"),
    ('[tftp]\ndata_ports = "5100-5000"', "range of ports"),
    ('[tftp]\ndata_ports = "0-5"', "range of ports"),
    ("[tftp]\ndata_ports = 5000", "range of ports"),
    ('[tftp]\nsingle_port = true\ndata_ports = "5000-5100"', "does not go together"),
    ("[tftp]\nmax_blksize = 7", "from 8 to 65464"),
    ("[tftp]\nmax_windowsize = 0", "from 1 to 65535"),
    ('[nfs]\nbackend = "embeded"', '"auto", "kernel", "embedded", "off"'),
    ('[nfs]\nportmap_port = "on"', 'or "off"'),
    ('[nfs]\nsecure = "yes"', "neither true nor false"),
    ('[dhcp]\nmode = "proxy"', "not in this version"),
    ('[dhcp]\nmode = "full"', 'not one of "off"'),
    ('[defaults]\nuser = "root"', "root"),
    ('[defaults]\nuser = "Bob"', "lower-case"),
    ('[defaults]\nunknown_nodes = "maybe"', '"serve", "refuse"'),
    ('[defaults]\nimage = "current"', "is taken"),
    ('[defaults]\nimage = "../x"', "is not a name"),
    ('[defaults]\nboot_files = ["netbootd.toml"]', "is something else"),
    (f'[defaults]\nboot_files = ["{"a" * 5000}"]', "can't be looked into"),
    ('[defaults]\nssh_authorized_keys = ["nosuch.pub"]', "No such file"),
    ('[defaults]\nssh_authorized_keys = ["cloud-init"]', "it is not a file"),
    ('[defaults]\nssh_authorized_keys = ["netbootd.toml"]', "not a public key"),
    (f'[defaults]\nssh_authorized_keys = ["~/{"a" * 5000}"]', "too long"),
    ('[defaults]\nssh_authorized_keys = ["~nobody-here/x.pub"]', "home of a user who is not there"),
    ('[defaults]\nssh_authorized_keys = ["ssh-ed25519 AAAA"]', "is a key itself"),
    ('[defaults]\ncloud_init = [""]', "is not a path"),
    ('[[image]]\nname = "a"\nrelease = "noble"\nsource = "x.img"', "which of the two"),
    ('[[image]]\nname = "a"\nrelease = ""\nsource = ""', "release: is missing"),
    ('[[image]]\nname = "a"\nsource = "ftp://x/y"', "http, https or file"),
    ('[[image]]\nname = "a"\nsource = "x.img"\nsha256 = "00"', "64 hex digits"),
    ('[[image]]\nname = "a"\nrelease = "noble"\nsha256 = "' + "0" * 64 + '"', "goes with source"),
    ('[[image]]\nname = "a"\nrelease = "noble"\narch = "mips"', '"arm64"'),
    ('[[image]]\nname = "a"\nrelease = "noble"\nconfig_append = "' + "x" * 99 + '"', "99 characters"),
    ('[[image]]\nname = "a"\nrelease = "noble"\ncmdline_append = "a\\nb"', "one line"),
    ('[[image]]\nname = "a"\nrelease = "noble"\ncmdline_append = "ro"', "must not have ro"),
    (
        '[[image]]\nname = "a"\nrelease = "noble"\n[[image]]\nname = "a"\nrelease = "noble"',
        "already that of [[image]] 1",
    ),
    ('[[image]]\nname = "a"\nrelease = "noble"\n[defaults]\nimage = "b"', 'there is "a"'),
    ('[[image]]\nname = "noble"\nrelease = "noble"\n[defaults]\nimage = "nobel"', 'did you mean "noble"'),
    ('[[node]]\nname = "a"', "by a serial or a mac"),
    ('[[node]]\nname = "a"\nserial = ""\nmac = ""', "by a serial or a mac"),
    ('[[node]]\nserial = "1a2b3c4d"', "name: is missing"),
    ('[[node]]\nname = "a"\nserial = "1a2b3c4"', "8 or 16 hex digits"),
    ('[[node]]\nname = "a"\nserial = 12345678', "in quotes"),
    ('[[node]]\nname = "a"\nmac = "00:00:00:00:00:00"', "one machine"),
    ('[[node]]\nname = "a_b"\nserial = "1a2b3c4d"', "hostname of its own"),
    ('[[node]]\nname = "a_b"\nserial = "1a2b3c4d"\nhostname = ""', "hostname of its own"),
    ('[[node]]\nname = "a"\nserial = "1a2b3c4d"\nhostname = "-x"', "host name"),
    ('[[node]]\nname = "a"\nserial = "1a2b3c4d"\ncmdline_append = "root=/dev/sda"', "root=/dev/sda"),
    ('[[node]]\nname = "a"\nserial = "1a2b3c4d"\ncmdline_append = "x=\\"1"', "open quote"),
    (
        '[[node]]\nname = "a"\nserial = "1a2b3c4d"\n[[node]]\nname = "A"\nserial = "2a2b3c4d"',
        "already that of [[node]] 1",
    ),
    (
        '[[node]]\nname = "a"\nserial = "100000001A2B3C4D"\n[[node]]\nname = "b"\nserial = "1a2b3c4d"',
        '[[node]] 2 (b): serial: "1a2b3c4d" is already that of [[node]] 1 (a)',
    ),
    ('[vm]\ngateway = "192.0.2.1"', "goes with address"),
    ('[vm]\naddress = "192.0.2.5/24"\ngateway = "198.51.100.1"', "not in the subnet"),
    ('[vm]\nmemory = "lots"', '"4G"'),
    ('[vm]\nname = "1vm"', "name of a VM"),
    ("server = 5", "server: server = … is not a table; write [server]"),
    ("[[tftp]]\nport = 1", "write [tftp]"),
    ('[node]\nname = "a"', "write [[node]]"),
    ("node = [1]", "write [[node]]"),
    ("drain_seconds = 3", "belongs into a table: [server]"),
    ("[Tftp]\nport = 1", 'did you mean "tftp"'),
    ("[tftp]\nsingle-port = true", 'did you mean "single_port"'),
    ('"a\\nb" = 1', "a\\nb: unknown key"),
    ('"\\u001b[31m" = 1', "\\x1b[31m: unknown key"),
    ('[nfs]\nbackend = "\\u001b[2J\\n"', "\\x1b[2J\\n"),
    (f'"{"k" * 1000}" = 1', "k" * 64 + "…: unknown key"),
]


@pytest.mark.parametrize(("text", "says"), ONE_FAULT, ids=range(len(ONE_FAULT)))
def test_one_fault_is_one_line(faults, text, says):
    told = faults(text)
    assert len(told) == 1, told
    assert says in told[0]
    assert len(told[0]) <= 601


def test_a_faulty_value_brings_no_second_fault_for_what_depends_on_it(faults):
    assert len(faults('[vm]\naddress = 5\ngateway = "192.0.2.1"')) == 1
    assert len(faults('[[node]]\nname = "a"\nserial = "x"')) == 1
    assert len(faults('[[image]]\nname = "a"\nsource = 5\nsha256 = "' + "0" * 64 + '"')) == 1


def test_very_many_faults_are_told_in_time(faults):
    assert len(faults("\n".join(f"drain_second_{n} = 1" for n in range(20_000)))) == 20_000


# ---------------------------------------------------------------- warnings


def test_what_is_unwise_is_a_warning(write):
    config = load(
        write(
            """
            [server]
            address = "2001:db8::1"
            interface = "eth0"
            [[image]]
            name = "a"
            source = "nosuch.img"
            [[image]]
            name = "b"
            source = "https://192.0.2.1/b.img"
            [[node]]
            name = "valar-0"
            serial = "1a2b3c4d"
            hostname = "same"
            cloud_init = ["cloud-init"]
            [[node]]
            name = "valar-1"
            mac = "DC-A6-32-01-36-C2"
            hostname = "SAME"
            """
        )
    )
    text = "\n".join(warnings(config))
    for part in (
        "both set",
        "IPv6",
        "nobody can log in",
        "host name same",
        "holds no cloud-init",
        "nosuch.img",
        "sha256",
    ):
        assert part in text
    assert config.nodes[1].mac == MacAddress("dc:a6:32:01:36:c2")


@pytest.mark.parametrize("data", [b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 cut\n", b"ssh-rsa !!!!\n"])
def test_a_damaged_key_is_a_warning(write, tmp_path, data):
    (tmp_path / "bad.pub").write_bytes(data)
    assert "damaged" in "".join(warnings(load(write('[defaults]\nssh_authorized_keys = ["bad.pub"]'))))


# ---------------------------------------------------------------- anything

_words = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)
_keys = (
    st.sampled_from(["address", "port", "name", "serial", "mac", "cloud_init", "allow", "image", "release"]) | _words
)
_plain = st.text(max_size=20) | st.integers() | st.booleans() | st.floats() | st.none()
_anything = st.recursive(_plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3))
_tables = st.sampled_from(["server", "tftp", "http", "nfs", "dhcp", "defaults", "image", "node", "vm"]) | _words


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_tables, st.dictionaries(_keys, _anything, max_size=4) | _anything, max_size=4))
def test_any_document_is_read_or_refused(tmp_path_factory, document):
    from netbootd.config.loader import _read
    from netbootd.config.tables import Faults

    faults = Faults()
    wrapped = {name: [value] if name in ("image", "node") else value for name, value in document.items()}
    config = _read(tmp_path_factory.getbasetemp() / "netbootd.toml", wrapped, faults)
    assert isinstance(config, Config)
    assert all(line.isprintable() for line in faults.lines)


@given(st.text())
def test_what_is_shown_is_short_and_harmless(text):
    assert shown(text).isprintable()
    assert len(shown(text)) <= 60
    assert visible(text).isprintable()


def test_suggestions_are_near_or_none():
    assert suggestion("Drain-Seconds", ["drain_seconds"]) == '; did you mean "drain_seconds"?'
    assert suggestion("xyz", ["drain_seconds"]) == ""
