"""A virtual machine's disk as Multipass would download it: Debian trixie with systemd, cloud-init, netplan and sshd.

Ubuntu's own image is not to be had in every test environment, and Debian has the same parts. nfs-utils lies there, too,
switched off: only what is tested beside netbootd's management of the kernel's server uses it. The disk is made by
mmdebstrap once and kept in the cache; so are the Python packages that a fresh virtual machine would fetch from the
package index.
"""

from __future__ import annotations

import configparser
import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.image_cache import cache, locked
from tests.support.processes import REPOSITORY, run

_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps", "sudo", "openssh-server", "ca-certificates"),
    *("cloud-init", "netplan.io", "systemd-resolved", "e2fsprogs", "initramfs-tools", "zstd", "gpgv"),
    *("python3", "python3-venv", "nfs-kernel-server", "rpcbind", "linux-image-cloud-amd64"),
)
_MODULES = "virtio_pci\\nvirtio_blk\\nvirtio_net\\next4\\ncrc32c\\niso9660\\nisofs\\n"
_OFF = ("nfs-server.service", "rpcbind.service", "rpcbind.socket", "nfs-blkmap.service", "rpc-statd.service")
_SLOW = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer"),
    *("dpkg-db-backup.timer", "systemd-networkd-wait-online.service", "man-db.timer"),
)
_PYTHON = "3.13"
_DISK = "3G"

# runs in mmdebstrap's customize hook, with the tree as $1
_CUSTOMIZE = f"""
set -eu
printf '{_MODULES}' >> "$1/etc/initramfs-tools/modules"
echo 'LABEL=cloudimg-rootfs / ext4 defaults,noatime 0 1' > "$1/etc/fstab"
echo 'LABEL=wheels /wheels ext4 ro,nofail 0 0' >> "$1/etc/fstab"
mkdir -p "$1/wheels"
printf '[global]\\nno-index = true\\nfind-links = /wheels\\n' > "$1/etc/pip.conf"
rm -f "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/*
: > "$1/etc/machine-id"
for unit in {" ".join(_SLOW)}; do ln -sf /dev/null "$1/etc/systemd/system/$unit"; done
for unit in {" ".join(_OFF)}; do chroot "$1" systemctl disable "$unit" > /dev/null 2>&1 || true; done
chroot "$1" systemctl enable systemd-networkd systemd-resolved ssh > /dev/null 2>&1
chroot "$1" update-initramfs -u > /dev/null
"""
_SMALL_INITRAMFS = (
    'mkdir -p "$1/etc/initramfs-tools/conf.d" && '
    'printf "MODULES=list\\nCOMPRESS=zstd\\nCOMPRESSLEVEL=1\\n" > "$1/etc/initramfs-tools/conf.d/small"'
)


@dataclass(frozen=True, slots=True)
class ServerImage:
    """What a machine starts with. The disk is never written: give the machine a copy."""

    disk: Path
    kernel: Path
    initramfs: Path


def server_image() -> ServerImage:
    """The image from the cache, made first where it isn't there."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = cache() / f"server-{recipe}"
    with locked(cache() / "server.lock"):
        if not folder.is_dir():
            for old in cache().glob("server-*/"):
                shutil.rmtree(old)
            part = cache() / "server-new.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _make(part)
            part.rename(folder)
    return ServerImage(folder / "disk.img", folder / "vmlinuz", folder / "initrd.img")


def _make(folder: Path) -> None:
    tree = folder / "tree.tar"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--arch=amd64", f"--include={','.join(_PACKAGES)}"]
    command += ["--aptopt=Apt::Install-Recommends false", "--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")]
    command += [f"--essential-hook={_SMALL_INITRAMFS}", f"--customize-hook={_CUSTOMIZE}"]
    run([*command, "trixie", tree, f"deb {_MIRROR} trixie main"], timeout=900)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        root.chmod(0o755)
        run(["tar", "-C", root, "--numeric-owner", "--xattrs", "-xpf", tree], timeout=300)
        shutil.copy(max(root.glob("boot/vmlinuz-*")), folder / "vmlinuz")
        shutil.copy(max(root.glob("boot/initrd.img-*")), folder / "initrd.img")
        ext4(root, folder / "disk.img", "cloudimg-rootfs", _DISK)
    tree.unlink()


def ext4(tree: Path, disk: Path, label: str, size: str) -> None:
    """A disk of one file system with what is in `tree`, owners, ACLs and all."""
    run(["truncate", "-s", size, disk])
    run(["mke2fs", "-q", "-t", "ext4", "-d", tree, "-L", label, "-E", "lazy_itable_init=0", disk], timeout=300)


def wheels() -> Path:
    """A disk with the wheels of netbootd's dependencies, for the virtual machine's Python."""
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    wanted = [line for line in parser["options"]["install_requires"].splitlines() if line.strip()]
    recipe = hashlib.sha256("\n".join([*wanted, _PYTHON]).encode()).hexdigest()[:12]
    disk = cache() / f"wheels-{recipe}.img"
    with locked(cache() / "wheels.lock"):
        if not disk.exists():
            with tempfile.TemporaryDirectory(dir=cache()) as name:
                folder = Path(name)
                folder.chmod(0o755)
                platforms = [
                    f"--platform={tag}_x86_64" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
                ]
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                command += ["--only-binary=:all:", f"--python-version={_PYTHON}", *platforms, f"--dest={folder}"]
                run([*command, "setuptools>=68", "wheel", *wanted], timeout=600)
                made = disk.with_suffix(".part")
                ext4(folder, made, "wheels", "160M")
                made.rename(disk)
    return disk


if __name__ == "__main__":
    print(server_image().disk, wheels())
