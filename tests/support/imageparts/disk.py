# ruff: noqa: UP031
"""The whole disk: partition table, both partitions, compressed forms, and the signature."""

import os
import subprocess

from tests.support.imageparts.programs import MIB, run


def copy_sparse(src, dst_fd, offset):
    """Copy a file to an offset of another, holes staying holes."""
    with open(src, "rb") as f:
        fd, end, pos = f.fileno(), os.fstat(f.fileno()).st_size, 0
        while pos < end:
            try:
                pos = os.lseek(fd, pos, os.SEEK_DATA)
            except OSError:
                break
            stop = os.lseek(fd, pos, os.SEEK_HOLE)
            while pos < stop:
                n = os.copy_file_range(fd, dst_fd, min(stop - pos, 64 * MIB), pos, offset + pos)
                if n == 0:
                    break
                pos += n


def assemble(path, fat, ext4, gpt, ids, start):
    """Write the partition table and both partitions."""
    fat_size, ext4_size = os.path.getsize(fat), os.path.getsize(ext4)
    total = start + fat_size + ext4_size + (MIB if gpt else 0)
    with open(path, "wb") as f:
        f.truncate(total)
    s = [start // 512, fat_size // 512, (start + fat_size) // 512, ext4_size // 512]
    if gpt:
        script = (
            "label: gpt\nlabel-id: %s\nfirst-lba: 34\n"
            'start=%d, size=%d, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, uuid=%s, name="system-boot"\n'
            'start=%d, size=%d, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=%s, name="writable"\n'
            % (ids["disk"], s[0], s[1], ids["p1"], s[2], s[3], ids["p2"])
        )
    else:
        script = "label: dos\nlabel-id: 0x%s\nstart=%d, size=%d, type=c, bootable\nstart=%d, size=%d, type=83\n" % (
            ids["disk"],
            *s,
        )
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, input=script.encode())
    with open(path, "r+b") as f:
        copy_sparse(fat, f.fileno(), start)
        copy_sparse(ext4, f.fileno(), start + fat_size)
    return start, start + fat_size, total


def compress(image, args):
    """Make the wanted compressed forms; return their paths."""
    out = []

    def to_file(argv, name):
        with open(name, "wb") as f:
            subprocess.run(argv, stdout=f, check=True)
        out.append(name)

    if args.xz in ("single", "both"):
        to_file(["xz", "-T1", "-%d" % args.level, "-c", image], image + ".xz")
    if args.xz == "multi":
        to_file(["xz", "-T0", "--block-size=16MiB", "-%d" % args.level, "-c", image], image + ".xz")
    if args.xz == "both":
        folder = os.path.join(os.path.dirname(image), "multi")
        os.makedirs(folder, exist_ok=True)
        to_file(
            ["xz", "-T0", "--block-size=16MiB", "-%d" % args.level, "-c", image],
            os.path.join(folder, os.path.basename(image) + ".xz"),
        )
    for kind in args.also:
        if kind == "zst":
            to_file(["zstd", "-q", "-T0", "-10", "-c", image], image + ".zst")
        elif kind == "gz":
            to_file(["gzip", "-n", "-6", "-c", image], image + ".gz")
        elif kind == "zip":
            os.utime(image, (args.epoch, args.epoch))
            name = image[:-4] + ".zip"
            if os.path.exists(name):
                os.unlink(name)
            run("zip", "-q", "-X", "-j", name, image, env=dict(os.environ, TZ="UTC"))
            out.append(name)
    return out


def sign(path, keyring_out, cache):
    """Detached, armoured signature by a throw-away key kept in the cache."""
    home = os.path.join(cache, "gnupg")
    if not os.path.isdir(home):
        os.makedirs(home, 0o700)
        run(
            "gpg",
            "--homedir",
            home,
            "--batch",
            "--passphrase",
            "",
            "--quick-generate-key",
            "Throw-away test key <test@invalid>",
            "ed25519",
            "sign",
            "never",
        )
    run("gpg", "--homedir", home, "--batch", "--yes", "--armor", "--output", path + ".gpg", "--detach-sign", path)
    with open(keyring_out, "wb") as f:
        subprocess.run(["gpg", "--homedir", home, "--export"], stdout=f, check=True)
    run("gpgconf", "--homedir", home, "--kill", "all")
