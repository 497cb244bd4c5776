"""An fstab without its disks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbootd.formats.fstab import without_disks

GONE = [
    "LABEL=writable\t/\text4\tdiscard,errors=remount-ro\t0 1",  # Ubuntu
    "LABEL=system-boot       /boot/firmware  vfat    defaults        0       1",
    "PARTUUID=4f6b1a10-01  /boot/firmware  vfat    defaults          0       2",  # Raspberry Pi OS
    'UUID="4f6b1a10-01" /data ext4 defaults 0 2',
    '"LABEL=with space" /data ext4 defaults 0 2',
    "PARTLABEL=x /data ext4",
    "/dev/mmcblk0p2 / ext4 defaults 0 1",
    "/dev/disk/by-id/x /data ext4 defaults 0 1",
    "/dev/mapper/vg-x /data ext4 defaults 0 1",
    "/swapfile none swap sw 0 0",
    "/swap.img swap swap sw 0 0",
    "  /dev/sda1   /mnt   ext4",
    "overlay / overlay defaults",
]
KEPT = [
    "# a comment about LABEL=writable / ext4",
    "",
    "   ",
    "proc /proc proc defaults 0 0",
    "tmpfs /tmp tmpfs mode=1777 0 0",
    "none /var/tmp tmpfs defaults 0 0",
    "/srv/x /mnt/x none bind 0 0",
    "192.0.2.1:/srv /mnt nfs defaults 0 0",
    "//server/share /mnt cifs guest 0 0",
    "tmpfs /dev/shm tmpfs defaults",
    "/dev/shm /x none bind",
    "half-a-line",
]


@pytest.mark.parametrize("line", GONE)
def test_disks_go(line):
    assert without_disks(f"# before\n{line}\n# after\n") == "# before\n# after\n"


@pytest.mark.parametrize("line", KEPT)
def test_all_else_stays_as_it_is(line):
    assert without_disks(f"{line}\n/dev/sda1 /x ext4\n") == f"{line}\n"


def test_line_ends_stay():
    assert (
        without_disks("proc /proc proc\r\nLABEL=x / ext4\r\ntmpfs /tmp tmpfs") == "proc /proc proc\r\ntmpfs /tmp tmpfs"
    )


@given(st.lists(st.sampled_from(GONE + KEPT)))
def test_the_result_is_its_own(lines):
    text = "".join(line + "\n" for line in lines)
    once = without_disks(text)
    assert without_disks(once) == once
    assert once == "".join(line + "\n" for line in lines if line in KEPT)
