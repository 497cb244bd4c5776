# ruff: noqa: UP031
"""Build realistic Raspberry-Pi-style disk images for tests.

The result looks like what Ubuntu and Raspberry Pi publish: a partition table
(MBR or GPT), p1 = FAT32 boot partition with firmware, kernel, initrd, device
trees, config.txt, cmdline.txt and cloud-init seed, p2 = ext4 root.  Next to
the image it leaves compressed forms, SHA256SUMS (optionally signed by a
throw-away key) in the folder layout of a download mirror, and manifests of
the *truth* of both partitions, so that a test can compare an extraction with
what the kernel (ext4) and mtools (FAT) say about the same bytes.

    python -m tests.support.imagemaker --out OUT --cache CACHE                      # tiny, ubuntu
    python -m tests.support.imagemaker --out OUT --cache CACHE --root amd64 --xz both --sign
    python -m tests.support.imagemaker --out OUT --cache CACHE --flavour raspios --gpt

Nothing is mounted to *write* an image: partitions are made by mke2fs and
mkfs.vfat and filled by debugfs and mtools in a fixed order, so the same
inputs give the same bytes.  Root (a read-only loop mount) is needed only for
the ext4 manifest (--no-root-manifest avoids it) and by mmdebstrap.

--root tiny     synthetic tree that exercises every ext4 feature a reader
                must know (see tiny_root()); seconds, no download
--root amd64    Debian minbase + systemd, cloud-init, initramfs-tools,
                overlayroot, kernel (mmdebstrap)
--root arm64    the same for arm64, foreign, through qemu-user (binfmt_misc)
--root FILE.tar any root file system as a tar (pax xattrs are kept)

Standard library only, plus Debian programs: e2fsprogs, mtools, dosfstools,
fdisk (sfdisk), xz-utils, and on demand zstd, zip, gnupg, mmdebstrap,
qemu-user-static, dpkg, apt.
"""

import argparse
import fcntl
import json
import os
import tempfile
import time
import uuid
import zlib

from tests.support.imageparts.bootpart import boot_files, make_fat
from tests.support.imageparts.disk import assemble, compress, sign
from tests.support.imageparts.entries import sort_entries
from tests.support.imageparts.ext4 import make_ext4
from tests.support.imageparts.manifests import fat_manifest, root_manifest
from tests.support.imageparts.programs import MIB, log, sha256_file
from tests.support.imageparts.roots import bootstrap, filler, finish_root, root_boot_assets, tar_root
from tests.support.imageparts.tinyroot import tiny_root

DEFAULT_EPOCH = 1754352000  # 2025-08-05, the date of 24.04.3


NAMESPACE = uuid.UUID("6f1f2f3a-0f3c-5d5e-9c55-0a7e6f2b7f00")


