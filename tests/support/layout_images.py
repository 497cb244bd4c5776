"""Images of every layout of boot files, on one small root of Debian trixie: for boots that show what `prepare` adds.

The root has both generators of an initramfs, and no cloud-init: a unit of its own reports to the test's collector once
the system is up. Made by mmdebstrap once and kept in the cache: the root as an ext4 file system, and for each layout
the FAT boot partition. `assemble` makes a disk of the two.

ab         Ubuntu's from 25.10 on (os_prefix, autoboot.txt, tryboot); dracut with nfs and systemd-networkd
raspios    Raspberry Pi OS's, with a hook for the first boot; initramfs-tools with all modules, without overlayroot
plain      Ubuntu's 24.04; dracut without nfs and without anything for the network, compressed by lz4
stripped   Ubuntu's 24.04; initramfs-tools without the modules of NFS and overlayfs

All of them have virtio_net, as the drivers of a Raspberry Pi's port are in its kernel.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from tests.support import imageparts, server_image
from tests.support.image_cache import cache, locked
from tests.support.imageparts.bootpart import boot_files, make_fat
from tests.support.imageparts.disk import assemble as assemble_disk
from tests.support.processes import run

_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = (
    *("systemd-sysv", "udev", "kmod", "iproute2", "procps", "curl", "gawk", "iputils-arping", "zstd", "lz4"),
    *("initramfs-tools", "dracut-core", "dracut-network", "nfs-common", "linux-image-cloud-amd64"),
)
_EPOCH = 1754352000
_IDS = {"disk": "6e657462", "p1": "6e657462-01", "p2": "6e657462-02"}
_LABELS = ("LABEL=writable", "LABEL=system-boot", f"PARTUUID={_IDS['p1']}", f"PARTUUID={_IDS['p2']}")
_ROOT_SIZE = "1G"
_BOOT_BYTES = 128 << 20
_CARD = "virtio_pci\\nvirtio_net\\naf_packet\\n"
_NETWORK_MODULES = "nfs network network-legacy network-manager systemd-networkd connman"
_OMITTED = "bluetooth crypt dm i18n iscsi lunmask lvm mdraid multipath nvdimm nvmf plymouth qemu resume virtiofs"

# What takes seconds under QEMU and has nothing to do with the root.
_SLOW = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("getty-static.service", "getty@tty1.service", "serial-getty@ttyS0.service", "dracut-shutdown.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-pstore.service", "rpcbind.service"),
    *("rpcbind.socket", "nfs-blkmap.service", "rpc-statd-notify.service", "nfs-client.target"),
)

_REPORT = r"""#!/bin/sh
arg() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^$1=//p" | tail -1; }
state=$(timeout 300 systemctl is-system-running --wait)
seed=$(arg ds | sed -n 's/^nocloud.*;s=//p')
home=$(echo "$seed" | sed 's,/nocloud/,/phone-home/,; s,/$,,')
name=$(curl -sf --retry 5 "${seed}meta-data" | sed -n 's/^local-hostname: *//p')
{
    echo "STATE $state"
    echo "FAILED $(systemctl --failed --no-legend --plain | cut -d' ' -f1 | tr '\n' ' ')"
    echo "CMDLINE $(cat /proc/cmdline)"
    echo "ROOT $(findmnt -no FSTYPE /)"
    echo "LOWER $(findmnt -t nfs -no SOURCE)"
    echo "OPTIONS $(findmnt -t nfs -no OPTIONS)"
    echo "WRITABLE $(echo written > /etc/lab && cat /etc/lab)"
    echo "ADDRESSES $(ip -4 -o addr show scope global | sed 's/.*inet \([0-9.]*\).*/\1/' | tr '\n' ' ')"
    echo "MACHINE-ID $(cat /etc/machine-id)"
    echo "NAME $name"
    echo "PHONE $(curl -sf --data "hostname=$name" "$home" > /dev/null && echo ok)"
    echo "-- for people --"
    systemd-analyze time; systemd-analyze blame --no-pager | head -15; ip -br addr
    networkctl --no-pager; cat /proc/mounts
    journalctl -b -p warning --no-pager | tail -40
} > /run/lab-report.txt 2>&1
curl -s --retry 5 --data-binary @/run/lab-report.txt "$(arg lab.report)/$(cat /sys/class/net/e*/address)"
"""
_UNIT = """\
[Unit]
Description=Report to the test
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/local/sbin/lab-report

