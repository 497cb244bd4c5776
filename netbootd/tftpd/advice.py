"""Whether a file can reach boot firmware at all, and what to do where it can't.

Facts of Raspberry Pi firmware: the block number does not roll over before 2025-09-23 (rpi-eeprom 720), a whole file has
30 s (TFTP_FILE_TIMEOUT, eeprom-bootloader documentation), blksize is 512 on a Pi 3, 1024 from 2019-10 and 1468 from
2022-10 on (rpi-eeprom release notes). Left out: clients other than a Pi's firmware.
"""

from __future__ import annotations

from netbootd.tftpd.transfer import MAX_PLAIN_BLOCKS

FILE_SECONDS = 30.0
"""What a Pi gives one file by default."""

_JUDGED_AFTER = 3.0  # seconds of a transfer before its speed says anything


def too_many_blocks(path: str, size: int, blksize: int) -> str:
    """A warning for a file that older firmware can't count to the end of, empty where it can."""
    blocks = size // blksize + 1
    if blocks <= MAX_PLAIN_BLOCKS:
        return ""
    limit = MAX_PLAIN_BLOCKS * blksize
    remedy = "make the file smaller, or update the bootloader (block numbers roll over since 2025-09-23" + (
        ", blksize 1468 since 2022-10-03)" if blksize < 1468 else ")"
    )
    return (
        f"{path} has {blocks:,} blocks of {blksize} bytes, and older Pi firmware stops after {MAX_PLAIN_BLOCKS:,} "
        f"({limit / 1e6:.0f} MB): {remedy}"
    )


def too_slow(path: str, size: int, sent: int, seconds: float) -> str:
    """A warning for a transfer that takes, or at its speed would have taken, longer than a Pi waits; else empty."""
    if seconds < _JUDGED_AFTER or sent <= 0:
        return ""
    whole = seconds * size / sent
    if whole <= FILE_SECONDS:
        return ""
    return (
        f"{path} takes {whole:.0f} s at this speed ({sent / seconds / 1e6:.1f} MB/s), and a Pi gives up after "
        f"{FILE_SECONDS:.0f} s: look for packet loss, use a faster link or a newer bootloader, make the file smaller, "
        "or raise TFTP_FILE_TIMEOUT in the bootloader's configuration"
    )
