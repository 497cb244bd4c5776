"""Right inputs for every reader: small, with all that a format can do, made by the tools that publishers use.

Each function takes an empty folder to work in. Identities and times are fixed where the tools let them be, so that a
stream of mutations is the same on every run.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from netbootd.formats import cpio
from netbootd.formats.cpio import Member
from netbootd.formats.fatwrite import put_files
from netbootd.formats.treeattributes import Attributes, TreeAttributes
from netbootd.formats.window import Window
from tests.support.ext4_images import make
from tests.support.handmade_fat import HandMadeFat, folder_record, long_records, record
from tests.support.live_iso import live_iso
from tests.support.processes import run

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KIB, MIB = 1 << 10, 1 << 20
_UUID = "6f1f2f3a-0f3c-5d5e-9c55-0a7e6f2b7f00"
_FIXED = ("-U", _UUID, "-E", f"hash_seed={_UUID}")
_TIME = 1_754_352_000

EXT4_OPTIONS: dict[str, tuple[str, ...]] = {
    "extents": ("-b", "1024", "-O", "^has_journal,^metadata_csum,^resize_inode"),
    "blocks": ("-b", "1024", "-O", "^has_journal,^metadata_csum,^extents,^64bit,^resize_inode"),
    "inline": ("-b", "1024", "-O", "inline_data,^has_journal,^metadata_csum,^resize_inode", "-I", "512"),
    "ea-inode": ("-b", "4096", "-O", "ea_inode,^has_journal,^metadata_csum,^resize_inode"),
}
"""Without checksums, so that a change reaches what stands behind them."""


# ---------------------------------------------------------------- file systems


def root_tree(folder: Path, many: int = 45) -> Path:
    """A root with a file of every kind, few enough for an image of half a megabyte; `many` in one folder."""
    numbers = random.Random(1)
    for name in ("etc", "usr/lib/modules/6.8.0-raspi", "usr/many", "var"):
        (folder / name).mkdir(parents=True)
    (folder / "etc" / "fstab").write_text("LABEL=writable / ext4 defaults 0 1\n")
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (folder / "usr" / "data").write_bytes(numbers.randbytes(3000))
    for number in range(many):
        (folder / "usr" / "many" / f"{number:02}-a-name-that-takes-some-room").write_bytes(b"%d" % number)
    (folder / "usr" / "tiny").write_bytes(b"t" * 40)
    (folder / "usr" / "small").write_bytes(b"s" * 150)
    (folder / "etc" / "short").symlink_to("../usr/data")
    (folder / "etc" / "long").symlink_to("../" * 30 + "usr/data")
    (folder / "etc" / "hard").hardlink_to(folder / "usr" / "data")
    os.mkfifo(folder / "var" / "fifo")
    for name, count in (("islands", 12), ("three", 3)):  # with a tree of extents, and with extents in the inode
        with (folder / "var" / name).open("wb") as file:
            for number in range(count):
                file.seek(number * 40_000)
                file.write(b"island %d" % number)
            file.truncate(count * 50_000)
    os.setxattr(folder / "etc" / "passwd", "user.note", b"a value")
    os.setxattr(folder / "usr" / "data", "user.long", b"v" * 500)
    rows = ((1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *row) for row in rows)
    (folder / "etc" / "fstab").chmod(0o640)
    os.setxattr(folder / "etc" / "fstab", "system.posix_acl_access", acl)
    os.setxattr(folder / "var", "system.posix_acl_default", acl)
    if os.geteuid() == 0:
        os.mknod(folder / "var" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for base, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            os.utime(Path(base, name), (_TIME, _TIME), follow_symlinks=False)
    return folder


def _ext4(folder: Path, *options: str, size: str = "640K") -> Path:
    tree = folder / "tree"
    if not tree.exists():
        root_tree(tree)
    image = folder / f"image-{len(list(folder.iterdir()))}"
    return make(image, tree, "-N", "128", *_FIXED, *options, size=size)


def ext4(folder: Path) -> list[bytes]:
    """File systems without checksums, one for each way in which content, folders and attributes can lie."""
    images = {name: _ext4(folder, *options) for name, options in EXT4_OPTIONS.items()}
    big = folder / "big"
    big.write_bytes(b"large " * 900)
    script = folder / "script"
    script.write_text(f"ea_set -f {big} /etc/passwd user.large\n")
    run(["debugfs", "-w", "-f", script, images["ea-inode"]])
    return [image.read_bytes() for image in images.values()]


def ext4_with_checksums(folder: Path) -> list[bytes]:
    """File systems with checksums, of inodes of both sizes."""
    plain = ("-b", "1024", "-O", "^has_journal,metadata_csum,^resize_inode")
    return [_ext4(folder, *plain, "-I", size).read_bytes() for size in ("256", "128")]


def journal(folder: Path) -> list[bytes]:
    """File systems that were not unmounted, with transactions of every kind in their journals."""
    tree = folder / "little"
    tree.mkdir()
    for number in range(5):
        (tree / f"file-{number}").write_bytes(b"%d\n" % number * 300)
    made: list[bytes] = []
    for opening, checksums in (
        ("jo", "^metadata_csum"),
        ("jo -c -v 2", "metadata_csum"),
        ("jo -c -v 3", "metadata_csum"),
    ):
        image = folder / f"journal-{len(made)}"
        options = ("-b", "1024", "-J", "size=1", "-O", f"{checksums},^resize_inode", "-N", "32", *_FIXED)
        make(image, tree, *options, size="4M")
        data = folder / "data"
        data.write_bytes(bytes.fromhex("c03b3998") + b"e" * 1020 + b"f" * 1024)
        script = folder / "script"
        lines = [opening, f"jw -b 3900,3901 {data}", "jw -r 3901", f"jw -b 3902 {data}", "jc"]
        script.write_text("".join(f"{line}\n" for line in lines))
        run(["debugfs", "-w", "-f", script, image])
        made.append(image.read_bytes())
    return made


def fat(folder: Path) -> list[bytes]:
    """FAT12, FAT16 and FAT32: made by hand, by mtools, and with folders, long names and chains in pieces."""
    hand = HandMadeFat(folder)
    hand.folder(
        record(b"CONFIG  TXT", 3, 1100),
        long_records("A long näme.dtb", b"ALONGN~1DTB") + record(b"ALONGN~1DTB", 10, 100),
        folder_record(b"OVERLAYS", 20),
    )
    hand.chain(3, 5, 4, 0xFFFF).chain(10, 0xFFFF).chain(20, 21, 0xFFFF)
    entries = (folder_record(b".", 20), folder_record(b"..", 0), record(b"VC4     DTB", 30, 512))
    hand.folder(*entries, cluster=20).chain(30, 0xFFFF)
    made = [hand.path.read_bytes()[: 6060 * 512]]
    for bits, size in (("12", 200 * KIB), ("32", 300 * KIB)):
        image = folder / f"fat{bits}"
        image.write_bytes(bytes(size))
        run(["mkfs.vfat", "-F", bits, "-s", "1", "-i", "6F1F2F3A", "--invariant", image])
        if bits == "12":
            run(["mmd", "-i", image, "::overlays"], env={"MTOOLS_SKIP_CHECK": "1"})
        with image.open("r+b") as file:  # mtools takes so small a FAT32 for another
            for edit in put_files(Window.whole(file.fileno()), boot_files()):
                file.seek(edit.offset)
                file.write(edit.data)
        made.append(image.read_bytes())
    return made


def boot_files() -> dict[str, bytes]:
    """A boot partition's files."""
    return {
        "config.txt": b"arm_64bit=1\nkernel=vmlinuz\n",
        "cmdline.txt": b"console=tty1 root=LABEL=writable rootwait\n",
        "autoboot.txt": b"[all]\nboot_partition=1\n[tryboot]\nboot_partition=2\n",
        "a-long-name-of-a-file.dtb": b"d" * 1500,
    }


