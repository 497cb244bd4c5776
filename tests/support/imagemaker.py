# ruff: noqa: UP031
"""Build realistic Raspberry-Pi-style disk images for tests.

The result looks like what Ubuntu and Raspberry Pi publish: a partition table
(MBR or GPT), p1 = FAT32 boot partition with firmware, kernel, initrd, device
trees, config.txt, cmdline.txt and cloud-init seed, p2 = ext4 root.  Next to
the image it leaves compressed forms, SHA256SUMS (optionally signed by a
throw-away key) in the folder layout of a download mirror, and manifests of
the *truth* of both partitions, so that a test can compare an extraction with
what the kernel (ext4) and mtools (FAT) say about the same bytes.

    python -m tests.support.imagemaker --out OUT --cache CACHE                      # tiny, ubuntu
    python -m tests.support.imagemaker --out OUT --cache CACHE --root amd64 --xz both --sign
    python -m tests.support.imagemaker --out OUT --cache CACHE --flavour raspios --gpt

Nothing is mounted to *write* an image: partitions are made by mke2fs and
mkfs.vfat and filled by debugfs and mtools in a fixed order, so the same
inputs give the same bytes.  Root (a read-only loop mount) is needed only for
the ext4 manifest (--no-root-manifest avoids it) and by mmdebstrap.

--root tiny     synthetic tree that exercises every ext4 feature a reader
                must know (see tiny_root()); seconds, no download
--root amd64    Debian minbase + systemd, cloud-init, initramfs-tools,
                overlayroot, kernel (mmdebstrap)
--root arm64    the same for arm64, foreign, through qemu-user (binfmt_misc)
--root FILE.tar any root file system as a tar (pax xattrs are kept)

Standard library only, plus Debian programs: e2fsprogs, mtools, dosfstools,
fdisk (sfdisk), xz-utils, and on demand zstd, zip, gnupg, mmdebstrap,
qemu-user-static, dpkg, apt.
"""

import argparse
import dataclasses
import fcntl
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
import zlib

MIB = 1 << 20
DEFAULT_EPOCH = 1754352000  # 2025-08-05, the date of 24.04.3
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
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
NAMESPACE = uuid.UUID("6f1f2f3a-0f3c-5d5e-9c55-0a7e6f2b7f00")


def log(text):
    print(f"[{time.monotonic() - log.start:8.2f}] {text}", file=sys.stderr, flush=True)


log.start = time.monotonic()


