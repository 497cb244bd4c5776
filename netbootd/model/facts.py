"""What an image is like inside: found once by the builder, needed again whenever something is rendered for a node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

PI: Final = "pi"
PC: Final = "pc"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts of one built image; `as_dict` and `from_dict` carry them through image.json.

    Paths are relative to the boot tree. `cmdline_path` is where the firmware reads the command line (below
    ``current/`` in Ubuntu's A/B layout), `cmdline_base` that line less its local root
    (`netbootd.formats.cmdline.base_of`), `overlay` the arguments that put a writable layer over the read-only root.
    `other_cmdlines` are the bases of further command lines, by path, where boards differ in the file that they read.
    `kernels` are all files that one board or another loads as its kernel.

    `kind` says what boots it: ``pi``, or ``pc`` for an installation medium, which has no command line of its own and no
    root tree; ``iso`` in `extra` is its file's name then.
    """

    os_id: str = ""
    os_version: str = ""
    cmdline_path: str = "cmdline.txt"
    cmdline_base: str = ""
    other_cmdlines: Mapping[str, str] = field(default_factory=dict)
    cmdline_append: str = ""
    overlay: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    initramfs: tuple[str, ...] = ()
    cloud_init_version: str = ""
    initramfs_generator: str = ""
    network_manager: str = ""
    kind: str = PI
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

    def for_cmdline(self, path: str) -> ImageFacts | None:
        """The facts as they hold for the command line at `path`; None if no board reads one there."""
        if path == self.cmdline_path:
            return self
        base = self.other_cmdlines.get(path)
        return None if base is None else replace(self, cmdline_path=path, cmdline_base=base)

    @property
    def datasource(self) -> str:
        """The name of cloud-init's network seed on the kernel command line: ``nocloud``, before 23.2 ``nocloud-net``.

        Before 23.2 ``ds=nocloud;s=http…`` is taken for a local seed, fetched and then dropped (DataSourceNoCloud.py);
        later ``nocloud-net`` is deprecated. An unknown version is taken for a recent one.
        """
        version = re.match(r"(?:\d+:)?(\d+)\.(\d+)", self.cloud_init_version)
        return "nocloud-net" if version and (int(version[1]), int(version[2])) < (23, 2) else "nocloud"
