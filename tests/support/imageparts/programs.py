# ruff: noqa: UP031
"""Running programs for the test images, and hashing what they made."""

import hashlib
import os
import subprocess
import sys
import time

MIB = 1 << 20


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
