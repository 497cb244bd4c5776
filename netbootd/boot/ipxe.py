"""The scripts for iPXE, with which PCs boot: what is rendered for one node, and how one is told from another.

iPXE's language has no quotes and no escapes (https://ipxe.org/scripting): a line is split at spaces, ``;``, ``&&`` and
``||`` mean something as words of their own only, so that ``ds=nocloud;s=…`` goes through as it is; ``${`` is always
filled in. An EFI kernel finds its initrd by the name in ``initrd=``, under BIOS that argument is passed over.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from netbootd.errors import ConfigError
from netbootd.model.facts import ImageFacts
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node

SCRIPT = "boot.ipxe"
MAC = "${netX/mac:hexhyp}"
"""The MAC, with dashes, of the card that iPXE booted from: filled in by iPXE."""

_LINE_LIMIT = 2047  # COMMAND_LINE_SIZE of x86 less its NUL (arch/x86/include/asm/setup.h)
_OPERATORS = ("||", "&&", ";")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def which(server: ServerAddress, otherwise: str = "") -> str:
    """The script for a machine that isn't known yet: ask again, and name the MAC.

    :param otherwise: the script to go on with where that fails, "" without one
    """
    ask = f"chain --replace --autofree {server.http_base}/ipxe/{SCRIPT}?mac={MAC}"
    rest = otherwise.removeprefix("#!ipxe\n") if otherwise else _failed("asking the server for this machine's script")
    return f"#!ipxe\n{ask} || goto otherwise\n:otherwise\n{rest}"


def boot(facts: ImageFacts, node: Node, server: ServerAddress, token: str = "") -> str:
    """The script that boots `node` from an installation medium, with autoinstall from its NoCloud documents.

    :param facts: of an image for PCs
    :param token: what the seed's address holds, "" where tokens are not in use
    :raises ConfigError: the appended arguments can't be said to iPXE, or the line is longer than a kernel takes
    """
    ident = node.id or MAC
    base = f"{server.http_base}/boot/{ident}"
    seed = f"{server.http_base}/nocloud/{ident}/" + (f"{token}/" if token else "")
    datasource = facts.datasource if facts.cloud_init_version else "nocloud-net"  # which every version understands
    appended = [word for part in (facts.cmdline_append, node.cmdline_append) for word in part.split()]
    _check(appended, node)
    kernel, initrd = facts.kernels[0], facts.initramfs[0]
    words = [f"initrd={initrd}", "ip=dhcp", f"url={base}/{quote(facts.extra['iso'])}", "autoinstall"]
    words += [f"ds={datasource};s={seed}"]
    words += ["cloud-config-url=/dev/null"]  # else cloud-init takes url= for one, and reads the whole ISO (cmd/main.py)
    words += appended
    if "---" not in appended:  # what follows it would be the installed system's as well
        words.append("---")
    line = " ".join(words)
    if len(line) > _LINE_LIMIT:
        raise ConfigError(
            f"Rendering {SCRIPT} for {node.name}: the kernel's command line has {len(line)} bytes,"
            f" {_LINE_LIMIT} are possible.",
            hint="Shorten cmdline_append.",
        )
    return (
        f"#!ipxe\necho netbootd: {node.name} boots image {node.image}\n"
        f"kernel {base}/{kernel} {line} || goto failed\n"
        f"initrd --name {initrd} {base}/{initrd} || goto failed\n"
        f"boot || goto failed\n:failed\n{_failed(f'booting {node.name}')}"
    )


def explain(node: Node, *, prepared: bool) -> str:
    """The script for a node whose image no PC can boot: it says so, and lets the firmware go on."""
    if prepared:
        why = f"the image {node.image} of {node.name} is for Raspberry Pis, this machine boots with iPXE"
        remedy = "Prepare one for PCs (netbootd prepare --release noble --arch amd64 --name pc), and name it as this"
        remedy += " node's image"
    else:
        why = f"the image {node.image} of {node.name} is not prepared"
        remedy = "Run netbootd prepare on the server"
    return say(f"{why}. {remedy}.")


def say(text: str) -> str:
    """A script that shows `text` for some seconds and lets the firmware go on with the next boot device."""
    return f"#!ipxe\necho netbootd: {_shown(text)}\nsleep 15\nexit 1\n"


def _failed(doing: str) -> str:
    return f"echo netbootd: {_shown(doing)} failed. On the server, netbootd events shows what was asked for.\n" + (
        "sleep 15\nexit 1\n"
    )


def _shown(text: str) -> str:
    """Text that iPXE shows as it is."""
    words = _UNPRINTABLE.sub(" ", text).replace("$", "").split()
    return " ".join(word for word in words if word not in _OPERATORS and not word.startswith("#"))


def _check(words: list[str], node: Node) -> None:
    for word in words:
        if word in _OPERATORS or word.startswith("#") or "${" in word or _UNPRINTABLE.search(word):
            raise ConfigError(
                f"Rendering {SCRIPT} for {node.name}: iPXE would not pass on {word!r} of cmdline_append.",
                hint="It can't have ${, a word that begins with #, and || && ; as words of their own.",
            )
