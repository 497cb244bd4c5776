"""What an image is like inside: found once by the builder, needed again whenever something is rendered for a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts of one built image; `as_dict` and `from_dict` carry them through image.json.

    Paths are relative to the boot tree. `cmdline_path` is where the firmware reads the command line (below
    ``current/`` in Ubuntu's A/B layout), `cmdline_base` that line less its local root
    (`netbootd.formats.cmdline.base_of`), `overlay` the arguments that put a writable layer over the read-only root.
    `kernels` are all files that one board or another loads as its kernel.
    """

    os_id: str = ""
    os_version: str = ""
    cmdline_path: str = "cmdline.txt"
    cmdline_base: str = ""
    cmdline_append: str = ""
    overlay: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    initramfs: tuple[str, ...] = ()
    cloud_init_version: str = ""
    initramfs_generator: str = ""
    network_manager: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For image.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ImageFacts:
        """From image.json; unknown keys, of a newer version, are passed over."""
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value}
        for key in ("overlay", "kernels", "initramfs"):
            if key in known:
                known[key] = tuple(known[key])
        return cls(**known)

    @property
    def datasource(self) -> str:
        """The name of cloud-init's network seed on the kernel command line: ``nocloud``, before 23.2 ``nocloud-net``.

        Before 23.2 ``ds=nocloud;s=http…`` is taken for a local seed, fetched and then dropped (DataSourceNoCloud.py).
        """
        parts = self.cloud_init_version.split(".")
        numbers = [int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:2]]
        return "nocloud-net" if numbers and len(numbers) == 2 and (numbers[0], numbers[1]) < (23, 2) else "nocloud"
