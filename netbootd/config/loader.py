"""Finds and reads netbootd.toml (TOML 1.0), tells all its faults at once, and warns of what is merely unwise."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from netbootd.config import values
from netbootd.config.schema import (
    SHIPPED_CLOUD_INIT,
    Config,
    DefaultsConfig,
    DhcpConfig,
    DhcpMode,
    HttpConfig,
    ImageConfig,
    NfsBackend,
    NfsConfig,
    NodeConfig,
    ServerConfig,
    TftpConfig,
    UnknownNodes,
    VmConfig,
    shipped_cloud_init,
)
from netbootd.config.tables import Document, Faults, Table
from netbootd.errors import ConfigError
from netbootd.formats import authorizedkeys

FILE_NAME = "netbootd.toml"
SYSTEM_FILE = Path("/etc/netbootd") / FILE_NAME
ENVIRONMENT = "NETBOOTD_CONFIG"
ARCHITECTURES = ("arm64", "amd64", "armhf")
CLOUD_INIT_DOCUMENTS = ("user-data", "vendor-data", "meta-data", "network-config")

_MAX_BYTES = 1 << 20
_REFERENCE = "docs/reference/configuration.md lists every key and its default."
_TOML_HINT = (
    "Texts and paths stand in quotes, a table begins with its name in brackets: [server], then port = 69 or the like."
)

T = TypeVar("T")


def discover(explicit: Path | None = None) -> Path | None:
    """The file to read: the one named, by option or environment, else ./netbootd.toml, else the one below /etc.

    None means the built-in defaults. A named file is returned whether it is there or not.
    """
    if explicit is not None:
        return explicit
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    return next((path for path in (Path(FILE_NAME), SYSTEM_FILE) if path.is_file()), None)


def load(path: Path | None) -> Config:
    """The configuration of a file, or for None the built-in defaults.

    :raises ConfigError: the file can't be read, or is faulty; `details` has a line for each fault
    """
    if path is None:
        return Config(None, Path.cwd())
    path = path.absolute()
    document = _parse(path)
    faults = Faults()
    config = _read(path, document, faults)
    if faults.lines:
        count = "a fault" if len(faults.lines) == 1 else f"{len(faults.lines)} faults"
        raise ConfigError(f"The configuration {path} has {count}:", details=faults.lines, hint=_REFERENCE)
    return config


def warnings(config: Config) -> list[str]:
    """What is allowed and yet probably not meant, one sentence each."""
    found = []
    if config.server.address and config.server.interface:
        found.append("[server] address and interface are both set; the address is what nodes are told.")
    if ":" in config.server.address:
        found.append("[server] address is IPv6, over which no kernel mounts its root; nodes need an IPv4 address.")
    found += _key_warnings(config.defaults.ssh_authorized_keys)
    names = Counter((node.hostname or node.name).lower() for node in config.nodes)
    found += [f"{count} nodes have the host name {name}." for name, count in names.items() if count > 1]
    for folder in sorted({*config.defaults.cloud_init, *(f for node in config.nodes for f in node.cloud_init)}):
        if not any((folder / document).is_file() for document in CLOUD_INIT_DOCUMENTS):
            found.append(f"{folder} holds no cloud-init document ({', '.join(CLOUD_INIT_DOCUMENTS)}).")
    for image in config.images:
        if image.source and "://" not in image.source and not Path(image.source).is_file():
            found.append(f"[[image]] {image.name}: its source {image.source} is not there.")
    found += [
        f"[[image]] {image.name}: a source over the network needs its sha256, or prepare refuses it."
        for image in config.images
        if image.source.lower().startswith(("http://", "https://")) and not image.sha256
    ]
    return found


def _key_warnings(paths: tuple[Path, ...]) -> list[str]:
    key = "[defaults] ssh_authorized_keys"
    found = [f"{key}: {path} is not there." for path in paths if not path.exists()]
    if len(found) == len(paths):
        advice = 'name your public key, such as "~/.ssh/id_ed25519.pub"'
        return [*found, f"{key}: no key, so nobody can log in to a node; {advice}."]
    damaged = [path for path in paths if path.exists() and not _all_whole(path)]
    return found + [f"{key}: {path} holds a key that is damaged; sshd would pass it over." for path in damaged]


def _all_whole(path: Path) -> bool:
    return all(authorizedkeys.is_whole(key) for key in authorizedkeys.parse(_read_bytes(path)))


def _read_bytes(path: Path) -> bytes:
    """The start of a file that ought to be small."""
    with path.open("rb") as file:
        return file.read(_MAX_BYTES + 1)


def _parse(path: Path) -> dict[str, Any]:
    """The file as TOML gives it; a byte order mark, as Windows editors leave it, is passed over."""
    try:
        data = _read_bytes(path)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"The configuration {path} is larger than {_MAX_BYTES >> 10} KiB.")
        return tomllib.loads(data.decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"The configuration {path} is not there.", hint="Name another with -c, or leave it out for the defaults."
        ) from None
    except OSError as error:
        raise ConfigError(f"The configuration {path} can't be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The configuration {path} is not UTF-8 (at byte {error.start}).", hint="Save it as UTF-8."
        ) from None
    except (ValueError, RecursionError) as error:  # tomllib lets the latter, and the former of huge numbers, through
        problem = "nested too deeply" if isinstance(error, RecursionError) else values.visible(str(error))
        raise ConfigError(f"The configuration {path} is not TOML: {problem.rstrip('.')}.", hint=_TOML_HINT) from None


_KNOWN = {
    name: tuple(field.name for field in dataclasses.fields(table))
    for name, table in {
        "server": ServerConfig,
        "tftp": TftpConfig,
        "http": HttpConfig,
        "nfs": NfsConfig,
        "dhcp": DhcpConfig,
        "defaults": DefaultsConfig,
        "image": ImageConfig,
        "node": NodeConfig,
        "vm": VmConfig,
    }.items()
}


def _read(path: Path, raw: dict[str, Any], faults: Faults) -> Config:
    document = Document(raw, faults, _KNOWN)
    base = path.parent
    config = Config(
        path=path,
        base=base,
        server=_server(document.table("server")),
        tftp=_tftp(document.table("tftp")),
        http=_http(document.table("http")),
        nfs=_nfs(document.table("nfs")),
        dhcp=_dhcp(document.table("dhcp")),
        defaults=_defaults(document.table("defaults"), base),
        images=_images(document.tables("image"), base),
        nodes=_nodes(document.tables("node"), base),
        vm=_vm(document.table("vm")),
    )
    document.finish()
    _check_image_names(config, faults)
    return config


def _server(table: Table) -> ServerConfig:
    defaults = ServerConfig()
    allow = table.get("allow", values.several(values.network), None)
    if allow == ():
        table.fault("allow", "[] lets nobody in; leave the key out for the server's own subnets")
    server = ServerConfig(
        address=table.get("address", values.or_empty(values.server_address), defaults.address),
        interface=table.get("interface", values.text, defaults.interface),
        allow=allow,
        drain_seconds=table.get("drain_seconds", values.seconds(3600), defaults.drain_seconds),
    )
    table.finish()
    return server


def _tftp(table: Table) -> TftpConfig:
    defaults = TftpConfig()
    tftp = TftpConfig(
        port=table.get("port", values.port, defaults.port),
        single_port=table.get("single_port", values.flag, defaults.single_port),
        data_ports=table.get("data_ports", values.port_range, defaults.data_ports),
        max_blksize=table.get("max_blksize", values.integer(8, 65464), defaults.max_blksize),
        max_windowsize=table.get("max_windowsize", values.integer(1, 65535), defaults.max_windowsize),
    )
    if tftp.single_port and tftp.data_ports:
        table.fault("data_ports", "does not go together with single_port = true, which answers from one port")
    table.finish()
    return tftp


def _http(table: Table) -> HttpConfig:
    defaults = HttpConfig()
    http = HttpConfig(
        port=table.get("port", values.port, defaults.port),
        seed_tokens=table.get("seed_tokens", values.flag, defaults.seed_tokens),
    )
    table.finish()
    return http


def _nfs(table: Table) -> NfsConfig:
    defaults = NfsConfig()
    backend = table.get("backend", values.choice("auto", "kernel", "embedded", "off"), defaults.backend)
    nfs = NfsConfig(
        backend=cast(NfsBackend, backend),
        port=table.get("port", values.port, defaults.port),
        portmap_port=table.get("portmap_port", values.port_or_off, defaults.portmap_port),
        secure=table.get("secure", values.flag, defaults.secure),
    )
    table.finish()
    return nfs


def _dhcp(table: Table) -> DhcpConfig:
    mode = table.get("mode", _dhcp_mode, DhcpConfig().mode)
    table.finish()
    return DhcpConfig(mode=mode)


def _dhcp_mode(value: object) -> DhcpMode:
    if value == "proxy":
        raise ValueError('is not in this version of netbootd; only "off" is')
    values.choice("off")(value)
    return "off"


def _defaults(table: Table, base: Path) -> DefaultsConfig:
    unknown = table.get("unknown_nodes", values.choice("serve", "refuse"), "serve")
    defaults = DefaultsConfig(
        image=table.get("image", values.or_empty(values.image_name), ""),
        user=table.get("user", values.user_name, "ubuntu"),
        ssh_authorized_keys=table.get("ssh_authorized_keys", values.several(_ssh_key(base)), ()),
        cloud_init=table.get("cloud_init", values.several(_cloud_init_folder(base)), _default_cloud_init(base)),
        boot_files=table.get("boot_files", values.several(values.folder(base)), ()),
        unknown_nodes=cast(UnknownNodes, unknown),
    )
    table.finish()
    return defaults


def _ssh_key(base: Path) -> Callable[[object], Path]:
    def read(value: object) -> Path:
        written = values.text(value)
        if written.split(" ")[0] in authorizedkeys.KEY_TYPES:
            raise ValueError("is a key itself; name a file that holds it")
        path = values.path(base)(value)
        try:
            if written.startswith("~") and not path.exists():
                return path  # homes differ between you, root and the service: a warning
            if path.exists() and not path.is_file():
                raise ValueError("no keys: it is not a file")
            authorizedkeys.parse(_read_bytes(path))
        except OSError as error:
            raise ValueError(f"can't be read: {error.strerror or error}: {path}") from None
        except ValueError as error:
            raise ValueError(f"holds {error}") from None
        return path

    return read


def _cloud_init_folder(base: Path) -> Callable[[object], Path]:
    shipped = dict(zip(("/".join(parts) for parts in SHIPPED_CLOUD_INIT), shipped_cloud_init(), strict=True))

    def read(value: object) -> Path:
        if isinstance(value, str) and value.rstrip("/") in shipped and not (base / value).exists():
            return shipped[value.rstrip("/")]
        return values.folder(base)(value)

    return read


def _default_cloud_init(base: Path) -> tuple[Path, ...]:
    read = _cloud_init_folder(base)
    return tuple(read("/".join(parts)) for parts in SHIPPED_CLOUD_INIT)


def _images(tables: Iterable[Table], base: Path) -> tuple[ImageConfig, ...]:
    images = []
    seen: dict[str, str] = {}
    for table in tables:
        image = ImageConfig(
            name=table.get("name", values.image_name, ""),
            release=table.get("release", values.or_empty(values.release), ""),
            source=table.get("source", values.or_empty(values.source(base)), ""),
            sha256=table.get("sha256", values.or_empty(values.sha256), ""),
            arch=table.get("arch", values.choice(*ARCHITECTURES), "arm64"),
            sd_image=table.get("sd_image", values.flag, False),
            cmdline_append=table.get("cmdline_append", values.kernel_arguments, ""),
            config_append=table.get("config_append", values.config_txt_lines, ""),
        )
        if "name" not in table:
            table.fault("name", "is missing")
        if table.says("release") and table.says("source"):
            table.fault("source", "does not go together with release; which of the two is meant?")
        elif not table.says("release") and not table.says("source"):
            table.fault("release", 'is missing: a release such as "noble", or source, a file or an URL')
        elif image.sha256 and not table.says("source"):
            table.fault("sha256", "goes with source; a release is verified by its publisher's own digest")
        _unique(seen, image.name, "name", image.name, table)
        table.finish()
        images.append(image)
    return tuple(images)


def _nodes(tables: Iterable[Table], base: Path) -> tuple[NodeConfig, ...]:
    nodes = []
    seen: dict[str, str] = {}
    for table in tables:
        node = NodeConfig(
            name=table.get("name", values.name, ""),
            serial=table.get("serial", values.optional(values.serial), None),
            mac=table.get("mac", values.optional(values.mac), None),
            image=table.get("image", values.or_empty(values.image_name), ""),
            hostname=table.get("hostname", values.or_empty(values.host_name), ""),
            cloud_init=table.get("cloud_init", values.several(_cloud_init_folder(base)), ()),
            boot_files=table.get("boot_files", values.several(values.folder(base)), ()),
            cmdline_append=table.get("cmdline_append", values.kernel_arguments, ""),
        )
        if "name" not in table:
            table.fault("name", "is missing")
        if not table.says("serial") and not table.says("mac"):
            table.fault("serial", "is missing: by a serial or a mac a node is known")
        if node.name and not table.says("hostname"):
            try:
                values.host_name(node.name)
            except ValueError as error:
                table.fault("name", f"{values.quoted(node.name)} {error}; give the node a hostname of its own")
        _unique(seen, node.name.lower(), "name", node.name, table)
        _unique(seen, f"serial {node.serial}" if node.serial else "", "serial", str(node.serial), table)
        _unique(seen, f"mac {node.mac}" if node.mac else "", "mac", str(node.mac), table)
        table.finish()
        nodes.append(node)
    return tuple(nodes)


def _unique(seen: dict[str, str], identity: str, key: str, value: str, table: Table) -> None:
    """Note a second use of what must be one table's alone."""
    if not identity:
        return
    other = seen.setdefault(identity, table.where)
    if other != table.where:
        table.fault(key, f"{values.quoted(value)} is already that of {other}")


