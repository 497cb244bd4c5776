"""``netbootd config secret``, and a cluster's documents that hand its secrets out."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from netbootd import assets
from netbootd.cli import main as program
from netbootd.cloudinit.minting import mint
from netbootd.cloudinit.seed import SeedBuilder
from netbootd.config.loader import load
from netbootd.errors import HostError
from netbootd.model.network import ServerAddress


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "token"
    assert mint(path)
    text = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", text)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not mint(path)
    assert path.read_text() == text
    assert os.listdir(path.parent) == ["token"]
    assert mint(tmp_path / "secrets" / "other")
    assert (tmp_path / "secrets" / "other").read_text() != text


def test_a_secret_that_can_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="Making the secret"):
        mint(tmp_path / "file" / "token")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(HostError) as told:
        mint(tmp_path)
    assert told.value.message == f"Making the secret {tmp_path}: there is something else of that name."


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match="No space left"):
        mint(tmp_path / "token")
    assert os.listdir(tmp_path) == []


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(list(words))
    assert ended.value.code == 0


def test_the_command_takes_paths_as_documents_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "netbootd.toml"
    config.write_text("[defaults]\n")
    run("-c", str(config), "config", "secret", "secrets/a", "secrets/b")
    assert capsys.readouterr().out.count(": made.") == 2
    run("-c", str(config), "config", "secret", "secrets/a", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told == {"secrets": [{"path": str(tmp_path / "secrets/a"), "changed": False}]}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The configuration of docs/how-to/k3s.md, and what lies beside it."""
    for name in ("secrets/k3s-token", "secrets/k3s-node-password"):
        mint(tmp_path / name)
    (tmp_path / "k3s-server").write_text("192.0.2.21\n")
    (tmp_path / "boot/k3s").mkdir(parents=True)
    (tmp_path / "cloud-init").symlink_to(assets.find("cloud-init"))
    text = (Path(assets.find("setup.cfg")).parent / "docs/how-to/k3s.md").read_text()
    (tmp_path / "netbootd.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    return tmp_path / "netbootd.toml"


def documents(config: Path, number: int) -> tuple[str, dict[str, str], list[object]]:
    """A node's user-data as served: the text, its files by path, its commands."""
    loaded = load(config)
    seed = SeedBuilder(loaded).build(loaded.nodes[number].node("noble"), ServerAddress("192.0.2.1"))
    text = seed.document("user-data").decode()
    data = yaml.safe_load(text)
    return text, {file["path"]: file["content"] for file in data["write_files"]}, data["runcmd"]


def test_a_cluster_gets_its_roles_and_one_token(cluster: Path) -> None:
    token = (cluster.parent / "secrets/k3s-token").read_text().strip()
    password = (cluster.parent / "secrets/k3s-node-password").read_text().strip()
    for number, (serial, role) in enumerate((("1a2b3c4d", "server"), ("5e6f7a8b", "agent"))):
        text, files, commands = documents(cluster, number)
        assert "${node:" not in text and "${file:" not in text
        assert files["/etc/rancher/k3s/role"] == f"ROLE={role}"
        assert files["/etc/rancher/node/password"].strip() == password
        told = yaml.safe_load(files["/etc/rancher/k3s/config.yaml"])
        assert told["token"] == token
        assert told.get("server") == ("https://192.0.2.21:6443" if role == "agent" else None)
        (fetch,) = [command for command in commands if str(command).startswith("curl")]
        assert str(fetch).endswith(f"/boot/{serial}/k3s")
        assert commands.index("systemctl start --no-block k3s.service") > commands.index(fetch)
