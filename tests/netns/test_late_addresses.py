"""A server whose interface has no address yet, then one, then another: nodes are told what is so when they ask.

So it is in a virtual machine whose bridged card waits for DHCP, and after the router has given out another address.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.image_cache import tiny_image
from tests.support.netbootd import NETBOOTD
from tests.support.netlab import LENGTH, SERVER, Lab
from tests.support.processes import Program, run, wait_until

LATER = "192.0.2.7"
NODE = "1a2b3c4d"


def test_addresses_come_late_and_change(lab: Lab, tmp_path: Path) -> None:
    image = tiny_image()
    node = lab.host("node", "192.0.2.30")
    config, ready = tmp_path / "netbootd.toml", tmp_path / "ready.json"
    config.write_text('[server]\ninterface = "br0"\n')
    argv = [*NETBOOTD, "-c", config, "--state", tmp_path / "state"]
    prepare = [*argv, "prepare", "--source", image.path, "--name", "noble", "--advertise", SERVER]
    run([str(word) for word in prepare], namespace=lab.server, timeout=120)
    run(["ip", "-n", lab.server, "addr", "flush", "dev", "br0"])

    server = lab.start(lab.server, [*argv, "serve", "--ready-file", ready], "serve")
    wait_until(ready.exists, "ready file", timeout=60, alive=[server])
    assert "br0 has no IPv4 address" in server.output()

    for address, former in ((SERVER, ""), (LATER, SERVER)):
        if former:
            run(["ip", "-n", lab.server, "addr", "del", f"{former}/{LENGTH}", "dev", "br0"])
        run(["ip", "-n", lab.server, "addr", "add", f"{address}/{LENGTH}", "dev", "br0"])
        line = cmdline(node, address, server)
        assert f"nfsroot={address}:" in line and f"s=http://{address}/nocloud/{NODE}/" in line
        root = line.split("nfsroot=")[1].split(",")[0].partition(":")[2]
        listed = run(["nfs-ls", f"nfs://{address}{root}?version=3"], namespace=node, timeout=60).stdout
        assert re.search(r"\betc$", listed, re.MULTILINE)
        seed = run(["curl", "-sf", f"http://{address}/nocloud/{NODE}/vendor-data"], namespace=node, timeout=60).stdout
        assert f"http://{address}/phone-home/{NODE}" in seed
    assert server.poll() is None


def cmdline(node: str, address: str, server: Program) -> str:
    """The node's cmdline.txt by TFTP, as soon as it is answered: our subnets are read every few seconds."""

    def fetched() -> str:
        curl = ["curl", "-s", "--connect-timeout", "2", "--max-time", "4", f"tftp://{address}/{NODE}/cmdline.txt"]
        return run(curl, namespace=node, check=False, timeout=30).stdout

    return wait_until(fetched, f"cmdline.txt from {address}", timeout=60, alive=[server])