def run(*argv, **kw):
    """Run a program; show its output only when it fails."""
    ok = kw.pop("ok", (0,))
    done = subprocess.run([os.fspath(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)
    if done.returncode not in ok:
        sys.exit("%s: exit %d\n%s" % (argv[0], done.returncode, done.stdout.decode(errors="replace")[-4000:]))
    return done.stdout


# ---------------------------------------------------------------- entries


@dataclasses.dataclass
class Entry:
    """One name in the root file system (path without leading slash)."""

    path: bytes
    kind: str  # dir file link hard char block fifo sock
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0  # files: total size (a hole at the end counts)
    data: object = None  # bytes, or [(offset, bytes), ...], or a host path (str)
    target: bytes = b""  # link, hard
    rdev: tuple = (0, 0)
    xattrs: dict = dataclasses.field(default_factory=dict)
    prealloc: tuple = ()  # (first block, last block): unwritten extents
    atime_ns: int = None
    crtime_ns: int = None


def posix_acl(entries):
    """The value of a system.posix_acl_* xattr: [(tag, perm, id), ...]."""
    out = struct.pack("<I", 2)
    for tag, perm, ident in entries:
        out += struct.pack("<HHI", tag, perm, ident)
    return out


def file_capability(bits, effective=True):
    """The value of security.capability, revision 2."""
    return struct.pack("<IIIII", 0x02000000 | (1 if effective else 0), bits & 0xFFFFFFFF, 0, bits >> 32, 0)


def tiny_root(epoch, seed, block):
    """A few thousand entries that meet every case an ext4 reader must know."""
    rnd = random.Random(seed)
    t0 = epoch * 10**9
    out = []

    def add(path, kind, mode=0o644, **kw):
        if isinstance(path, str):
            path = path.encode()
        kw.setdefault("mtime_ns", t0 + rnd.randrange(10**9) - rnd.randrange(10**16))
        data = kw.get("data")
        if kind == "file" and "size" not in kw:
            kw["size"] = len(data) if isinstance(data, bytes) else max((o + len(d) for o, d in data or []), default=0)
        out.append(Entry(path, kind, mode, **kw))

    def d(path, mode=0o755, **kw):
        add(path, "dir", mode, **kw)

    def f(path, data=b"", mode=0o644, **kw):
        add(path, "file", mode, data=data, **kw)

    # The skeleton a patcher expects.
    for name in (
        "bin",
        "boot",
        "boot/firmware",
        "dev",
        "etc",
        "etc/cloud",
        "etc/cloud/cloud.cfg.d",
        "etc/systemd",
        "etc/systemd/system",
        "home",
        "lib",
        "opt",
        "proc",
        "root",
        "run",
        "srv",
        "sys",
        "tmp",
        "usr",
        "usr/bin",
        "usr/lib",
        "var",
        "var/lib",
        "var/log",
        "t",
    ):
        d(name, {"tmp": 0o1777, "root": 0o700}.get(name, 0o755))
    f("etc/os-release", b'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n')
    f("etc/hostname", b"ubuntu\n")
    f("etc/overlayroot.conf", b'overlayroot_cfgdisk="disabled"\noverlayroot=""\n')
    f("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o640, gid=42)
    add("etc/resolv.conf", "link", 0o777, target=b"../run/systemd/resolve/stub-resolv.conf")
    f("sbin-init-placeholder", b"#!/bin/sh\nexec /bin/sh\n", 0o755)

    # Sizes around the edges: inline data, one block, the last byte, holes.
    d("t/size")
    for size in sorted(
        {
            0,
            1,
            59,
            60,
            61,
            100,
            156,
            157,
            160,
            161,
            511,
            512,
            513,
            4095,
            4096,
            4097,
            block - 1,
            block,
            block + 1,
            12 * block,
            12 * block + 1,
            65535,
            65536,
            65537,
            1 << 20,
            (1 << 20) + 1,
        }
    ):
        f("t/size/%07d" % size, rnd.randbytes(size))
    # Sparse files.  2000 single-block extents need a two-level extent tree.
    d("t/sparse")
    f("t/sparse/all-hole", [], size=5 * MIB)
    f("t/sparse/hole-head", [(MIB, b"head hole\n")])
    f("t/sparse/hole-tail", [(0, b"tail hole\n")], size=MIB + 7)
    f("t/sparse/hole-middle", [(0, rnd.randbytes(block)), (64 * block, rnd.randbytes(block))])
    f("t/sparse/zeros-not-hole", bytes(3 * block))
    f("t/sparse/over-2g", [(0, b"first"), (0x80000000, b"past 2 GiB"), (0x80000000 + 70 * MIB, b"last")])
    f("t/sparse/extents-0005", [(i * 2 * block, rnd.randbytes(block)) for i in range(5)])
    f("t/sparse/extents-0400", [(i * 2 * block, rnd.randbytes(block)) for i in range(400)])
    f("t/sparse/extents-2000", [(i * 2 * block, rnd.randbytes(block)) for i in range(2000)])
    f("t/sparse/unwritten", [(0, b"data then preallocated\n")], size=20 * block, prealloc=(4, 19))
    f("t/sparse/prealloc-past-eof", b"short\n", prealloc=(1, 31))
    # Hard links: same folder, another folder, many, one to a device.
    d("t/hard"), d("t/hard/other")
    f("t/hard/a", b"one inode, several names\n", 0o640, uid=1000, gid=1000)
    add("t/hard/b", "hard", target=b"t/hard/a")
    add("t/hard/other/c", "hard", target=b"t/hard/a")
    f("t/hard/many-000", b"many\n")
    for i in range(1, 200):
        add("t/hard/many-%03d" % i, "hard", target=b"t/hard/many-000")
    # Links: fast (< 60 bytes, in the inode), the edge, slow (a block), dangling, loop, absolute.
    d("t/link")
    for length in (1, 58, 59, 60, 61, 255, 1023, min(4095, block - 1)):
        unit = b"x" * 40 + b"/"
        add("t/link/len-%04d" % length, "link", 0o777, target=(unit * 200)[: length - 1] + b"y")
    add("t/link/absolute", "link", 0o777, target=b"/etc/hostname")
    add("t/link/dangling", "link", 0o777, target=b"no/such/name")
    add("t/link/self", "link", 0o777, target=b"self")
    add("t/link/up", "link", 0o777, target=b"../../../../../../../../etc/passwd")
    add("t/link/dir", "link", 0o777, target=b"../size")
    add("t/link/owned", "link", 0o777, target=b"../size", uid=4242, gid=4343)
    # Special files.
    d("t/dev")
    add("t/dev/null", "char", 0o666, rdev=(1, 3))
    add("t/dev/tty-big-minor", "char", 0o620, rdev=(4, 300), gid=5)
    add("t/dev/big-major", "char", 0o600, rdev=(511, 1048575))
    add("t/dev/mmcblk0p2", "block", 0o660, rdev=(179, 2), gid=6)
    add("t/dev/fifo", "fifo", 0o600, uid=33)
    add("t/dev/socket", "sock", 0o755)
    # Modes and owners.
    d("t/mode"), d("t/mode/sticky", 0o1777), d("t/mode/setgid", 0o2775, gid=50), d("t/mode/closed", 0)
    for mode in (0, 0o400, 0o600, 0o755, 0o4755, 0o2755, 0o6755, 0o1644, 0o7777):
        f(f"t/mode/{mode:04o}", b"mode\n", mode)
    f("t/mode/setuid-owned", b"#!/bin/true\n", 0o4755, uid=1000, gid=1000)
    f("t/mode/uid-65535", b"", uid=65535, gid=65535)
    f("t/mode/uid-65536", b"", uid=65536, gid=65536)
    f("t/mode/uid-big", b"", uid=0x12345678, gid=0xFEDCBA98)
    # Names.
    d("t/name")
    for name in (
        " ",
        " leading",
        "trailing ",
        "two  spaces",
        "tab\there",
        "quote'single",
        'quote"double',
        "back\\slash",
        "-dash",
        "~tilde",
        "#hash",
        "star*?[x]",
        "$HOME",
        "`cmd`",
        ";semi|pipe&",
        "..dots",
        "...",
        ".hidden",
        "colon:name",
        "percent%41",
        "<1>",
        "umlaut-äöü",
        "nfc-é",
        "nfd-e\u0301",
        "emoji-🥧",
        "日本語",
        "x" * 255,
        "é" * 127,
        "CON",
        "Case",
        "case",
    ):
        f("t/name/" + name, name.encode())
    f(b"t/name/latin1-\xe9\xff", b"not UTF-8\n")
    # Extended attributes: in the inode, in a block, shared blocks, ACLs, capabilities, on folders and links.
    d("t/xattr")
    f("t/xattr/small", b"", xattrs={"user.note": b"small"})
    f("t/xattr/empty-value", b"", xattrs={"user.empty": b""})
    f("t/xattr/binary", b"", xattrs={"user.bin": bytes(range(256))})
    f("t/xattr/block", b"x", xattrs={"user.big": rnd.randbytes(min(2000, block // 2))})
    f("t/xattr/both", b"x", xattrs={"user.a": b"in inode", "user.big": b"B" * min(1500, block // 2)})
    f("t/xattr/many", b"x", xattrs={"user.k%02d" % i: b"v%d" % i for i in range(24)})
    for i in range(3):
        f("t/xattr/shared-%d" % i, b"x", xattrs={"user.same": b"S" * 600})
    f("t/xattr/ping", b"\x7fELF not really", 0o755, xattrs={"security.capability": file_capability(1 << 13)})
    f("t/xattr/trusted", b"", xattrs={"trusted.overlay.origin": b"\0\xfb\x1d"})
    f(
        "t/xattr/acl",
        b"acl\n",
        0o674,
        xattrs={
            "system.posix_acl_access": posix_acl(
                [
                    (1, 6, 0xFFFFFFFF),
                    (2, 7, 1000),
                    (4, 4, 0xFFFFFFFF),
                    (8, 5, 2000),
                    (16, 7, 0xFFFFFFFF),
                    (32, 4, 0xFFFFFFFF),
                ]
            )
        },
    )
    acl = posix_acl([(1, 7, 0xFFFFFFFF), (2, 5, 1001), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF)])
    d(
        "t/xattr/acl-dir",
        0o775,
        xattrs={"system.posix_acl_access": acl, "system.posix_acl_default": acl, "user.dir": b"on a folder"},
    )
    # Times: nanoseconds, before 1970, past 2038, past 2106, ext4's last second (2446).
    d("t/time")
    for label, sec, nsec in (
        ("zero", 0, 0),
        ("nsec", epoch, 123456789),
        ("nsec-max", epoch, 999999999),
        ("y1901", -0x80000000, 0),
        ("y1969", -1, 500000000),
        ("y2038", 0x7FFFFFFF, 1),
        ("y2038b", 0x80000000, 0),
        ("y2106", 0x100000000, 7),
        ("y2446", 0x37FFFFFFF, 0),
    ):
        f(
            "t/time/" + label,
            label.encode(),
            mtime_ns=sec * 10**9 + nsec,
            atime_ns=sec * 10**9 + nsec,
            crtime_ns=sec * 10**9 + nsec,
        )
    d("t/time/dir", mtime_ns=1234567890 * 10**9 + 42)
    # Folders: htree with thousands of names, with deleted names, empty, deep.
    d("t/dir"), d("t/dir/empty"), d("t/dir/htree"), d("t/dir/htree-long")
    for i in range(3000):
        f("t/dir/htree/file-%05d" % i, b"%d\n" % i if i % 10 == 0 else b"")
    for i in range(400):
        f("t/dir/htree-long/%s-%03d" % ("n" * 240, i), b"")
    path = "t/dir/deep"
    d(path)
    for i in range(60):
        path += "/level-%02d" % i
        d(path)
    f(path + "/bottom", b"deep\n")
    # One real payload, compressible and not.
    f("var/lib/random.bin", rnd.randbytes(2 * MIB))
    f("var/log/text.log", b"".join(b"%d the quick brown fox\n" % i for i in range(60000)))
    return out


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


# ---------------------------------------------------------------- ext4


def quote(name):
    """A name for debugfs' command line."""
    return b'"' + name.replace(b'"', b'""') + b'"'


def ext4_time(ns):
    """(32-bit seconds as debugfs wants them, the *_extra word)."""
    sec, nsec = divmod(ns, 10**9)
    low = (sec + 0x80000000) % 0x100000000 - 0x80000000
    return low & 0xFFFFFFFF, nsec << 2 | ((sec - low) >> 32) & 3


def make_ext4(path, entries, label, size, block, features, stage, epoch, ident):
    """Make an ext4 image file from entries, without mounting it."""
    env = dict(
        os.environ,
        E2FSPROGS_FAKE_TIME=str(epoch),
        E2FSCK_TIME=str(epoch),
        SOURCE_DATE_EPOCH=str(epoch),
        TZ="UTC",
        MKE2FS_DETERMINISTIC="1",
        DEBUGFS_PAGER="cat",
    )
    with open(path, "wb") as f:
        f.truncate(size)
    argv = [
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        str(block),
        "-m",
        "0",
        "-L",
        label,
        "-U",
        str(ident),
        "-N",
        str(max(len(entries) * 5 // 4 + 1000, 2048)),
        "-E",
        "hash_seed={},lazy_itable_init=0,nodiscard".format(uuid.uuid5(ident, "hash")),
    ]
    if features:
        argv += ["-O", features]
    run(*argv, path, env=env)

    nlink, room = {}, {}
    for e in entries:
        if e.kind == "hard":
            nlink[e.target] = nlink.get(e.target, 1) + 1
            folder = e.path.rpartition(b"/")[0]
            room[folder] = room.get(folder, 0) + 12 + len(e.path) - len(folder)
    script, where, known = [], None, {b""}
    times = []
    for number, e in enumerate(entries):
        folder, _, name = e.path.rpartition(b"/")
        if folder not in known:
            sys.exit(f"no folder for {e.path!r}")
        if folder != where:
            script.append(b"cd " + quote(b"/" + folder))
            where = folder
        q = quote(name)
        if name.startswith(b"<"):  # debugfs reads <N> as an inode number
            q = quote(b"./" + name)
        if e.kind == "dir":
            known.add(e.path)
            script.append(b"mkdir " + q)
        elif e.kind == "file":
            host = e.data
            if not isinstance(host, str):
                host = os.path.join(stage, "f%07d" % number)
                with open(host, "wb") as f:
                    for offset, chunk in [(0, e.data)] if isinstance(e.data, bytes) else e.data or []:
                        f.seek(offset)
                        f.write(chunk)
                    f.truncate(e.size)
            script.append(b"write " + quote(host.encode()) + b" " + q)
        elif e.kind == "link":
            script.append(b"symlink " + q + b" " + quote(e.target))
        elif e.kind == "hard":
            for _ in range(1 + room.pop(folder, -1) // (block // 2)):  # ln does not grow a folder
                script.append(b"expand_dir .")
            script.append(b"ln " + quote(b"/" + e.target) + b" " + q)
            continue
        elif e.kind in ("char", "block"):
            major, minor = e.rdev
            big = major > 255 or minor > 255  # past debugfs' own limits: new encoding, second word
            script.append(b"mknod %s %s %d %d" % (q, e.kind[:1].encode(), *((0, 0) if big else e.rdev)))
            if big:
                word = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
                script.append(b"sif " + q + b" block[1] %d" % (word & 0xFFFFFFFF))
        else:  # debugfs makes no sockets: fifo, then the mode
            script.append(b"mknod " + q + b" p")
        sif = b"sif " + q + b" "
        fmt = {
            "dir": stat.S_IFDIR,
            "file": stat.S_IFREG,
            "link": stat.S_IFLNK,
            "char": stat.S_IFCHR,
            "block": stat.S_IFBLK,
            "fifo": stat.S_IFIFO,
            "sock": stat.S_IFSOCK,
        }[e.kind]
        script.append(sif + b"mode 0%o" % (fmt | e.mode))
        if e.uid:
            script.append(sif + b"uid %d" % e.uid)
        if e.gid:
            script.append(sif + b"gid %d" % e.gid)
        if e.path in nlink:
            script.append(sif + b"links_count %d" % nlink[e.path])
        if e.prealloc and not re.search(r"\^extent|inline_data", features):  # both preclude unwritten blocks
            script.append(b"fallocate %s %d %d" % (q, *e.prealloc))
        for i, (key, value) in enumerate(sorted(e.xattrs.items())):
            host = os.path.join(stage, "x%07d.%d" % (number, i))
            with open(host, "wb") as f:
                f.write(value)
            script.append(b"ea_set -f " + quote(host.encode()) + b" " + q + b" " + quote(key.encode()))
        # Folders last and deepest first does not matter here: debugfs' own
        # changes do not touch a parent's times, but keep all times together.
        for field, ns in (("mtime", e.mtime_ns), ("atime", e.atime_ns), ("crtime", e.crtime_ns)):
            if ns is None:
                continue
            low, extra = ext4_time(ns)
            times.append((folder, sif + b"%s @%d" % (field.encode(), low)))
            times.append((folder, sif + b"%s_extra %d" % (field.encode(), extra)))
    for folder, line in times:
        if folder != where:
            script.append(b"cd " + quote(b"/" + folder))
            where = folder
        script.append(line)
    command = os.path.join(stage, "debugfs.cmd")
    with open(command, "wb") as f:
        f.write(b"\n".join(script) + b"\n")
    output = run("debugfs", "-w", "-f", command, path, env=env)
    bad = [
        line
        for line in output.splitlines()
        if line and not line.startswith((b"debugfs:", b"debugfs ", b"Allocated inode"))
    ]
    if bad:
        sys.exit("debugfs complained:\n" + b"\n".join(bad[:20]).decode(errors="replace"))
    # -D builds the hash trees of large folders; 1 = "errors corrected" (socket type in its folder entry).
    run("e2fsck", "-f", "-y", "-D", path, env=env, ok=(0, 1))
    run("e2fsck", "-f", "-n", path, env=env)


# ---------------------------------------------------------------- boot partition


def private_apt(cache, arch):
    """apt-get options for a private state folder of another architecture."""
    base = os.path.join(cache, "apt-" + arch)
    for name in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(base, name), exist_ok=True)
    sources, status = os.path.join(base, "sources.list"), os.path.join(base, "status")
    with open(sources, "w") as f:
        f.write(f"deb [signed-by={KEYRING} arch={arch}] {MIRROR} {SUITE} main non-free-firmware\n")
    open(status, "a").close()
    opts = [
        "-oDir::Etc::sourcelist=" + sources,
        "-oDir::Etc::sourceparts=-",
        "-oDir::State::Lists=" + base + "/lists",
        "-oDir::Cache=" + base + "/cache",
        "-oDir::State::status=" + status,
        "-oAPT::Architecture=" + arch,
        "-oAPT::Architectures=" + arch,
    ]
    if not os.path.exists(base + "/updated"):
        run("apt-get", *opts, "update")
        open(base + "/updated", "w").close()
    return opts


def debian_package(cache, name, arch):
    """Download (once) and unpack (once) a Debian package; return the folder."""
    target = os.path.join(cache, "unpacked", name + "_" + arch)
    if os.path.isdir(target):
        return target
    debs = os.path.join(cache, "debs")
    os.makedirs(debs, exist_ok=True)
    opts = private_apt(cache, arch)
    if name.endswith("-arm64") and name.count("-") == 2:  # linux-image-arm64: follow its dependency
        text = run("apt-cache", *opts, "show", name).decode()
        name = re.search(r"^Depends: (linux-image-[^ ,]+)", text, re.M).group(1)
    run("apt-get", *opts, "download", name, cwd=debs)
    deb = max((os.path.join(debs, n) for n in os.listdir(debs) if n.startswith(name + "_")), key=os.path.getmtime)
    part = target + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    run("dpkg-deb", "-x", deb, part)
    os.rename(part, target)
    return target


def first(folder, pattern):
    """The first file under folder whose relative path matches the pattern."""
    for base, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            full = os.path.join(base, name)
            if re.fullmatch(pattern, os.path.relpath(full, folder)):
                return full
    sys.exit(f"nothing like {pattern} in {folder}")


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
        line = f"console=serial0,115200 console=tty1 root=PARTUUID={ids['p2']} rootfstype=ext4 fsck.repair=yes rootwait quiet"
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


# ---------------------------------------------------------------- disk image


def copy_sparse(src, dst_fd, offset):
    """Copy a file to an offset of another, holes staying holes."""
    with open(src, "rb") as f:
        fd, end, pos = f.fileno(), os.fstat(f.fileno()).st_size, 0
        while pos < end:
            try:
                pos = os.lseek(fd, pos, os.SEEK_DATA)
            except OSError:
                break
            stop = os.lseek(fd, pos, os.SEEK_HOLE)
            while pos < stop:
                n = os.copy_file_range(fd, dst_fd, min(stop - pos, 64 * MIB), pos, offset + pos)
                if n == 0:
                    break
                pos += n


def assemble(path, fat, ext4, gpt, ids, start):
    """Write the partition table and both partitions."""
    fat_size, ext4_size = os.path.getsize(fat), os.path.getsize(ext4)
    total = start + fat_size + ext4_size + (MIB if gpt else 0)
    with open(path, "wb") as f:
        f.truncate(total)
    s = [start // 512, fat_size // 512, (start + fat_size) // 512, ext4_size // 512]
    if gpt:
        script = (
            "label: gpt\nlabel-id: %s\nfirst-lba: 34\n"
            'start=%d, size=%d, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, uuid=%s, name="system-boot"\n'
            'start=%d, size=%d, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=%s, name="writable"\n'
            % (ids["disk"], s[0], s[1], ids["p1"], s[2], s[3], ids["p2"])
        )
    else:
        script = "label: dos\nlabel-id: 0x%s\nstart=%d, size=%d, type=c, bootable\nstart=%d, size=%d, type=83\n" % (
            ids["disk"],
            *s,
        )
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, input=script.encode())
    with open(path, "r+b") as f:
        copy_sparse(fat, f.fileno(), start)
        copy_sparse(ext4, f.fileno(), start + fat_size)
    return start, start + fat_size, total


def sha256_file(path):
    """SHA-256 of a file; holes are hashed without being read."""
    h, zero = hashlib.sha256(), bytes(MIB)
    with open(path, "rb", 0) as f:
        end, pos = os.fstat(f.fileno()).st_size, 0
        while pos < end:
            try:
                data = os.lseek(f.fileno(), pos, os.SEEK_DATA)
            except OSError:
                data = end
            for n in range(pos, data, MIB):
                h.update(zero[: min(MIB, data - n)])
            pos = data
            try:
                stop = os.lseek(f.fileno(), pos, os.SEEK_HOLE) if pos < end else end
            except OSError:  # ENOENT on ext4 inline-data files
                stop = end
            while pos < stop:
                chunk = os.pread(f.fileno(), min(MIB, stop - pos), pos)
                if not chunk:
                    raise OSError(f"{path} shrank while being read")
                h.update(chunk)
                pos += len(chunk)
    return h.hexdigest()


def compress(image, args):
    """Make the wanted compressed forms; return their paths."""
    out = []

    def to_file(argv, name):
        with open(name, "wb") as f:
            subprocess.run(argv, stdout=f, check=True)
        out.append(name)

    if args.xz in ("single", "both"):
        to_file(["xz", "-T1", "-%d" % args.level, "-c", image], image + ".xz")
    if args.xz == "multi":
        to_file(["xz", "-T0", "--block-size=16MiB", "-%d" % args.level, "-c", image], image + ".xz")
    if args.xz == "both":
        folder = os.path.join(os.path.dirname(image), "multi")
        os.makedirs(folder, exist_ok=True)
        to_file(
            ["xz", "-T0", "--block-size=16MiB", "-%d" % args.level, "-c", image],
            os.path.join(folder, os.path.basename(image) + ".xz"),
        )
    for kind in args.also:
        if kind == "zst":
            to_file(["zstd", "-q", "-T0", "-10", "-c", image], image + ".zst")
        elif kind == "gz":
            to_file(["gzip", "-n", "-6", "-c", image], image + ".gz")
        elif kind == "zip":
            os.utime(image, (args.epoch, args.epoch))
            name = image[:-4] + ".zip"
            if os.path.exists(name):
                os.unlink(name)
            run("zip", "-q", "-X", "-j", name, image, env=dict(os.environ, TZ="UTC"))
            out.append(name)
    return out


def sign(path, keyring_out, cache):
    """Detached, armoured signature by a throw-away key kept in the cache."""
    home = os.path.join(cache, "gnupg")
    if not os.path.isdir(home):
        os.makedirs(home, 0o700)
        run(
            "gpg",
            "--homedir",
            home,
            "--batch",
            "--passphrase",
            "",
            "--quick-generate-key",
            "Throw-away test key <test@invalid>",
            "ed25519",
            "sign",
            "never",
        )
    run("gpg", "--homedir", home, "--batch", "--yes", "--armor", "--output", path + ".gpg", "--detach-sign", path)
    with open(keyring_out, "wb") as f:
        subprocess.run(["gpg", "--homedir", home, "--export"], stdout=f, check=True)
    run("gpgconf", "--homedir", home, "--kill", "all")


# ---------------------------------------------------------------- manifests


def root_manifest(image, offset, size, out):
    """Walk the loop-mounted ext4 and write what the kernel says, one JSON object a line."""
    where = tempfile.mkdtemp(prefix="netbootd-image-")
    run(
        "mount",
        "-t",
        "ext4",
        "-o",
        "loop,ro,noload,nodev,nosuid,noexec,offset=%d,sizelimit=%d" % (offset, size),
        image,
        where,
    )
    count = 0
    try:
        groups = {}
        with open(out, "w") as f:
            root = os.fsencode(where)
            stack = [b""]
            while stack:
                rel = stack.pop()
                full = root + b"/" + rel if rel else root
                st = os.lstat(full)
                kind = {
                    stat.S_IFDIR: "dir",
                    stat.S_IFREG: "file",
                    stat.S_IFLNK: "link",
                    stat.S_IFCHR: "char",
                    stat.S_IFBLK: "block",
                    stat.S_IFIFO: "fifo",
                    stat.S_IFSOCK: "sock",
                }[stat.S_IFMT(st.st_mode)]
                row = {
                    "path": os.fsdecode(rel),
                    "type": kind,
                    "mode": f"{stat.S_IMODE(st.st_mode):04o}",
                    "uid": st.st_uid,
                    "gid": st.st_gid,
                    "mtime_ns": st.st_mtime_ns,
                    "nlink": st.st_nlink,
                }
                if kind in ("file", "link"):
                    row["size"] = st.st_size
                if kind == "file":
                    row["blocks512"] = st.st_blocks
                    row["sha256"] = sha256_file(full)
                if kind == "link":
                    row["target"] = os.fsdecode(os.readlink(full))
                if kind in ("char", "block"):
                    row["rdev"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
                if kind != "dir" and st.st_nlink > 1:
                    row["hardlink"] = groups.setdefault(st.st_ino, os.fsdecode(rel))
                names = os.listxattr(full, follow_symlinks=False)
                if names:
                    row["xattrs"] = {n: os.getxattr(full, n, follow_symlinks=False).hex() for n in sorted(names)}
                f.write(json.dumps(row) + "\n")
                count += 1
                if kind == "dir":
                    stack += [rel + b"/" + n if rel else n for n in sorted(os.listdir(full), reverse=True)]
    finally:
        run("umount", where)
        os.rmdir(where)
    return count


def fat_manifest(image, offset, out, stage):
    """What mtools reads from the FAT partition, one JSON object a line."""
    tree = os.path.join(stage, "fat-read")
    os.makedirs(tree)
    env = dict(os.environ, TZ="UTC", MTOOLS_SKIP_CHECK="1", LC_ALL="C.UTF-8")
    run("mcopy", "-s", "-m", "-Q", "-i", "%s@@%d" % (image, offset), "::*", tree, env=env)
    with open(out, "w") as f:
        for base, dirs, names in os.walk(tree):
            dirs.sort()
            for name in sorted(dirs + names):
                full = os.path.join(base, name)
                st = os.lstat(full)
                row = {"path": os.path.relpath(full, tree), "type": "dir" if name in dirs else "file"}
                if name in names:
                    row.update(size=st.st_size, mtime=int(st.st_mtime), sha256=sha256_file(full))
                f.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------- root file systems


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


def sort_entries(entries):
    """Parents before children, hard links after everything; duplicates: the last wins."""
    unique = {e.path: e for e in entries}
    return sorted(unique.values(), key=lambda e: (e.kind == "hard", e.path.split(b"/")))


def image_name(args):
    if args.name:
        return args.name, "."
    if args.flavour == "raspios":
        return "2025-10-01-raspios-trixie-arm64-lite.img", "raspios_lite_arm64/images/raspios_lite_arm64-2025-10-02"
    release, version = ("resolute", "26.04") if args.flavour == "ubuntu-ab" else ("noble", "24.04.3")
    return (f"ubuntu-{version}-preinstalled-server-arm64+raspi.img", f"releases/{release}/release")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, help="output folder (a mirror tree is made in it)")
    p.add_argument("--cache", required=True, help="downloads, root tars and the signing key are kept here")
    p.add_argument("--root", default="tiny", help="tiny, amd64, arm64 or a .tar")
    p.add_argument(
        "--flavour",
        default="ubuntu",
        choices=("ubuntu", "ubuntu-ab", "raspios"),
        help="ubuntu: the 24.04 layout; ubuntu-ab: 25.10 and later (current/, tryboot)",
    )
    p.add_argument(
        "--boot",
        default="debian",
        choices=("debian", "synthetic"),
        help="debian: real firmware and arm64 kernel (67 MB download); synthetic: stand-ins",
    )
    p.add_argument("--gpt", action="store_true", help="GPT instead of MBR")
    p.add_argument("--boot-mib", type=int, default=256)
    p.add_argument("--root-mib", type=int, default=0, help="size of the root partition; 0: as needed")
    p.add_argument("--block-size", type=int, default=4096, choices=(1024, 2048, 4096))
    p.add_argument(
        "--mkfs-features", default="", help="for mke2fs -O, e.g. inline_data or ^64bit,^metadata_csum,^extents"
    )
    p.add_argument("--filler-files", type=int, default=0)
    p.add_argument("--filler-mib", type=int, default=0)
    p.add_argument("--packages", default="", help="more packages for amd64/arm64, comma separated")
    p.add_argument("--xz", default="single", choices=("single", "multi", "both", "none"))
    p.add_argument("--level", type=int, default=6, help="xz level")
    p.add_argument("--also", default=[], type=lambda s: [x for x in s.split(",") if x], help="of zst,gz,zip")
    p.add_argument("--sign", action="store_true", help="SHA256SUMS.gpg by a throw-away key")
    p.add_argument("--no-root-manifest", action="store_true")
    p.add_argument("--firstboot", action="store_true", help="raspios: init=... on the command line (as older images)")
    p.add_argument("--seedfiles", action="store_true", help="raspios: with cloud-init seed files (trixie)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--name", default="", help=argparse.SUPPRESS)
    args = p.parse_args()
    args.epoch = int(os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH))
    args.cache, args.out = os.path.abspath(args.cache), os.path.abspath(args.out)
    os.makedirs(args.cache, exist_ok=True)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    os.umask(0o022)

    base = uuid.uuid5(NAMESPACE, "%d-%s-%s" % (args.seed, args.root, args.flavour))
    if args.gpt:
        ids = {k: str(uuid.uuid5(base, k)) for k in ("disk", "p1", "p2")}
    else:
        disk = "%08x" % (zlib.crc32(base.bytes) | 1)
        ids = {"disk": disk, "p1": disk + "-01", "p2": disk + "-02"}
    name, folder = image_name(args)
    target = os.path.join(args.out, folder)
    os.makedirs(target, exist_ok=True)
    image = os.path.join(target, name)
    labels = ("bootfs", "rootfs") if args.flavour == "raspios" else ("system-boot", "writable")
    features = args.mkfs_features or ("^64bit,^huge_file" if args.flavour == "raspios" else "")

    with tempfile.TemporaryDirectory(prefix="work-", dir=args.cache) as stage:
        with open(os.path.join(args.cache, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if args.root == "tiny":
                entries = tiny_root(args.epoch, args.seed, args.block_size)
            else:
                tar = args.root if args.root.endswith(".tar") else bootstrap(args, args.root)
                log("root tar ready")
                entries = tar_root(tar, stage)
            entries = finish_root(entries, args, ids)
            entries += filler(args.epoch, args.seed, args.filler_files, args.filler_mib)
            entries = sort_entries(entries)
            files = boot_files(args, root_boot_assets(entries), ids)
        log("%d entries, %d boot files" % (len(entries), len(files)))
        data = sum(
            sum(len(c) + args.block_size for _, c in e.data)
            if isinstance(e.data, list)
            else -(-e.size // args.block_size) * args.block_size
            for e in entries
            if e.kind == "file" and e.data is not None
        )
        size = args.root_mib * MIB or -(-(data * 112 // 100 + len(entries) * 700 + 48 * MIB) // (4 * MIB)) * 4 * MIB
        fat, ext4 = os.path.join(stage, "p1"), os.path.join(stage, "p2")
        make_ext4(ext4, entries, labels[1], size, args.block_size, features, stage, args.epoch, base)
        log("ext4 done: %d MiB" % (size // MIB))
        make_fat(fat, files, labels[0], args.boot_mib * MIB, zlib.crc32(base.bytes + b"fat"), stage, args.epoch)
        log("FAT done")
        start = {"raspios": 8 * MIB}.get(args.flavour, MIB)
        p1, p2, total = assemble(image, fat, ext4, args.gpt, ids, start)
        log("image done: %d MiB" % (total // MIB))
        fat_manifest(image, p1, image + ".boot.jsonl", stage)
    if not args.no_root_manifest:
        n = root_manifest(image, p2, size, image + ".root.jsonl")
        log("manifest: %d entries" % n)
    made = compress(image, args)
    log("compressed: " + ", ".join(f"{os.path.basename(m)} {os.path.getsize(m) / MIB:.1f} MiB" for m in made))
    sums = {}
    for path in [image, *made]:
        digest = sha256_file(path)
        sums.setdefault(os.path.dirname(path), []).append((digest, os.path.basename(path)))
        with open(path + ".sha256", "w") as f:  # the form Raspberry Pi OS uses
            f.write(f"{digest}  {os.path.basename(path)}\n")
    for where, rows in sums.items():  # the form Ubuntu uses
        with open(os.path.join(where, "SHA256SUMS"), "w") as f:
            f.writelines("{} *{}\n".format(*row) for row in rows)
        if args.sign:
            sign(os.path.join(where, "SHA256SUMS"), os.path.join(args.out, "keyring.gpg"), args.cache)
    extract = sums[target][0][0]
    catalogue = {
        "os_list": [
            {
                "name": name,
                "description": "test image",
                "url": folder + "/" + os.path.basename(path),
                "extract_size": total,
                "extract_sha256": extract,
                "image_download_size": os.path.getsize(path),
                "image_download_sha256": digest,
                "release_date": time.strftime("%Y-%m-%d", time.gmtime(args.epoch)),
                "init_format": "cloudinit-rpi"
                if args.flavour == "raspios" and args.seedfiles
                else "systemd"
                if args.flavour == "raspios"
                else "cloudinit",
                "devices": ["pi5-64bit", "pi4-64bit", "pi3-64bit"],
            }
            for path in made
            if os.path.dirname(path) == target
            for digest in [sha256_file(path)]
        ]
    }
    with open(os.path.join(args.out, "os_list_imagingutility_v4.json"), "w") as f:
        json.dump(catalogue, f, indent=1)
    with open(image + ".layout.json", "w") as f:
        json.dump(
            {
                "table": "gpt" if args.gpt else "dos",
                "ids": ids,
                "labels": labels,
                "size": total,
                "p1": [p1, p2 - p1],
                "p2": [p2, size],
                "sha256": extract,
            },
            f,
            indent=1,
        )
    log("all done: " + target)


if __name__ == "__main__":
    main()
