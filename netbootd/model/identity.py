"""Who a machine is: a Pi's serial number, an Ethernet MAC address, and the evidence that one request gives."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SERIAL = re.compile(r"(?:0x)?([0-9a-fA-F]{8}|[0-9a-fA-F]{16})\Z")
_MAC = re.compile(r"([0-9a-fA-F]{2})([:-])((?:[0-9a-fA-F]{2}\2){4})([0-9a-fA-F]{2})\Z")


@dataclass(frozen=True, slots=True, order=True)
class Serial:
    """A Raspberry Pi's serial number as its firmware uses it: the low 8 hex digits, lower case."""

    digits: str

    @classmethod
    def parse(cls, text: str) -> Serial:
        """Read 8 or 16 hex digits in any case, with or without ``0x``; the last 8 count.

        :raises ValueError: anything else
        """
        match = _SERIAL.match(text.strip())
        if not match:
            raise ValueError(f"not a serial number (8 or 16 hex digits): {text!r}")
        return cls(match[1][-8:].lower())

    def __str__(self) -> str:
        return self.digits


@dataclass(frozen=True, slots=True, order=True)
class MacAddress:
    """An Ethernet hardware address, printed with colons and in lower case."""

    text: str

    @classmethod
    def parse(cls, text: str) -> MacAddress:
        """Read ``dc:a6:32:01:36:c2`` or ``DC-A6-32-01-36-C2``.

        :raises ValueError: anything else
        """
        text = text.strip()
        if not _MAC.match(text):
            raise ValueError(f"not a MAC address (six hex pairs): {text!r}")
        return cls(text.lower().replace("-", ":"))

    @property
    def dashed(self) -> str:
        """The form in which a Pi's bootloader asks for its folder: ``dc-a6-32-01-36-c2``."""
        return self.text.replace(":", "-")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one request reveals about the machine that sent it.

    `address` is the peer's IP address as text without a zone; `local` the address of ours that it asked; `named` tells
    that the request named the machine (a serial or MAC in the path), which lets the address be learnt from it.
    """

    protocol: str
    address: str = ""
    local: str = ""
    serial: Serial | None = None
    mac: MacAddress | None = None

    @property
    def named(self) -> bool:
        """Whether the request itself named the machine, by serial or MAC."""
        return self.serial is not None or self.mac is not None
