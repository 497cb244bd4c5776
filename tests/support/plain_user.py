"""netbootd's command line as a plain user has it: ``python -m tests.support.plain_user UID WORD…``, started by root.

Everything is imported first, since the checkout and Python itself may lie where only their owner gets (``/root``, a
home folder); then all rights go, for good. Dies with its parent, as every program of a test.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings
import importlib
import os
import pkgutil
import signal
import sys

import netbootd
from netbootd.cli.main import main as program

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # include/uapi/linux/prctl.h


def main(uid: int, words: list[str]) -> None:
    for module in pkgutil.walk_packages(netbootd.__path__, "netbootd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for module in pkgutil.iter_modules(encodings.__path__, "encodings."):
        with contextlib.suppress(ImportError):  # those of Windows
            importlib.import_module(module.name)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)  # the change of the user has cleared it
    program(words)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
