"""The systemd units: what systemd itself says of them, and how they get to a host and away from it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from netbootd.errors import ConfigError, HostError, UsageError
from netbootd.host.units import EMBEDDED_NFS, PORTMAP, Ports, Units, enabled, program_path
from tests.support.processes import REPOSITORY, run

SYSTEMD = REPOSITORY / "systemd"
PORTS = Ports(69, 80, 2049, 111)
EXPOSURE = 2.0


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    Units(tmp_path).install(PORTS, "auto", {"NETBOOTD_CONFIG": "/srv/rack/netbootd.toml"})
    return tmp_path / "systemd/system"


def option(path: Path, name: str) -> list[str]:
    return [value for line in path.read_text().splitlines() for key, _, value in [line.partition("=")] if key == name]


def test_systemd_finds_no_fault(installed: Path, tmp_path: Path) -> None:
    for path in installed.glob("*.service"):  # another program than the one that a host will have
        path.write_text(path.read_text().replace(program_path(), "/bin/true"))
    names = [str(path) for path in installed.iterdir() if "@" not in path.name]
    for template in installed.glob("*@.*"):
        copy = installed / template.name.replace("@", "@noble")
        shutil.copy(template, copy)
        names.append(str(copy))
    said = run(
        ["systemd-analyze", "verify", "--man=no", *names], env={"SYSTEMD_UNIT_PATH": f"{installed}:"}, check=False
    )
    ours = [line for line in said.stderr.splitlines() if "netbootd" in line]
    assert (said.returncode, ours) == (0, [])


def test_the_service_is_exposed_little(installed: Path) -> None:
    said = run(["systemd-analyze", "security", "--offline=yes", "--no-pager", installed / "netbootd.service"]).stdout
    match = re.search(r"Overall exposure level for netbootd\.service: ([0-9.]+)", said)
    assert match, said
    print(match[0])
    assert float(match[1]) <= EXPOSURE


def test_systemd_makes_the_user(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    run(["systemd-sysusers", f"--root={root}", SYSTEMD / "netbootd.sysusers.conf"])
    assert re.search(r"^netbootd:.*:/var/lib/netbootd:.*nologin$", (root / "etc/passwd").read_text(), re.M)


def test_each_port_has_a_socket_of_its_own_name() -> None:
    listening = {}
    for path in SYSTEMD.glob("*.socket"):
        name = path.name.removeprefix("netbootd-").removesuffix(".socket")
        assert option(path, "FileDescriptorName") == [name]
        assert option(path, "Service") == ["netbootd.service"]
        listening[name] = option(path, "ListenStream") + option(path, "ListenDatagram")
    assert listening == {"tftp": ["69"], "http": ["80"], "nfs": ["2049"], "portmap": ["111", "111"]}
    service = SYSTEMD / "netbootd.service"
    wanted = {f"netbootd-{name}.socket" for name in listening if name != "nfs"}
    for unit in ("netbootd-nfs.socket", "netbootd-nfs.service"):  # the one of them that is enabled
        assert "netbootd.service" in option(SYSTEMD / unit, "WantedBy")[0].split()
        assert unit in option(service, "After")[0].split()
    assert set(option(service, "Sockets")[0].split()) == wanted
    assert set(option(service, "Wants")[0].split()) == wanted
    assert not option(service, "Requires")  # one taken port would stop everything
    assert wanted < set(option(service, "After")[0].split())


def test_what_another_try_can_not_mend_is_not_tried_again() -> None:
    prevented = {int(word) for word in option(SYSTEMD / "netbootd.service", "RestartPreventExitStatus")[0].split()}
    assert prevented == {UsageError.exit_status, ConfigError.exit_status, HostError.exit_status}
    assert option(SYSTEMD / "netbootd.service", "Type") == ["notify"]
    assert not option(SYSTEMD / "netbootd.service", "StateDirectory")  # systemd would chown the root trees in it


def test_they_name_the_program_that_runs(installed: Path, tmp_path: Path) -> None:
    assert option(installed / "netbootd.service", "ExecStart") == [f"{program_path()} serve"]
    assert option(installed / "netbootd-prepare@.service", "ExecStart") == [f"{program_path()} prepare %i"]
    assert "NETBOOTD_CONFIG=/srv/rack/netbootd.toml\n" in (tmp_path / "default/netbootd").read_text()


def test_everything_of_the_folder_is_installed_once(tmp_path: Path) -> None:
    units = Units(tmp_path)
    first = units.install(PORTS, "auto", {"A": "b"})
    assert all(file.changed for file in first)
    assert len(first) == len([path for path in SYSTEMD.iterdir() if path.name.endswith((".socket", ".service"))]) + 4
    again = units.install(PORTS, "auto", {"A": "c"})
    assert not [file for file in again if file.changed]
    assert (tmp_path / "default/netbootd").read_text().endswith("A=b\n")  # the operator's from then on


def test_ports_of_the_configuration_are_listened_at(tmp_path: Path) -> None:
    Units(tmp_path).install(PORTS, "auto", {})
    changed = Units(tmp_path).install(Ports(6969, 8080, 12049, 1111), "auto", {})
    assert {file.path.name for file in changed if file.changed} == {path.name for path in SYSTEMD.glob("*.socket")}
    there = tmp_path / "systemd/system"
    assert option(there / "netbootd-tftp.socket", "ListenDatagram") == ["6969"]
    assert option(there / "netbootd-portmap.socket", "ListenStream") == ["1111"]
    assert option(there / "netbootd-portmap.socket", "ListenDatagram") == ["1111"]


def test_a_unit_of_an_older_version_goes(tmp_path: Path) -> None:
    units = Units(tmp_path)
    units.install(PORTS, "auto", {})
    old = tmp_path / "systemd/system/netbootd-dhcp.socket"
    old.write_text("[Socket]\n")
    own = tmp_path / "systemd/system/netbootd.service.d/own.conf"
    own.parent.mkdir()
    own.write_text("[Service]\n")
    units.install(PORTS, "auto", {})
    assert not old.exists()
    assert own.exists()


def test_removing_leaves_what_is_the_operators(tmp_path: Path) -> None:
    units = Units(tmp_path)
    units.install(PORTS, "auto", {"A": "b"})
    assert all(file.changed for file in units.remove())
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["default/netbootd"]
    assert units.remove() == []


def test_what_is_enabled_follows_the_backend() -> None:
    names = ["netbootd.service", "netbootd-nfs.service", *EMBEDDED_NFS, PORTMAP]
    names += ["netbootd-prepare@.timer", "netbootd-x.timer"]
    on, off = enabled(names, "auto", portmapper=True)
    assert on == ["netbootd.service", *EMBEDDED_NFS, PORTMAP]
    assert off == ["netbootd-nfs.service"]
    on, off = enabled(names, "kernel", portmapper=True)
    assert on == ["netbootd.service", "netbootd-nfs.service", PORTMAP]
    assert off == list(EMBEDDED_NFS)
    assert enabled(names, "off", portmapper=True)[0] == ["netbootd.service"]
    assert "netbootd-portmap.socket" not in enabled(names, "embedded", portmapper=False)[0]


def test_a_host_without_systemd_is_told_so() -> None:
    if Path("/run/systemd/system").is_dir():  # where it runs, a folder must be named, or this test would install
        return
    with pytest.raises(HostError, match="systemd does not run this host"):
        Units().install(PORTS, "auto", {})
