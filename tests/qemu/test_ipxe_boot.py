"""A PC boots what `prepare` made of an ISO: iPXE's own ROM asks for its script, and Debian's kernel reads the seed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support.collector import URL, Collector
from tests.support.live_iso import FILES, live_iso
from tests.support.netbootd import Netbootd
from tests.support.netlab import SERVER, Lab, Router
from tests.support.pc_client import kernel_and_initramfs, power_on
from tests.support.processes import read_text, run, wait_until

pytestmark = pytest.mark.timeout(600)

MAC = "52:54:00:c1:1e:01"
DASHED = MAC.replace(":", "-")
CONFIG = f"""
[[image]]
name = "pc"
source = "SOURCE"
arch = "amd64"
cmdline_append = "console=ttyS0 panic=-1 lab.report={URL}/report"

[[node]]
name = "varda-0"
mac = "{MAC}"
image = "pc"
"""


def test_a_pc_boots_from_an_iso_over_http(lab: Lab, tmp_path: Path) -> None:
    kernel, initramfs = kernel_and_initramfs()
    files = {**FILES, "casper/vmlinuz": kernel, "casper/initrd": initramfs}
    iso = live_iso(tmp_path / "lab-live-server-amd64.iso", files, maker="xorriso")
    Router(lab, tftp_server="", boot_file=f"http://{SERVER}/ipxe/boot.ipxe")
    collector = Collector(lab)
    netbootd = Netbootd(lab, tmp_path / "state", CONFIG.replace("SOURCE", str(iso)))
    netbootd.command("prepare", "--advertise", SERVER)
    netbootd.serve()

    namespace = lab.client("pc")
    machine, console = power_on(lab, namespace, MAC)
    wait_until(
        lambda: collector.reports(MAC) or machine.poll() is not None,
        "report of the PC",
        timeout=240,
        explain=lambda: read_text(console)[-4000:] + netbootd.log()[-2000:],
    )
    (report,) = collector.reports(MAC)
    machine.kill()

    base = f"http://{SERVER}"
    cmdline = report.field("CMDLINE").split()
    url = f"{base}/boot/{DASHED}/{iso.name}"
    assert f"url={url}" in cmdline
    assert {"initrd=initrd", "ip=dhcp", "autoinstall", "---"} <= set(cmdline)
    assert f"ds=nocloud;s={base}/nocloud/{DASHED}/" in cmdline
    for document in ("meta-data", "user-data", "vendor-data", "network-config"):
        assert f"SEED {document} " in report.body, report.body
    assert "META local-hostname: varda-0" in report.body
    assert report.field("PHONE") == "ok"
    assert netbootd.stages("varda-0") == ["firmware", "kernel", "seed", "ready"]
    asked = [event["path"] for event in netbootd.events() if event["node"] == "varda-0"]
    assert asked[:3] == ["ipxe/boot.ipxe", "vmlinuz", "initrd"]

    run(["curl", "-sf", "-o", tmp_path / "fetched.iso", url], namespace=lab.router)
    assert hashlib.sha256((tmp_path / "fetched.iso").read_bytes()).digest() == hashlib.sha256(iso.read_bytes()).digest()
