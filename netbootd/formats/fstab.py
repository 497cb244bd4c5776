"""Takes local file systems out of an fstab(5), which a node without a disk would wait for in vain.

Kept are comments, blank lines, what the kernel makes from nothing (proc, tmpfs, binds) and file systems of the network.
"""

from __future__ import annotations

import re

# Everything that names a disk: a tag of libblkid, or a device node other than those that stand for no disk.
_TAG = re.compile(r"\"?(?:LABEL|UUID|PARTLABEL|PARTUUID|ID)=", re.IGNORECASE)
_NO_DISK = {"/dev/shm", "/dev/pts", "/dev/mqueue", "/dev/hugepages"}  # noqa: S108


def without_disks(text: str) -> str:
    """The fstab without its lines for disks, partitions, swap and the root; all other lines stay as they are."""
    return "".join(line for line in text.splitlines(keepends=True) if not _is_local(line))


def _is_local(line: str) -> bool:
    fields = line.split()
    if len(fields) < 2 or fields[0].startswith("#"):
        return False
    source, target, kind = fields[0], fields[1], fields[2] if len(fields) > 2 else ""
    return (
        kind == "swap"
        or target in ("/", "none", "swap")  # the root is mounted by the initramfs; what has no place is swap
        or is_disk(source)
    )


def is_disk(source: str) -> bool:
    """Whether this names a disk or partition: fstab's first field, or `What=` of a mount unit (systemd.mount(5))."""
    return bool(_TAG.match(source)) or (source.startswith("/dev/") and source not in _NO_DISK)
