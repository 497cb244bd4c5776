# ruff: noqa: UP031
"""An ext4 image file of entries, filled by debugfs in a fixed order: never mounted, the same bytes each time."""

import os
import re
import stat
import sys
import uuid

from tests.support.imageparts.programs import run


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
