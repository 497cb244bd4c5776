"""Makes the secrets that ``${file:…}`` hands to nodes: a cluster's join token, for one."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from netbootd.errors import HostError

OCTETS = 32
"""Random octets of a secret; it is written as twice as many hex digits and a line break."""


def mint(path: Path) -> bool:
    """Make a secret at `path`, for its owner alone; False if there is a file, which stays as it is.

    It appears whole or not at all. Folders that lack are made, for the owner alone as well.

    :raises HostError: it can't be written, or what is there is no file
    """
    if path.is_file():
        return False
    if path.exists():
        raise HostError(f"Making the secret {path}: there is something else of that name.", hint="Choose another.")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{secrets.token_hex(OCTETS)}\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)
        except FileExistsError:
            return False
        finally:
            Path(name).unlink()
    except OSError as error:
        raise HostError(f"Making the secret {path}: {error.strerror or error}.") from error
    return True
