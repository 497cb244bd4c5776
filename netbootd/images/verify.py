"""Is this list of checksums signed by a key that we trust? Detached OpenPGP signatures (RFC 9580 section 5.2, 10.4).

gpgv does the work where it is installed: every Debian and Ubuntu has it, and apt itself relies on it. Where it is
missing, pysequoia (Sequoia-PGP, Apache-2.0, maintained, wheels for every Python that we support) does; PGPy was looked
at and fails on Python 3.13. Both say the same of the same input, and one function here decides:

- by the fingerprint of the primary key: ours is pinned, any key of the operator's own keyring counts too;
- never by gpgv's exit status: it is 2 when one of two signatures is by a stranger, and 0 when the key is revoked or has
  expired. Only GOODSIG followed by VALIDSIG (gnupg/doc/DETAILS) counts;
- MD5, SHA-1 and RIPEMD-160 don't count, neither in the signature nor in what binds the key.

Left out: the web of trust, key servers, signatures inside a message.
"""

from __future__ import annotations

import base64
import binascii
import importlib.resources
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from netbootd.errors import HostError, NotFoundError, VerificationError

UBUNTU_CD_IMAGE_KEY = "843938DF228D22F7B3742BC0D94AA3F0EFE21092"
"""Ubuntu CD Image Automatic Signing Key (2012), the only one of the bundled keys that may vouch for an image."""

_log = logging.getLogger(__name__)
_BUNDLED = "ubuntu-archive-keyring.gpg"
_WEAK = {"1": "MD5", "2": "SHA-1", "3": "RIPEMD-160"}  # RFC 9580 section 9.5
_ARMOR = re.compile(rb"^-----BEGIN PGP [A-Z ,/0-9]+-----[ \t]*\r?\n(.*?)^-----END PGP", re.MULTILINE | re.DOTALL)
_LIMIT = 1 << 20  # bytes of one signature file or keyring


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one signature: the primary key's fingerprint (or what is known of it), why it doesn't count."""

    fingerprint: str
    problem: str = ""


Backend = Callable[[bytes, bytes, bytes], list[Verdict]]
"""(data, binary signatures, binary keyring) to one `Verdict` a signature, in order."""


def verify_detached(
    data: bytes, signature: bytes, *, what: str, keyring: Path | None = None, backend: Backend | None = None
) -> str:
    """The fingerprint (40 upper-case hex digits) of the trusted key that signed `data`.

    :param data: the signed document
    :param signature: one or more detached signatures, binary or armoured
    :param what: the document's name, for messages
    :param keyring: the operator's own keys (binary or armoured), each of which is trusted; beside the pinned one
    :param backend: `gpgv` or `sequoia`; None takes gpgv where it is installed
    :raises VerificationError: no signature, none by a trusted key, or none that is good
    :raises NotFoundError: no such keyring file
    :raises HostError: neither gpgv nor pysequoia is there
    """
    backend = backend or _available()
    signatures = dearmor(signature)
    if not signatures:
        raise VerificationError(f"Verifying {what}: its signature file is empty.", hint=_HINT)
    trusted: list[tuple[bytes, Collection[str] | None]] = [(_bundled(), {UBUNTU_CD_IMAGE_KEY})]
    if keyring is not None:
        trusted.append((_own(keyring), None))
    problems: list[str] = []
    for keys, accepted in trusted:
        for verdict in backend(data, signatures, keys):
            _log.debug("signature on %s by %s: %s", what, verdict.fingerprint, verdict.problem or "good")
            if verdict.problem:
                problems.append(f"key {verdict.fingerprint}: {verdict.problem}")
            elif accepted is None or verdict.fingerprint in accepted:
                return verdict.fingerprint
            else:
                problems.append(f"key {verdict.fingerprint}: good, but this key does not sign images")
    raise VerificationError(
        f"Verifying {what}: no valid signature by a trusted key.",
        details=list(dict.fromkeys(problems)) or ["the signature file holds no signature"],
        hint=_HINT,
    )


_HINT = (
    "Try another mirror, name the publisher's key with --keyring FILE, or accept the risk with --insecure-skip-verify."
)


# ------------------------------------------------------------------------------------------------------------ gpgv


def gpgv(data: bytes, signatures: bytes, keyring: bytes) -> list[Verdict]:
    """A `Backend`: GnuPG's verifier, read by its status lines."""
    with tempfile.TemporaryDirectory(prefix="netbootd-gpgv-") as folder:
        home = Path(folder)
        (home / "keyring.gpg").write_bytes(keyring)
        (home / "signature").write_bytes(signatures)
        (home / "data").write_bytes(data)
        command = ["gpgv", "--homedir", folder, "--weak-digest", "SHA1", "--weak-digest", "RIPEMD160"]
        command += ["--status-fd", "1", "--keyring", str(home / "keyring.gpg")]
        command += [str(home / "signature"), str(home / "data")]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostError(f"Running gpgv to verify a signature: {error}.", hint="Is gpgv installed whole?") from error
    return parse_status(done.stdout.decode("utf-8", "replace"))


