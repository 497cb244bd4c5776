"""``netbootd doctor``: each finding with its remedy, on hosts as they are found."""

from __future__ import annotations

import json
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from netbootd.config.schema import Config, HttpConfig, ImageConfig, NfsConfig, ServerConfig, TftpConfig
from netbootd.errors import ConfigError
from netbootd.service import doctor
from netbootd.service.doctor import Finding, examine
from netbootd.store.layout import Layout
from tests.support.processes import run

FREE = Config(
    None,
    Path("/"),
    tftp=TftpConfig(port=0),
    http=HttpConfig(port=0),
    nfs=NfsConfig(port=0, portmap_port=None),
    server=ServerConfig(address="127.0.0.1"),
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_every_part_of_the_host_is_looked_at_and_every_fault_has_a_remedy(layout: Layout) -> None:
    findings = examine(lambda: FREE, layout)
    assert {finding.check for finding in findings} >= {
        "configuration",
        "privileges",
        "nfs",
        "addresses",
        "room",
        "clock",
    }
    assert all(finding.remedy for finding in findings if finding.level != "ok")
    assert all(finding.message.endswith(".") for finding in findings)
    assert not layout.state.exists()


def test_a_taken_port_names_its_holder_and_key(layout: Layout) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        config = replace(FREE, tftp=TftpConfig(port=taken.getsockname()[1]))
        (found,) = doctor.ports(config, layout)
    assert found.level == "error"
    assert "[tftp] port" in found.remedy
    (found,) = doctor.ports(config, layout)
    assert (found.level, found.remedy) == ("ok", "")


def test_a_port_that_takes_root(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    monkeypatch.setattr(doctor, "_bind_problem", lambda kind, port: errno.EACCES)
    (found,) = doctor.ports(replace(FREE, http=HttpConfig(port=80)), layout)
    assert found.level == "warning"
    assert "--install-units" in found.remedy


@pytest.mark.parametrize(("first", "level"), [("69", "ok"), ("80", "warning"), ("1024", "warning"), ("", "warning")])
def test_a_plain_user_and_the_first_port_that_needs_no_rights(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, first: str, level: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(doctor, "_capable", lambda number: False)
    monkeypatch.setattr(doctor, "_read", lambda path: first if path.endswith("ip_unprivileged_port_start") else "")
    found = next(doctor.privileges(FREE, layout))
    assert found.level == level and ("--unprivileged" in found.message) == (level == "warning")


def test_rpcbind_is_no_error(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    monkeypatch.setattr(doctor, "_bind_problem", lambda kind, port: errno.EADDRINUSE)
    monkeypatch.setattr(doctor, "_holder", lambda proto, port: "rpcbind")
    found = list(doctor.ports(replace(FREE, nfs=NfsConfig(port=0, portmap_port=111)), layout))
    assert [(finding.level, "rpcbind" in finding.message) for finding in found] == [("warning", True)]


def test_the_kernels_server_in_the_way(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_read", lambda path: "8" if path.endswith("threads") else "nodev nfsd")
    (found,) = doctor.nfs(replace(FREE, nfs=NfsConfig()), layout)
    assert found.level == "error"
    assert "nfs-server" in found.remedy
    (found,) = doctor.nfs(replace(FREE, nfs=NfsConfig(backend="kernel")), layout)
    assert found.level == "error"
    assert "netbootd-nfs.service" in found.message
    (found,) = doctor.nfs(replace(FREE, nfs=NfsConfig(backend="off")), layout)
    assert found.level == "warning"


@pytest.mark.parametrize(
    ("server", "says"),
    [(ServerConfig(address="192.0.2.77"), "no address of this host"), (ServerConfig(interface="none0"), "none0")],
)
def test_an_address_that_is_not_ours(server: ServerConfig, says: str, layout: Layout) -> None:
    (found,) = doctor.addresses(replace(FREE, server=server), layout)
    assert found.level == "error"
    assert says in found.message
    assert found.remedy


def test_an_interface_may_be_meant_by_its_mac() -> None:
    from netbootd.host.links import interface_name

    assert interface_name("lo") == "lo"
    assert interface_name("00:00:00:00:00:00") == "lo"
    assert interface_name("02:ff:ff:ff:ff:fe") == "02:ff:ff:ff:ff:fe"


def test_an_image_that_is_not_prepared(layout: Layout) -> None:
    config = replace(FREE, images=(ImageConfig(name="noble", release="noble"),))
    (found,) = doctor.images(config, layout)
    assert (found.level, found.remedy) == ("warning", "netbootd prepare noble")


def test_a_full_disk(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (found,) = doctor.room(layout)
    assert found.level == "warning"
    assert "prune" in found.remedy


def test_a_clock_of_another_decade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    (found,) = doctor.clock()
    assert found.level == "error"
    assert "timedatectl" in found.remedy


def test_a_faulty_configuration_is_a_finding_among_others(layout: Layout) -> None:
    def read() -> Config:
        raise ConfigError("It has a fault:", details=["[tftp] prot: unknown key"])

    findings = examine(read, layout)
    (found,) = of(findings, "configuration")
    assert found.level == "error"
    assert "prot" in found.message
    assert of(findings, "clock")


def test_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "netbootd.toml"
    config.write_text('[server]\naddress = "192.0.2.77"\n[tftp]\nport = 0\n[http]\nport = 0\n[nfs]\nbackend = "off"\n')
    argv = [sys.executable, "-m", "netbootd", "-c", config, "--state", tmp_path / "state", "doctor"]
    done = run([*argv, "--json"], check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (4, False)
    assert {"check", "level", "message", "remedy"} == set(told["findings"][0])
    assert "no address of this host" in run(argv, check=False).stdout
    assert run([*argv, "--install-units", "--remove-units"], check=False).returncode == 2
