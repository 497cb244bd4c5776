"""The patcher on trees that come out of an archive: whatever names, links and texts a hostile image has."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from netbootd.errors import FormatError
from netbootd.formats import cpio
from netbootd.formats.cpio import Member
from netbootd.images import patches
from netbootd.model.network import ServerAddress
from tests.support import little_trees as trees
from tests.support.little_trees import Files, snapshot

_PARAMETERS = patches.Parameters(ServerAddress("192.0.2.1"), "/state/root")
_LONGEST = 1 << 20  # bytes of a file


def patch(data: bytes, folder: Path) -> None:
    """Survey and patch the folders ``boot`` and ``root`` of an archive; a third one beside them stays as it is."""
    boot, root, host = folder / "boot", folder / "root", folder / "host"
    _unpack(data, folder)
    for each in (boot, root, host / "etc" / "systemd" / "system"):
        each.mkdir(parents=True, exist_ok=True)
    for name in ("fstab", "hostname", "machine-id"):
        (host / "etc" / name).write_text(name)
    before = snapshot(host)
    try:
        facts = patches.survey(boot, root)
        patches.apply(boot, root, facts, _PARAMETERS)
        assert patches.apply(boot, root, facts, _PARAMETERS) == []
    finally:
        assert snapshot(host) == before
        assert sorted(os.listdir(folder)) == ["boot", "host", "root"]


def _unpack(data: bytes, folder: Path) -> None:
    """Make what an archive says below the two trees, as far as it can be: as an export would have left it."""
    stream = io.BytesIO(data)
    with suppress(FormatError):
        for member in cpio.read(stream.read, lambda _, size: size <= _LONGEST):
            names = [name for name in member.name.split("/") if name != ".."]
            if len(names) < 2 or len(names) > 20 or names[0] not in ("boot", "root"):
                continue
            with suppress(OSError, ValueError):  # a name that is too long or there already, a NUL
                _make(member, folder, names)


def _make(member: Member, folder: Path, names: list[str]) -> None:
    path = folder
    for name in names[:-1]:
        path = path / name
        if not path.is_symlink():
            path.mkdir(exist_ok=True)
        if path.is_symlink() or not path.is_dir():
            return
    path = path / names[-1]
    data = member.data or b""
    if stat.S_ISDIR(member.mode):
        path.mkdir(exist_ok=True)
    elif stat.S_ISLNK(member.mode):
        path.symlink_to(os.fsdecode(data))
    elif stat.S_ISFIFO(member.mode):
        os.mkfifo(path)
    elif not path.is_symlink():
        path.write_bytes(data)


def seeds(folder: Path) -> list[bytes]:
    """Ubuntu's and Raspberry Pi OS' trees, with an initramfs that is not compressed."""
    made = []
    without_nfs = {name: text for name, text in trees.DRACUT.items() if "nfsroot" not in name and ".ko" not in name}
    for number, (config, line, fstab, ramdisk) in enumerate(
        (
            (trees.NOBLE_CONFIG, trees.NOBLE_CMDLINE, trees.UBUNTU_FSTAB, trees.OVERLAYROOT),
            (trees.RASPIOS_CONFIG, trees.BOOKWORM_CMDLINE, trees.RASPIOS_FSTAB, trees.INITRAMFS_TOOLS),
            (trees.NOBLE_CONFIG, trees.NOBLE_CMDLINE, trees.UBUNTU_FSTAB, trees.DRACUT),
            (trees.NOBLE_CONFIG, trees.NOBLE_CMDLINE, trees.UBUNTU_FSTAB, without_nfs),
        )
    ):
        packed = cpio.write(_members(ramdisk))
        kernel, initrd = ("vmlinuz", "initrd.img") if config == trees.NOBLE_CONFIG else ("kernel8.img", "initramfs8")
        boot: dict[str, bytes] = {
            "config.txt": config.encode(),
            "cmdline.txt": line.encode(),
            kernel: b"kernel",
            initrd: packed,
        }
        more = {"usr/lib/klibc/bin/ipconfig": trees.STATIC_PROGRAM}
        root = trees.root_tree(folder / f"root-{number}", fstab=fstab, more=more)
        made.append(cpio.write([*_members(boot, "boot/"), *_of_folder(root)]))
    return made


def _members(files: Files | Mapping[str, bytes], prefix: str = "") -> Iterator[Member]:
    for name, content in files.items():
        if content is None:
            yield Member(prefix + name, stat.S_IFDIR | 0o755)
        elif isinstance(content, str) and content.startswith("-> "):
            yield Member(prefix + name, stat.S_IFLNK | 0o777, content[3:].encode())
        else:
            yield Member(
                prefix + name, stat.S_IFREG | 0o755, content if isinstance(content, bytes) else content.encode()
            )


def _of_folder(root: Path) -> Iterator[Member]:
    for path in sorted(root.rglob("*")):
        name = f"root/{path.relative_to(root)}"
        if path.is_symlink():
            yield Member(name, stat.S_IFLNK | 0o777, os.fsencode(path.readlink()))
        elif path.is_dir():
            yield Member(name, stat.S_IFDIR | 0o755)
        else:
            yield Member(name, stat.S_IFREG | 0o644, path.read_bytes())
