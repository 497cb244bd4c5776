"""Finds the files that ship beside the code: vm/, cloud-init/, systemd/.

In a checkout (and an editable install) they lie beside the package; a wheel puts them under ``share/netbootd`` of the
environment that it is installed into (setup.cfg, data_files).
"""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from netbootd.errors import NotFoundError

_BESIDE = Path(__file__).resolve().parent.parent
_SHARE = Path("share", "netbootd")


def find(*parts: str) -> Path:
    """The shipped file or folder of that name, for example ``find("cloud-init", "base")``.

    :raises NotFoundError: this installation does not have it
    """
    for root in _roots():
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise NotFoundError(
        f"This installation of netbootd lacks {'/'.join(parts)}.",
        hint="Install netbootd again, from a wheel or with pip from a checkout.",
    )


def _roots() -> Iterator[Path]:
    if (_BESIDE / "setup.cfg").is_file():  # else this is site-packages, where `systemd` may be somebody's package
        yield _BESIDE
    yield Path(sysconfig.get_path("data")) / _SHARE
    yield Path(sys.prefix) / _SHARE
    yield Path(site.getuserbase()) / _SHARE
    yield _BESIDE / _SHARE  # pip install --target
