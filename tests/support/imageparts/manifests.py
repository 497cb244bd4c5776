# ruff: noqa: UP031
"""The truth about a test image: what the kernel says of its root, and mtools of its boot partition."""

import json
import os
import stat
import tempfile

from tests.support.imageparts.loop import loop_mounted
from tests.support.imageparts.programs import run, sha256_file


def root_manifest(image, offset, size, out):
    """Walk the loop-mounted ext4 and write what the kernel says, one JSON object a line."""
    where = tempfile.mkdtemp(prefix="netbootd-image-")
    count = 0
    options = "ro,noload,nodev,nosuid,noexec,offset=%d,sizelimit=%d" % (offset, size)
    with loop_mounted(image, where, options):
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
