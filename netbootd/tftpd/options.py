"""Which options of a read request are accepted, and with which values.

RFC 2347 (order and meaning of an OACK), RFC 2348 (blksize 8 to 65464), RFC 2349 (timeout 1 to 255 s, tsize), RFC 7440
(windowsize 1 to 65535). An unknown option, or a value that the RFC does not allow, is left out of the answer: the
client then has to do without it. Left out: tftp-hpa's rollover and utimeout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netbootd.tftpd.packets import DEFAULT_BLKSIZE

MIN_BLKSIZE, MAX_BLKSIZE = 8, 65464
MAX_TIMEOUT = 255
MAX_WINDOWSIZE = 65535

_MAX_DIGITS = 20  # tsize of any file; longer numbers are nonsense and would cost time to read


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds for one transfer: octets a block, blocks a window, seconds between retransmissions (0: ours to
    choose), and the options of the OACK in the order and spelling of the request (none: no OACK is sent).
    """

    blksize: int = DEFAULT_BLKSIZE
    windowsize: int = 1
    timeout: int = 0
    accepted: dict[str, str] = field(default_factory=dict)


def negotiate(options: Mapping[str, str], size: int, *, max_blksize: int, max_windowsize: int) -> Agreement:
    """Answer the options of a read request for a file of `size` octets (as sent, so after netascii).

    :param max_blksize: octets, from 8 on; a larger wish is lowered to it, as RFC 2348 allows the server
    :param max_windowsize: blocks, from 1 on
    """
    blksize, windowsize, timeout = DEFAULT_BLKSIZE, 1, 0
    accepted: dict[str, str] = {}
    for name, text in options.items():
        value = _number(text)
        if value is None:
            continue
        match name.lower():
            case "blksize" if value >= MIN_BLKSIZE:
                blksize = min(value, MAX_BLKSIZE, max(max_blksize, MIN_BLKSIZE))
                accepted[name] = str(blksize)
            case "tsize":
                accepted[name] = str(size)
            case "timeout" if 1 <= value <= MAX_TIMEOUT:
                timeout = value
                accepted[name] = str(timeout)
            case "windowsize" if 1 <= value <= MAX_WINDOWSIZE:
                windowsize = min(value, max(max_windowsize, 1))
                accepted[name] = str(windowsize)
            case _:
                pass
    return Agreement(blksize, windowsize, timeout, accepted)


def _number(text: str) -> int | None:
    """ASCII digits only: no sign, blank or underscore, which int() would take."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None