def image_name(args):
    if args.name:
        return args.name, "."
    if args.flavour == "raspios":
        return "2025-10-01-raspios-trixie-arm64-lite.img", "raspios_lite_arm64/images/raspios_lite_arm64-2025-10-02"
    release, version = ("resolute", "26.04") if args.flavour == "ubuntu-ab" else ("noble", "24.04.3")
    return (f"ubuntu-{version}-preinstalled-server-arm64+raspi.img", f"releases/{release}/release")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, help="output folder (a mirror tree is made in it)")
    p.add_argument("--cache", required=True, help="downloads, root tars and the signing key are kept here")
    p.add_argument("--root", default="tiny", help="tiny, amd64, arm64 or a .tar")
    p.add_argument(
        "--flavour",
        default="ubuntu",
        choices=("ubuntu", "ubuntu-ab", "raspios"),
        help="ubuntu: the 24.04 layout; ubuntu-ab: 25.10 and later (current/, tryboot)",
    )
    p.add_argument(
        "--boot",
        default="debian",
        choices=("debian", "synthetic"),
        help="debian: real firmware and arm64 kernel (67 MB download); synthetic: stand-ins",
    )
    p.add_argument("--gpt", action="store_true", help="GPT instead of MBR")
    p.add_argument("--boot-mib", type=int, default=256)
    p.add_argument("--root-mib", type=int, default=0, help="size of the root partition; 0: as needed")
    p.add_argument("--block-size", type=int, default=4096, choices=(1024, 2048, 4096))
    p.add_argument(
        "--mkfs-features", default="", help="for mke2fs -O, e.g. inline_data or ^64bit,^metadata_csum,^extents"
    )
    p.add_argument("--filler-files", type=int, default=0)
    p.add_argument("--filler-mib", type=int, default=0)
    p.add_argument("--packages", default="", help="more packages for amd64/arm64, comma separated")
    p.add_argument("--xz", default="single", choices=("single", "multi", "both", "none"))
    p.add_argument("--level", type=int, default=6, help="xz level")
    p.add_argument("--also", default=[], type=lambda s: [x for x in s.split(",") if x], help="of zst,gz,zip")
    p.add_argument("--sign", action="store_true", help="SHA256SUMS.gpg by a throw-away key")
    p.add_argument("--no-root-manifest", action="store_true")
    p.add_argument("--firstboot", action="store_true", help="raspios: init=... on the command line (as older images)")
    p.add_argument("--seedfiles", action="store_true", help="raspios: with cloud-init seed files (trixie)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--name", default="", help=argparse.SUPPRESS)
    args = p.parse_args()
    args.epoch = int(os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH))
    args.cache, args.out = os.path.abspath(args.cache), os.path.abspath(args.out)
    os.makedirs(args.cache, exist_ok=True)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    os.umask(0o022)

    base = uuid.uuid5(NAMESPACE, "%d-%s-%s" % (args.seed, args.root, args.flavour))
    if args.gpt:
        ids = {k: str(uuid.uuid5(base, k)) for k in ("disk", "p1", "p2")}
    else:
        disk = "%08x" % (zlib.crc32(base.bytes) | 1)
        ids = {"disk": disk, "p1": disk + "-01", "p2": disk + "-02"}
    name, folder = image_name(args)
    target = os.path.join(args.out, folder)
    os.makedirs(target, exist_ok=True)
    image = os.path.join(target, name)
    labels = ("bootfs", "rootfs") if args.flavour == "raspios" else ("system-boot", "writable")
    features = args.mkfs_features or ("^64bit,^huge_file" if args.flavour == "raspios" else "")

    with tempfile.TemporaryDirectory(prefix="work-", dir=args.cache) as stage:
        with open(os.path.join(args.cache, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if args.root == "tiny":
                entries = tiny_root(args.epoch, args.seed, args.block_size)
            else:
                tar = args.root if args.root.endswith(".tar") else bootstrap(args, args.root)
                log("root tar ready")
                entries = tar_root(tar, stage)
            entries = finish_root(entries, args, ids)
            entries += filler(args.epoch, args.seed, args.filler_files, args.filler_mib)
            entries = sort_entries(entries)
            files = boot_files(args, root_boot_assets(entries), ids)
        log("%d entries, %d boot files" % (len(entries), len(files)))
        data = sum(
            sum(len(c) + args.block_size for _, c in e.data)
            if isinstance(e.data, list)
            else -(-e.size // args.block_size) * args.block_size
            for e in entries
            if e.kind == "file" and e.data is not None
        )
        size = args.root_mib * MIB or -(-(data * 112 // 100 + len(entries) * 700 + 48 * MIB) // (4 * MIB)) * 4 * MIB
        fat, ext4 = os.path.join(stage, "p1"), os.path.join(stage, "p2")
        make_ext4(ext4, entries, labels[1], size, args.block_size, features, stage, args.epoch, base)
        log("ext4 done: %d MiB" % (size // MIB))
        make_fat(fat, files, labels[0], args.boot_mib * MIB, zlib.crc32(base.bytes + b"fat"), stage, args.epoch)
        log("FAT done")
        start = {"raspios": 8 * MIB}.get(args.flavour, MIB)
        p1, p2, total = assemble(image, fat, ext4, args.gpt, ids, start)
        log("image done: %d MiB" % (total // MIB))
        fat_manifest(image, p1, image + ".boot.jsonl", stage)
    if not args.no_root_manifest:
        n = root_manifest(image, p2, size, image + ".root.jsonl")
        log("manifest: %d entries" % n)
    made = compress(image, args)
    log("compressed: " + ", ".join(f"{os.path.basename(m)} {os.path.getsize(m) / MIB:.1f} MiB" for m in made))
    sums = {}
    for path in [image, *made]:
        digest = sha256_file(path)
        sums.setdefault(os.path.dirname(path), []).append((digest, os.path.basename(path)))
        with open(path + ".sha256", "w") as f:  # the form Raspberry Pi OS uses
            f.write(f"{digest}  {os.path.basename(path)}\n")
    for where, rows in sums.items():  # the form Ubuntu uses
        with open(os.path.join(where, "SHA256SUMS"), "w") as f:
            f.writelines("{} *{}\n".format(*row) for row in rows)
        if args.sign:
            sign(os.path.join(where, "SHA256SUMS"), os.path.join(args.out, "keyring.gpg"), args.cache)
    extract = sums[target][0][0]
    catalogue = {
        "os_list": [
            {
                "name": name,
                "description": "test image",
                "url": folder + "/" + os.path.basename(path),
                "extract_size": total,
                "extract_sha256": extract,
                "image_download_size": os.path.getsize(path),
                "image_download_sha256": digest,
                "release_date": time.strftime("%Y-%m-%d", time.gmtime(args.epoch)),
                "init_format": "cloudinit-rpi"
                if args.flavour == "raspios" and args.seedfiles
                else "systemd"
                if args.flavour == "raspios"
                else "cloudinit",
                "devices": ["pi5-64bit", "pi4-64bit", "pi3-64bit"],
            }
            for path in made
            if os.path.dirname(path) == target
            for digest in [sha256_file(path)]
        ]
    }
    with open(os.path.join(args.out, "os_list_imagingutility_v4.json"), "w") as f:
        json.dump(catalogue, f, indent=1)
    with open(image + ".layout.json", "w") as f:
        json.dump(
            {
                "table": "gpt" if args.gpt else "dos",
                "ids": ids,
                "labels": labels,
                "size": total,
                "p1": [p1, p2 - p1],
                "p2": [p2, size],
                "sha256": extract,
            },
            f,
            indent=1,
        )
    log("all done: " + target)


if __name__ == "__main__":
    main()
