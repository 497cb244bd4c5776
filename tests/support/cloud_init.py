"""Debian's cloud-init as a judge of documents, unpacked into the cache: nothing of it is installed on this host.

Installed, cloud-init would configure the host at its next boot. So its package and the Python modules that it needs are
only downloaded (apt, signatures checked) and run in place by the distribution's own Python.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.image_cache import cache
from tests.support.processes import run

_PACKAGES = (
    *("cloud-init", "python3-attr", "python3-certifi", "python3-chardet", "python3-charset-normalizer"),
    *("python3-configobj", "python3-idna", "python3-jinja2", "python3-json-pointer", "python3-jsonpatch"),
    *("python3-jsonschema", "python3-markupsafe", "python3-pyrsistent", "python3-requests", "python3-urllib3"),
    *("python3-yaml", "python3-six"),
)
_MODULES = "usr/lib/python3/dist-packages"
PYTHON = "/usr/bin/python3"
"""The Python that its modules are for."""


def program() -> Path:
    """A folder for PATH whose ``cloud-init`` is Debian's; made in the cache where it isn't there yet."""
    folder = cache() / "cloud-init"
    if not (folder / "bin" / "cloud-init").exists():
        beside = folder.with_name(f"cloud-init.{os.getpid()}")
        try:
            _unpack(beside)
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder / "bin"


def environment() -> dict[str, str]:
    """With this, PYTHON has cloud-init's modules."""
    return {"PYTHONPATH": str(program().parent / _MODULES)}


def render(template: str) -> str:
    """What Jinja makes of a text, as cloud-init on a node renders it (cloudinit/templater.py), with no variables."""
    script = (
        "import sys; from cloudinit.templater import render_string\n"
        "sys.stdout.write(render_string(sys.stdin.read(), {}))"
    )
    return run([PYTHON, "-c", script], env=environment(), stdin=template).stdout


def _unpack(folder: Path) -> None:
    archives = folder / "archives"
    archives.mkdir(parents=True)
    command = ["apt-get", "download", "-q", *_PACKAGES]
    if run(command, cwd=archives, check=False, timeout=300).returncode:
        if os.geteuid() == 0:  # the list of packages may be missing or too old
            run(["apt-get", "update", "-q"], timeout=300)
        run(command, cwd=archives, timeout=300)
    for archive in sorted(archives.glob("*.deb")):
        run(["dpkg", "-x", archive, folder])
    shutil.rmtree(archives)
    wrapper = folder / "bin" / "cloud-init"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\nhere=$(dirname "$(dirname "$(readlink -f "$0")")")\n'
        f'PYTHONPATH=$here/{_MODULES} exec {PYTHON} -m cloudinit.cmd.main "$@"\n'
    )
    wrapper.chmod(0o755)
