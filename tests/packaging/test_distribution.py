"""The wheel and the sdist from outside: everything is in them, and the wheel works on every Python that is here."""

from __future__ import annotations

import glob
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY, run

pytestmark = pytest.mark.timeout(600)

SHARED = ("vm", "cloud-init", "systemd")
IMPORT_ALL = """
import importlib, pkgutil, netbootd
for module in pkgutil.walk_packages(netbootd.__path__, "netbootd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def pythons() -> dict[str, str]:
    """A Python of each minor version from 3.11 on that can make virtual environments: paths by version."""
    places = [sys.executable, *(shutil.which(f"python3.{minor}") or "" for minor in range(11, 20))]
    places += sorted(glob.glob("/usr/bin/python3.[0-9][0-9]") + glob.glob("/root/.pyenv/versions/3.*/bin/python3"))
    found: dict[str, str] = {}
    asks = "import sys, ensurepip; print(*sys.version_info[:2], sep='.')"
    for place in filter(None, places):
        done = subprocess.run([place, "-c", asks], capture_output=True, text=True)
        version = done.stdout.strip()
        if done.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 11):
            found.setdefault(version, place)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one wheel and one sdist, built as a publisher does it, from what Git knows."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = run(["git", "-c", f"safe.directory={REPOSITORY}", "ls-files", "-z"]).stdout.split("\0")
    for name in filter(None, tracked):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, target)
    run([sys.executable, "-m", "build", "--outdir", out, source], timeout=300)
    return out


def test_the_wheel_carries_what_the_program_shares(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name == "netbootd/py.typed" for name in names)
    for folder in SHARED:
        for path in tracked_below(folder):
            assert any(name.endswith(f".data/data/share/netbootd/{path}") for name in names), path


def test_the_sdist_carries_what_the_program_shares(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for folder in SHARED:
        for path in tracked_below(folder):
            assert path in names


def tracked_below(folder: str) -> list[str]:
    paths = run(["git", "-c", f"safe.directory={REPOSITORY}", "ls-files", folder]).stdout.splitlines()
    assert paths, f"{folder}/ is empty"
    return paths


PYTHONS = pythons()


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_works(version: str, built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    run([PYTHONS[version], "-m", "venv", tmp_path / "venv"], timeout=120)
    programs = tmp_path / "venv" / "bin"
    run([programs / "pip", "install", "--quiet", "--disable-pip-version-check", wheel], timeout=300)
    assert "prepare" in run([programs / "netbootd", "--help"], cwd=tmp_path).stdout
    run([programs / "python", "-c", IMPORT_ALL], cwd=tmp_path)
    for folder in SHARED:
        assert (tmp_path / "venv" / "share" / "netbootd" / folder).is_dir()
    assert run([programs / "netbootd", "--state", tmp_path / "state", "status", "--json"], cwd=tmp_path).stdout
