"""Little exported images: a boot and a root tree with just what the patcher looks at, in every published layout."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

NOBLE_CMDLINE = (
    "console=serial0,115200 multipath=off dwc_otg.lpm_enable=0 console=tty1 root=LABEL=writable rootfstype=ext4"
    " rootwait fixrtc\n"
)
NOBLE_CONFIG = """\
[all]
kernel=vmlinuz
cmdline=cmdline.txt
initramfs initrd.img followkernel

[pi4]
max_framebuffers=2
arm_boost=1

[all]
# Enable the audio output, I2C and SPI interfaces on the GPIO header
dtparam=audio=on
dtparam=i2c_arm=on
enable_uart=1
dtoverlay=vc4-kms-v3d

[pi3+]
dtoverlay=vc4-kms-v3d,cma-128

[pi02]
dtoverlay=vc4-kms-v3d,cma-128

[all]

[cm4]
dtoverlay=dwc2,dr_mode=host

[all]
"""
AB_CONFIG = "[all]\nos_prefix=current/\n\n[tryboot]\nos_prefix=new/\n\n" + NOBLE_CONFIG
RASPIOS_CMDLINE = (
    "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 fsck.repair=yes rootwait resize\n"
)
BOOKWORM_CMDLINE = (
    "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 fsck.repair=yes rootwait quiet"
    " init=/usr/lib/raspberrypi-sys-mods/firstboot\n"
)
RASPIOS_CONFIG = """\
# For more options and information see
# http://rptl.io/configtxt
dtparam=audio=on
camera_auto_detect=1
display_auto_detect=1
auto_initramfs=1
dtoverlay=vc4-kms-v3d
max_framebuffers=2
disable_fw_kms_setup=1
arm_64bit=1
disable_overscan=1
arm_boost=1

[cm4]
otg_mode=1

[cm5]
dtoverlay=dwc2,dr_mode=host

[all]
"""
UBUNTU_FSTAB = """\
LABEL=writable\t/\text4\tdefaults\t0 1
LABEL=system-boot       /boot/firmware  vfat    defaults        0       1
"""
RASPIOS_FSTAB = """\
proc            /proc           proc    defaults          0       0
PARTUUID=4e639091-01  /boot/firmware  vfat    defaults          0       2
PARTUUID=4e639091-02  /               ext4    defaults,noatime  0       1
# a swapfile is not a swap partition, no line here
#   use  dphys-swapfile swap[on|off]  for that
"""
VERSION = "6.8.0-1031-raspi"
DEP = (
    "kernel/fs/nfs/nfs.ko.zst: kernel/fs/lockd/lockd.ko.zst kernel/net/sunrpc/sunrpc.ko.zst\n"
    "kernel/fs/nfs/nfsv3.ko.zst: kernel/fs/nfs/nfs.ko.zst kernel/fs/lockd/lockd.ko.zst"
    " kernel/net/sunrpc/sunrpc.ko.zst\n"
    "kernel/fs/lockd/lockd.ko.zst: kernel/net/sunrpc/sunrpc.ko.zst\n"
    "kernel/net/sunrpc/sunrpc.ko.zst:\n"
    "kernel/fs/overlayfs/overlay.ko.zst:\n"
)
UNITS = (
    *("systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service"),
    *("fstrim.timer", "apt-daily.timer", "ssh.service"),
)

STATIC_PROGRAM = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0, 0, 0, 0, 64, 56, 0, 0, 0, 0)
"""An arm64 program of an ELF header alone: it names no interpreter and no library."""

Files = Mapping[str, str | bytes | None]
"""Content by path; a text that begins with ``-> `` is a link, None a folder."""


def fill(folder: Path, files: Files) -> Path:
    """Make these files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str) and content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def initramfs(folder: Path, files: Files) -> bytes:
    """A gzipped initramfs of these files, made by GNU cpio."""
    fill(folder, files)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        input="\n".join(names).encode(),
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return gzip.compress(packed.stdout, 1, mtime=0)


def unpack(archive: bytes, folder: Path) -> Path:
    """What GNU cpio makes of one plain archive."""
    folder.mkdir()
    subprocess.run(["cpio", "-i", "-d", "--quiet"], input=archive, cwd=folder, check=True)
    return folder


INITRAMFS_TOOLS: Files = {
    "init": "#!/bin/sh\n",
    "lib": "-> usr/lib",
    "conf/initramfs.conf": "MODULES=most\n",
    "scripts/functions": "",
    "scripts/init-bottom/ORDER": '/scripts/init-bottom/udev "$@"\n[ -e /conf/param.conf ] && . /conf/param.conf\n',
    "scripts/init-bottom/udev": "#!/bin/sh\n",
    f"usr/lib/modules/{VERSION}/modules.dep": DEP,
    f"usr/lib/modules/{VERSION}/modules.builtin": "kernel/net/packet/af_packet.ko\n",
    **{f"usr/lib/modules/{VERSION}/{line.partition(':')[0]}": "ko" for line in DEP.splitlines()},
}
OVERLAYROOT: Files = {**INITRAMFS_TOOLS, "scripts/init-bottom/overlayroot": "#!/bin/sh\n", "bin/busybox": "elf"}
DRACUT: Files = {
    "init": "-> usr/lib/systemd/systemd",
    "lib": "-> usr/lib",
    "sbin": "-> usr/sbin",
    "usr/lib/dracut/hooks/cmdline/90-parse-nfsroot.sh": "",
    "usr/sbin/ifup": "#!/bin/sh\n",
    "usr/lib/dracut/hooks/pre-pivot": None,
    **{name: content for name, content in INITRAMFS_TOOLS.items() if "/modules/" in name},
}


def root_tree(folder: Path, *, fstab: str = UBUNTU_FSTAB, more: Files | None = None) -> Path:
    """A root with systemd, networkd, cloud-init and an SSH server, as Ubuntu's are."""
    files: dict[str, str | bytes | None] = {
        "etc/os-release": "-> ../usr/lib/os-release",
        "usr/lib/os-release": 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\n',
        "lib": "-> usr/lib",
        "etc/fstab": fstab,
        "etc/machine-id": "",
        "etc/hostname": "ubuntu\n",
        "etc/systemd/system": None,
        "etc/cloud/cloud.cfg.d/99-fake_cloud.cfg": "datasource_list: [ NoCloud, None ]\n",
        "var/lib/dpkg/status": "Package: cloud-init\nStatus: install ok installed\nVersion: 25.1.4-0ubuntu0~24.04.1\n",
        "usr/lib/systemd/systemd-networkd-wait-online": "",
        f"usr/lib/modules/{VERSION}/modules.dep": DEP,
        f"usr/lib/modules/{VERSION}/modules.builtin": "kernel/net/packet/af_packet.ko\n",
        **{f"usr/lib/modules/{VERSION}/{line.partition(':')[0]}": "ko" for line in DEP.splitlines()},
        **{f"usr/lib/systemd/system/{unit}": "[Unit]\n" for unit in UNITS},
    }
    return fill(folder, {**files, **(more or {})})


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder that a patch could change, but the change times."""
    found: dict[str, tuple[object, ...]] = {}
    for base, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(base, name)
            status = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            owner = (status.st_mode, status.st_uid, status.st_gid)
            found[str(path.relative_to(folder))] = (*owner, status.st_mtime_ns, content)
    return found
