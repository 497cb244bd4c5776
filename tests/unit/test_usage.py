"""What prune must leave: by records of nodes, and by who is connected to NFS."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from netbootd.cli import main as program
from netbootd.host.connections import peers_of
from netbootd.host.kernel import has_nfs_server
from netbootd.service import usage
from netbootd.service.usage import connected_clients, usage_of
from netbootd.store.database import NodeRecord

OLD, NEW = "0" * 16, "1" * 16


def record(address: str, generation: str, image: str = "noble") -> NodeRecord:
    return NodeRecord(address, address, "", "", address, image, generation, "root", "ok", 0.0, "")


def test_a_generation_is_used_until_its_node_is_seen_on_another() -> None:
    found = usage_of([record("192.0.2.5", OLD), record("192.0.2.6", NEW)], {"192.0.2.5"})
    assert found.strangers == ()
    assert found.in_use("noble", [OLD, NEW, "2" * 16]) == {OLD, NEW}
    assert found.in_use("jammy", [OLD]) == set()


def test_a_client_that_nobody_knows_may_use_any() -> None:
    for records in ([record("192.0.2.5", OLD)], [record("192.0.2.9", "")], []):
        found = usage_of(records, {"192.0.2.9"})
        assert found.strangers == ("192.0.2.9",)
        assert found.in_use("noble", [OLD, NEW]) == {OLD, NEW}


def test_the_kernel_tells_who_is_connected() -> None:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((address, 0), family=family) as listener:
            port = listener.getsockname()[1]
            assert peers_of(port) == set()
            with socket.create_connection((address, port)):
                assert peers_of(port) == {address}
                assert connected_clients(port) >= {address}


def test_ipv4_over_an_ipv6_socket_is_ipv4() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            assert peers_of(port) == {"127.0.0.1"}


@pytest.mark.parametrize("connected", [set(), {"192.0.2.9"}])
def test_prune_deletes_nothing_under_a_stranger(
    connected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(usage, "connected_clients", lambda port: connected)
    image = tmp_path / "state/images/noble"
    for number, ident in enumerate((OLD, NEW)):
        (image / ident / "root").mkdir(parents=True)
        (image / ident / "image.json").write_text(json.dumps({"created": str(number), "source": {"sha256": "00"}}))
    (image / "current").symlink_to(NEW)

    def prune(*words: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            program.main(["--state", str(tmp_path / "state"), "images", "prune", "--keep", "1", *words])
        assert ended.value.code == 0
        return capsys.readouterr()

    out, err = prune()
    assert (image / OLD).exists() == bool(connected)
    assert ("192.0.2.9" in err and "--force" in err) == bool(connected), out
    prune("--force")
    assert not (image / OLD).exists() and (image / NEW).exists()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/filesystems": "nodev\tsysfs\nnodev\tnfsd\n"}, True),
        (
            {"proc/filesystems": "nodev\tnfs\n", "lib/modules/6.8/modules.dep": "kernel/fs/nfsd/nfsd.ko.zst: x.ko\n"},
            True,
        ),
        ({"lib/modules/6.8/modules.builtin": "kernel/fs/nfsd/nfsd.ko\n"}, True),
        ({"lib/modules/6.1/modules.dep": "kernel/fs/nfsd/nfsd.ko:\n"}, False),
        ({"lib/modules/6.8/modules.dep": "kernel/fs/x.ko: kernel/fs/nfsd/nfsd.ko\n"}, False),
        ({}, False),
    ],
)
def test_whether_a_kernel_has_an_nfs_server(files: dict[str, str], expected: bool, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert has_nfs_server(tmp_path, "6.8") is expected