def parse_status(status: str) -> list[Verdict]:
    """One `Verdict` a NEWSIG of ``gpgv --status-fd``'s lines (gnupg/doc/DETAILS).

    VALIDSIG follows EXPSIG, EXPKEYSIG and REVKEYSIG as well as GOODSIG; it carries the fingerprints and the digest.
    """
    verdicts: list[Verdict] = []
    state, key, problem = "", "unknown", "no verdict"
    for line in [*status.splitlines(), "[GNUPG:] NEWSIG"]:
        prefix, _, rest = line.partition(" ")
        word, *fields = rest.split(" ")
        if prefix != "[GNUPG:]":
            continue
        if word == "NEWSIG":
            if state:
                verdicts.append(Verdict(key, problem))
            state, key, problem = "new", "unknown", "no verdict"
        elif word in _STATES:
            state, key, problem = word, fields[0] if fields else "unknown", _STATES[word]
            if word == "ERRSIG" and len(fields) > 5 and fields[5] == "9":
                key, problem = fields[6] if len(fields) > 6 else key, "not in the keyring"
        elif word == "VALIDSIG" and len(fields) > 8:
            key = fields[9] if len(fields) > 9 else fields[0]
            if state == "GOODSIG":
                weak = _WEAK.get(fields[7])
                problem = f"signed with {weak}, which is broken" if weak else ""
    return verdicts


_STATES = {
    "GOODSIG": "not confirmed by VALIDSIG",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key has expired",
    "REVKEYSIG": "the key is revoked",
    "BADSIG": "the signature does not match",
    "ERRSIG": "the signature can't be checked",
}


# --------------------------------------------------------------------------------------------------------- sequoia


def sequoia(data: bytes, signatures: bytes, keyring: bytes) -> list[Verdict]:
    """A `Backend`: Sequoia-PGP with its standard policy, and like gpgv with no key that has expired or is revoked."""
    import pysequoia
    from pysequoia import packet

    try:
        certificates = pysequoia.Cert.split_bytes(keyring)
        pile = list(packet.PacketPile.from_bytes(signatures))
        names, unusable = _keys(packet, keyring)
    except (RuntimeError, ValueError) as error:
        return [Verdict("unknown", f"can't be read: {_first_line(error)}")]
    for certificate in certificates:
        fault = _fault(certificate)
        if fault:
            for ident, primary in names.items():
                if primary == certificate.fingerprint:
                    unusable[ident] = fault
    verdicts = []
    for part in pile:
        if part.tag != packet.Tag.Signature:
            continue
        issuer = str(part.issuer_fingerprint or part.issuer_key_id or "unknown")
        primary = names.get(issuer, "")
        shown = (primary or issuer).upper()
        if not primary:
            verdicts.append(Verdict(shown, "not in the keyring"))
            continue
        if issuer in unusable:
            verdicts.append(Verdict(shown, unusable[issuer]))
            continue
        keys = [certificate for certificate in certificates if certificate.fingerprint == primary]
        try:
            found = pysequoia.verify(
                bytes=data, store=lambda _ids, keys=keys: keys, signature=pysequoia.Sig.from_bytes(bytes(part))
            )
        except RuntimeError as error:
            verdicts.append(Verdict(shown, _first_line(error)))
            continue
        good = bool(found.valid_sigs) and found.valid_sigs[0].certificate == primary
        verdicts.append(Verdict(shown, "" if good else _STATES["BADSIG"]))
    return verdicts


