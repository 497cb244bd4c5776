"""The FAT boot partition of a test image, as Ubuntu and Raspberry Pi OS fill theirs."""

import gzip
import os
import random
import struct

from tests.support.imageparts.debian import debian_package, first
from tests.support.imageparts.programs import MIB, run


def empty_dtb(name):
    """A minimal valid flattened device tree, as stand-in for an overlay."""
    prop = b"model\0"
    value = name.encode() + b"\0"
    value_pad = value + bytes(-len(value) % 4)
    tree = struct.pack(">III", 1, 0, 3) + struct.pack(">II", len(value), 0) + value_pad + struct.pack(">II", 2, 9)
    off = 40 + 16
    return (
        struct.pack(
            ">10I", 0xD00DFEED, off + len(tree) + len(prop), off, off + len(tree), 40, 17, 16, 0, len(prop), len(tree)
        )
        + bytes(16)
        + tree
        + prop
    )


def cpio_newc(files, epoch):
    """A newc cpio archive of {name: (mode, bytes)}."""
    out = b""
    for ino, (name, (mode, data)) in enumerate([*list(files.items()), ("TRAILER!!!", (0, b""))], 1):
        raw = name.encode() + b"\0"
        head = b"070701" + b"%08X" * 13 % (ino, mode, 0, 0, 1, epoch, len(data), 0, 0, 0, 0, len(raw), 0) + raw
        out += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return out + bytes(-len(out) % 512)


def gz(data):
    return gzip.compress(data, 6, mtime=0)


def boot_files(args, root, ids):
    """{name on the FAT partition: bytes}; root is {path: bytes} of kernel and initrd found in the root."""
    out = {}
    if args.boot == "debian":
        firmware = os.path.join(debian_package(args.cache, "raspi-firmware", "arm64"), "usr/lib/raspi-firmware")
        for name in sorted(os.listdir(firmware)):
            with open(os.path.join(firmware, name), "rb") as f:
                out[name] = f.read()
    else:
        rnd = random.Random(args.seed + 2)
        for name, size in (
            ("bootcode.bin", 52460),
            ("start4.elf", 2249280),
            ("fixup4.dat", 5399),
            ("start.elf", 2973536),
            ("fixup.dat", 7262),
        ):
            out[name] = rnd.randbytes(size)
    # kernel: the root's own if it has one, else Debian's arm64 kernel, else a stand-in
    assets = {}
    if "vmlinuz" in root:
        kernel, initrd = root["vmlinuz"], root["initrd"]
    else:
        initrd = gz(cpio_newc({".": (0o40755, b""), "init": (0o100755, b"#!/bin/sh\nexec sh\n")}, args.epoch))
        if args.boot == "debian":
            with open(first(debian_package(args.cache, "linux-image-arm64", "arm64"), "boot/vmlinuz-.*"), "rb") as f:
                kernel = gz(f.read())  # both vendors ship the arm64 Image gzipped
        else:
            image = bytearray(random.Random(args.seed + 3).randbytes(6 * MIB) + bytes(6 * MIB))
            image[0x38:0x3C] = b"ARM\x64"
            kernel = gz(bytes(image))
    if args.boot == "debian":
        dtbs = os.path.dirname(
            first(debian_package(args.cache, "linux-image-arm64", "arm64"), r"usr/lib/.*/bcm2711-rpi-4-b\.dtb")
        )
        for name in sorted(os.listdir(dtbs)):
            if name.startswith("bcm27"):
                with open(os.path.join(dtbs, name), "rb") as f:
                    assets[name] = f.read()
    else:
        assets["bcm2711-rpi-4-b.dtb"] = empty_dtb("Raspberry Pi 4 Model B")
    assets["bcm2712-rpi-5-b.dtb"] = empty_dtb("stand-in: Raspberry Pi 5 Model B")
    for name in ("vc4-kms-v3d", "dwc2", "disable-bt", "overlay_map", "a-long-overlay-name-that-needs-lfn-entries"):
        assets["overlays/" + name + (".dtb" if name == "overlay_map" else ".dtbo")] = empty_dtb(name)
    assets["overlays/README"] = b"Introduction\n============\n" + b"stand-in text\n" * 500

    if args.flavour == "raspios":
        out.update(assets)
        out["kernel8.img"], out["kernel_2712.img"] = kernel, kernel
        out["initramfs8"], out["initramfs_2712"] = initrd, initrd
        line = f"console=serial0,115200 console=tty1 root=PARTUUID={ids['p2']} rootfstype=ext4"
        line += " fsck.repair=yes rootwait quiet"
        if args.firstboot:
            line += " init=/usr/lib/raspberrypi-sys-mods/firstboot"
        out["cmdline.txt"] = line.encode() + b"\n"
        out["config.txt"] = RASPIOS_CONFIG.encode()
        out["issue.txt"] = b"Raspberry Pi reference (stand-in)\n"
    else:
        ab = args.flavour == "ubuntu-ab"
        prefix = "current/" if ab else ""
        assets["vmlinuz"], assets["initrd.img"] = kernel, initrd
        cmd = (
            "console=serial0,115200 multipath=off dwc_otg.lpm_enable=0 console=tty1 root=LABEL=writable"
            " rootfstype=ext4 %srootwait fixrtc\n" % ("panic=10 " if ab else "")
        )
        assets["cmdline.txt"] = cmd.encode()
        if ab:
            out["autoboot.txt"] = b"[all]\ntryboot_a_b=1\n"
            assets["state"] = b"good\n"
        out.update({prefix + name: data for name, data in assets.items()})
        out["config.txt"] = ubuntu_config(ab).encode()
        out["README"] = b"The Boot Partition (stand-in)\n"
    if args.flavour != "raspios" or args.seedfiles:
        out["meta-data"] = b"dsmode: local\ninstance_id: cloud-image\n"
        out["user-data"] = (
            b"#cloud-config\nchpasswd:\n  expire: true\n  users:\n  - name: ubuntu\n"
            b"    password: ubuntu\n    type: text\nssh_pwauth: false\n"
        )
        out["network-config"] = (
            b"network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n      optional: true\n"
        )
    return out


