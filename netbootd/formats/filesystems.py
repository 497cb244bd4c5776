"""Tells by its magic numbers which file system a partition holds.

Offsets as in util-linux' libblkid and the file systems' own kernel headers. Only enough to name what is there: whether
a FAT or ext4 file system is sound is for their readers to say.
"""

from __future__ import annotations

from netbootd.formats.window import Window

FAT = "FAT"
EXT = "ext4"

_MAGICS = (
    # name, offset, magic: the first that matches wins, so containers come before what they might contain
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("LVM2", 536, b"LVM2 001"),
    ("squashfs", 0, b"hsqs"),
    ("XFS", 0, b"XFSB"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    ("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("btrfs", 65536 + 64, b"_BHRfS_M"),
    ("swap", 4096 - 10, b"SWAPSPACE2"),
    ("ISO 9660", 32768 + 1, b"CD001"),
    (EXT, 1024 + 56, b"\x53\xef"),
)


def identify(window: Window) -> str:
    """The name of the file system (or container) that begins the window; empty where none is recognised.

    ext2, ext3 and ext4 share one magic and are all called ``ext4``.
    """
    for name, offset, magic in _MAGICS:
        if offset + len(magic) <= window.size and window.read(offset, len(magic)) == magic:
            return name
    return FAT if window.size >= 512 and is_fat_boot_sector(window.read(0, 512)) else ""


def is_fat_boot_sector(sector: bytes) -> bool:
    """Whether a first sector is a FAT BIOS parameter block, by the tests that Linux makes (fs/fat/inode.c).

    A master boot record has code or zeros where a FAT has its sector size, cluster size and media byte.
    """
    sector_size = int.from_bytes(sector[11:13], "little")
    cluster = sector[13]
    return (
        sector_size in (512, 1024, 2048, 4096)
        and cluster.bit_count() == 1
        and sector[14:16] != b"\0\0"  # reserved sectors
        and sector[16] != 0  # number of FATs
        and (sector[21] >= 0xF8 or sector[21] == 0xF0)
    )
