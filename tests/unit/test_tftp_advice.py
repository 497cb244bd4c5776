"""What a Pi can't fetch, and what to do about it."""

from __future__ import annotations

import pytest

from netbootd.tftpd.advice import too_many_blocks, too_slow


@pytest.mark.parametrize("blksize", [512, 1024, 1468])
def test_a_file_is_too_large_from_its_65536th_block_on(blksize: int) -> None:
    assert too_many_blocks("initrd.img", 65_535 * blksize - 1, blksize) == ""
    text = too_many_blocks("initrd.img", 65_535 * blksize, blksize)
    assert text.startswith("initrd.img has 65,536 blocks")
    assert "update the bootloader" in text
    assert ("2022" in text) == (blksize < 1468)  # a newer bootloader asks for larger blocks


def test_a_transfer_is_too_slow_where_a_pi_would_have_given_up() -> None:
    assert too_slow("vmlinuz", 60_000_000, 60_000_000, 29.9) == ""
    assert "31 s" in too_slow("vmlinuz", 60_000_000, 60_000_000, 31)
    text = too_slow("vmlinuz", 60_000_000, 6_000_000, 10)
    assert "100 s at this speed (0.6 MB/s)" in text
    assert "TFTP_FILE_TIMEOUT" in text


def test_the_speed_of_a_moment_or_of_nothing_says_nothing() -> None:
    assert too_slow("vmlinuz", 60_000_000, 1000, 2.9) == ""
    assert too_slow("vmlinuz", 60_000_000, 0, 60) == ""
