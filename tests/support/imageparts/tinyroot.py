# ruff: noqa: UP031
"""A few thousand names that meet every case an ext4 reader must know."""

import random

from tests.support.imageparts.entries import Entry, file_capability, posix_acl
from tests.support.imageparts.programs import MIB


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
