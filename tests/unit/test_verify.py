"""Signatures: one verdict by two back ends, on what GnuPG signed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbootd.errors import HostError, NotFoundError, VerificationError
from netbootd.images import verify
from tests.support.openpgp import Keys

DATA = b"0123456789abcdef  ubuntu.img.xz\n"
BACKENDS = (verify.gpgv, verify.sequoia)


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    made = Keys()
    past = ("--faked-system-time", "20200101T000000")
    made.new("alice")
    made.new("bob")
    made.new("rsa", algorithm="rsa2048")
    made.new("old", *past, life="1y")
    made.new("sha1bound", "--cert-digest-algo", "SHA1", algorithm="rsa2048")
    made.new("parent", usage="cert")
    made.gpg("--quick-add-key", made.fingerprint("parent"), "ed25519", "sign", "never")
    made.new("worn", *past, usage="cert")
    made.gpg(*past, "--quick-add-key", made.fingerprint("worn"), "ed25519", "sign", "1y")
    yield made
    made.close()


@pytest.fixture
def ring(keys: Keys, tmp_path: Path) -> Path:
    path = tmp_path / "ring.gpg"
    path.write_bytes(keys.export("alice"))
    return path


@pytest.fixture(params=BACKENDS, ids=["gpgv", "sequoia"])
def backend(request: pytest.FixtureRequest) -> verify.Backend:
    return request.param


def check(signature: bytes, ring: Path | None, backend: verify.Backend, data: bytes = DATA) -> str:
    return verify.verify_detached(data, signature, what="SHA256SUMS", keyring=ring, backend=backend)


@pytest.mark.parametrize("armor", [True, False])
def test_a_good_signature_names_its_key(keys: Keys, ring: Path, backend: verify.Backend, armor: bool) -> None:
    assert check(keys.sign(DATA, "alice", armor=armor), ring, backend) == keys.fingerprint("alice")


def test_an_armoured_keyring_of_several_blocks_works(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    ring.write_bytes(keys.export("bob", armor=True) + b"a line between\r\n" + keys.export("alice", armor=True))
    assert check(keys.sign(DATA, "alice"), ring, backend) == keys.fingerprint("alice")


@pytest.mark.parametrize("order", [("alice", "bob"), ("bob", "alice")])
def test_one_of_two_signatures_is_enough(
    keys: Keys, ring: Path, backend: verify.Backend, order: tuple[str, str]
) -> None:
    assert check(keys.sign(DATA, *order), ring, backend) == keys.fingerprint("alice")
    apart = b"".join(keys.sign(DATA, name) for name in order)
    assert check(apart, ring, backend) == keys.fingerprint("alice")


def test_a_subkey_counts_as_its_primary(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    ring.write_bytes(keys.export("parent"))
    assert check(keys.sign(DATA, "parent"), ring, backend) == keys.fingerprint("parent")


def test_a_stranger_does_not_count(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    with pytest.raises(VerificationError) as error:
        check(keys.sign(DATA, "bob"), ring, backend)
    assert error.value.exit_status == 6
    assert keys.fingerprint("bob")[-16:] in error.value.paragraph()
    assert "not in the keyring" in error.value.paragraph()


def test_without_a_keyring_only_the_pinned_key_counts(keys: Keys, backend: verify.Backend) -> None:
    with pytest.raises(VerificationError):
        check(keys.sign(DATA, "alice"), None, backend)


def test_tampered_data_does_not_count(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    signature = keys.sign(DATA, "alice")
    with pytest.raises(VerificationError):
        check(signature, ring, backend, DATA.replace(b"0", b"1"))


def test_a_tampered_signature_does_not_count(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    signature = bytearray(keys.sign(DATA, "alice", armor=False))
    signature[-1] ^= 1
    with pytest.raises(VerificationError):
        check(bytes(signature), ring, backend)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"not a signature\n",
        b"\x88",
        b"-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n",
        b"\xff" * 99,
    ],
)
def test_junk_does_not_count(ring: Path, backend: verify.Backend, junk: bytes) -> None:
    with pytest.raises(VerificationError):
        check(junk, ring, backend)


def test_a_key_instead_of_a_signature_does_not_count(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    with pytest.raises(VerificationError):
        check(keys.export("alice"), ring, backend)


def test_an_expired_key_does_not_count_though_gpgv_exits_0(
    keys: Keys, ring: Path, backend: verify.Backend, tmp_path: Path
) -> None:
    ring.write_bytes(keys.export("old"))
    signature = keys.sign(DATA, "old", options=("--faked-system-time", "20200201T000000"))
    (tmp_path / "data").write_bytes(DATA)
    (tmp_path / "sig").write_bytes(signature)
    done = subprocess.run(["gpgv", "--keyring", str(ring), str(tmp_path / "sig"), str(tmp_path / "data")], check=False)
    assert done.returncode == 0
    with pytest.raises(VerificationError, match="no valid signature") as error:
        check(signature, ring, backend)
    assert "expired" in error.value.paragraph()


def test_an_expired_subkey_does_not_count(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    ring.write_bytes(keys.export("worn"))
    signature = keys.sign(DATA, "worn", options=("--faked-system-time", "20200201T000000"))
    with pytest.raises(VerificationError) as error:
        check(signature, ring, backend)
    assert "expired" in error.value.paragraph()


def test_a_subkey_whose_life_was_prolonged_counts(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    past = ("--faked-system-time", "20200101T000000")
    keys.new("renewed", *past, usage="cert")
    keys.gpg(*past, "--quick-add-key", keys.fingerprint("renewed"), "ed25519", "sign", "1y")
    keys.gpg(
        "--faked-system-time",
        "20200601T000000",
        "--quick-set-expire",
        keys.fingerprint("renewed"),
        "seconds=2000000000",
        "*",
    )
    ring.write_bytes(keys.export("renewed"))
    assert check(keys.sign(DATA, "renewed"), ring, backend) == keys.fingerprint("renewed")


@pytest.fixture(scope="module")
def revoked(keys: Keys) -> tuple[bytes, bytes]:
    """A signature, and the public key that was revoked after it."""
    keys.new("gone")
    signature = keys.sign(DATA, "gone")
    keys.revoke("gone")
    return signature, keys.export("gone")


def test_a_revoked_key_does_not_count(revoked: tuple[bytes, bytes], ring: Path, backend: verify.Backend) -> None:
    signature, key = revoked
    ring.write_bytes(key)
    with pytest.raises(VerificationError) as error:
        check(signature, ring, backend)
    assert "revoked" in error.value.paragraph()


def test_an_expired_signature_does_not_count(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    signature = keys.sign(DATA, "alice", options=("--default-sig-expire", "seconds=1"))
    while time.time() < int(keys_time(signature)) + 2:
        time.sleep(0.1)
    with pytest.raises(VerificationError):
        check(signature, ring, backend)


def keys_time(signature: bytes) -> float:
    import pysequoia

    created = pysequoia.Sig.from_bytes(signature).created
    assert created is not None
    return created.timestamp()


@pytest.mark.parametrize("digest", ["SHA1", "RIPEMD160"])
def test_a_weak_digest_does_not_count(keys: Keys, ring: Path, backend: verify.Backend, digest: str) -> None:
    ring.write_bytes(keys.export("rsa"))
    assert check(keys.sign(DATA, "rsa"), ring, backend) == keys.fingerprint("rsa")
    signature = keys.sign(DATA, "rsa", options=("--digest-algo", digest))
    with pytest.raises(VerificationError):
        check(signature, ring, backend)


def test_a_key_bound_by_sha1_does_not_count(keys: Keys, ring: Path, backend: verify.Backend) -> None:
    ring.write_bytes(keys.export("sha1bound"))
    with pytest.raises(VerificationError):
        check(keys.sign(DATA, "sha1bound"), ring, backend)


def test_a_status_line_of_a_weak_digest_does_not_count() -> None:
    """gpgv without --weak-digest would say so; the digest's number is looked at as well."""
    valid = "[GNUPG:] VALIDSIG {0} 2026-11-22 1795384297 0 4 0 1 {1} 00 {0}"
    for number, good in (("1", False), ("2", False), ("3", False), ("8", True), ("10", True)):
        status = f"[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 123 Name\n{valid.format('A' * 40, number)}\n"
        [verdict] = verify.parse_status(status)
        assert (verdict.problem == "") is good
        assert verdict.fingerprint == "A" * 40


