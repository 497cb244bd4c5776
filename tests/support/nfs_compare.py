"""Runs within a virtual machine, as root: one tree as its own disk shows it, and over NFS as two servers do.

``python3 nfs_compare.py ROOT OWN_STATE``: ROOT, a generation's root, is mounted from the kernel's server by NFSv3 and
NFSv4.2, and from an embedded server of its own (state folder OWN_STATE, port 12049) by NFSv3. Every entry is compared:
type, mode, owner, links, size, device numbers, times, inode number, ACL, content. Each mount goes through
nfs_special.py, which lies beside this file. Then the privileged part and the service are killed while a file is read.
Prints JSON. Standard library only: it is not netbootd that runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OWN_PORT = 12049
_ACL = "system.posix_acl_access"
_MANY = 100
_WHOLE, _PIECE = 64 << 20, 1 << 20
_V3 = "vers=3,nolock,proto=tcp,addr=127.0.0.1"


def entry(path: str, with_acl: bool) -> dict[str, Any]:
    """What a client sees of one path."""
    status = os.lstat(path)
    names = ("st_mode", "st_uid", "st_gid", "st_nlink", "st_size", "st_rdev", "st_mtime_ns", "st_ctime_ns", "st_ino")
    found: dict[str, Any] = {name: getattr(status, name) for name in names}
    if stat.S_ISREG(status.st_mode):
        found["content"] = digest_of(path, status.st_size)
    elif stat.S_ISLNK(status.st_mode):
        found["target"] = os.fsencode(os.readlink(path)).hex()
    if with_acl and not stat.S_ISLNK(status.st_mode):
        try:
            found["acl"] = os.getxattr(path, _ACL, follow_symlinks=False).hex()
        except OSError:
            found["acl"] = ""
    return found


def digest_of(path: str, size: int) -> str:
    """Of the whole content; of a huge (sparse) file, of pieces around what could go wrong: its ends, 4 GiB, 2 GiB."""
    with open(path, "rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for place in (0, (2 << 30) - _PIECE, (4 << 30) - _PIECE, size // 2, size - 2 * _PIECE):
            file.seek(max(0, place))
            digest.update(file.read(2 * _PIECE))
        return digest.hexdigest()


def view(root: str, with_acl: bool) -> dict[str, dict[str, Any]]:
    """Everything below a folder, by path; of a folder with many entries every name, and each twentieth entry."""
    found = {".": entry(root, with_acl)}
    for folder, folders, files in os.walk(root):
        names = sorted(folders + files)
        step = 1 if len(names) <= _MANY else 20
        for number, name in enumerate(names):
            path = os.path.join(folder, name)
            key = os.fsencode(os.path.relpath(path, root)).hex()
            found[key] = {} if number % step else entry(path, with_acl)
    return found


def tellable(field: str, value: Any, version: int) -> bool:
    """NFSv3 has times from 1970 to 2106 (nfstime3, RFC 1813 section 2.5); other ones each server makes something of."""
    return version > 3 or not field.endswith("time_ns") or 0 <= value < 1_000_000_000 << 32


def differences(expected: dict[str, Any], seen: dict[str, Any], version: int) -> list[str]:
    found = [f"only one has {bytes.fromhex(key)!r}" for key in sorted((set(expected) ^ set(seen)) - {"."})]
    for key in sorted(set(expected) & set(seen)):
        name = "." if key == "." else bytes.fromhex(key).decode(errors="replace")
        found += [
            f"{name}: {field} is {seen[key].get(field)!r}, not {value!r}"
            for field, value in expected[key].items()
            if field in seen[key] and seen[key][field] != value and tellable(field, value, version)
        ]
    return found


def mounted(place: str, kind: str, source: str, options: str) -> str:
    os.makedirs(place, exist_ok=True)
    # without mount.nfs, which the machine doesn't have: the kernel asks MOUNT itself
    subprocess.run(["mount", "-i", "-t", kind, "-o", f"rw,{options}", f"127.0.0.1:{source}", place], check=True)
    return place


def special(local: str, place: str) -> Any:
    script = Path(__file__).with_name("nfs_special.py")
    done = subprocess.run([sys.executable, script, local, place], capture_output=True, text=True)
    return json.loads(done.stdout) if done.stdout else {"differences": [done.stderr], "refused": {}}


def as_user(uid: int, path: str) -> int:
    """The exit status of cat(1) run by a user."""
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "cat", path]
    return subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def active() -> str:
    units = ["netbootd-nfs.service", "netbootd.service"]
    return " ".join(subprocess.run(["systemctl", "is-active", *units], capture_output=True, text=True).stdout.split())


def killed_while_reading(big: str, before: str) -> dict[str, Any]:
    """The digest of a file that is read while both processes die, and what is active afterwards."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    digest = hashlib.sha256()
    with open(big, "rb") as file:
        digest.update(file.read(4096))
        units = ["netbootd-nfs.service", "netbootd.service"]
        subprocess.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", *units], check=True)
        while piece := file.read(1 << 20):
            digest.update(piece)
    deadline = time.monotonic() + 90
    while active() != "active active" and time.monotonic() < deadline:
        time.sleep(0.5)
    return {"same": digest.hexdigest() == before, "units": active()}


def main(root: str, own: str) -> None:
    own_root = root.replace("/var/lib/netbootd/images", f"{own}/images")
    told: dict[str, Any] = {}
    expected = view(root, True)
    told["entries"] = len(expected)
    places = {
        "kernel, NFSv3": (mounted("/run/m3", "nfs", root, _V3), True),
        "kernel, NFSv4.2": (mounted("/run/m4", "nfs4", root, "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1"), False),
        "embedded, NFSv3": (
            mounted("/run/own3", "nfs", own_root, f"{_V3},port={OWN_PORT},mountport={OWN_PORT}"),
            True,
        ),
    }
    told["differences"] = {
        name: differences(expected, view(place, with_acl), 3 if with_acl else 4)[:20]
        for name, (place, with_acl) in places.items()
    }
    told["shadow"] = {
        name: [as_user(uid, f"{place}/etc/shadow") for uid in (0, 1000)] for name, (place, _) in places.items()
    }
    told["special"] = {name: special(root, place) for name, (place, _) in places.items()}
    told["clients"] = [path.read_text() for path in Path("/proc/fs/nfsd/clients").glob("*/info")]
    files = [row for row in expected.items() if "content" in row[1] and row[1]["st_size"] <= _WHOLE]
    largest = max(files, key=lambda row: row[1]["st_size"])
    path = os.fsdecode(bytes.fromhex(largest[0]))
    told["killed"] = killed_while_reading(f"/run/m3/{path}", largest[1]["content"])
    for place, _ in places.values():
        subprocess.run(["umount", place], check=True)
    mounted("/run/again", "nfs", root, _V3)
    told["mounted again"] = sorted(os.listdir("/run/again")) == sorted(os.listdir(root))
    subprocess.run(["umount", "/run/again"], check=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
