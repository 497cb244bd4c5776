"""The configuration as it takes effect, as TOML for people and as a dictionary for programs.

What is decided only later (the server's own subnets, the MTU) has no value: a comment says so in TOML, None in the
dictionary. The TOML is itself a configuration with the same effect.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from netbootd.config.schema import Config

_TABLES = ("server", "tftp", "http", "nfs", "dhcp", "defaults", "vm")
_LISTS = {"image": "images", "node": "nodes"}
_ORDER = ("server", "tftp", "http", "nfs", "dhcp", "defaults", "image", "node", "vm")

_UNSET = {
    ("server", "allow"): "the server's own subnets",
    ("tftp", "max_blksize"): "the MTU's",
}
_EMPTY = {
    ("server", "address"): "for each answer the local address that the node asked",
    ("tftp", "data_ports"): "any",
    ("defaults", "image"): "the only prepared image, else noble",
    ("vm", "network"): "the only one, or ask",
    ("vm", "mac"): "derived from the workstation and the name",
    ("vm", "address"): "DHCP",
    ("vm", "gateway"): "DHCP",
}


def as_dict(config: Config) -> dict[str, Any]:
    """Every table and key of netbootd.toml with plain values; ``file`` is the file's path or None."""
    shown: dict[str, Any] = {"file": None if config.path is None else str(config.path)}
    for name in _ORDER:
        if name in _LISTS:
            shown[name] = [_plain_table(item) for item in getattr(config, _LISTS[name])]
        else:
            shown[name] = _plain_table(getattr(config, name))
    if config.nfs.portmap_port is None:
        shown["nfs"]["portmap_port"] = "off"
    if config.tftp.data_ports:
        shown["tftp"]["data_ports"] = "{}-{}".format(*config.tftp.data_ports)
    default_image = config.defaults.image
    for node in shown["node"]:
        node["hostname"] = node["hostname"] or node["name"]
        node["image"] = node["image"] or default_image
    return shown


def as_toml(config: Config) -> str:
    """The same as the text of a netbootd.toml."""
    shown = as_dict(config)
    lines = [f"# {shown['file'] or 'built-in defaults'}, as it takes effect"]
    for name in _ORDER:
        for table in shown[name] if name in _LISTS else [shown[name]]:
            lines += ["", f"[[{name}]]" if name in _LISTS else f"[{name}]"]
            lines += [_line(name, key, value) for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _line(table: str, key: str, value: Any) -> str:
    if value is None and (table, key) in _UNSET:
        return f"# {key}: {_UNSET[table, key]}"
    meaning = _EMPTY.get((table, key)) if value in (None, "") else None
    return f"{key} = {_toml(value)}" + (f"  # {meaning}" if meaning else "")


def _plain_table(table: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(table, field.name)) for field in dataclasses.fields(table)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


def _toml(value: Any) -> str:
    """A value in TOML. Its basic strings escape as JSON's do, and DEL besides (TOML 1.0, String)."""
    if value is None:
        return '""'
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