[Install]
WantedBy=multi-user.target
"""
# Runs in mmdebstrap's customize hook, with the tree as $1; /etc/lab is what `_make` puts there.
_CUSTOMIZE = f"""
set -eu
kernel=$(ls "$1/lib/modules")
: > "$1/etc/machine-id"
echo layouts > "$1/etc/hostname"
for source in {" ".join(_LABELS)}; do echo "$source /boot/firmware vfat defaults 0 1" >> "$1/etc/fstab"; done
for unit in {" ".join(_SLOW)}; do ln -sf /dev/null "$1/etc/systemd/system/$unit"; done
cp -r "$1/etc/initramfs-tools" "$1/tmp/tools"
printf '{_CARD}' > "$1/tmp/tools/modules"
chroot "$1" mkinitramfs -d /tmp/tools -o /boot/lab-stripped "$kernel"
printf 'nfs\\nnfsv3\\noverlay\\n' >> "$1/tmp/tools/modules"
chroot "$1" mkinitramfs -d /tmp/tools -o /boot/lab-raspios "$kernel"
chroot "$1" dracut -q -N -f --compress 'gzip -1' --add 'nfs systemd-networkd' \\
    --omit '{_OMITTED} network-manager network-legacy connman' --drivers 'virtio_pci virtio_net nfsv3 overlay' \\
    /boot/lab-ab "$kernel"
chroot "$1" dracut -q -N -f --compress 'lz4 -l -1' --omit '{_OMITTED} {_NETWORK_MODULES}' \\
    --drivers 'virtio_pci virtio_net' /boot/lab-plain "$kernel"
rm -r "$1/tmp/tools"
"""
_QUICK_INITRAMFS = (
    'mkdir -p "$1/etc/initramfs-tools/conf.d" && '
    'printf "MODULES=list\\nCOMPRESS=zstd\\nCOMPRESSLEVEL=1\\n" > "$1/etc/initramfs-tools/conf.d/quick"'
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the boot partition of an image is laid out: `flavour` as the image maker has it."""

    name: str
    flavour: str
    firstboot: bool = False


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("ab", "ubuntu-ab"),
        Layout("raspios", "raspios", firstboot=True),
        Layout("plain", "ubuntu"),
        Layout("stripped", "ubuntu"),
    )
}


def layouts_folder() -> Path:
    """The partitions from the cache, made first where they aren't there: ``root`` and one of each layout's name."""
    recipe = hashlib.sha256(Path(__file__).read_bytes())
    for source in sorted(Path(imageparts.__path__[0]).glob("*.py")):
        recipe.update(source.read_bytes())
    folder = cache() / f"layouts-{recipe.hexdigest()[:12]}"
    with locked(cache() / "layouts.lock"):
        if not folder.is_dir():
            for old in cache().glob("layouts-*/"):
                shutil.rmtree(old)
            part = cache() / "layouts-new.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _make(part)
            part.rename(folder)
    return folder


def assemble(layout: str, image: Path) -> Path:
    """Make a disk image of this layout at `image`."""
    folder = layouts_folder()
    start = (8 if LAYOUTS[layout].flavour == "raspios" else 1) << 20
    assemble_disk(str(image), str(folder / layout), str(folder / "root"), False, _IDS, start)
    return image


def _make(folder: Path) -> None:
    tree = folder / "tree.tar"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--arch=amd64", f"--include={','.join(_PACKAGES)}"]
    command += ["--aptopt=Apt::Install-Recommends false", "--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")]
    command += [f"--essential-hook={_QUICK_INITRAMFS}", f"--customize-hook={_CUSTOMIZE}"]
    run([*command, "trixie", tree, f"deb {_MIRROR} trixie main"], timeout=900)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        root.chmod(0o755)
        run(["tar", "-C", root, "--numeric-owner", "--xattrs", "-xpf", tree], timeout=300)
        report, unit = root / "usr/local/sbin/lab-report", root / "etc/systemd/system/lab-report.service"
        report.write_text(_REPORT)
        report.chmod(0o755)
        unit.write_text(_UNIT)
        wants = root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit.name).symlink_to(f"/etc/systemd/system/{unit.name}")
        (root / "boot/firmware").mkdir(exist_ok=True)
        kernel = max(root.glob("boot/vmlinuz-*")).read_bytes()
        for layout in LAYOUTS.values():
            initramfs = root / f"boot/lab-{layout.name}"
            _make_boot(folder / layout.name, layout, kernel, initramfs.read_bytes(), folder)
            initramfs.unlink()
        for updated in ("etc/.updated", "var/.updated"):  # else the first boot is taken for one after an upgrade
            (root / updated).touch()
            shutil.copystat(root / "usr", root / updated)
        server_image.ext4(root, folder / "root", "writable", _ROOT_SIZE)
    tree.unlink()


def _make_boot(path: Path, layout: Layout, kernel: bytes, initramfs: bytes, folder: Path) -> None:
    options = Namespace(
        boot="synthetic",
        flavour=layout.flavour,
        firstboot=layout.firstboot,
        seedfiles=True,
        seed=1,
        epoch=_EPOCH,
        cache=str(folder),
    )
    files = boot_files(options, {"vmlinuz": kernel, "initrd": initramfs}, _IDS)
    label = "bootfs" if layout.flavour == "raspios" else "system-boot"
    with tempfile.TemporaryDirectory(dir=folder) as stage:
        make_fat(str(path), files, label, _BOOT_BYTES, 0x6E657462, stage, _EPOCH)
