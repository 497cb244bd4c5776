"""The files of /proc/fs/nfsd, played by a folder: what is written where, and what of a kernel's texts is read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from netbootd.errors import HostError
from netbootd.nfsd.kernel import control, procfs
from netbootd.nfsd.kernel.control import Listener, NetlinkControl, PoolMode, Setup, Version, open_control
from netbootd.nfsd.kernel.manager import client_address
from netbootd.nfsd.kernel.procfs import ProcControl, parse_ports, parse_versions, version_words

V3, V40, V41, V42 = Version(3), Version(4, 0), Version(4, 1), Version(4, 2)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """As Linux 6.12 shows a server that doesn't run."""
    files = {"threads": "0\n", "versions": "+3 +4 -4.0 +4.1 +4.2\n", "portlist": "", "nfsv4gracetime": "90\n"}
    for name, text in {**files, "pool_threads": "0\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pool_mode").write_text("global\n")
    return tmp_path


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every file written to, and what, in order; a socket's number stands for what it is bound to."""
    found: list[tuple[str, str]] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        text = data.decode().strip()
        if name == "portlist":
            assert os.readlink(f"/proc/self/fd/{text}").startswith("socket:")
        found.append((name, text))
        return real(fd, data)

    monkeypatch.setattr(procfs.os, "write", write)
    return found


def test_what_is_read(proc: Path) -> None:
    server = ProcControl(proc, proc / "pool_mode")
    assert server.threads() == 0
    assert server.versions() == {V3: True, V40: False, V41: True, V42: True}
    assert server.listeners() == [] and server.calls() == []
    assert server.pool_mode() == PoolMode("global", 1)
    (proc / "pool_mode").unlink()
    assert server.pool_mode() is None


def test_a_start_writes_in_the_order_that_the_kernel_wants(proc: Path, written: list[tuple[str, str]]) -> None:
    """The time of grace after a listener was EBUSY on Linux 6.12."""
    ProcControl(proc, proc / "pool_mode").start(Setup((Listener("tcp", "127.0.0.1", 0),), 8))
    assert [name for name, _ in written] == ["versions", "nfsv4gracetime", "portlist", "threads"]
    assert dict(written)["versions"] == "+3 +4 -4.0 -4.1 +4.2"
    assert (dict(written)["nfsv4gracetime"], dict(written)["threads"]) == ("10", "8")


def test_a_port_that_is_taken_leaves_nothing_running(proc: Path, written: list[tuple[str, str]]) -> None:
    taken = procfs._bound(Listener("tcp", "127.0.0.1", 0))
    with taken, pytest.raises(HostError, match="port") as caught:
        ProcControl(proc).start(Setup((Listener("tcp", "127.0.0.1", taken.getsockname()[1]),), 8))
    assert "--nfs-port" in caught.value.hint
    assert written[-1] == ("threads", "0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-2 +3 +4 +4.1 -4.2\n", {Version(2): False, V3: True, V40: True, V41: True, V42: False}),
        ("+3 +4 -4.0 +4.1 +4.2\n", {V3: True, V40: False, V41: True, V42: True}),
        ("", {}),
    ],
)
def test_versions_of_old_and_new_kernels(text: str, expected: dict[Version, bool]) -> None:
    assert parse_versions(text) == expected


def test_other_texts_are_refused() -> None:
    with pytest.raises(HostError, match="not understood"):
        parse_versions("+3 four")
    assert parse_ports("tcp 2049\nrdma 20049\nudp\ntcp 204¹\ntcp \x1f1\n\n") == [
        Listener("tcp", "", 2049),
        Listener("rdma", "", 20049),
    ]


def test_words_for_versions() -> None:
    assert version_words([V3, V40, V41, V42], [V3]) == "+3 -4 -4.0 -4.1 -4.2"
    assert version_words([Version(2), V3], [V3]) == "-2 +3"


def test_a_missing_file_system_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="threads") as caught:
        ProcControl(tmp_path / "nothing").threads()
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("netlink", [True, False])
def test_netlink_is_taken_where_the_kernel_has_its_commands(
    proc: Path, monkeypatch: pytest.MonkeyPatch, netlink: bool
) -> None:
    monkeypatch.setattr(control, "netlink_commands", lambda: netlink)
    assert isinstance(open_control(proc), NetlinkControl if netlink else ProcControl)


def test_a_kernel_without_the_family_has_no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: NetlinkControl) -> int:
        raise control.failure("Asking", errno.EOPNOTSUPP)  # 24.04's Linux 6.8: the family, with rpc-status alone

    monkeypatch.setattr(NetlinkControl, "threads", refuse)
    assert not control.netlink_commands()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ('"192.0.2.5:799"', "192.0.2.5"),
        ('"[2001:db8::5]:799"', "2001:db8::5"),
        ('"[fe80::1%eth0]:799"', "fe80::1"),
        ('"[::ffff:192.0.2.5]:799"', "192.0.2.5"),
    ],
)
def test_the_address_of_an_nfs4_client(address: str, expected: str) -> None:
    info = f'clientid: 0xe3314faa6b076a18\naddress: {address}\nstatus: confirmed\nname: "Linux NFSv4.2 x: y"\n'
    assert client_address(info) == expected
    assert client_address("clientid: 0x1\n") == ""