def test_a_name_that_looks_like_a_status_line_says_nothing() -> None:
    status = "gpgv: Good signature\n[GNUPG:] NEWSIG\n[GNUPG:] ERRSIG 12 1 8 00 1 9 -\n[GNUPG:] NO_PUBKEY 12\nGOODSIG\n"
    [verdict] = verify.parse_status(status)
    assert verdict.problem


def test_the_bundled_keyring_holds_the_pinned_key_usable_by_both_back_ends() -> None:
    """As said by gpg of the file itself; and neither back end refuses the key for its age."""
    path = Path(verify.__file__).parent / "keys" / "ubuntu-archive-keyring.gpg"
    listing = subprocess.run(
        ["gpg", "--show-keys", "--with-colons", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert f"fpr:::::::::{verify.UBUNTU_CD_IMAGE_KEY}:" in listing
    import pysequoia

    found = [c for c in pysequoia.Cert.split_file(str(path)) if c.fingerprint.upper() == verify.UBUNTU_CD_IMAGE_KEY]
    assert [verify._fault(certificate) for certificate in found] == [""]


def test_another_bundled_key_does_not_count(
    keys: Keys, backend: verify.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive's keys lie in the same file: a good signature by one of them is not enough."""
    monkeypatch.setattr(verify, "_bundled", lambda: keys.export("alice", "bob"))
    with pytest.raises(VerificationError) as error:
        check(keys.sign(DATA, "alice"), None, backend)
    assert "does not sign images" in error.value.paragraph()
    monkeypatch.setattr(verify, "UBUNTU_CD_IMAGE_KEY", keys.fingerprint("bob"))
    assert check(keys.sign(DATA, "alice", "bob"), None, backend) == keys.fingerprint("bob")


def test_a_keyring_that_is_not_there_or_holds_nothing(keys: Keys, tmp_path: Path, backend: verify.Backend) -> None:
    signature = keys.sign(DATA, "alice")
    with pytest.raises(NotFoundError):
        check(signature, tmp_path / "nowhere.gpg", backend)
    with pytest.raises(HostError):
        check(signature, tmp_path, backend)
    for content in (
        b"",
        b"junk",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!!\n-----END PGP PUBLIC KEY BLOCK-----\n",
    ):
        (tmp_path / "junk.gpg").write_bytes(content)
        with pytest.raises(VerificationError):
            check(signature, tmp_path / "junk.gpg", backend)


def test_sequoia_steps_in_where_gpgv_is_missing(
    keys: Keys, ring: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signature = keys.sign(DATA, "alice")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert verify.verify_detached(DATA, signature, what="SHA256SUMS", keyring=ring) == verify_fingerprint(ring)


def verify_fingerprint(ring: Path) -> str:
    import pysequoia

    return pysequoia.Cert.from_file(str(ring)).fingerprint.upper()
