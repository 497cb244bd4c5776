"""SSH host keys go to the node that they belong to, and to nobody else; all the others boot without them."""

import re

import pytest
import yaml

from netbootd.cloudinit.seed import SeedBuilder
from netbootd.config.loader import load
from netbootd.model.network import ServerAddress
from netbootd.store.hostkeys import HostKeys
from tests.support import cloud_init
from tests.support.netbootd import Netbootd
from tests.support.netlab import SERVER
from tests.support.processes import run


def vendor_data(namespace, ident):
    url = f"http://{SERVER}/nocloud/{ident}/vendor-data"
    return yaml.safe_load(run(["curl", "-sf", "--max-time", "20", url], namespace=namespace).stdout)


def test_a_node_keeps_its_host_keys_and_nobody_else_gets_them(lab, tmp_path):
    node, other = lab.host("node", "192.0.2.30"), lab.host("other", "192.0.2.31")
    mac = run(["cat", "/sys/class/net/eth0/address"], namespace=node).stdout.strip()
    config = f'[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\nmac = "{mac}"\n'
    netbootd = Netbootd(lab, tmp_path / "state", config)
    netbootd.serve("--nfs", "off")
    first = vendor_data(node, "1a2b3c4d")["ssh_keys"]
    assert set(first) == {f"{kind}_{half}" for kind in ("rsa", "ecdsa", "ed25519") for half in ("private", "public")}
    thief = vendor_data(other, "1a2b3c4d")
    assert "ssh_keys" not in thief
    assert thief["phone_home"]["url"] == f"http://{SERVER}/phone-home/1a2b3c4d"
    assert "ssh_keys" not in vendor_data(node, "ffffffff")  # it is who it is, whatever it calls itself
    netbootd.program.stop()
    netbootd.serve("--nfs", "off")
    assert vendor_data(node, "1a2b3c4d")["ssh_keys"] == first
    assert [path.name for path in (tmp_path / "state" / "db" / "host-keys").iterdir()] == ["1a2b3c4d"]
    netbootd.program.stop()
    events = [event for event in netbootd.events() if event["path"] == "nocloud/vendor-data"]
    assert [event["outcome"] for event in events] == ["ok"] * 4
    assert [bool(event["detail"]) for event in events] == [False, True, True, False]
    assert "192.0.2.31 is not at valar-0's MAC address" in events[1]["detail"]
    assert first["ed25519_private"] not in netbootd.log()


_BOOT = """
import logging, sys, yaml
from unittest.mock import MagicMock
from cloudinit.config import cc_ssh
cc_ssh.handle("ssh", yaml.safe_load(sys.stdin), MagicMock(), logging.getLogger(), [])
"""
_NODE = (
    'mount -t tmpfs none /etc/ssh && touch /etc/ssh/ssh_host_dsa_key && "$@" && grep -r . /etc/ssh && ls -l /etc/ssh'
)


@pytest.mark.timeout(600)
def test_cloud_init_writes_them_where_sshd_reads_them(tmp_path):
    """Its ssh module on a root of its own, with keys that the image brought, from just our vendor-data."""
    (tmp_path / "netbootd.toml").write_text('[[node]]\nname = "valar-0"\nserial = "1a2b3c4d"\n')
    config = load(tmp_path / "netbootd.toml")
    keys = HostKeys(tmp_path / "keys").of("1a2b3c4d")
    seed = SeedBuilder(config).build(config.nodes[0].node("noble"), ServerAddress("192.0.2.1"), keys)
    command = ["unshare", "--mount", "sh", "-ec", _NODE, "sh", cloud_init.PYTHON, "-c", _BOOT]
    out = run(command, env=cloud_init.environment(), stdin=seed.document("vendor-data").decode()).stdout
    for kind, (private, public) in keys.items():
        path = f"/etc/ssh/ssh_host_{kind}_key"
        lines = {name: [] for name in (path, f"{path}.pub")}
        for line in out.splitlines():
            name, _, text = line.partition(":")
            lines.get(name, []).append(text)
        assert lines == {path: private.splitlines(), f"{path}.pub": public.splitlines()}
        assert re.search(rf"^-rw------- .* ssh_host_{kind}_key$", out, re.MULTILINE)
    assert "dsa_key" not in out.replace("ecdsa_key", "")
