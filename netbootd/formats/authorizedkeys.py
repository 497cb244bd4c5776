"""Public keys in the format of OpenSSH: one a line, options before it, a comment behind it (sshd(8), AUTHORIZED_KEYS).

Left out: certificates, and what the options mean.
"""

from __future__ import annotations

import base64
import binascii
import re

KEY_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
"""What sshd of today takes; ssh-dss is gone since OpenSSH 10."""

_KEY = re.compile(rf"(?:^|[ \t])({'|'.join(re.escape(kind) for kind in KEY_TYPES)})[ \t]+(\S+)")


def parse(data: bytes) -> tuple[str, ...]:
    """The lines that hold a key, as they are but for white space around them.

    :raises ValueError: a private key, a line that holds none, or no key at all
    """
    text = data.decode("utf-8-sig", "replace")
    if "PRIVATE KEY-----" in text:
        raise ValueError("a private key; the public one is in the file that ends in .pub")
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    for key in keys:
        if not _KEY.search(key):
            raise ValueError(f"a line that is not a public key of OpenSSH: {key[:30]!r}")
    if not keys:
        raise ValueError("no public key")
    return keys


def is_whole(key: str) -> bool:
    """Whether the data of a key is base64 and begins with its type (RFC 4253 section 6.6)."""
    match = _KEY.search(key)
    if match is None:
        return False
    try:
        data = base64.b64decode(match[2], validate=True)
    except binascii.Error:
        return False
    kind = match[1].encode()
    return data.startswith(len(kind).to_bytes(4, "big") + kind)
