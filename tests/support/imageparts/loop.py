"""The kernel's own mount of an image, where the tests want its word. Needs root."""

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

_TRIES = 12


@contextmanager
def loop_mounted(image, where, options):
    """Mount an image of an ext4 file system on the folder `where`, which is made if need be; gives `where`.

    A loop device is let go of some time after its unmount, and another program may take it between mount(8)'s choice of
    one and its use: that is told as busy, and tried again.
    """
    Path(where).mkdir(exist_ok=True)
    argv = ["mount", "-t", "ext4", "-o", f"loop,{options}", os.fspath(image), os.fspath(where)]
    for left in reversed(range(_TRIES)):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            break
        if not left or "busy" not in done.stderr:
            raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stderr}")
        time.sleep(0.25)
    try:
        yield where
    finally:
        subprocess.run(["umount", os.fspath(where)], check=True, timeout=60)
