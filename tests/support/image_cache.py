"""The images that the boot tests start from: made once, kept in the cache folder, shared by all tests of a run.

The cache is ``$NETBOOTD_TEST_CACHE``, else ``.cache/tests`` in the checkout. An image is filed under a digest of how it
is made, so that a change of the maker or its options makes a new one. ``python -m tests.support.image_cache`` makes all
of them ahead of need: tests/run does so in the background.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import mini_client
from tests.support.processes import REPOSITORY, run

_MINUTES = 60.0


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk image, and beside it what the kernel's own mount and mtools say is in it."""

    path: Path

    @property
    def root_manifest(self) -> Path:
        """The ext4 file system as the kernel saw it, one JSON object a line."""
        return self.path.with_name(self.path.name + ".root.jsonl")

    @property
    def boot_manifest(self) -> Path:
        """The FAT file system as mtools read it, one JSON object a line."""
        return self.path.with_name(self.path.name + ".boot.jsonl")

    def root_file(self, path: str) -> dict[str, Any]:
        """The manifest's row of one path of the root file system (without a leading slash)."""
        for line in self.root_manifest.read_text().splitlines():
            row: dict[str, Any] = json.loads(line)
            if row["path"] == path:
                return row
        raise KeyError(path)


def cache() -> Path:
    """The folder for what is slow to make or to download."""
    folder = Path(os.environ.get("NETBOOTD_TEST_CACHE") or REPOSITORY / ".cache" / "tests").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def full_image() -> DiskImage:
    """Ubuntu's 24.04 layout with real Pi firmware and a real Debian root (amd64, for a steady boot under QEMU)."""
    return _make("full", "--root", "amd64", "--boot", "debian", "--xz", "none")


def mini_image() -> DiskImage:
    """The same layout with a real arm64 kernel, the mini client as its initramfs, and a root of ext4's rarer features.

    The manifest of the boot partition is that of before the initramfs was put in.
    """
    return _make("mini", "--root", "tiny", "--boot", "debian", "--xz", "none", initramfs=True)


def tiny_image() -> DiskImage:
    """The same layout with stand-ins for all that is big: made in seconds, without a download."""
    return _make("tiny", "--root", "tiny", "--boot", "synthetic", "--xz", "none")


def _make(name: str, *options: str, initramfs: bool = False) -> DiskImage:
    """The image from the cache, made first where it isn't there."""
    recipe = hashlib.sha256(repr(options).encode())
    support = Path(__file__).parent
    for source in (support / "imagemaker.py", support / "mini_client.py", *sorted(support.glob("imageparts/*.py"))):
        recipe.update(source.read_bytes())
    folder = cache() / f"image-{name}-{recipe.hexdigest()[:12]}"
    with locked(cache() / "images.lock"):
        if not folder.is_dir():
            for old in cache().glob(f"image-{name}-*"):
                shutil.rmtree(old)
            part = cache() / f"image-{name}-new.part"
            folders = ("--out", str(part), "--cache", str(cache() / "imagemaker"))
            run([sys.executable, "-m", "tests.support.imagemaker", *folders, *options], timeout=15 * _MINUTES)
            if initramfs:
                _replace_boot_file(_image_in(part), "initrd.img", mini_client.initramfs(cache() / "imagemaker"))
            part.rename(folder)
    return _image_in(folder)


def _image_in(folder: Path) -> DiskImage:
    (path,) = folder.rglob("*.img")
    return DiskImage(path)


def _replace_boot_file(image: DiskImage, name: str, content: bytes) -> None:
    layout = json.loads(image.path.with_name(image.path.name + ".layout.json").read_text())
    source = image.path.with_name(name)
    source.write_bytes(content)
    partition = f"{image.path}@@{layout['p1'][0]}"
    run(["mcopy", "-o", "-i", partition, source, f"::{name}"], env={"MTOOLS_SKIP_CHECK": "1"})
    source.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock of the cache: one process makes a thing, the others wait for it."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main(names: Sequence[str]) -> None:
    from tests.support.layout_images import layouts_folder
    from tests.support.server_image import server_image, wheels

    makers = {"tiny": tiny_image, "mini": mini_image, "server": server_image, "full": full_image}
    makers |= {"layouts": layouts_folder, "wheels": wheels}
    for name in names or makers:
        print(makers[name](), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