# ---------------------------------------------------------------- disks


def _mbr(rows: Iterable[tuple[int, int, int]]) -> bytes:
    """A first sector with up to four partitions: (type, first sector, sectors)."""
    entries = b"".join(struct.pack("<B3xB3xII", 0, *row) for row in rows)
    return bytes(440) + b"\x12\x34\xfe\xca" + bytes(2) + entries.ljust(64, b"\0") + b"\x55\xaa"


def _disk(parts: list[tuple[int, bytes]], start: int = 64 * KIB) -> bytes:
    """A whole disk: the partitions (type, content) one behind the other from byte `start` on."""
    rows, body = [], bytearray()
    for kind, content in parts:
        rows.append((kind, (start + len(body)) // 512, len(content) // 512))
        body += content
    return _mbr(rows).ljust(start, b"\0") + bytes(body) + bytes(4096)


def disks(folder: Path) -> list[bytes]:
    """Whole disks with a boot partition and a root; the second has two systems of which one is the active one."""
    boot = fat(folder)[1]
    root = _ext4(folder, *EXT4_OPTIONS["extents"]).read_bytes()
    other = _ext4(folder, *EXT4_OPTIONS["blocks"], "-L", "other").read_bytes()
    return [_disk([(0x0C, boot), (0x83, root)]), _disk([(0x0C, boot), (0x0C, boot), (0x83, other), (0x83, root)])]


def landing(folder: Path) -> list[bytes]:
    """Whole disks of which the root's content lands in files: of one group of blocks and of several, also unchecked."""
    made = []
    unchecked = "^has_journal,^resize_inode,^flex_bg,^metadata_csum"
    for options in (("-O", unchecked), ("-O", unchecked, "-g", "256"), ("-O", "^has_journal,^resize_inode")):
        made.append(_disk([(0x83, _ext4(folder, "-b", "1024", *options).read_bytes())]))
    return made


def partitions(folder: Path) -> list[bytes]:
    """Disks with tables of every kind, and hardly anything in the partitions."""
    made = []
    for number, script in enumerate((_SFDISK_MBR, _SFDISK_GPT)):
        image = folder / f"table-{number}"
        image.write_bytes(bytes(512 * KIB))
        run(["sfdisk", "-q", image], stdin=script)
        data = bytearray(image.read_bytes())
        data[128 * 512 + 1080 : 128 * 512 + 1082] = b"\x53\xef"
        made.append(bytes(data))
    return made


_SFDISK_MBR = """label: dos
label-id: 0xcafe1234
start=64, size=32, type=c, bootable
start=128, size=64, type=83
start=256, size=512, type=f
start=260, size=64, type=83
start=340, size=64, type=82
"""
_SFDISK_GPT = f"""label: gpt
label-id: {_UUID}
first-lba: 34
start=64, size=32, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, uuid={_UUID}, name="system-boot"
start=128, size=64, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name="root"
"""


def iso9660(folder: Path) -> list[bytes]:
    """A live server's ISOs, names by Rock Ridge, by Joliet and plain."""
    files = {
        ".disk/info": b"Ubuntu-Server 24.04.3 LTS",
        "casper/vmlinuz": b"MZ kernel " * 300,
        "casper/initrd": b"initrd " * 300,
        "casper/ubuntu-server-minimal.manifest": b"bash\t5.2.21\n",
    }
    return [
        live_iso(folder / f"{number}.iso", files, maker).read_bytes()
        for number, maker in enumerate(("pycdlib", "xorriso", "genisoimage joliet"))
    ]


# ---------------------------------------------------------------- archives


def _image() -> bytes:
    """What every archive holds: the least that passes for a disk's image."""
    data = bytearray(48 * KIB)
    data[:512] = _mbr([(0x83, 8, 64)])
    data[40_000:40_500] = random.Random(2).randbytes(500)  # few, so that more changes hit what is around it
    return bytes(data)


def xz(folder: Path) -> list[bytes]:
    """One block; several, as xz -T makes them; two streams with padding between them."""
    image = folder / "image"
    image.write_bytes(_image())
    run(["xz", "-k", "-f", "-T1", "--block-size=16KiB", image])
    blocks = image.with_name("image.xz").read_bytes()
    halves = [lzma.compress(part, check=lzma.CHECK_SHA256) for part in (_image()[:20_000], _image()[20_000:])]
    return [lzma.compress(_image(), check=lzma.CHECK_CRC32), blocks, halves[0] + bytes(8) + halves[1]]


def streams(folder: Path) -> list[bytes]:
    """gzip of one and of two members, Zstandard with a skippable frame before it and without."""
    parts = (_image()[:20_000], _image()[20_000:])
    frame = zstd.compress(_image())
    skippable = b"\x50\x2a\x4d\x18" + (8).to_bytes(4, "little") + bytes(8)
    packed = [gzip.compress(part, mtime=0) for part in parts]
    return [gzip.compress(_image(), mtime=0), b"".join(packed), frame, skippable + frame + zstd.compress(b"x" * 99)]


def containers(folder: Path) -> list[bytes]:
    """Zips, deflated and stored, and tars of every form."""
    made = []
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, data in (("README", b"read me"), ("disk.img", _image())):
                archive.writestr(zipfile.ZipInfo(name), data, method)
        made.append(out.getvalue())
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            folders = "a-folder-with-a-name/" * (4 if form == tarfile.USTAR_FORMAT else 8)
            info = tarfile.TarInfo(f"{folders}disk.img")
            info.size = len(_image())
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"size": str(info.size)}
            tar.addfile(info, io.BytesIO(_image()))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "disk.img"
            tar.addfile(link)
        made.append(out.getvalue())
    return made


def initramfs(folder: Path) -> list[bytes]:
    """Archives one behind the other, plain and in every way of packing."""
    early = cpio.write([Member("kernel/x86/microcode", 0o100644, b"microcode" * 9)])
    main = cpio.write(
        [
            Member("scripts", 0o40755),
            Member("scripts/nfs", 0o100755, b"#!/bin/sh\nmount\n"),
            Member("bin", 0o120777, b"usr/bin"),
            Member("usr/bin/loop", 0o120777, b"loop"),
            Member("usr/lib/modules/6.8/kernel/overlay.ko.zst", 0o100644, b"o" * 900),
        ]
    )
    packed = [
        gzip.compress(main, mtime=0),
        lzma.compress(main, check=lzma.CHECK_CRC32),
        lzma.compress(main, lzma.FORMAT_ALONE),
        bz2.compress(main),
        zstd.compress(main),
        *(_by_a_tool(main, folder, *tool) for tool in (("lz4", "-l", "-q", "-f"), ("lzop", "-q", "-f", "-o"))),
    ]
    return [main, early + main, *(early + bytes(512) + each for each in packed), gzip.compress(packed[0], mtime=0)]


def _by_a_tool(data: bytes, folder: Path, name: str, *options: str) -> bytes:
    source, target = folder / "plain", folder / "packed"
    source.write_bytes(data)
    os.utime(source, (_TIME, _TIME))
    run([name, *options, *((source, target) if name == "lz4" else (target, source))])
    return target.read_bytes()


def elf(folder: Path) -> list[bytes]:
    """A program of this host, and one of nothing but headers for a 32-bit machine of the other byte order."""
    strings = b"\0libc.so.6\0/lib/own\0"
    dynamic = b"".join(
        struct.pack(">iI", *each) for each in ((1, 1), (29, 11), (5, 0x1100), (10, len(strings)), (0, 0))
    )
    segments = [(1, 0, 0x1000, 512), (2, 0x140, 0x1140, len(dynamic)), (3, 0x180, 0x1180, 11)]
    table = b"".join(struct.pack(">8I", kind, at, place, 0, size, size, 4, 4) for kind, at, place, size in segments)
    head = b"\x7fELF\1\2\1".ljust(16, b"\0") + struct.pack(">HHIIIIIHHHHHH", 3, 8, 1, 0, 52, 0, 0, 52, 32, 3, 0, 0, 0)
    little = (head + table).ljust(0x100, b"\0") + strings
    little = little.ljust(0x140, b"\0") + dynamic
    return [Path("/usr/bin/true").read_bytes(), little.ljust(0x180, b"\0") + b"/lib/ld.so\0".ljust(0x80, b"\0")]


# ---------------------------------------------------------------- texts and records


def attributes(folder: Path) -> list[bytes]:
    """The record of a plain user's tree."""
    known = TreeAttributes()
    known.set(b"", Attributes(0o40755))
    known.set(b"bin/ping", Attributes(0o100755, 0, 0, 0, 0, (("security.capability", b"\1" * 20),)))
    known.set(b"dev/null", Attributes(0o20666, 0, 0, 1, 3))
    for number in range(20):
        known.set(b"etc/%d" % number, Attributes(0o100644, number, 7, 0, 0, (("user.a", b"b"), ("user.c", b"d" * 9))))
    return [known.encode(), TreeAttributes().encode()]


def configtxt(folder: Path) -> list[bytes]:
    """What firmware reads from the boot partition."""
    from tests.support import little_trees as trees

    texts = (trees.NOBLE_CONFIG, trees.AB_CONFIG, trees.RASPIOS_CONFIG)
    odd = "include other.txt\ninitramfs a,b followkernel\n[0x10000000]\n[board-type=0x11]\nx=1 # y\n"
    odd += "[gpio4=1]\n[partition=2]\n"
    return [text.encode() for text in (*texts, odd)]


def cmdline(folder: Path) -> list[bytes]:
    """Command lines, fstabs and the rest of what a root has as text."""
    from tests.support import little_trees as trees

    texts = (
        trees.NOBLE_CMDLINE,
        trees.RASPIOS_CMDLINE,
        trees.BOOKWORM_CMDLINE,
        trees.UBUNTU_FSTAB,
        trees.RASPIOS_FSTAB,
    )
    odd = 'root="/dev/x y" init=/sbin/init -- a "b c" ro nfsroot=1.2.3.4:/x,v3\n'
    return [text.encode() for text in (*texts, odd)]


def catalogue(folder: Path) -> list[bytes]:
    """Lists of Raspberry Pi Imager."""
    digest = "0123456789abcdef" * 4
    image = {
        "name": "Raspberry Pi OS Lite (64-bit)",
        "description": "A port of Debian Trixie with no desktop environment",
        "url": "https://downloads.raspberrypi.com/2025-10-01-raspios-trixie-arm64-lite.img.xz",
        "image_download_sha256": digest,
        "image_download_size": 500_000_000,
        "extract_sha256": digest,
        "extract_size": 2_000_000_000,
        "release_date": "2025-10-01",
        "devices": ["pi5-64bit", "pi4-64bit"],
        "architecture": "armv8",
    }
    lists = [
        {"os_list": [image, {"name": "folder", "subitems": [image, {**image, "url": "other.img.xz"}]}]},
        {"os_list": [{"name": "more", "subitems_url": "sub/list.json"}, {"url": "internal://format"}, image]},
    ]
    return [json.dumps(each).encode() for each in lists]


def sums(folder: Path) -> list[bytes]:
    """SHA256SUMS, what gpgv says of a signature, and armour."""
    digest = "0123456789abcdef" * 4
    names = (
        "ubuntu-24.04.3-preinstalled-server-arm64+raspi.img.xz",
        "ubuntu-24.04.10-preinstalled-desktop-arm64+raspi.img.xz",
        "ubuntu-24.04.3-live-server-amd64.iso",
    )
    armour = "-----BEGIN PGP SIGNATURE-----\nVersion: x\n\n{}\n=abcd\n-----END PGP SIGNATURE-----\n"
    status = (
        "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 0123456789ABCDEF A Publisher\n"
        f"[GNUPG:] VALIDSIG {digest[:40].upper()} 2025-08-05 1754352000 0 4 0 1 10 00 {digest[:40].upper()}\n"
    )
    return [
        "".join(f"{digest} *{name}\n" for name in names).encode(),
        status.encode(),
        armour.format("iQIzBAEBCgAdFiEE" * 8).encode(),
    ]


# ---------------------------------------------------------------- wires


def tftp(folder: Path) -> list[bytes]:
    """Requests and errors."""
    return [
        b"\0\1config.txt\0octet\0tsize\x000\0blksize\x001024\0windowsize\x0016\0timeout\x003\0",
        b"\0\1serial/start4.elf\0netascii\0",
        b"\0\5\0\1File not found\0",
    ]


def channel(folder: Path) -> list[bytes]:
    """What the kernel asks and tells of NFS, and requests to the privileged part."""
    return [
        b"nfsd 192.0.2.10\n",
        b"netbootd /srv/netbootd/\\040images/x/root\n",
        b"netbootd 7 \\x0200000000000000" + b"ab" * 16 + b"\n",
        b"-2 +3 +4 -4.0 +4.1 +4.2\n",
        b"tcp 2049\nudp 2049\nrdma 20049\n",
        json.dumps({"do": "start", "addresses": ["192.0.2.1", "2001:db8::1"], "port": 2049}).encode(),
        json.dumps(
            {"do": "handle", "image": "noble", "generation": "0" * 16, "below": ["6574"], "address": "192.0.2.9"}
        ).encode(),
        json.dumps({"answer": {"threads": 8}}).encode(),
        json.dumps({"error": "host", "message": "It can't.", "hint": ""}).encode(),
        struct.pack("=H2s4s", 2, b"\x08\x01", b"\xc0\0\2\1").ljust(128, b"\0"),
        struct.pack("=H2sI16sI", 10, b"\x08\x01", 0, bytes(15) + b"\1", 0).ljust(128, b"\0"),
    ]


# ---------------------------------------------------------------- mended after a change


def mend_attributes(data: bytes) -> bytes:
    """The record with the digest of what it holds, so that a change reaches what stands behind that check."""
    import hashlib

    return data[:24] + hashlib.sha256(data[56:]).digest() + data[56:]


def mend_xz(data: bytes) -> bytes:
    """The archive with right checksums in the index and the footer of its last stream (xz-file-format 1.2.1)."""
    out = bytearray(data)
    if len(out) < 32:
        return data
    struct.pack_into("<I", out, len(out) - 12, zlib.crc32(out[-8:-2]))
    start = len(out) - 12 - (int.from_bytes(out[-8:-4], "little") + 1) * 4
    if start >= 12:
        struct.pack_into("<I", out, len(out) - 16, zlib.crc32(out[start:-16]))
    return bytes(out)


def mend_gpt(data: bytes) -> bytes:
    """The disk with right checksums in both of its GPTs, as far as these can be found."""
    out = bytearray(data)
    for at in (512, len(out) - 512):
        if len(out) < at + 92 or out[at : at + 8] != b"EFI PART":
            continue
        (size,) = struct.unpack_from("<I", out, at + 12)
        first, count, width = struct.unpack_from("<QII", out, at + 72)
        if first * 512 < len(out) and count * width < MIB:
            struct.pack_into("<I", out, at + 88, zlib.crc32(out[first * 512 : first * 512 + count * width]))
        out[at + 16 : at + 20] = bytes(4)
        struct.pack_into("<I", out, at + 16, zlib.crc32(out[at : at + min(size, 512)]))
    return bytes(out)
