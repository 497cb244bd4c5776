# ruff: noqa: UP031
"""Root file systems from tar archives, from mmdebstrap, and filled up to any size."""

import hashlib
import os
import random
import shutil
import tarfile

from tests.support.imageparts.debian import MIRROR, SUITE
from tests.support.imageparts.entries import Entry
from tests.support.imageparts.programs import MIB, run

ROOT_PACKAGES = [
    "systemd-sysv",
    "udev",
    "dbus",
    "cloud-init",
    "cloud-initramfs-growroot",
    "overlayroot",
    "busybox",
    "initramfs-tools",
    "openssh-server",
    "nfs-common",
    "netplan.io",
    "sudo",
    "ca-certificates",
    "less",
    "nano",
    "curl",
    "iproute2",
    "iputils-ping",
    "isc-dhcp-client",
    "locales",
]


INITRD_MODULES = [
    "nfs",
    "nfsv3",
    "nfsv4",
    "af_packet",
    "overlay",
    "ext4",
    "vfat",
    "genet",
    "virtio_net",
    "virtio_blk",
    "virtio_pci",
    "virtio_mmio",
    "e1000",
    "loop",
    "squashfs",
    "iso9660",
]


def tar_root(path, stage):
    """Entries of a root tar (as mmdebstrap writes it); file data goes to `stage`."""
    out, count = [], 0
    with tarfile.open(path, errors="surrogateescape") as tar:
        for m in tar:
            name = os.fsencode(m.name).lstrip(b"./").rstrip(b"/")
            if not name:
                continue
            e = Entry(name, "", m.mode & 0o7777, m.uid, m.gid, round(float(m.mtime) * 10**9))
            for key, value in m.pax_headers.items():
                if key.startswith("SCHILY.xattr."):
                    e.xattrs[key[13:]] = value.encode("utf-8", "surrogateescape")
            if m.isdir():
                e.kind = "dir"
            elif m.issym():
                e.kind, e.target = "link", os.fsencode(m.linkname)
            elif m.islnk():
                e.kind, e.target = "hard", os.fsencode(m.linkname).lstrip(b"./")
            elif m.ischr() or m.isblk():
                e.kind, e.rdev = ("char" if m.ischr() else "block"), (m.devmajor, m.devminor)
            elif m.isfifo():
                e.kind = "fifo"
            else:
                e.kind, e.size = "file", m.size
                count += 1
                e.data = os.path.join(stage, "t%07d" % count)
                with open(e.data, "wb") as dst:
                    shutil.copyfileobj(tar.extractfile(m), dst, MIB)
            out.append(e)
    return out