def ubuntu_config(ab):
    head = "[all]\nos_prefix=current/\n\n[tryboot]\nos_prefix=new/\n\n" if ab else ""
    return (
        head
        + """\
[all]
kernel=vmlinuz
cmdline=cmdline.txt
initramfs initrd.img followkernel

[pi4]
max_framebuffers=2
arm_boost=1

[all]
# header pins
dtparam=audio=on
dtparam=i2c_arm=on
dtparam=spi=on
disable_overscan=1
#hdmi_drive=2
enable_uart=1
camera_auto_detect=1
display_auto_detect=1
arm_64bit=1
dtoverlay=dwc2
dtoverlay=vc4-kms-v3d
disable_fw_kms_setup=1

[pi3+]
dtoverlay=vc4-kms-v3d,cma-128

[pi02]
dtoverlay=vc4-kms-v3d,cma-128

[all]

[cm4]
dtoverlay=dwc2,dr_mode=host

[all]
"""
    )


RASPIOS_CONFIG = """\
# see http://rptl.io/configtxt
#dtparam=i2c_arm=on
#dtparam=i2s=on
#dtparam=spi=on
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


def make_fat(path, files, label, size, volume_id, stage, epoch):
    """Make a FAT32 image file of {name: bytes} with mkfs.vfat and mtools."""
    with open(path, "wb") as f:
        f.truncate(size)
    env = dict(os.environ, SOURCE_DATE_EPOCH=str(epoch), TZ="UTC", MTOOLS_SKIP_CHECK="1", LC_ALL="C.UTF-8")
    run(
        "mkfs.vfat",
        "--invariant",
        "-F",
        "32",
        "-s",
        "1" if size < 512 * MIB else "4",
        "-n",
        label,
        "-i",
        f"{volume_id:08x}",
        path,
        env=env,
    )
    tree = os.path.join(stage, "fat")
    made, batch = set(), {}
    for name in sorted(files):
        folder = os.path.dirname(name)
        os.makedirs(os.path.join(tree, folder), exist_ok=True)
        if folder and folder not in made:
            run("mmd", "-i", path, "::" + folder, env=env)
            made.add(folder)
        host = os.path.join(tree, name)
        with open(host, "wb") as f:
            f.write(files[name])
        os.utime(host, (epoch, epoch))
        batch.setdefault(folder, []).append(host)
    for folder in sorted(batch):
        run("mcopy", "-m", "-i", path, *batch[folder], "::" + folder + "/", env=env)
    run("fsck.fat", "-n", path, env=env)
