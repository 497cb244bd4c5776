"""What the virtual machine is sent: the program, the configuration with the files that it names, and keys of the home.

A tar file, the same byte for byte for the same contents, so that its digests tell what changed. It is copied rather
than mounted: the services then find it at every boot, before Multipass has mounted anything, and Windows allows no
mounts at first. Modes are ours and not the workstation's, where Windows has none.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from netbootd import assets
from netbootd.cloudinit.seed import DOCUMENTS
from netbootd.config.schema import Config
from netbootd.errors import ConfigError, NotFoundError

MAX_BYTES = 64 << 20
"""So much is sent at most: a configuration with its folders is small, an image is not."""

_CODE = ("netbootd", "vm", "cloud-init", "systemd")
_CODE_FILES = (
    *("setup.cfg", "pyproject.toml", "MANIFEST.in", "netbootd.toml", "quickstart"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
)
_PATH_KEYS = ("ssh_authorized_keys", "cloud_init", "boot_files")
_LEFT_OUT = re.compile(r"__pycache__|.*\.py[co]|\.git|\.venv|.*~|.*\.sw[pno]|\.DS_Store|Thumbs\.db|desktop\.ini")
_FILLED_IN = re.compile(r"\$\{file:([^}]+)\}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A gzipped tar, and the digests of its two halves. `notes` are sentences about what was left out."""

    data: bytes
    code: str
    site: str
    notes: tuple[str, ...]

    @property
    def has_code(self) -> bool:
        """Whether the program itself is in it (else it comes from the package index)."""
        return not self.code.startswith("version ")


def collect(config: Config, home: Path, version: str, netplan: str) -> Bundle:
    """Gather it all.

    :param home: the home folder that ``~`` in the configuration means
    :param version: of netbootd, which is installed from the package index where this is no checkout
    :param netplan: how the bridged card is configured
    :raises ConfigError: the configuration names what the virtual machine can't have; every such name at once
    """
    code = dict(_code())
    faults: list[str] = []
    notes: list[str] = []
    site = {**_site(config, home, faults, notes), "netplan.yaml": netplan.encode()}
    if faults:
        raise ConfigError(
            "The virtual machine can't have everything that the configuration names:",
            details=faults,
            hint="Name it relative to netbootd.toml, within its folder, or below ~.",
        )
    size = sum(map(len, (*code.values(), *site.values())))
    if size > MAX_BYTES:
        large = max(site, key=lambda name: len(site[name]), default="")
        raise ConfigError(
            f"What the configuration names is {size >> 20} MiB, more than is sent to a virtual machine.",
            hint=f"The largest file is {large}; let the virtual machine download it instead.",
        )
    digests = {"code": _digest(code) if code else f"version {version}", "site": _digest(site)}
    members = {
        **{f"code/{name}": data for name, data in code.items()},
        **site,
        **{f"digests/{name}": f"{digest}\n".encode() for name, digest in digests.items()},
        "provision.sh": assets.find("vm", "provision.sh").read_bytes(),
    }
    return Bundle(_tar(members), digests["code"], digests["site"], tuple(notes))


# -------------------------------------------------------------------- what goes in


def _code() -> Iterator[tuple[str, bytes]]:
    try:
        root = assets.find("setup.cfg").parent
    except NotFoundError:
        return  # installed from a wheel: the virtual machine installs the same version
    for folder in _CODE:
        yield from _below(root / folder, folder).items()
    for name in _CODE_FILES:
        if (root / name).is_file():
            yield name, (root / name).read_bytes()


def _site(config: Config, home: Path, faults: list[str], notes: list[str]) -> dict[str, bytes]:
    """``site/…`` and ``home/…``: the configuration, and whatever it and its documents name."""
    found: dict[str, bytes] = {"site/netbootd.toml": b"# netbootd's defaults\n"}
    if config.path is not None:
        found["site/netbootd.toml"] = config.path.read_bytes()
        faults += _absolute(tomllib.loads(found["site/netbootd.toml"].decode("utf-8-sig")))
    shipped = assets.find("cloud-init").resolve()
    folders = {*config.defaults.cloud_init, *config.defaults.boot_files}
    folders |= {folder for node in config.nodes for folder in (*node.cloud_init, *node.boot_files)}
    wanted: list[Path] = list(config.defaults.ssh_authorized_keys)
    for folder in sorted(folders):
        wanted += _filled_in(folder, config.base)
        if not _is_below(folder, config.base) and _is_below(folder.resolve(), shipped):
            continue  # comes with the program
        place = _place(folder, config.base, home)
        if place is None:
            faults.append(f"{folder} is outside of {config.base}")
            continue
        found |= _below(folder, place)
    for path in wanted:
        place = _place(path, config.base, home)
        if not path.is_file():
            notes.append(f"{path} is not there, and so not in the virtual machine.")
        elif place is None:
            faults.append(f"{path} is outside of {config.base}")
        else:
            found[place] = path.read_bytes()
    notes += [
        f"[[image]] {image.name} is made from a file of this computer, which the virtual machine does not have."
        for image in config.images
        if image.source and "://" not in image.source
    ]
    return found


def _place(path: Path, base: Path, home: Path) -> str | None:
    """Where a path of the workstation lies in the bundle; None where the virtual machine could not find it."""
    for root, name in ((base, "site"), (home, "home")):
        if _is_below(path, root):
            return f"{name}/{path.relative_to(root).as_posix()}"
    return None


def _is_below(path: Path, root: Path) -> bool:
    return path.is_relative_to(root) and ".." not in path.relative_to(root).parts


def _absolute(value: Any, where: str = "") -> Iterator[str]:
    """The paths in a configuration that mean nothing in the virtual machine: absolute ones, of either kind."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _absolute(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _absolute(item, where)
    elif isinstance(value, str) and where in _PATH_KEYS and (value.startswith("/") or PureWindowsPath(value).drive):
        yield f"{where}: {value} is a path of this computer only"


def _filled_in(folder: Path, base: Path) -> Iterator[Path]:
    """The files that ``${file:…}`` in a folder's documents stands for."""
    for name in DOCUMENTS:
        try:
            text = (folder / name).read_text("utf-8", "replace")
        except OSError:
            continue
        for match in _FILLED_IN.finditer(text):
            yield base / Path(match[1]).expanduser()


def _below(folder: Path, name: str) -> dict[str, bytes]:
    """Every file below a folder, as a regular file; what editors and caches leave is passed over."""
    found: dict[str, bytes] = {}
    total = 0
    for path in sorted(folder.rglob("*")):
        parts: Iterable[str] = path.relative_to(folder).parts
        if any(_LEFT_OUT.fullmatch(part) for part in parts) or not path.is_file():
            continue
        total += path.stat().st_size
        if total > MAX_BYTES:
            raise ConfigError(
                f"{folder} holds more than {MAX_BYTES >> 20} MiB, which is more than is sent to a virtual machine.",
                hint="Take out what nodes do not need of it.",
            )
        found[str(PurePath(name, *parts).as_posix())] = path.read_bytes()
    return found


# -------------------------------------------------------------------- packing


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{len(name.encode())} {len(files[name])} {name}".encode() + files[name])
    return digest.hexdigest()


def _tar(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for folder in ("site", "home", "digests"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name in sorted(members):
            entry = tarfile.TarInfo(name)
            entry.size = len(members[name])
            entry.mode = 0o755 if members[name].startswith(b"#!") else 0o644
            tar.addfile(entry, io.BytesIO(members[name]))
    return packed.getvalue()
