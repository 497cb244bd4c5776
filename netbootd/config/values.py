"""One reader for each kind of value in netbootd.toml: what TOML gave goes in, the value comes out.

A reader raises ValueError with the rest of a sentence that begins with the value ("is not a port: …") and ends with
what is expected.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from netbootd.config.schema import Address, Interface, Network
from netbootd.formats import cmdline
from netbootd.model.identity import MacAddress, Serial

T = TypeVar("T")
Reader = Callable[[object], T]

HOST_NAME_MAX = 64
"""Linux keeps a host name of up to 64 bytes (limits.h)."""
CONFIG_TXT_LINE = 98
"""Characters of a line of config.txt that the firmware reads (raspberrypi/firmware issue 1669)."""

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*\Z")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_VM_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SIZE = re.compile(r"[1-9][0-9]*(?:\.[0-9]+)?[KMG]?\Z", re.IGNORECASE)
_PORT_RANGE = re.compile(r"\s*([0-9]{1,5})\s*-\s*([0-9]{1,5})\s*\Z")


def text(value: object) -> str:
    """Any one-line text."""
    if not isinstance(value, str):
        raise ValueError("is not a text in quotes")
    if any(not c.isprintable() for c in value):
        raise ValueError("is not one line of printable text")
    return value


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def integer(low: int, high: int) -> Reader[int]:
    """A whole number within bounds."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return value

    return read


def seconds(high: float) -> Reader[float]:
    """A duration from 0 to `high` seconds."""

    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value) or not 0 <= value <= high:
            raise ValueError(f"is not a number of seconds from 0 to {high:g}")
        return value

    return read


port = integer(0, 65535)
"""A port; 0 is any free one."""


def choice(*allowed: str) -> Reader[str]:
    """One of a few words."""

    def read(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"is not one of {', '.join(quoted(word) for word in allowed)}")
        return str(value)

    return read


def port_or_off(value: object) -> int | None:
    """A port, or ``"off"`` for None."""
    if value == "off":
        return None
    try:
        return port(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "off"') from None


def port_range(value: object) -> tuple[int, int] | None:
    """``"5000-5100"``; the empty text is None."""
    if value == "":
        return None
    match = _PORT_RANGE.match(value) if isinstance(value, str) else None
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= 65535:
        raise ValueError('is not a range of ports such as "5000-5100"')
    return int(match[1]), int(match[2])


def several(one: Reader[T]) -> Reader[tuple[T, ...]]:
    """A list of values of one kind."""

    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError("is not a list in square brackets")
        found = []
        for item in value:
            try:
                found.append(one(item))
            except ValueError as error:
                raise ValueError(f"holds {shown(item)}, which {error}") from None
        return tuple(found)

    return read


def optional(one: Reader[T]) -> Reader[T | None]:
    """The empty text is None."""
    return lambda value: None if value == "" else one(value)


def or_empty(one: Reader[str]) -> Reader[str]:
    """The empty text is allowed, too."""
    return lambda value: "" if value == "" else one(value)


def serial(value: object) -> Serial:
    """A Raspberry Pi's serial number; a text, since a number would lose its leading zeros."""
    try:
        return Serial.parse(text(value))
    except ValueError:
        raise ValueError('is not a serial number: 8 or 16 hex digits in quotes, such as "1a2b3c4d"') from None


def mac(value: object) -> MacAddress:
    """The MAC address of one machine, not of a group (IEEE 802: the lowest bit of the first byte)."""
    try:
        address = MacAddress.parse(text(value))
    except ValueError:
        raise ValueError('is not a MAC address such as "dc:a6:32:01:36:c2"') from None
    if int(address.text[:2], 16) & 1 or address.text == "00:00:00:00:00:00":
        raise ValueError("is not the MAC address of one machine")
    return address


def ip_address(value: object) -> Address:
    """An IPv4 or IPv6 address that a host can have."""
    try:
        address = ipaddress.ip_address(text(value))
    except ValueError:
        raise ValueError('is not an IP address such as "192.168.1.66"') from None
    if address.is_unspecified or address.is_multicast or address == ipaddress.IPv4Address(0xFFFFFFFF):
        raise ValueError("is not the address of a host")
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        raise ValueError("has a zone, which means something on this host only")
    return address


def server_address(value: object) -> str:
    """An IP address as text, in its shortest form."""
    return str(ip_address(value))


def network(value: object) -> Network:
    """A subnet such as 192.168.1.0/24, or one address."""
    try:
        return ipaddress.ip_network(text(value))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text(value), strict=False)
    except ValueError:
        raise ValueError('is not a subnet such as "192.168.1.0/24"') from None
    raise ValueError(f'is an address within a subnet; did you mean "{meant}"?')


def interface(value: object) -> Interface:
    """An address with its prefix length: 192.168.1.66/24."""
    try:
        if "/" in text(value):
            return ipaddress.ip_interface(text(value))
    except ValueError:
        pass
    raise ValueError('is not an address with its prefix length such as "192.168.1.66/24"')


