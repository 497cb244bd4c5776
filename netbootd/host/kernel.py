"""What the kernel that runs can do, as far as it tells without being asked to do it."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def has_nfs_server(root: Path = Path("/"), release: str = "") -> bool:
    """Whether the kernel has an NFS server, loaded, built in or as a module (proc(5), modules.dep(5)).

    :param root: where proc and lib/modules are
    :param release: of the kernel; "" is the one that runs
    """
    if re.search(r"\bnfsd$", _text(root / "proc/filesystems"), re.MULTILINE):
        return True
    modules = root / "lib/modules" / (release or platform.release())
    names = _text(modules / "modules.dep") + _text(modules / "modules.builtin")
    return re.search(r"^\S*/nfsd\.ko(\.\w+)?(:|$)", names, re.MULTILINE) is not None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