def _vm(table: Table) -> VmConfig:
    defaults = VmConfig()
    vm = VmConfig(
        name=table.get("name", values.vm_name, defaults.name),
        release=table.get("release", values.release, defaults.release),
        cpus=table.get("cpus", values.integer(1, 256), defaults.cpus),
        memory=table.get("memory", values.size, defaults.memory),
        disk=table.get("disk", values.size, defaults.disk),
        network=table.get("network", values.text, defaults.network),
        mac=table.get("mac", values.optional(values.mac), defaults.mac),
        address=table.get("address", values.optional(values.interface), defaults.address),
        gateway=table.get("gateway", values.optional(values.ip_address), defaults.gateway),
        nameservers=table.get("nameservers", values.several(values.ip_address), defaults.nameservers),
    )
    if vm.gateway and not table.says("address"):
        table.fault("gateway", "goes with address; without one the VM asks DHCP for both")
    elif vm.gateway and vm.address and vm.gateway not in vm.address.network:
        table.fault("gateway", f'"{vm.gateway}" is not in the subnet of address, {vm.address.network}')
    table.finish()
    return vm


def _check_image_names(config: Config, faults: Faults) -> None:
    """Where images are listed, every image that is named must be among them.

    Without any ``[[image]]`` the names are those of images prepared by hand, which the file need not know.
    """
    known = [image.name for image in config.images]
    if not known:
        return
    named = [("[defaults]", config.defaults.image)]
    named += [(f"[[node]] {number} ({node.name})", node.image) for number, node in enumerate(config.nodes, 1)]
    for where, image in named:
        if image and image not in known:
            hint = faults.suggestion(image, known) or f"; there is {', '.join(map(values.quoted, known[:10]))}"
            faults.add(where, "image", f"{values.quoted(image)} is not the name of an [[image]]{hint}")
