"""SSH host keys of nodes: made once by the server, so that a node whose root lives in memory keeps its identity.

They lie in ``db/host-keys/<id>/`` under the names that sshd(8) gives them, readable by the service alone, and are
handed to the node that they belong to in its vendor-data. There is one of each type that cloud-init reports when it
phones home: it warns of those that are missing (cloudinit/config/cc_phone_home.py).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from netbootd.errors import HostError

_PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# As ssh-keygen -A makes them (its defaults since OpenSSH 8.0).
_MAKERS: dict[str, Callable[[], _PrivateKey]] = {
    "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=3072),
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}
_ID = re.compile(r"[0-9a-f]{8}\Z|(?:[0-9a-f]{2}-){5}[0-9a-f]{2}\Z")
_MAX_BYTES = 1 << 16
NODES_KEPT = 4096
"""Keys are made for so many nodes: with tokens in use, whoever makes up serials could fill the disk otherwise."""


class HostKeys:
    """The keys of all nodes below one folder, which is made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, ident: str) -> Mapping[str, tuple[str, str]]:
        """The keys of a node by type (``ed25519``): private in OpenSSH's format, and public. Made where there are none.

        Takes some tenths of a second then; may be called from several threads and processes.

        :param ident: the node's ``<id>``: serial, or MAC with dashes
        :raises HostError: they can't be read or written
        """
        if not _ID.match(ident):
            raise ValueError(f"not a serial number or MAC address: {ident!r}")
        folder = self._folder / ident
        try:
            if not folder.is_dir():
                self._make(folder)
            return {kind: _read(folder, kind) for kind in _MAKERS}
        except HostError:
            raise
        except FileNotFoundError as error:
            raise HostError(
                f"The SSH host keys in {folder} are not whole: {error.filename} is missing.",
                hint="Delete the folder, and new ones are made; known_hosts files then have to learn them.",
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HostError(f"The SSH host keys in {folder} can't be read or made: {reason}.") from error

    def _make(self, folder: Path) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sum(1 for _ in self._folder.iterdir()) >= NODES_KEPT:
            raise HostError(
                f"There are SSH host keys of {NODES_KEPT} nodes in {self._folder}; no more are made.",
                hint="Delete the folders of nodes that are gone.",
            )
        work = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            for kind, make in _MAKERS.items():
                key = make()
                private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
                public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
                _write(work / _name(kind), private)
                _write(work / f"{_name(kind)}.pub", public)
            try:
                work.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another thread or process was quicker, and its keys count
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _name(kind: str) -> str:
    return f"ssh_host_{kind}_key"


def _read(folder: Path, kind: str) -> tuple[str, str]:
    private = folder / _name(kind)
    texts = []
    for path in (private, private.with_name(f"{private.name}.pub")):
        with path.open("rb") as file:
            texts.append(file.read(_MAX_BYTES).decode())
    return texts[0], texts[1]


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