def filler(epoch, seed, files, mib, prefix=b"usr/share/filler"):
    """Extra synthetic files, so that an image can be made as large as a test needs."""
    rnd = random.Random(seed + 1)
    out = [Entry(prefix, "dir", 0o755, mtime_ns=epoch * 10**9)]
    if not files:
        return []
    budget, text = mib * MIB, b"".join(b"%06d lorem ipsum dolor sit amet\n" % i for i in range(4000))
    weights = [rnd.paretovariate(1.1) for _ in range(files)]
    scale = budget / sum(weights)
    for i, w in enumerate(weights):
        folder = prefix + b"/%03d" % (i // 250)
        if i % 250 == 0:
            out.append(Entry(folder, "dir", 0o755, mtime_ns=epoch * 10**9))
        size = min(int(w * scale), 64 * MIB)
        if i % 3:
            start = rnd.randrange(len(text) // 2)
            data = (text[start:] * (size // (len(text) // 2) + 1))[:size]
        else:
            data = rnd.randbytes(size)
        out.append(
            Entry(
                folder + b"/f%06d" % i,
                "file",
                0o644,
                rnd.choice((0, 0, 0, 1000)),
                0,
                epoch * 10**9 - rnd.randrange(10**16),
                size,
                data,
            )
        )
    return out


def bootstrap(args, arch):
    """A root tar made by mmdebstrap, cached by its list of packages."""
    include = ROOT_PACKAGES + ["linux-image-" + arch] + [p for p in args.packages.split(",") if p]
    wanted = hashlib.sha256(",".join(sorted(include)).encode()).hexdigest()[:8]
    tar = os.path.join(args.cache, f"root-{SUITE}-{arch}-{wanted}.tar")
    if os.path.exists(tar):
        return tar
    native = run("dpkg", "--print-architecture").decode().strip() == arch
    if not native and not os.path.exists("/proc/sys/fs/binfmt_misc/qemu-aarch64"):
        register_binfmt()
    part, hooks = tar + ".part", []
    if not native:
        # Under qemu-user an initramfs of all modules takes tens of minutes (a process for each file);
        # one of the modules that netboot and virtual machines need takes one or two.
        hooks = [
            '--essential-hook=cd "$1" && mkdir -p etc/initramfs-tools/conf.d'
            " usr/share/initramfs-tools/modules.d && echo MODULES=list > etc/initramfs-tools/conf.d/foreign"
            " && echo COMPRESS=gzip >> etc/initramfs-tools/conf.d/foreign"
            " && printf '%s\\n' " + " ".join(INITRD_MODULES) + " > usr/share/initramfs-tools/modules.d/netboot"
        ]
    run(
        "mmdebstrap",
        "--variant=minbase",
        "--architectures=" + arch,
        "--components=main",
        "--format=tar",
        "--include=" + ",".join(include),
        *hooks,
        SUITE,
        part,
        MIRROR,
        env=dict(os.environ, SOURCE_DATE_EPOCH=str(args.epoch)),
    )
    os.rename(part, tar)
    return tar


def register_binfmt():
    """Let the kernel run arm64 programs through qemu-user (needs root)."""
    base = "/proc/sys/fs/binfmt_misc"
    if not os.path.exists(base + "/register"):
        run("mount", "-t", "binfmt_misc", "binfmt_misc", base)
    magic = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    mask = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    with open(base + "/register", "w") as f:
        f.write(f":qemu-aarch64:M::{magic}:{mask}:/usr/bin/qemu-aarch64-static:OCF")


def finish_root(entries, args, ids):
    """What an image build adds to a bare root: fstab, boot/firmware, names."""
    have = {e.path for e in entries}
    t = args.epoch * 10**9

    def put(path, data, mode=0o644):
        nonlocal entries
        entries = [e for e in entries if e.path != path]
        entries.append(Entry(path, "file", mode, mtime_ns=t, size=len(data), data=data))

    for folder in (b"boot", b"boot/firmware", b"etc"):
        if folder not in have:
            entries.append(Entry(folder, "dir", 0o755, mtime_ns=t))
    if args.flavour == "raspios":
        put(
            b"etc/fstab",
            (
                "proc            /proc           proc    defaults          0       0\n"
                "PARTUUID={}  /boot/firmware  vfat    defaults          0       2\n"
                "PARTUUID={}  /               ext4    defaults,noatime  0       1\n".format(ids["p1"], ids["p2"])
            ).encode(),
        )
    else:
        put(
            b"etc/fstab",
            b"LABEL=writable\t/\text4\tdiscard,errors=remount-ro\t0 1\n"
            b"LABEL=system-boot\t/boot/firmware\tvfat\tdefaults\t0 1\n",
        )
    return entries


def root_boot_assets(entries):
    """Kernel and initrd of a root made by mmdebstrap, as {vmlinuz, initrd}."""
    found = {}
    for e in entries:
        for key, prefix in (("vmlinuz", b"boot/vmlinuz-"), ("initrd", b"boot/initrd.img-")):
            if e.path.startswith(prefix) and e.kind == "file":
                with open(e.data, "rb") as f:
                    found[key] = f.read()
    return found if len(found) == 2 else {}
