"""A virtual machine of the tests of serving by the kernel: a disk of Debian trixie with systemd, sshd and nfsd.

Made by mmdebstrap once and kept in the cache, with the key that opens it; so are the Python packages that a host would
fetch from the package index.
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

ADDRESS = "192.0.2.10"
"""Of the machine's card, on the lab's wire."""

_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = (
    *("systemd-sysv", "udev", "kmod", "iproute2", "procps", "openssh-server", "initramfs-tools", "zstd"),
    *("python3", "python3-venv", "python3-pip", "nfs-kernel-server", "rpcbind", "linux-image-cloud-amd64"),
)
_MODULES = "virtio_pci\\nvirtio_blk\\nvirtio_net\\next4\\ncrc32c\\n"
# Nothing of nfs-utils runs by itself: what is tested does without.
_OFF = ("nfs-server.service", "rpcbind.service", "rpcbind.socket", "nfs-blkmap.service", "rpc-statd.service")
_SLOW = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer"),
    *("dpkg-db-backup.timer", "systemd-networkd-wait-online.service", "man-db.timer"),
)
# what a wheel is made of
_SOURCES = (
    "netbootd",
    "cloud-init",
    "systemd",
    "vm",
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
_PYTHON = "3.13"
_DISK = "2G"

# runs in mmdebstrap's customize hook, with the tree as $1
_CUSTOMIZE = f"""
set -eu
printf '{_MODULES}' >> "$1/etc/initramfs-tools/modules"
echo server > "$1/etc/hostname"
printf '127.0.0.1 localhost server\\n' > "$1/etc/hosts"
echo '/dev/vda / ext4 defaults,noatime 0 1' > "$1/etc/fstab"
echo 'LABEL=wheels /wheels ext4 ro,nofail 0 0' >> "$1/etc/fstab"
echo 'LABEL=state /var/lib/netbootd ext4 defaults,noatime,nofail 0 0' >> "$1/etc/fstab"
mkdir -p "$1/wheels" "$1/var/lib/netbootd" "$1/root/.ssh"
printf '[Match]\\nName=eth0\\n[Network]\\nAddress={ADDRESS}/24\\n' > "$1/etc/systemd/network/eth0.network"
: > "$1/etc/machine-id"
for unit in {" ".join(_SLOW)}; do ln -sf /dev/null "$1/etc/systemd/system/$unit"; done
for unit in {" ".join(_OFF)}; do chroot "$1" systemctl disable "$unit" > /dev/null 2>&1 || true; done
chroot "$1" systemctl enable systemd-networkd ssh > /dev/null 2>&1
chroot "$1" update-initramfs -u > /dev/null
"""
_SMALL_INITRAMFS = (
    'mkdir -p "$1/etc/initramfs-tools/conf.d" && '
    'printf "MODULES=list\\nCOMPRESS=zstd\\nCOMPRESSLEVEL=1\\n" > "$1/etc/initramfs-tools/conf.d/small"'
)


@dataclass(frozen=True, slots=True)
class ServerImage:
    """What a machine starts with. The disk is never written: give the machine a copy. `key` opens root's account."""

    disk: Path
    kernel: Path
    initramfs: Path
    key: Path


def server_image() -> ServerImage:
    """The image from the cache, made first where it isn't there."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = cache() / f"debian-server-{recipe}"
    with locked(cache() / "debian-server.lock"):
        if not folder.is_dir():
            for old in cache().glob("debian-server-*/"):
                shutil.rmtree(old)
            part = cache() / "debian-server-new.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _make(part)
            part.rename(folder)
    return ServerImage(folder / "disk.img", folder / "vmlinuz", folder / "initrd.img", folder / "key")


def _make(folder: Path) -> None:
    tree = folder / "tree.tar"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--arch=amd64", f"--include={','.join(_PACKAGES)}"]
    command += ["--aptopt=Apt::Install-Recommends false", "--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")]
    command += [f"--essential-hook={_SMALL_INITRAMFS}", f"--customize-hook={_CUSTOMIZE}"]
    run([*command, "trixie", tree, f"deb {_MIRROR} trixie main"], timeout=900)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"])
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        root.chmod(0o755)
        run(["tar", "-C", root, "--numeric-owner", "--xattrs", "-xpf", tree], timeout=300)
        shutil.copy(folder / "key.pub", root / "root/.ssh/authorized_keys")
        shutil.copy(max(root.glob("boot/vmlinuz-*")), folder / "vmlinuz")
        shutil.copy(max(root.glob("boot/initrd.img-*")), folder / "initrd.img")
        ext4(root, folder / "disk.img", "root", _DISK)
    tree.unlink()


def ext4(tree: Path, disk: Path, label: str, size: str) -> None:
    """A disk of one file system with what is in `tree`, owners, ACLs and all."""
    run(["truncate", "-s", size, disk])
    run(["mke2fs", "-q", "-t", "ext4", "-d", tree, "-L", label, "-E", "lazy_itable_init=0", disk], timeout=300)


def wheels(folder: Path) -> Path:
    """A disk with a wheel of netbootd as it is now, and of its dependencies, for the virtual machine's Python."""
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    wanted = [line for line in parser["options"]["install_requires"].splitlines() if line.strip()]
    recipe = hashlib.sha256("\n".join([*wanted, _PYTHON]).encode()).hexdigest()[:12]
    kept = cache() / f"debian-wheels-{recipe}"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with locked(cache() / "debian-wheels.lock"):
        if not kept.is_dir():
            part = cache() / "debian-wheels-new.part"
            shutil.rmtree(part, ignore_errors=True)
            platforms = [f"--platform={tag}_x86_64" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
            chosen = ["--only-binary=:all:", f"--python-version={_PYTHON}", *platforms]
            run([*pip, "download", *chosen, f"--dest={part}", *wanted], timeout=600)
            part.rename(kept)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source = Path(name, "source")  # pip leaves a build folder behind where it builds
        for part in _SOURCES:
            if (REPOSITORY / part).is_dir():
                shutil.copytree(REPOSITORY / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(REPOSITORY / part, source / part)
        tree = Path(name, "wheels")
        shutil.copytree(kept, tree)
        tree.chmod(0o755)
        run([*pip, "wheel", "--no-deps", f"--wheel-dir={tree}", source], timeout=300)
        ext4(tree, folder / "wheels.img", "wheels", "160M")
    return folder / "wheels.img"


if __name__ == "__main__":
    print(server_image().disk)
