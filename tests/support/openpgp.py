"""Throw-away OpenPGP keys and signatures, made by GnuPG in a home of their own (Debian: gnupg)."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path


class Keys:
    """A GnuPG home in a short path (the agent's socket lies in it); `close` ends its agent."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nbgpg-")
        self.home = Path(self._folder.name)
        self.home.chmod(0o700)

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=True, capture_output=True)
        self._folder.cleanup()

    def gpg(self, *args: str, data: bytes = b"") -> bytes:
        """Run gpg in batch mode; its standard output."""
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--quiet", "--passphrase", ""]
        command += ["--pinentry-mode", "loopback", *args]
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout

    def new(
        self, name: str, *options: str, algorithm: str = "ed25519", usage: str = "sign", life: str = "never"
    ) -> str:
        """Make a key; its fingerprint."""
        self.gpg(*options, "--quick-generate-key", f"{name} <{name}@invalid>", algorithm, usage, life)
        return self.fingerprint(name)

    def fingerprint(self, name: str) -> str:
        """The primary key's fingerprint, 40 upper-case hex digits."""
        listing = self.gpg("--list-keys", "--with-colons", f"{name}@invalid").decode()
        return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr"))

    def sign(self, data: bytes, *names: str, options: tuple[str, ...] = (), armor: bool = True) -> bytes:
        """A detached signature by each of `names`."""
        users = [argument for name in names for argument in ("--local-user", f"{name}@invalid")]
        return self.gpg(*options, *(["--armor"] if armor else []), *users, "--detach-sign", data=data)

    def export(self, *names: str, armor: bool = False) -> bytes:
        """The public keys of `names`, of all without any."""
        return self.gpg(*(["--armor"] if armor else []), "--export", *(f"{name}@invalid" for name in names))

    def revoke(self, name: str) -> None:
        """Revoke a key with the certificate that gpg made beside it."""
        certificate = (self.home / "openpgp-revocs.d" / f"{self.fingerprint(name)}.rev").read_text()
        self.gpg("--import", data=certificate.replace(":-----BEGIN", "-----BEGIN").encode())
