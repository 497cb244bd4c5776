"""Multipass played by QEMU: `netbootd vm` speaks with it as with the real one, and gets a real machine.

Only the command line is left out, which tests.support.multipass_standin holds to its sources. What Multipass does to a
machine is done here: a cloud-init seed on a disk (src/daemon/daemon.cpp, make_cloud_init_vendor_config), a card
on its own NAT with the default route, the bridged card, and commands over SSH.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import yaml

from netbootd.errors import HostError
from netbootd.formats.cidata import cidata_iso
from netbootd.model.identity import MacAddress
from netbootd.vm.multipass import Done, HostNetwork, Instance, Launch, Multipass
from tests.support.netlab import Lab
from tests.support.processes import Program, in_namespace, read_text, run, wait_until
from tests.support.server_image import ServerImage

NAT_MAC = "52:54:00:00:00:01"
_SSH_PORT = 2222
_CPU = ("qemu-system-x86_64", "-M", "q35", "-cpu", "Nehalem,-cx16", "-accel", "tcg,thread=multi")
_BOOT_SECONDS = 400.0


class QemuMultipass(Multipass):
    """One workstation, whose network is a client's bridge in the lab.

    :param namespace: of a client of the lab: the machine's bridged card is its ``tap0``
    :param disks: further disks, written to by nobody: the first of them stands for the package index
    """

    def __init__(self, lab: Lab, namespace: str, image: ServerImage, disks: Sequence[Path]) -> None:
        super().__init__("qemu", "linux")
        self._lab, self._namespace, self._image, self._disks = lab, namespace, image, disks
        self._folder = lab.folder / "multipass"
        self._folder.mkdir()
        self._key = self._folder / "key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key])
        self._launched: Launch | None = None
        self._machine: Program | None = None
        self._starts = 0

    # ---------------------------------------------------------------- what Multipass tells

    def versions(self) -> tuple[str, str]:
        return "1.16.3", "1.16.3"

    def networks(self) -> tuple[HostNetwork, ...]:
        return (HostNetwork("br0", "bridge", "Network bridge with eth0"),)

    def instance(self, name: str) -> Instance | None:
        if self._launched is None:
            return None
        running = self._machine is not None and self._machine.poll() is None
        return Instance(name, "Running" if running else "Stopped", ("10.0.2.15",), "Debian 13")

    # ---------------------------------------------------------------- what it does

    def launch(self, launch: Launch, *, terminal: bool) -> None:
        public = self._key.with_suffix(".pub").read_text().strip()
        user_data = yaml.safe_load(Path(launch.cloud_init).read_text())
        user_data.setdefault("ssh_authorized_keys", []).append(public)
        vendor_data = {  # src/daemon/base_cloud_init_config.h, and what make_cloud_init_vendor_config adds
            "growpart": {"mode": "auto", "devices": ["/"], "ignore_growroot_disabled": False},
            "users": ["default"],
            "manage_etc_hosts": True,
            "ssh_authorized_keys": [public],
            "ssh_genkeytypes": ["ed25519"],  # the test's own, for speed
            "system_info": {"default_user": {"name": "ubuntu"}},
        }
        # src/utils/yaml_node_utils.cpp, make_cloud_init_network_config
        card = {"match": {"macaddress": NAT_MAC}, "dhcp4": True, "dhcp-identifier": "mac", "set-name": "eth0"}
        documents = {
            "user-data": b"#cloud-config\n" + yaml.safe_dump(user_data).encode(),
            "vendor-data": b"#cloud-config\n" + yaml.safe_dump(vendor_data).encode(),
            "meta-data": yaml.safe_dump({"instance-id": launch.name, "local-hostname": launch.name}).encode(),
            "network-config": yaml.safe_dump({"version": 2, "ethernets": {"eth0": card}}).encode(),
        }
        (self._folder / "seed.iso").write_bytes(cidata_iso(documents))
        run(["cp", "--sparse=always", "--reflink=auto", self._image.disk, self._folder / "disk.img"])
        self._launched = launch
        self.start(launch.name)
        self._until("test -e /var/lib/cloud/instance/boot-finished", "the end of cloud-init")

    def start(self, name: str) -> None:
        assert self._launched is not None
        self._starts += 1
        disks = [(self._folder / "disk.img", "cache=unsafe"), *((disk, "readonly=on") for disk in self._disks)]
        argv = [*_CPU, "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-device", "virtio-rng-pci"]
        argv += ["-serial", f"file:{self._lab.folder}/multipass-{self._starts}.console"]
        argv += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs)]
        argv += ["-append", "root=LABEL=cloudimg-rootfs rw console=ttyS0 quiet systemd.show_status=0 panic=-1"]
        for disk, options in disks:
            argv += ["-drive", f"file={disk},format=raw,if=virtio,{options}"]
        argv += ["-drive", f"file={self._folder / 'seed.iso'},format=raw,if=virtio,readonly=on"]
        nat = f"user,id=nat,restrict=on,hostfwd=tcp:127.0.0.1:{_SSH_PORT}-:22"
        argv += ["-netdev", nat, "-device", f"virtio-net-pci,netdev=nat,mac={NAT_MAC},romfile="]
        argv += ["-netdev", "tap,id=lan,ifname=tap0,script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=lan,mac={self._launched.mac},romfile="]
        self._machine = self._lab.start(self._namespace, argv, f"multipass-{self._starts}.qemu")
        self._until("true", "SSH")

    def stop(self, name: str) -> None:
        self.run(name, ["sudo", "systemctl", "poweroff"])
        assert self._machine is not None
        self._machine.wait(120)

    def reboot(self, name: str) -> None:
        """Restart it from within, and wait until it answers again."""
        before = self.run(name, ["cat", "/proc/sys/kernel/random/boot_id"]).output
        self.run(name, ["sudo", "systemctl", "reboot"])
        self._until(f"! grep -q {before.strip()} /proc/sys/kernel/random/boot_id", "another boot")

    def put(self, name: str, text: str, path: str) -> None:
        done = self._ssh(f"cat > {shlex.quote(path)}", 120, text)
        assert done.returncode == 0, done.stderr

    def run(self, name: str, command: Sequence[str], *, timeout: float = 240, progress: IO[str] | None = None) -> Done:
        began = time.monotonic()
        done = self._ssh(shlex.join(command), timeout)
        said = done.stderr + (done.stdout if done.returncode else "")
        print(f"[{time.monotonic() - began:.1f} s, status {done.returncode}] {shlex.join(command)[:150]}\n{said}")
        if done.returncode == 255:
            raise HostError(f"exec failed: {done.stderr}", details=[self.story()])
        return Done(done.returncode, done.stdout, done.stderr)

    # ---------------------------------------------------------------- SSH

    def _ssh(self, command: str, timeout: float, stdin: str = "") -> subprocess.CompletedProcess[str]:
        options = ["-q", "-i", str(self._key), "-p", str(_SSH_PORT), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        argv = in_namespace(self._namespace, ["ssh", *options, "ubuntu@127.0.0.1", command])
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, errors="replace")

    def _until(self, command: str, what: str) -> None:
        def true() -> bool:
            try:
                return self._ssh(command, 30).returncode == 0
            except subprocess.TimeoutExpired:
                return False

        assert self._machine is not None
        wait_until(true, what, timeout=_BOOT_SECONDS, explain=self.story, alive=[self._machine])

    def story(self) -> str:
        """The end of the machine's console, for a failed test."""
        return read_text(self._lab.folder / f"multipass-{self._starts}.console")[-4000:]

    def mac(self) -> MacAddress:
        """Of the bridged card."""
        assert self._launched is not None
        return self._launched.mac
