"""The configuration as values: one class a table of netbootd.toml, with the defaults of the operator's contract.

`netbootd.config.loader` makes them, with every fault told at once; nothing here checks again. Paths are absolute. What
is None or empty is decided elsewhere, by who knows: the host's addresses, the MTU, the images prepared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Literal

from netbootd import assets
from netbootd.model.identity import MacAddress, Serial
from netbootd.model.image import ImageSpec
from netbootd.model.node import Node

NfsBackend = Literal["auto", "kernel", "embedded", "off"]
DhcpMode = Literal["off"]
UnknownNodes = Literal["serve", "refuse"]
Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

SHIPPED_CLOUD_INIT = (("cloud-init", "base"), ("cloud-init", "overlays", "netboot"))
"""The cloud-init folders that ship with netbootd and are used by default, in order."""


def shipped_cloud_init() -> tuple[Path, ...]:
    """Where `SHIPPED_CLOUD_INIT` lie in this installation."""
    return tuple(assets.find(*parts) for parts in SHIPPED_CLOUD_INIT)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """``[server]``: how nodes reach us. `address` is an IP address as text; `allow` None: the server's own subnets."""

    address: str = ""
    interface: str = ""
    allow: tuple[Network, ...] | None = None
    drain_seconds: float = 30


@dataclass(frozen=True, slots=True)
class TftpConfig:
    """``[tftp]``. `data_ports` is the first and the last port of the range, None any; `max_blksize` None: the MTU's."""

    port: int = 69
    single_port: bool = False
    data_ports: tuple[int, int] | None = None
    max_blksize: int | None = None
    max_windowsize: int = 64


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """``[http]``."""

    port: int = 80
    seed_tokens: bool = False


@dataclass(frozen=True, slots=True)
class NfsConfig:
    """``[nfs]``. `portmap_port` None: no portmapper. `secure`: calls from reserved ports alone."""

    backend: NfsBackend = "auto"
    port: int = 2049
    portmap_port: int | None = 111
    secure: bool = False


@dataclass(frozen=True, slots=True)
class DhcpConfig:
    """``[dhcp]``."""

    mode: DhcpMode = "off"


@dataclass(frozen=True, slots=True)
class DefaultsConfig:
    """``[defaults]``: what a node gets that says nothing else. `image` empty: the only prepared image, else noble."""

    image: str = ""
    user: str = "ubuntu"
    ssh_authorized_keys: tuple[Path, ...] = ()
    cloud_init: tuple[Path, ...] = field(default_factory=shipped_cloud_init)
    boot_files: tuple[Path, ...] = ()
    unknown_nodes: UnknownNodes = "serve"


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """One ``[[image]]``. Exactly one of `release` and `source` is set (`source`: an absolute path or an URL)."""

    name: str
    release: str = ""
    source: str = ""
    sha256: str = ""
    arch: str = "arm64"
    sd_image: bool = False
    cmdline_append: str = ""
    config_append: str = ""

    def spec(self) -> ImageSpec:
        """What the builder needs of it."""
        return ImageSpec(
            name=self.name,
            release=self.release,
            source=self.source,
            sha256=self.sha256,
            arch=self.arch,
            cmdline_append=self.cmdline_append,
            config_append=self.config_append,
        )


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One ``[[node]]``. At least one of `serial` and `mac` is set; `image` empty: the default image."""

    name: str
    serial: Serial | None = None
    mac: MacAddress | None = None
    image: str = ""
    hostname: str = ""
    cloud_init: tuple[Path, ...] = ()
    boot_files: tuple[Path, ...] = ()
    cmdline_append: str = ""

    def node(self, default_image: str) -> Node:
        """The machine that it describes."""
        return Node(
            name=self.name,
            image=self.image or default_image,
            hostname=self.hostname or self.name,
            serial=self.serial,
            mac=self.mac,
            configured=True,
            cloud_init=self.cloud_init,
            boot_files=self.boot_files,
            cmdline_append=self.cmdline_append,
        )


@dataclass(frozen=True, slots=True)
class VmConfig:
    """``[vm]``. `network` empty: the only one, or ask; `mac` None: derived; `address` None: DHCP."""

    name: str = "netbootd"
    release: str = "26.04"
    cpus: int = 4
    memory: str = "4G"
    disk: str = "20G"
    network: str = ""
    mac: MacAddress | None = None
    address: Interface | None = None
    gateway: Address | None = None
    nameservers: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """All of netbootd.toml. `path` is None for the built-in defaults; relative paths were relative to `base`."""

    path: Path | None
    base: Path
    server: ServerConfig = ServerConfig()
    tftp: TftpConfig = TftpConfig()
    http: HttpConfig = HttpConfig()
    nfs: NfsConfig = NfsConfig()
    dhcp: DhcpConfig = DhcpConfig()
    defaults: DefaultsConfig = field(default_factory=DefaultsConfig)
    images: tuple[ImageConfig, ...] = ()
    nodes: tuple[NodeConfig, ...] = ()
    vm: VmConfig = VmConfig()
