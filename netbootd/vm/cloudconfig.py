"""The cloud-init of the virtual machine: vm/cloud-init.yaml, with what netbootd.toml and the workstation add to it.

Multipass reads it as YAML and adds its own key, packages and default user to the lists there (src/daemon/daemon.cpp,
prepare_user_data), so its user ``ubuntu`` stays the default one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from netbootd import assets
from netbootd.config.schema import Config
from netbootd.errors import ConfigError
from netbootd.formats import authorizedkeys
from netbootd.model.identity import MacAddress

MARKER = "/etc/netbootd-vm"
"""A file in every virtual machine that is ours; it holds the MAC address of the bridged card."""

NETPLAN = "/etc/netplan/60-netbootd.yaml"
_METRIC = 200  # as Multipass gives to cards beyond its own: the default route stays its NAT's


def render(config: Config, mac: MacAddress, zone: str) -> str:
    """The whole document.

    :param mac: of the bridged card
    :param zone: an IANA time zone; "" leaves it to Multipass
    :raises ConfigError: vm/cloud-init.yaml is faulty
    """
    path = assets.find("vm", "cloud-init.yaml")
    document = _read(path)
    if zone:
        document.setdefault("timezone", zone)
    keys = [*_list(document, "ssh_authorized_keys", path), *_public_keys(config)]
    if keys:
        document["ssh_authorized_keys"] = list(dict.fromkeys(keys))
    files = _list(document, "write_files", path)
    files.append({"path": MARKER, "permissions": "0644", "content": f"{mac}\n"})
    files.append({"path": NETPLAN, "permissions": "0600", "content": netplan(config, mac)})
    document["write_files"] = files
    document["runcmd"] = [*_list(document, "runcmd", path), ["netplan", "apply"]]
    return "#cloud-config\n" + yaml.safe_dump(document, sort_keys=False, allow_unicode=False, width=1000)


def netplan(config: Config, mac: MacAddress) -> str:
    """The bridged card's address, fixed or by DHCP, as netplan takes it; found by its MAC: names differ by hypervisor.

    It is optional, so that a boot does not wait for a network that comes late.
    """
    vm = config.vm
    card: dict[str, Any] = {"match": {"macaddress": str(mac)}, "dhcp4": vm.address is None, "optional": True}
    if vm.address is None:
        card |= {"dhcp-identifier": "mac", "dhcp4-overrides": {"route-metric": _METRIC}}
    else:
        card["addresses"] = [str(vm.address)]
    if vm.gateway:
        card["routes"] = [{"to": "default", "via": str(vm.gateway), "metric": _METRIC}]
    if vm.nameservers:
        card["nameservers"] = {"addresses": [str(address) for address in vm.nameservers]}
    return yaml.safe_dump({"network": {"version": 2, "ethernets": {"netbootd": card}}}, sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read: {' '.join(str(error).split())}.") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is not a mapping of cloud-config.")
    return document


def _list(document: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise ConfigError(f"{path}: {key} is not a list.")
    return list(value)


def _public_keys(config: Config) -> list[str]:
    """The operator's keys, of those files that are there."""
    keys: list[str] = []
    for path in config.defaults.ssh_authorized_keys:
        try:
            keys += authorizedkeys.parse(path.read_bytes())
        except (OSError, ValueError):
            continue  # the configuration's own check has said so
    return keys
