"""Our documents before cloud-init itself: its schema, its Jinja."""

import os
import subprocess

import pytest

from netbootd import assets
from netbootd.cloudinit.check import check
from netbootd.cloudinit.merge import escape_jinja
from netbootd.cloudinit.seed import SeedBuilder
from netbootd.config.loader import load
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node
from netbootd.store.hostkeys import HostKeys
from tests.support import cloud_init
from tests.support.processes import run

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK6s4jHSegfy0SAoWUX6+IWE2cXAyExgB0Kq6RjV0jdS someone\n"


@pytest.fixture
def judge(monkeypatch):
    """cloud-init is found in PATH."""
    monkeypatch.setenv("PATH", f"{cloud_init.program()}{os.pathsep}{os.environ['PATH']}")
    assert run(["cloud-init", "--version"]).stdout


@pytest.fixture
def configured(tmp_path):
    """A configuration with a key and one node, which has the folder `node`, and what ships."""
    (tmp_path / "key.pub").write_text(KEY)
    (tmp_path / "node").mkdir()
    folders = [str(assets.find("cloud-init", "nodes", "valar-0")), "node"]
    (tmp_path / "netbootd.toml").write_text(
        '[defaults]\nssh_authorized_keys = ["key.pub"]\n'
        f'[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\ncloud_init = {folders}\n'.replace("'", '"')
    )
    return tmp_path


@pytest.mark.timeout(600)
def test_what_ships_is_what_cloud_init_expects(judge, configured):
    assert check(load(configured / "netbootd.toml")) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("overlays", [["netboot", "k3s", "k3s-server"], ["netboot", "k3s", "k3s-agent"], ["sdcard"]])
def test_every_overlay_that_ships_is_what_cloud_init_expects(judge, configured, overlays):
    for name in ("secrets/k3s-token", "secrets/k3s-node-password", "k3s-server"):
        (configured / name).parent.mkdir(exist_ok=True)
        (configured / name).write_text("what\n")
    folders = [str(assets.find("cloud-init", "overlays", name)) for name in overlays]
    text = (configured / "netbootd.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("cloud_init")]
    (configured / "netbootd.toml").write_text("\n".join([*lines, f"cloud_init = {folders}".replace("'", '"')]))
    assert check(load(configured / "netbootd.toml")) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("document", "text", "says"),
    [
        ("user-data", "growpart: {mode: sometimes}\n", "growpart"),
        ("vendor-data", "phone_home: !replace {post: all}\n", "url"),
    ],
)
def test_what_cloud_init_would_refuse_is_told_beforehand(judge, configured, document, text, says):
    (configured / "node" / document).write_text(f"#cloud-config\n{text}")
    (fault,) = check(load(configured / "netbootd.toml"))
    assert fault.startswith(f"valar-0: {document}: cloud-init schema: ")
    assert says in fault
    assert fault.isprintable()


@pytest.mark.timeout(600)
def test_nodes_of_the_same_folders_are_judged_together(judge, configured, monkeypatch):
    asked = []
    ask = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **more: asked.append(command) or ask(command, **more))
    nodes = [f'[[node]]\nname = "pi-{number}"\nserial = "{number:08x}"\ncloud_init = ["node"]\n' for number in range(5)]
    (configured / "netbootd.toml").write_text("\n".join(['[defaults]\nssh_authorized_keys = ["key.pub"]', *nodes]))
    (configured / "node" / "user-data").write_text("#cloud-config\ngrowpart: {mode: sometimes}\n")
    (fault,) = check(load(configured / "netbootd.toml"))
    assert fault.startswith("pi-0, pi-1 and 3 more: user-data: cloud-init schema: ")
    assert len(asked) == 4  # both documents, of these nodes and of an unknown one


@pytest.mark.timeout(600)
def test_host_keys_are_handed_out_as_cloud_init_expects(judge, configured):
    config = load(configured / "netbootd.toml")
    keys = HostKeys(configured / "keys").of("1a2b3c4d")
    seed = SeedBuilder(config).build(config.nodes[0].node("noble"), ServerAddress("192.0.2.1"), keys)
    path = configured / "vendor-data"
    for data, status in ((seed.document("vendor-data"), 0), (seed.document("vendor-data") + b"ssh_keys: 5\n", 1)):
        path.write_bytes(data)
        assert run(["cloud-init", "schema", "--config-file", path], check=False).returncode == status


@pytest.mark.timeout(600)
def test_what_is_not_a_template_comes_out_of_jinja_as_it_is():
    text = "{{ 7 * 7 }} {% raw %} {# no #} {{{ {{% }} ${x} {\n  '{{' \"{%\" }} %} #}\n"
    assert cloud_init.render("## template: jinja\n" + escape_jinja(text)).rstrip("\n") == text.rstrip("\n")


@pytest.mark.timeout(600)
def test_a_template_of_one_folder_leaves_the_others_values_alone(configured):
    (configured / "node" / "user-data").write_text(
        "## template: jinja\n#cloud-config\nwrite_files:\n- path: /a\n  content: '{{ 6 * 7 }} of ${node:name}'\n"
    )
    config = load(configured / "netbootd.toml")
    node = Node("{{ 1 }}", "noble", "x", cloud_init=(configured / "other", configured / "node"))
    (configured / "other").mkdir()
    (configured / "other" / "user-data").write_text("#cloud-config\nruncmd:\n- echo '{{ 1 }} {% if %}'\n")
    document = SeedBuilder(config).build(node, ServerAddress("192.0.2.1")).document("user-data").decode()
    rendered = cloud_init.render(document)
    assert "content: '42 of {{ 1 }}'" in rendered
    assert "- echo '{{ 1 }} {% if %}'" in rendered
