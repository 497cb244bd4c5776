"""``netbootd vm`` against the stand-in of Multipass: first run, second run, each failure, each system's conventions."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import pytest
import yaml

from netbootd.config.loader import load
from netbootd.errors import ConfigError, DeniedError, HostError, NetbootdError, NetworkError, NotFoundError
from netbootd.model.identity import MacAddress
from netbootd.vm import workstation as workstations
from netbootd.vm.bundle import collect
from netbootd.vm.cloudconfig import netplan, render
from netbootd.vm.failures import KNOWN, recognised
from netbootd.vm.lifecycle import Lifecycle, Talk, address_of
from netbootd.vm.multipass import HostNetwork, Multipass
from netbootd.vm.workstation import System, Workstation, derived_mac
from tests.support.cloud_init import program
from tests.support.multipass_standin import (
    BRIDGED_LINUX_NETWORKS,
    LINUX_NETWORKS,
    MACOS_NETWORKS,
    WINDOWS_NETWORKS,
    Standin,
)
from tests.support.processes import run

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ somebody@desk\n"
ADDRESS = "192.168.1.66"


class Desk:
    """A workstation with a clone, a key, and Multipass."""

    def __init__(self, folder: Path, networks: list[dict[str, Any]], system: System, machine: str) -> None:
        self.home = folder / "home"
        self.clone = self.home / "rack"
        (self.clone / "cloud-init/base").mkdir(parents=True)
        (self.clone / "cloud-init/base/user-data").write_text("#cloud-config\nhostname: ${node:hostname}\n")
        (self.home / ".ssh").mkdir()
        (self.home / ".ssh/id_ed25519.pub").write_text(KEY)
        self.standin = Standin(folder / "multipass", networks)
        self.workstation = Workstation(system, machine, self.home, terminal=False)
        self.said: list[str] = []
        self.configure("")

    def configure(self, vm: str, more: str = "") -> None:
        self.config = self.clone / "netbootd.toml"
        self.config.write_text(
            '[defaults]\nssh_authorized_keys = ["~/.ssh/id_ed25519.pub"]\ncloud_init = ["cloud-init/base"]\n'
            f"{more}\n[vm]\n{vm}\n"
        )

    def lifecycle(self, choose: Callable[[Sequence[HostNetwork]], str] | None = None) -> Lifecycle:
        multipass = Multipass(str(self.standin.program), self.workstation.system)
        now = iter(range(0, 10_000, 20))
        return Lifecycle(
            load(self.config),
            self.workstation,
            multipass,
            Talk(self.said.append, choose),
            sleep=lambda seconds: None,
            clock=lambda: float(next(now)),
        )

    def words(self, command: str) -> list[list[str]]:
        return [call[1:] for call in self.standin.calls() if call[0] == command]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Desk]:
    def make(
        networks: list[dict[str, Any]] = BRIDGED_LINUX_NETWORKS, system: System = "linux", machine: str = "x86_64"
    ) -> Desk:
        made = Desk(tmp_path, networks, system, machine)
        monkeypatch.setenv("HOME", str(made.home))
        return made

    return make


# -------------------------------------------------------------------- the runs


def test_the_first_run_makes_a_machine_that_serves(desk) -> None:
    rack = desk()
    report = rack.lifecycle().up()
    assert report.changed == ("created", "code", "site", "environment", "units", "images")
    assert (report.name, report.network, report.address) == ("netbootd", "br0", ADDRESS)
    (launch,) = rack.words("launch")
    assert launch[:10] == ["26.04", "--name", "netbootd", "--cpus", "4", "--memory", "4G", "--disk", "20G", "--network"]
    assert f"name=br0,mode=manual,mac={report.mac}" in launch
    journal = rack.standin.journal("netbootd")
    assert not [line for line in journal if line.startswith("netplan")]  # cloud-init has done it
    assert "systemctl restart netbootd.service" in journal
    (prepared,) = [line for line in journal if "prepare" in line]
    assert f"for {report.mac} of" in prepared
    guest = rack.standin.guest("netbootd")
    assert (guest / "srv/netbootd/home/.ssh/id_ed25519.pub").read_text() == KEY
    assert (guest / "srv/netbootd/site/cloud-init/base/user-data").exists()
    assert (guest / "srv/netbootd/site").stat().st_mode & 0o077 == 0
    assert (guest / "srv/netbootd/code/netbootd/vm/lifecycle.py").read_bytes() == Path(
        "netbootd/vm/lifecycle.py"
    ).read_bytes()
    assert f"NETBOOTD_INTERFACE={report.mac}" in (guest / "etc/default/netbootd").read_text()
    assert any(ADDRESS in line for line in report.next)
    assert list(rack.home.glob("netbootd-*")) == []


def test_the_second_run_changes_nothing(desk) -> None:
    rack = desk()
    first = rack.lifecycle().up()
    before = len(rack.standin.journal("netbootd"))
    second = rack.lifecycle().up()
    assert second.changed == ()
    assert second.mac == first.mac
    assert len(rack.words("launch")) == 1
    assert len(rack.words("transfer")) == 1
    again = rack.standin.journal("netbootd")[before:]
    assert not [line for line in again if line.startswith(("pip", "netplan")) or "restart" in line or "reload" in line]


def test_a_changed_configuration_is_a_reload_and_nothing_else(desk) -> None:
    rack = desk()
    rack.lifecycle().up()
    before = len(rack.standin.journal("netbootd"))
    (rack.clone / "cloud-init/base/user-data").write_text("#cloud-config\nhostname: other\n")
    assert rack.lifecycle().up().changed == ("site",)
    again = rack.standin.journal("netbootd")[before:]
    assert "systemctl reload-or-restart netbootd.service" in again
    assert not [line for line in again if line.startswith(("pip", "netplan"))]


def test_a_fixed_address_reaches_a_machine_that_is_there_already(desk) -> None:
    rack = desk()
    rack.lifecycle().up()
    rack.configure('address = "192.168.1.66/24"\ngateway = "192.168.1.1"')
    assert rack.lifecycle().up().changed == ("site", "network")
    written = rack.standin.guest("netbootd") / "etc/netplan/60-netbootd.yaml"
    assert yaml.safe_load(written.read_text())["network"]["ethernets"]["netbootd"]["addresses"] == ["192.168.1.66/24"]


def test_what_stopped_half_way_goes_on(desk) -> None:
    rack = desk()
    rack.standin.change(faults={"launch": "initialization"})
    with pytest.raises(HostError, match="did not finish its first boot in time") as caught:
        rack.lifecycle().up()
    assert "again" in caught.value.hint
    rack.standin.change(faults={})
    assert "code" in rack.lifecycle().up().changed
    assert len(rack.words("launch")) == 1


def test_a_stopped_machine_is_started(desk) -> None:
    rack = desk()
    rack.lifecycle().up()
    assert rack.lifecycle().down() is True
    assert rack.lifecycle().down() is False
    assert rack.lifecycle().status()["state"] == "Stopped"
    assert rack.lifecycle().up().changed == ("started",)


def test_a_rebuild_deletes_first(desk) -> None:
    rack = desk()
    first = rack.lifecycle().up()
    report = rack.lifecycle().up(rebuild=True)
    assert report.changed[0] == "created"
    assert report.mac == first.mac  # the router's lease stays good
    assert rack.words("delete") == [["--purge", "netbootd"]]


def test_a_dry_run_only_looks(desk) -> None:
    rack = desk()
    report = rack.lifecycle().up(dry_run=True)
    assert report.dry_run
    assert any("launch Ubuntu 26.04" in step for step in report.steps)
    assert report.cloud_init.startswith("#cloud-config\n")
    rack.lifecycle().up()
    calls = len(rack.standin.calls())
    rack.lifecycle().up(dry_run=True, rebuild=True)
    asked = {call[0] for call in rack.standin.calls()[calls:]}
    assert asked <= {"version", "list", "networks", "get"}


def test_status_brings_the_machines_own_doctor_and_nodes(desk) -> None:
    rack = desk()
    assert rack.lifecycle().status()["state"] == "absent"
    rack.lifecycle().up()
    told = rack.lifecycle().status()
    assert told["state"] == "Running"
    assert told["address"] == ADDRESS
    assert told["units"]["netbootd.service"] == "active"
    assert told["doctor"] == [{"level": "ok", "message": "all well", "remedy": ""}]
    assert told["nodes"][0]["stage"] == "ready"


def test_logs_shell_and_delete(desk, capfd: pytest.CaptureFixture[str]) -> None:
    rack = desk()
    for call in (rack.lifecycle().shell, rack.lifecycle().delete, lambda: rack.lifecycle().logs(5, False)):
        with pytest.raises(NotFoundError, match="no virtual machine netbootd"):
            call()
    rack.lifecycle().up()
    assert rack.lifecycle().logs(5, True) == 0
    assert "--lines=5 --unit=netbootd* --follow" in capfd.readouterr().out
    assert rack.lifecycle().shell() == 0
    rack.lifecycle().delete()
    assert rack.standin.read()["instances"] == {}


# -------------------------------------------------------------------- which network


def test_the_only_network_that_reaches_nodes_is_taken_on_windows(desk) -> None:
    report = desk(WINDOWS_NETWORKS, "windows", "AMD64").lifecycle().up(dry_run=True)
    assert report.network == "Intel(R) Ethernet Switch"


def test_several_networks_are_a_question_or_a_sentence(desk) -> None:
    rack = desk(MACOS_NETWORKS, "macos", "arm64")
    with pytest.raises(HostError, match="several") as caught:
        rack.lifecycle().up()
    assert '[vm] network = "en0"' in caught.value.hint
    assert rack.words("launch") == []
    offered: list[str] = []

    def choose(networks: Sequence[HostNetwork]) -> str:
        offered.extend(network.name for network in networks)
        return "en7"

    assert rack.lifecycle(choose).up(dry_run=True).network == "en7"
    assert offered == ["en0", "en7"]


def test_a_configured_network_has_to_be_there(desk) -> None:
    rack = desk(MACOS_NETWORKS, "macos", "arm64")
    rack.configure('network = "en0"')
    assert rack.lifecycle().up(dry_run=True).network == "en0"
    assert any("wireless" in text for text in rack.said)
    rack.configure('network = "en9"')
    with pytest.raises(HostError, match="no network en9") as caught:
        rack.lifecycle().up()
    assert any("en7" in line for line in caught.value.details)


@pytest.mark.parametrize(("system", "remedy"), [("windows", "External"), ("linux", "NetworkManager")])
def test_no_network_at_all_says_how_to_get_one(system: System, remedy: str, desk) -> None:
    networks = [row for row in WINDOWS_NETWORKS if "external" not in row["description"]]
    with pytest.raises(HostError, match="can bridge none") as caught:
        desk(networks, system).lifecycle().up()
    assert remedy in caught.value.hint


def test_a_card_that_needs_a_bridge_needs_a_terminal(desk) -> None:
    with pytest.raises(HostError, match="only on a terminal") as caught:
        desk(LINUX_NETWORKS).lifecycle().up()
    assert "in a terminal" in caught.value.hint


# -------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("command", "fault", "kind", "says", "remedy"),
    [
        ("networks", "networks", HostError, "can't bridge", "local.driver=qemu"),
        ("list", "unauthenticated", DeniedError, "does not know you", "multipass authenticate"),
        ("list", "denied", DeniedError, "may not speak", "group of its socket"),
        ("launch", "ssh", HostError, "did not answer in time", "VPN"),
        ("launch", "client-timer", HostError, "did not answer in time", "VPN"),
        ("launch", "kvm", HostError, "virtualisation", "snap connect multipass:kvm"),
        ("launch", "kvm-busy", HostError, "another virtual machine manager", "VirtualBox"),
        ("launch", "bridge", HostError, "could not make a bridge", "NetworkManager"),
        ("launch", "hyperv", HostError, "Hyper-V", "Enable-WindowsOptionalFeature"),
        ("launch", "applevz", HostError, "driver", "local.driver=qemu"),
        ("launch", "images", NetworkError, "could not fetch Ubuntu", "cloud-images.ubuntu.com"),
        ("launch", "hash", NetbootdError, "not what Ubuntu published", "--force-update"),
    ],
)
def test_each_known_failure_has_its_remedy(
    command: str, fault: str, kind: type[NetbootdError], says: str, remedy: str, desk
) -> None:
    rack = desk()
    rack.standin.change(faults={command: fault})
    with pytest.raises(kind, match=says) as caught:
        rack.lifecycle().up()
    assert remedy in caught.value.hint
    assert caught.value.details  # Multipass's own words
    assert rack.standin.read()["instances"] == {}


@pytest.mark.parametrize(
    ("system", "remedy"), [("linux", "snap restart"), ("macos", "launchctl"), ("windows", "Restart-Service")]
)
def test_a_daemon_that_does_not_run_is_told_from_the_start(system: System, remedy: str, desk) -> None:
    rack = desk(system=system)
    rack.standin.change(daemon=False)
    for call in (rack.lifecycle().up, rack.lifecycle().status, rack.lifecycle().down):
        with pytest.raises(HostError, match="daemon is not running") as caught:
            call()
        assert remedy in caught.value.hint


def test_a_name_that_is_another_machines(desk) -> None:
    rack = desk()
    run([rack.standin.program, "launch", "24.04", "--name", "netbootd"])
    for call in (rack.lifecycle().up, rack.lifecycle().status):
        with pytest.raises(HostError, match="netbootd did not make") as caught:
            call()
        assert "[vm] name" in caught.value.hint


@pytest.mark.parametrize(("state", "hint"), [("Deleted", "multipass recover"), ("Unknown", "stop --force")])
def test_states_that_need_a_hand(state: str, hint: str, desk) -> None:
    rack = desk()
    rack.lifecycle().up()
    instances = rack.standin.read()["instances"]
    instances["netbootd"]["state"] = state
    rack.standin.change(instances=instances)
    with pytest.raises(HostError) as caught:
        rack.lifecycle().up()
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("vm", "says"),
    [
        ('release = "9.10"', "no such Ubuntu"),
        ('memory = "100M"', "does not take a value"),
        ('disk = "10M"', "does not take a value"),
    ],
)
def test_values_that_multipass_refuses(vm: str, says: str, desk) -> None:
    rack = desk()
    rack.configure(vm)
    with pytest.raises(NetbootdError, match=says):
        rack.lifecycle().up()


def test_apple_silicon_with_a_driver_that_can_not(desk) -> None:
    rack = desk(MACOS_NETWORKS, "macos", "arm64")
    rack.standin.change(settings={"local.driver": "virtualbox"})
    with pytest.raises(HostError, match="Apple silicon") as caught:
        rack.lifecycle().up()
    assert "local.driver=qemu" in caught.value.hint


def test_a_first_boot_that_failed_is_told(desk) -> None:
    rack = desk()
    rack.standin.change(guest={"cloud_init": 1})
    with pytest.raises(HostError, match="first boot") as caught:
        rack.lifecycle().up()
    assert "detail: (packages) failed" in caught.value.details
    rack.standin.change(guest={"cloud_init": 2})  # done, with recoverable errors
    rack.lifecycle().up()


def test_a_card_without_an_address_is_told(desk) -> None:
    rack = desk()
    rack.standin.change(guest={"no_address": True})
    with pytest.raises(HostError, match="got no address by DHCP") as caught:
        rack.lifecycle().up()
    assert "[vm] address" in caught.value.hint


def test_what_fails_within_keeps_its_exit_status(desk) -> None:
    rack = desk()
    rack.standin.change(guest={"prepare": 5})
    with pytest.raises(NetworkError, match="Preparing the images") as caught:
        rack.lifecycle().up()
    assert caught.value.details == ("noble: no route to cdimage.ubuntu.com",)


def test_a_service_that_does_not_come_up_is_told_with_its_log(desk) -> None:
    rack = desk()
    rack.standin.change(guest={"unit": "failed"})
    with pytest.raises(HostError, match="does not serve") as caught:
        rack.lifecycle().up()
    assert "log of" in caught.value.details[0]


@pytest.mark.parametrize("system", ["linux", "macos", "windows"])
def test_every_known_failure_has_a_remedy_on_every_system(system: System) -> None:
    for known in KNOWN:
        assert known.remedy.get(system) or known.remedy.get(""), known.pattern
    unknown = recognised("Launching", 2, "launch failed: something new\n", system)
    assert unknown.details == ("launch failed: something new",)
    assert unknown.hint


def test_a_program_that_is_not_one(tmp_path: Path) -> None:
    broken = tmp_path / "multipass"
    broken.write_text("#!/bin/sh\necho not JSON\n")
    broken.chmod(0o755)
    with pytest.raises(HostError, match="not JSON"):
        Multipass(str(broken), "linux").versions()
    with pytest.raises(HostError, match="Running"):
        Multipass(str(tmp_path / "none"), "linux").versions()


# -------------------------------------------------------------------- cloud-init and what is sent


def test_the_cloud_init_is_what_the_configuration_says(desk) -> None:
    rack = desk()
    rack.configure('address = "192.168.1.66/24"\ngateway = "192.168.1.1"\nnameservers = ["192.168.1.1"]')
    mac = MacAddress.parse("52:54:00:aa:bb:cc")
    text = render(load(rack.config), mac, "Europe/Berlin")
    assert text.isascii()
    document = yaml.safe_load(text)
    assert document["timezone"] == "Europe/Berlin"
    assert document["ssh_authorized_keys"] == [KEY.strip()]
    assert "python3-venv" in document["packages"]
    assert "users" not in document  # Multipass's own user stays (src/daemon/daemon.cpp, prepare_user_data)
    card = yaml.safe_load(document["write_files"][1]["content"])["network"]["ethernets"]["netbootd"]
    assert card == {
        "match": {"macaddress": str(mac)},
        "dhcp4": False,
        "optional": True,
        "addresses": ["192.168.1.66/24"],
        "routes": [{"to": "default", "via": "192.168.1.1", "metric": 200}],
        "nameservers": {"addresses": ["192.168.1.1"]},
    }
    (rack.home / "user-data").write_text(text)
    said = run([program() / "cloud-init", "schema", "--config-file", rack.home / "user-data"], check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_without_an_address_the_card_asks_dhcp(desk) -> None:
    mac = MacAddress.parse("52:54:00:aa:bb:cc")
    card = yaml.safe_load(netplan(load(desk().config), mac))["network"]["ethernets"]["netbootd"]
    assert card["dhcp4"] is True
    assert card["dhcp4-overrides"] == {"route-metric": 200}


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as tar:
        return {member.name: member for member in tar.getmembers()}


def test_what_is_sent_is_the_same_for_the_same_contents(desk) -> None:
    rack = desk()
    config = load(rack.config)
    one, two = (collect(config, rack.home, "1", "x") for _ in range(2))
    assert one == two
    (rack.clone / "cloud-init/base/.user-data.swp").write_text("an editor's")
    assert collect(config, rack.home, "1", "x").site == one.site
    sent = members(one.data)
    assert sent["provision.sh"].mode == 0o755
    assert sent["site/netbootd.toml"].mode == 0o644
    assert {member.mtime for member in sent.values()} == {0}
    assert not [name for name in sent if "__pycache__" in name or name.endswith(".pyc")]


def test_secrets_that_documents_name_are_sent(desk) -> None:
    rack = desk()
    (rack.clone / "secrets").mkdir()
    (rack.clone / "secrets/token").write_text("t0ken")
    (rack.clone / "cloud-init/base/user-data").write_text("#cloud-config\nbootcmd: ['echo ${file:secrets/token}']\n")
    assert "site/secrets/token" in members(collect(load(rack.config), rack.home, "1", "").data)


def test_what_the_machine_can_not_have_is_told_at_once(desk, tmp_path: Path) -> None:
    rack = desk()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    rack.configure("", f'boot_files = ["{elsewhere}", "../../elsewhere"]')
    with pytest.raises(ConfigError) as caught:
        collect(load(rack.config), rack.home, "1", "")
    assert len(caught.value.details) >= 2
    assert "relative to netbootd.toml" in caught.value.hint


@pytest.mark.parametrize("path", ["C:\\\\keys\\\\rack.pub", "D:/keys/rack.pub", "/etc/rack.pub"])
def test_paths_of_the_workstation_alone_are_refused(path: str, desk, monkeypatch: pytest.MonkeyPatch) -> None:
    rack = desk()
    rack.config.write_text(f'[defaults]\nssh_authorized_keys = ["{path}"]\n')
    config = load(desk_config(rack, path))
    with pytest.raises(ConfigError) as caught:
        collect(config, rack.home, "1", "")
    assert any("a path of this computer only" in line for line in caught.value.details)


def desk_config(rack: Desk, path: str) -> Path:
    """The configuration with a file behind the path, as that system would have it."""
    plain = path.replace("\\\\", "\\")
    if not plain.startswith("/"):
        target = rack.clone / plain
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(KEY)
    else:
        rack.config.write_text(f'[defaults]\nboot_files = ["{plain.rpartition("/")[0]}"]\n')
    return rack.config


# -------------------------------------------------------------------- the workstation


def test_the_mac_is_stable_and_one_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert derived_mac("netbootd", "a") == derived_mac("netbootd", "a")
    assert len({str(derived_mac(name, desk)) for name in ("x", "y") for desk in ("a", "b")}) == 4
    assert str(derived_mac("netbootd", "a")).startswith("52:54:00:")


@pytest.mark.parametrize(
    ("system", "where", "advice"),
    [
        ("windows", "C:\\Program Files\\Multipass\\bin\\multipass.exe", "winget install Canonical.Multipass"),
        ("macos", "/usr/local/bin/multipass", "brew install --cask multipass"),
        ("linux", "/snap/bin/multipass", "snap install multipass"),
    ],
)
def test_multipass_is_found_where_its_installer_puts_it(
    system: System, where: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv(workstations.ENVIRONMENT, raising=False)
    there: set[str] = set()
    monkeypatch.setattr(Path, "exists", lambda self: str(self) in there)
    machine = Workstation(system, "x", Path("/home"), terminal=False)
    with pytest.raises(HostError, match="not installed") as caught:
        machine.multipass()
    assert advice in caught.value.hint
    there.add(where)
    assert machine.multipass() == where


@pytest.mark.parametrize(
    ("link", "zone"),
    [
        ("/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        ("/var/db/timezone/zoneinfo/America/New_York", "America/New_York"),  # macOS
        ("../usr/share/zoneinfo/Etc/UTC", "Etc/UTC"),
    ],
)
def test_the_time_zone_is_read_where_a_system_keeps_it(link: str, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(Path, "readlink", lambda self: PurePath(link))
    assert workstations.time_zone() == zone


def test_a_system_without_that_link_leaves_the_time_zone_to_multipass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TZ", raising=False)

    def none(self: Path) -> Path:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "readlink", none)
    assert workstations.time_zone() == ""


def test_the_bridged_card_is_known_by_its_mac() -> None:
    links = [
        {"ifname": "lo", "address": "00:00:00:00:00:00", "addr_info": []},
        {"ifname": "enp5s0", "address": "52:54:00:00:00:01"},
        {
            "ifname": "enp6s0",
            "address": "52:54:00:AA:BB:CC",
            "addr_info": [
                {"family": "inet6", "local": "fe80::1", "scope": "link"},
                {"family": "inet", "local": "192.168.1.66", "scope": "global"},
            ],
        },
    ]
    mac = MacAddress.parse("52:54:00:aa:bb:cc")
    assert address_of(json.dumps(links), mac) == ("enp6s0", "192.168.1.66")
    assert address_of(json.dumps(links[:2]), mac) == ("", "")
    assert address_of("nonsense", mac) == ("", "")


# -------------------------------------------------------------------- the command line


def netbootd(rack: Desk, *words: str, check: bool = True) -> Any:
    environment = {"NETBOOTD_MULTIPASS": str(rack.standin.program), "HOME": str(rack.home), "NETBOOTD_CONFIG": ""}
    argv = [sys.executable, "-m", "netbootd", "-c", str(rack.config), "vm", *words]
    return run(argv, env=environment, check=check)


def test_up_and_status_print_json(desk) -> None:
    rack = desk()
    done = netbootd(rack, "up", "--json")
    report = json.loads(done.stdout)
    assert report["address"] == ADDRESS
    assert report["images"] == [{"name": "noble", "generation": "1", "path": "/x", "changed": True}]
    assert "noble: Downloading" in done.stderr  # the machine's own progress
    assert json.loads(netbootd(rack, "status", "--json").stdout)["address"] == ADDRESS
    said = netbootd(rack, "status").stdout
    assert "Running" in said and "valar-0" in said


def test_an_expected_failure_is_a_paragraph_and_a_status(desk) -> None:
    rack = desk()
    rack.standin.change(daemon=False)
    done = netbootd(rack, "up", check=False)
    assert done.returncode == 4
    assert "daemon is not running" in done.stderr
    assert "Traceback" not in done.stderr
    assert netbootd(rack, "shell", check=False).returncode == 4
