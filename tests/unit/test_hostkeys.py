"""SSH host keys of nodes, judged by ssh-keygen."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from netbootd.errors import HostError
from netbootd.store import hostkeys
from netbootd.store.hostkeys import HostKeys
from netbootd.store.layout import Layout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the keys lie, and those of one node."""
    folder = Layout(tmp_path_factory.mktemp("state")).host_keys
    return folder, HostKeys(folder).of("1a2b3c4d")


def test_the_public_keys_are_those_of_the_private_ones(made):
    folder, keys = made
    assert set(keys) == {"rsa", "ecdsa", "ed25519"}
    for kind, (private, public) in keys.items():
        path = folder / "1a2b3c4d" / f"ssh_host_{kind}_key"
        assert (path.read_text(), path.with_name(f"{path.name}.pub").read_text()) == (private, public)
        done = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True, timeout=30)
        assert done.stdout.split()[:2] == public.split()
        assert public.endswith("\n")


def test_only_the_service_reads_them(made):
    folder, _ = made
    assert folder.parent.name == "db"
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_they_stay_and_each_node_has_its_own(made):
    folder, keys = made
    assert HostKeys(folder).of("1a2b3c4d") == keys
    other = HostKeys(folder).of("dc-a6-32-01-36-c2")
    assert not {text for pair in other.values() for text in pair} & {text for pair in keys.values() for text in pair}


def test_who_asks_at_the_same_time_gets_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(hostkeys, "_MAKERS", {"ed25519": hostkeys._MAKERS["ed25519"]})
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: HostKeys(tmp_path / "keys").of("1a2b3c4d"), range(16)))
    assert all(answer == answers[0] for answer in answers)
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["1a2b3c4d"]


@pytest.mark.parametrize("ident", ["", "..", "../1a2b3c4d", "1A2B3C4D", "1a2b3c4d/", "192.0.2.9", "x" * 8])
def test_only_identities_name_folders(tmp_path, ident):
    with pytest.raises(ValueError, match="serial"):
        HostKeys(tmp_path).of(ident)


def test_what_is_damaged_is_said_and_not_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(hostkeys, "_MAKERS", {"ed25519": hostkeys._MAKERS["ed25519"]})
    keys = HostKeys(tmp_path)
    keys.of("1a2b3c4d")
    (tmp_path / "1a2b3c4d" / "ssh_host_ed25519_key").unlink()
    with pytest.raises(HostError, match="ssh_host_ed25519_key is missing") as caught:
        keys.of("1a2b3c4d")
    assert "Delete the folder" in caught.value.hint


def test_a_folder_that_can_not_be_made_is_an_error(tmp_path):
    (tmp_path / "db").write_text("a file")
    with pytest.raises(HostError, match="can't be read or made"):
        HostKeys(tmp_path / "db" / "keys").of("1a2b3c4d")


def test_made_up_nodes_do_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(hostkeys, "_MAKERS", {"ed25519": hostkeys._MAKERS["ed25519"]})
    monkeypatch.setattr(hostkeys, "NODES_KEPT", 3)
    keys = HostKeys(tmp_path)
    for number in range(3):
        keys.of(f"0000000{number}")
    with pytest.raises(HostError, match="no more"):
        keys.of("00000009")
    assert keys.of("00000001")
