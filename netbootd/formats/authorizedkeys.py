"""Public keys in the format of OpenSSH: one a line, options before it, a comment behind it (sshd(8), AUTHORIZED_KEYS).

Left out: certificates, and what the options mean.
"""

from __future__ import annotations

import base64
import re

KEY_TYPES = {
    "ssh-ed25519": 2,
    "ssh-rsa": 3,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}
"""What sshd of today takes, with the number of fields in a key's data; ssh-dss is gone since OpenSSH 10."""

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
    """Whether the data of a key is base64 of whole fields, the first of them its type (RFC 4253 section 6.6;
    RFC 5656, RFC 8709 and OpenSSH's PROTOCOL.u2f for the other types).

    Each field is its length in four bytes, then as many bytes (RFC 4251 section 5).
    """
    match = _KEY.search(key)
    if match is None:
        return False
    try:
        data = base64.b64decode(match[2], validate=True)
    except ValueError:  # not base64, or not even ASCII
        return False
    fields: list[bytes] = []
    position = 0
    while position < len(data):
        end = position + 4 + int.from_bytes(data[position : position + 4], "big")
        fields.append(data[position + 4 : end])
        position = end
    return position == len(data) and len(fields) == KEY_TYPES[match[1]] and fields[0] == match[1].encode()
