"""A PC: SeaBIOS and iPXE's own ROM under QEMU (TCG), and the kernel and initramfs that it is to boot.

The initramfs is the mini client, with the modules of Debian's amd64 kernel.
"""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

from tests.support import mini_client
from tests.support.image_cache import cache
from tests.support.imageparts.debian import debian_package, first, private_apt
from tests.support.netlab import Lab
from tests.support.processes import Argument, Program, run

_SERIAL = (0x3F8).to_bytes(2, "little")  # SeaBIOS copies what it and iPXE print to this port


def kernel_and_initramfs() -> tuple[bytes, bytes]:
    """Debian's kernel for amd64 and a mini client for it; downloaded once."""
    folder = cache() / "imagemaker"
    (folder / "unpacked").mkdir(parents=True, exist_ok=True)
    with (cache() / "pc.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        package = folder / "unpacked" / "linux-image-amd64_amd64"
        if not package.is_dir():  # the package of that name is empty, and depends on the kernel's
            shown = run(["apt-cache", *private_apt(str(folder), "amd64"), "show", "linux-image-amd64"]).stdout
            match = re.search(r"^Depends: (linux-image-[^ ,]+)", shown, re.MULTILINE)
            assert match, shown
            Path(debian_package(str(folder), match[1], "amd64")).rename(package)
        kernel = Path(first(str(package), r"boot/vmlinuz-.*")).read_bytes()
        return kernel, mini_client.initramfs(folder, "amd64")


def power_on(lab: Lab, namespace: str, mac: str, *, memory: int = 512) -> tuple[Program, Path]:
    """Start a PC that boots from its network card, on ``tap0`` of `namespace`; and the file with its console."""
    console, port = lab.folder / "pc.console", lab.folder / "pc.sercon-port"
    port.write_bytes(_SERIAL)
    argv: list[Argument] = ["qemu-system-x86_64", "-M", "q35", "-cpu", "Nehalem,-cx16"]
    argv += ["-accel", "tcg,thread=single", "-smp", "1", "-m", str(memory), "-nodefaults", "-display", "none"]
    argv += ["-no-reboot", "-device", "virtio-rng-pci", "-serial", f"file:{console}", "-boot", "n"]
    argv += ["-fw_cfg", f"name=etc/sercon-port,file={port}"]
    argv += ["-netdev", "tap,ifname=tap0,script=no,downscript=no,id=n0"]
    argv += ["-device", f"virtio-net-pci,netdev=n0,mac={mac}"]
    return lab.start(namespace, argv, "pc.qemu"), console