def host_name(value: object) -> str:
    """A host name by RFC 1123, with or without a domain."""
    name = text(value)
    labels = name.split(".")
    if not all(_LABEL.match(label) for label in labels) or len(labels[0]) > HOST_NAME_MAX or len(name) > 253:
        raise ValueError("is not a host name: letters, digits and dashes, up to 63, neither first nor last a dash")
    return name


def name(value: object) -> str:
    """A name that is also a folder's and goes into addresses."""
    if not _NAME.match(text(value)):
        raise ValueError("is not a name: up to 64 letters, digits, dots, dashes and underscores, no dot or dash first")
    return text(value)


def image_name(value: object) -> str:
    """The name of an image, below which its generations lie."""
    if value == "current":
        raise ValueError("is taken: it marks the generation in use")
    return name(value)


def user_name(value: object) -> str:
    """The name of a user (useradd(8) of Debian and Ubuntu)."""
    if value == "root":
        raise ValueError("is kept from logging in over SSH by cloud-init; name another user, who gets sudo")
    if not _USER.match(text(value)):
        raise ValueError("is not a user's name: lower-case letters, digits, dashes and underscores, a letter first")
    return text(value)


def release(value: object) -> str:
    """A release as the operator writes it; which ones there are is the catalog's to know."""
    if not _RELEASE.match(text(value)):
        raise ValueError('is not a release such as "noble", "24.04.3" or "raspios-trixie-lite"')
    return text(value)


def sha256(value: object) -> str:
    """A digest in hex."""
    digest = text(value).lower()
    if not _SHA256.match(digest):
        raise ValueError("is not a SHA-256 digest: 64 hex digits")
    return digest


def vm_name(value: object) -> str:
    """A name that Multipass accepts."""
    if not _VM_NAME.match(text(value)):
        raise ValueError("is not a name of a VM: letters, digits and dashes, a letter first")
    return text(value)


def size(value: object) -> str:
    """A size as Multipass takes it: 4G, 512M."""
    if not _SIZE.match(text(value)):
        raise ValueError('is not a size such as "4G" or "512M"')
    return text(value)


def kernel_arguments(value: object) -> str:
    """Arguments for the end of cmdline.txt, which is one line."""
    arguments = text(value).strip()
    cmdline.check_appended(arguments)
    return arguments


def config_txt_lines(value: object) -> str:
    """Lines for the end of config.txt."""
    if not isinstance(value, str):
        raise ValueError("is not a text in quotes")
    for line in value.splitlines():
        if len(line) > CONFIG_TXT_LINE:
            raise ValueError(
                f"has a line of {len(line)} characters; the firmware ignores what follows the first {CONFIG_TXT_LINE}"
            )
        if any(not c.isprintable() and c != "\t" for c in line):
            raise ValueError("has a control character")
    return value


def path(base: Path) -> Reader[Path]:
    """A path, relative ones below `base`, ``~`` for a home folder."""

    def read(value: object) -> Path:
        if not text(value):
            raise ValueError("is not a path")
        return base / expand_home(text(value))

    return read


def folder(base: Path) -> Reader[Path]:
    """A folder that is there."""

    def read(value: object) -> Path:
        found = path(base)(value)
        try:
            if not found.is_dir():
                problem = "is something else" if found.exists() else "is not there"
                raise ValueError(f"is not a folder: {found} {problem}")
        except OSError as error:  # a name that is too long, a folder that we may not look into
            raise ValueError(f"can't be looked into: {error.strerror or error}") from None
        return found

    return read


def source(base: Path) -> Reader[str]:
    """An URL as it is, or a file's absolute path."""

    def read(value: object) -> str:
        scheme = _URL.match(text(value))
        if scheme is None:
            return str(path(base)(value))
        if scheme[1].lower() not in ("http", "https", "file"):
            raise ValueError("is neither a file nor an URL with http, https or file")
        return text(value)

    return read


def expand_home(written: str) -> Path:
    """``~`` as the home of who runs us; under sudo the caller's home where root has no such file.

    :raises ValueError: the home of a user who is not there, or a path that can't be one
    """
    try:
        return _expand_home(written)
    except OSError as error:
        raise ValueError(f"can't be looked for: {error.strerror or error}") from None


def _expand_home(written: str) -> Path:
    try:
        found = Path(written).expanduser()
    except RuntimeError:
        if not written.startswith(("~/", "~\\")):
            raise ValueError("names the home of a user who is not there") from None
        found = Path(written)  # a service may have no home
    caller = os.environ.get("SUDO_USER", "")
    if written.startswith(("~/", "~\\")) and caller and not found.exists():
        try:
            callers = Path(f"~{caller}{written[1:]}").expanduser()
        except RuntimeError:
            return found
        return callers if callers.exists() else found
    return found


def quoted(word: str) -> str:
    """A word as TOML writes it."""
    return f'"{word}"'


def shown(value: object) -> str:
    """A value as TOML writes it, cut short, for an error."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "[]"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of very many digits"
    written = quoted(visible(value[:80])) if isinstance(value, str) else str(value)
    return written if len(written) <= 60 else written[:57] + '…"'


def visible(text: str) -> str:
    """The text on one line and harmless to a terminal: what does not print is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
