"""Single Debian packages of any architecture, downloaded and unpacked once."""

import os
import re
import shutil
import sys

from tests.support.imageparts.programs import run

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"


KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def private_apt(cache, arch):
    """apt-get options for a private state folder of another architecture."""
    base = os.path.join(cache, "apt-" + arch)
    for name in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(base, name), exist_ok=True)
    sources, status = os.path.join(base, "sources.list"), os.path.join(base, "status")
    with open(sources, "w") as f:
        f.write(f"deb [signed-by={KEYRING} arch={arch}] {MIRROR} {SUITE} main non-free-firmware\n")
    open(status, "a").close()
    opts = [
        "-oDir::Etc::sourcelist=" + sources,
        "-oDir::Etc::sourceparts=-",
        "-oDir::State::Lists=" + base + "/lists",
        "-oDir::Cache=" + base + "/cache",
        "-oDir::State::status=" + status,
        "-oAPT::Architecture=" + arch,
        "-oAPT::Architectures=" + arch,
    ]
    if not os.path.exists(base + "/updated"):
        run("apt-get", *opts, "update")
        open(base + "/updated", "w").close()
    return opts


def debian_package(cache, name, arch):
    """Download (once) and unpack (once) a Debian package; return the folder."""
    target = os.path.join(cache, "unpacked", name + "_" + arch)
    if os.path.isdir(target):
        return target
    debs = os.path.join(cache, "debs")
    os.makedirs(debs, exist_ok=True)
    opts = private_apt(cache, arch)
    if name.endswith("-arm64") and name.count("-") == 2:  # linux-image-arm64: follow its dependency
        text = run("apt-cache", *opts, "show", name).decode()
        name = re.search(r"^Depends: (linux-image-[^ ,]+)", text, re.M).group(1)
    run("apt-get", *opts, "download", name, cwd=debs)
    deb = max((os.path.join(debs, n) for n in os.listdir(debs) if n.startswith(name + "_")), key=os.path.getmtime)
    part = target + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    run("dpkg-deb", "-x", deb, part)
    os.rename(part, target)
    return target


def first(folder, pattern):
    """The first file under folder whose relative path matches the pattern."""
    for base, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            full = os.path.join(base, name)
            if re.fullmatch(pattern, os.path.relpath(full, folder)):
                return full
    sys.exit(f"nothing like {pattern} in {folder}")
