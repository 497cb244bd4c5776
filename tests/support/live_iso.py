"""Small ISOs laid out as Ubuntu's live server, made by pycdlib or by the tools that publishers make theirs with."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pycdlib

from tests.support.processes import run

INFO = b'Ubuntu-Server 24.04.3 LTS "Noble Numbat" - Release amd64 (20250805.1)'
KERNEL = b"MZ kernel " * 700
INITRD = b"initrd " * 9000
FILES: Mapping[str, bytes] = {
    ".disk/info": INFO,
    "casper/vmlinuz": KERNEL,
    "casper/initrd": INITRD,
    "casper/ubuntu-server-minimal.manifest": b"bash\t5.2.21-2ubuntu4\ncloud-initramfs-copymods\t0.49\n",
    "casper/ubuntu-server-minimal.ubuntu-server.installer.manifest": b"cloud-init\t25.1.4-0ubuntu0~24.04.1\ncurl\t8\n",
    "casper/ubuntu-server-minimal.squashfs": b"hsqs" + bytes(3000),
}

_TOOLS = {
    "xorriso": ("xorriso", "-as", "mkisofs", "-quiet", "-r", "-J"),
    "xorriso plain": ("xorriso", "-as", "mkisofs", "-quiet", "-iso-level", "3"),
    "genisoimage": ("genisoimage", "-quiet", "-r"),
    "genisoimage joliet": ("genisoimage", "-quiet", "-J", "-joliet-long"),
}
MAKERS = ("pycdlib", *_TOOLS)


def live_iso(path: Path, files: Mapping[str, bytes] = FILES, maker: str = "pycdlib") -> Path:
    """Write an ISO with these files to `path`."""
    if maker == "pycdlib":
        path.write_bytes(_by_pycdlib(files))
        return path
    tree = path.with_name(f"{path.name}.tree")
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    run([*_TOOLS[maker], "-o", path, tree])
    return path


def _by_pycdlib(files: Mapping[str, bytes]) -> bytes:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09", vol_ident="Ubuntu-Server 24.04.3")
    made: dict[str, str] = {}
    for number, (name, data) in enumerate(files.items()):
        folder, _, last = name.rpartition("/")
        if folder and folder not in made:
            made[folder] = f"/D{len(made)}"
            iso.add_directory(made[folder], rr_name=folder)
        iso.add_fp(io.BytesIO(data), len(data), f"{made.get(folder, '')}/F{number}.;1", rr_name=last)
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
