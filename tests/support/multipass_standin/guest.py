"""What is within a virtual machine of the stand-in: a folder as its root, where shell commands really run.

Absolute paths are moved below that folder, in commands and in scripts that are run by `sh`. systemctl, netplan, ip,
cloud-init, python3 -m venv, pip and netbootd are small stand-ins that note what they are asked in ``journal``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

_MOVED = re.compile(
    r"/(?:srv/netbootd|opt/netbootd|etc/default|etc/netplan|etc/netbootd-vm|usr/local/bin|home/ubuntu)\b"
)

_TOOLS = {
    "sudo": 'exec "$@"\n',
    "netplan": 'echo "netplan $*" >> "$GUEST/journal"\n',
    "journalctl": 'echo "log of $*"\n',
    # cloud-init(1): status --wait ends with 0, 1 (failed) or 2 (recoverable)
    "cloud-init": 'case "$*" in "status --wait") echo "status: done"; exit ${GUEST_CLOUD_INIT:-0} ;; '
    '*) echo "status: error"; echo "detail: (packages) failed" ;; esac\n',
    "systemctl": """\
case $1 in
is-active) shift; for unit; do cat "$GUEST/units/$unit" 2>/dev/null || echo inactive; done
    [ "$(cat "$GUEST/units/$1" 2>/dev/null)" = active ] ;;
*) echo "systemctl $*" >> "$GUEST/journal"
   case $1 in start|restart|reload-or-restart) echo ${GUEST_UNIT:-active} > "$GUEST/units/$2" ;; esac ;;
esac
""",
    "python3": """\
[ "$1 $2" = "-m venv" ] || exit 64
bin=$4/bin; mkdir -p "$bin"
cp "$GUEST/tools/pip" "$bin/pip"; cp "$GUEST/tools/python" "$bin/python"
""",
    "python": ":\n",
    "pip": """\
echo "pip $*" >> "$GUEST/journal"
for last; do :; done
case $last in netbootd==*) ;; *) [ -e "$last/setup.cfg" ] || exit 1 ;; esac
cp "$GUEST/tools/netbootd" "$(dirname "$0")/netbootd"
""",
    "netbootd": """\
case $1 in
--version) echo "netbootd, version 0" ;;
doctor) case $* in
    *--install-units*) echo "netbootd $*" >> "$GUEST/journal"; changed=false
        [ -e "$GUEST/units/installed" ] || { changed=true; touch "$GUEST/units/installed"; }
        for unit in netbootd-tftp.socket netbootd-http.socket; do echo active > "$GUEST/units/$unit"; done
        echo "{\\"units\\": [], \\"changed\\": $changed}" ;;
    *) echo '{"findings": [{"level": "ok", "message": "all well", "remedy": ""}]}' ;;
    esac ;;
prepare) echo "netbootd $* for $NETBOOTD_INTERFACE of $NETBOOTD_CONFIG" >> "$GUEST/journal"
    [ -z "${GUEST_PREPARE:-}" ] || { echo "noble: no route to cdimage.ubuntu.com" >&2; exit "$GUEST_PREPARE"; }
    echo "noble: Downloading" >&2
    changed=false; [ -e "$GUEST/prepared" ] || { changed=true; touch "$GUEST/prepared"; }
    echo '{"images": [{"name": "noble", "generation": "1", "path": "/x", "changed": '$changed'}]}' ;;
status) echo '{"nodes": [{"name": "valar-0", "address": "192.168.1.70", "stage": "ready", "outcome": "ok"}]}' ;;
esac
""",
}


def root(folder: Path, name: str) -> Path:
    return folder / "guests" / name


def first_boot(folder: Path, name: str, instance: dict[str, Any]) -> None:
    """What cloud-init writes; the document's write_files, read as the YAML that our own renderer makes."""
    there = root(folder, name)
    for part in ("home/ubuntu", "srv", "etc/default", "etc/netplan", "usr/local/bin", "units", "tools"):
        (there / part).mkdir(parents=True)
    for tool, script in _TOOLS.items():
        (there / "tools" / tool).write_text("#!/bin/sh\n" + script)
        (there / "tools" / tool).chmod(0o755)
    for path, content in _written(instance["user_data"]):
        (there / path.lstrip("/")).write_text(content)


def _written(text: str) -> list[tuple[str, str]]:
    """``write_files`` of a cloud-config: with PyYAML in a Python that has it, since this one starts without."""
    if not text:
        return []
    program = "import sys, yaml, json; print(json.dumps(yaml.safe_load(sys.stdin) or {}))"
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, text=True, check=True)
    return [(file["path"], file["content"]) for file in json.loads(done.stdout).get("write_files", [])]


def boot(folder: Path, name: str) -> None:
    """Another start: enabled units are active again."""
    for unit in (root(folder, name) / "units").iterdir():
        if unit.suffix in (".service", ".socket"):
            unit.write_text("active\n")


def addresses(instance: dict[str, Any]) -> list[str]:
    """The management address first, then those of other cards (daemon.cpp, list)."""
    return ["10.97.0.2", *(["192.168.1.66"] if instance["cards"] else [])]


def _links(instance: dict[str, Any], settings: dict[str, Any]) -> str:
    """As ``ip -json address show`` prints (iproute2): Multipass's own card first, then the bridged ones."""
    cards = [("52:54:00:00:00:01", "10.97.0.2"), *((card["mac"], "192.168.1.66") for card in instance["cards"])]
    links = [{"ifname": "lo", "address": "00:00:00:00:00:00", "addr_info": [_address("127.0.0.1", "host")]}]
    for number, (mac, address) in enumerate(cards):
        with_address = number == 0 or not settings.get("no_address")
        info = [_address(address, "global")] if with_address else []
        links.append({"ifname": f"enp{number}s3", "address": mac, "addr_info": info})
    return json.dumps(links)


def _address(address: str, scope: str) -> dict[str, Any]:
    return {"family": "inet", "local": address, "prefixlen": 24, "scope": scope}


def run(folder: Path, name: str, instance: dict[str, Any], settings: dict[str, Any], command: list[str]) -> int:
    """Run a command as Multipass's user would; its exit status."""
    there = root(folder, name)
    if command[:2] == ["ip", "-json"]:
        print(_links(instance, settings))
        return 0
    words = [_moved(word, there) for word in command]
    script = next((i for i, word in enumerate(words) if i and words[i - 1] == "sh" and word.startswith(str(there))), 0)
    if script:
        path = Path(words[script])
        (there / "script").write_text(_moved(path.read_text(), there))
        words[script] = str(there / "script")
    environment = {"PATH": f"{there}/tools:/usr/bin:/bin", "GUEST": str(there), "LANG": "C.UTF-8"}
    environment |= {f"GUEST_{key.upper()}": str(value) for key, value in settings.items()}
    if shutil.which(words[0], path=environment["PATH"]) is None:
        print(textwrap.shorten(f"bash: line 1: {words[0]}: command not found", 200), flush=True)
        return 127
    return subprocess.call(words, env=environment, cwd=there / "home/ubuntu")


def _moved(text: str, there: Path) -> str:
    return _MOVED.sub(lambda match: f"{there}{match[0]}", text)