def _fault(certificate: Any) -> str:
    """Why a whole certificate can't be used, empty if it can."""
    try:
        if certificate.is_revoked:
            return _STATES["REVKEYSIG"]
        expiration = certificate.expiration
    except RuntimeError as error:  # the policy refuses what binds it, for example SHA-1
        return f"the key can't be used: {_first_line(error)}"
    return _STATES["EXPKEYSIG"] if expiration is not None and expiration <= datetime.now(UTC) else ""


def _keys(packet: Any, keyring: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Every key's fingerprint and id to its primary's fingerprint; and the subkeys that have ended, to the reason.

    Sequoia judges a subkey as of the signature's date; gpgv as of today. Today is the stricter.
    """
    names: dict[str, str] = {}
    ended: dict[str, str] = {}
    primary = subkey = bound = None
    for part in packet.PacketPile.from_bytes(keyring):
        if part.tag == packet.Tag.PublicKey:
            primary, subkey = part, None
            names[part.fingerprint] = names[part.key_id] = part.fingerprint
        elif part.tag == packet.Tag.PublicSubkey and primary is not None:
            subkey, bound = part, None
            names[part.fingerprint] = names[part.key_id] = primary.fingerprint
        elif part.tag == packet.Tag.Signature and subkey is not None:
            ids = (subkey.fingerprint, subkey.key_id)
            if part.signature_type == packet.SignatureType.SubkeyRevocation:
                ended.update(dict.fromkeys(ids, _STATES["REVKEYSIG"]))
            elif part.signature_type == packet.SignatureType.SubkeyBinding:
                if bound is None or part.signature_created > bound.signature_created:  # the newest one counts
                    bound = part
                life = bound.key_validity_period
                over = life is not None and subkey.key_created + life <= datetime.now(UTC)
                for ident in ids:
                    if over:
                        ended.setdefault(ident, _STATES["EXPKEYSIG"])
                    elif ended.get(ident) == _STATES["EXPKEYSIG"]:
                        del ended[ident]
    return names, ended


def _first_line(error: Exception) -> str:
    """Sequoia's message without the stack trace of its own that it appends."""
    lines = [line.strip() for line in str(error).partition("Stack backtrace")[0].splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__


# ------------------------------------------------------------------------------------------------------------- files


def dearmor(data: bytes) -> bytes:
    """The binary form of an armoured file, all its blocks one after the other (RFC 9580 section 6); binary as it is.

    :raises VerificationError: armour that holds no base64
    """
    if b"-----BEGIN PGP" not in data[:4096]:
        return data
    blocks = []
    for match in _ARMOR.finditer(data):
        lines = match[1].replace(b"\r", b"").split(b"\n")
        body = lines[next((i + 1 for i, line in enumerate(lines) if not line.strip()), 0) :]
        try:
            blocks.append(base64.b64decode(b"".join(line.strip() for line in body if line[:1] != b"="), validate=True))
        except binascii.Error as error:
            raise VerificationError(f"Reading a signature or keyring: its armour is damaged ({error}).") from error
    return b"".join(blocks)


def _bundled() -> bytes:
    return (importlib.resources.files("netbootd.images") / "keys" / _BUNDLED).read_bytes()


def _own(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except FileNotFoundError:
        raise NotFoundError(f"Reading the keyring {path}: there is no such file.", hint="Check --keyring.") from None
    except OSError as error:
        raise HostError(f"Reading the keyring {path}: {error.strerror}.", hint="Check --keyring.") from error
    keys = dearmor(data)
    if not keys or len(data) > _LIMIT:
        raise VerificationError(
            f"Reading the keyring {path}: it holds no keys that can be read.",
            hint="Export one with: gpg --export KEY > FILE",
        )
    return keys


def _available() -> Backend:
    if shutil.which("gpgv"):
        return gpgv
    try:
        import pysequoia  # noqa: F401
    except ImportError:
        raise HostError(
            "Verifying a signature: neither gpgv nor the Python package pysequoia is here.",
            hint="Install one: apt install gpgv, or pip install pysequoia.",
        ) from None
    return sequoia
