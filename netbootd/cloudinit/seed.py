"""The four NoCloud documents of a node (cloud-init's DataSourceNoCloud), rendered when the node asks for them.

The layers of each document, later ones over earlier ones: what netbootd.toml says (user, keys) and what netbootd itself
needs (reporting, phone-home), the defaults' folders, the node's folders. Nothing that is filled in is kept.
"""

from __future__ import annotations

import hashlib
import logging
import stat
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as ReadOnly
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import yaml

from netbootd.cloudinit.fill import Filler
from netbootd.cloudinit.merge import Origin, Part, merge, read_part
from netbootd.cloudinit.template import Template, make_template
from netbootd.cloudinit.tree import STRING, Entries, Mapping, Place, Scalar, combined, dump, parse
from netbootd.errors import ConfigError
from netbootd.formats import authorizedkeys
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node

_log = logging.getLogger(__name__)

DOCUMENTS: Final = ("meta-data", "user-data", "vendor-data", "network-config")
"""The names of the documents, as NoCloud asks for them."""

_CLOUD_CONFIG = ("user-data", "vendor-data")
_MAX_BYTES = 1 << 20

_META_DATA = """\
instance-id: ${node:instance_id}
local-hostname: ${node:hostname}
"""

# In vendor-data, so that user-data stays the operator's. The list leaves DSA out, which newer versions don't know.
_VENDOR_DATA = """\
reporting:
  netbootd:
    type: webhook
    endpoint: ${node:url}/events/${node:key}
    timeout: 10
    retries: 2
phone_home:
  url: ${node:url}/phone-home/${node:key}
  post: [pub_key_rsa, pub_key_ecdsa, pub_key_ed25519, instance_id, hostname, fqdn]
  tries: 10
"""


class Defaults(Protocol):
    """What the builder reads of the configuration's ``[defaults]``."""

    @property
    def user(self) -> str:
        """The user made on every node."""

    @property
    def ssh_authorized_keys(self) -> tuple[Path, ...]:
        """Files of public keys for the user; one that is not there is passed over."""

    @property
    def cloud_init(self) -> tuple[Path, ...]:
        """The folders of every node, in order."""


class Settings(Protocol):
    """What the builder reads of the configuration."""

    @property
    def base(self) -> Path:
        """What relative paths in documents are relative to."""

    @property
    def defaults(self) -> Defaults:
        """The table of that name."""


@dataclass(frozen=True, slots=True)
class Seed:
    """A node's four documents by name. `uses_secrets` names those with a file or an environment variable filled in.

    `digest` is that of everything that makes the documents but the secrets and the server's address; the instance-id
    has a part of it, so that a node with a new configuration begins anew.
    """

    documents: dict[str, bytes]
    uses_secrets: frozenset[str]
    digest: str

    def document(self, name: str) -> bytes:
        """One of `DOCUMENTS`."""
        return self.documents[name]


@dataclass(frozen=True, slots=True)
class _Cached:
    stamp: tuple[object, ...]
    templates: dict[str, Template]


class SeedBuilder:
    """Makes the seeds of a configuration's nodes. Files are read again when they have changed.

    :param reporting: whether nodes shall tell us of their boot; False for those that boot without us
    """

    def __init__(self, settings: Settings, *, reporting: bool = True) -> None:
        self._reporting = reporting
        self._base = settings.base
        self._defaults = settings.defaults
        self._cache: dict[tuple[Path, ...], _Cached] = {}

    def build(self, node: Node, server: ServerAddress, host_keys: ReadOnly[str, tuple[str, str]] | None = None) -> Seed:
        """The documents of `node`, which reaches us at `server`.

        :param host_keys: its SSH host keys by type, private and public; they go into vendor-data, unless that is not
            cloud-config or names keys itself
        :raises ConfigError: a document is faulty, or what it refers to is not there; all faults, by file and line
        """
        templates = self._templates(node)
        digest = _digest(node, templates)
        instance_id = f"{node.key.replace(':', '-')}-{digest[:12]}"
        filler = Filler(self._base, fields_of(node, server, instance_id))
        documents: dict[str, bytes] = {}
        faults: list[ConfigError] = []
        for name in DOCUMENTS:
            try:
                documents[name] = templates[name].fill(filler)
            except ConfigError as error:
                faults.append(error)
        if faults:
            raise combined(faults, f"The cloud-init of {node.name}")
        if host_keys and templates["vendor-data"].takes("ssh_keys"):
            documents["vendor-data"] += _ssh_keys(host_keys)
        secrets = frozenset(name for name in DOCUMENTS if templates[name].uses_secrets)
        return Seed(documents, secrets, digest)

    def learn(self, nodes: Iterable[Node]) -> None:
        """Read the documents of these nodes now, so that a faulty edit later finds something to stay with."""
        for node in nodes:
            try:
                self._templates(node)
            except ConfigError as error:
                _log.error("%s", " ".join((error.message, *error.details)))

    def explain(self, node: Node, document: str) -> tuple[Origin, ...]:
        """Where each value of a document came from, in the document's order."""
        return self._templates(node)[document].origins

    def unfilled(self, node: Node, document: str) -> str:
        """A document with nothing filled in: to show one that holds secrets."""
        return self._templates(node)[document].source

    def _templates(self, node: Node) -> dict[str, Template]:
        folders = (*self._defaults.cloud_init, *node.cloud_init)
        files = (folder / name for folder in folders for name in DOCUMENTS)
        stamp = _stamp((*self._defaults.ssh_authorized_keys, *folders, *files))
        cached = self._cache.get(folders)
        if cached is None or cached.stamp != stamp:
            cached = _Cached(stamp, self._made_or_kept(folders, cached))
            self._cache[folders] = cached
        return cached.templates

    def _made_or_kept(self, folders: Sequence[Path], before: _Cached | None) -> dict[str, Template]:
        """What the files say now; where that is faulty, what they said before: a bad edit stops no boot."""
        try:
            return self._make_templates(folders)
        except ConfigError as error:
            if before is None:
                raise
            faults = " ".join((error.message, *error.details))
            _log.error("Nodes get their cloud-init as it was, until this is mended: %s", faults)
            return before.templates

    def _make_templates(self, folders: Sequence[Path]) -> dict[str, Template]:
        parts = _folder_parts(folders)
        alone = {name for name in DOCUMENTS if any(part.text for part in parts[name])}
        own = {name: [] if name in alone else self._own_parts(name) for name in DOCUMENTS}
        if "user-data" in alone and "vendor-data" not in alone:  # a script, say: the user has to come from elsewhere
            own["vendor-data"] += self._own_parts("user-data")
        return {
            name: make_template(merge([*own[name], *parts[name]]), cloud_config=name in _CLOUD_CONFIG)
            for name in DOCUMENTS
        }

    def _own_parts(self, name: str) -> list[Part]:
        """The lowest layer of a document: netbootd's own. What can't be merged is the operator's alone, without it."""
        if name == "meta-data":
            return [Part("netbootd", parse(_META_DATA, "netbootd", lines=False))]
        if name == "vendor-data" and self._reporting:
            return [Part("netbootd", parse(_VENDOR_DATA, "netbootd", lines=False))]
        if name == "user-data":
            return [Part("[defaults]", parse(self._user(), "[defaults]", lines=False))]
        return []

    def _user(self) -> str:
        """The user as cloud-init's own default user, under our name: each distribution gives it the groups that fit."""
        user: dict[str, object] = {
            "name": self._defaults.user,
            "gecos": self._defaults.user,
            "shell": "/bin/bash",
            "lock_passwd": True,
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
        }
        keys = [key for path in self._defaults.ssh_authorized_keys for key in _read_keys(path)]
        if keys:
            user["ssh_authorized_keys"] = [key.replace("${", "$${") for key in keys]
        return yaml.safe_dump({"user": user}, sort_keys=False, width=2**31 - 1, allow_unicode=True)


def fields_of(node: Node, server: ServerAddress, instance_id: str) -> dict[str, str]:
    """What ``${node:FIELD}`` gives, by FIELD."""
    return {
        "name": node.name,
        "hostname": node.hostname,
        "id": node.id,
        "key": node.key,
        "serial": str(node.serial or ""),
        "mac": str(node.mac or ""),
        "address": node.address,
        "image": node.image,
        "instance_id": instance_id,
        "server": server.address,
        "url": server.http_base,
    }


def _ssh_keys(host_keys: ReadOnly[str, tuple[str, str]]) -> bytes:
    """The keys as a part of cloud-config (cloudinit/config/cc_ssh.py): ``ed25519_private`` and so on."""
    place = Place("netbootd", 0)
    entries: Entries = {}
    for kind, texts in host_keys.items():
        for half, text in zip(("private", "public"), texts, strict=True):
            key = Scalar(f"{kind}_{half}", STRING, None, place)
            entries[STRING, key.value] = (key, Scalar(text, STRING, "|", place))
    name = Scalar("ssh_keys", STRING, None, place)
    return dump(Mapping({(STRING, name.value): (name, Mapping(entries, False, place))}, False, place)).encode()


def _digest(node: Node, templates: dict[str, Template]) -> str:
    """What the node's configuration depends on, secrets aside: a digest of those would let them be guessed."""
    digest = hashlib.sha256()
    for text in (node.key, node.name, node.hostname, node.image, *(templates[name].source for name in DOCUMENTS)):
        data = text.encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


def _folder_parts(folders: Sequence[Path]) -> dict[str, list[Part]]:
    """What each folder has of each document.

    :raises ConfigError: documents are faulty or can't be read, or folders have gone; all of them
    """
    parts: dict[str, list[Part]] = {name: [] for name in DOCUMENTS}
    faults: dict[str, ConfigError] = {}  # by what they say: a folder that has gone lacks all four
    for folder in folders:
        for name in DOCUMENTS:
            try:
                if part := _folder_part(folder, name):
                    parts[name].append(part)
            except ConfigError as error:
                faults[error.message] = error
    if faults:
        raise combined([*faults.values()], "The cloud-init")
    return parts


def _folder_part(folder: Path, name: str) -> Part | None:
    """A folder's document, None where it has none.

    :raises ConfigError: it is faulty or can't be read, or the folder has gone
    """
    path = folder / name
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ConfigError(f"{path}: it is not a file.")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        if folder.is_dir():
            return None
        raise ConfigError(f"{folder}: the cloud-init folder is not there.") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}.") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_BYTES >> 10} KiB.")
    return read_part(data, str(path), cloud_config=name in _CLOUD_CONFIG)


def _read_keys(path: Path) -> tuple[str, ...]:
    try:
        return authorizedkeys.parse(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"[defaults] ssh_authorized_keys: {path}: {getattr(error, 'strerror', None) or error}."
        ) from None


def _stamp(paths: Sequence[Path]) -> tuple[object, ...]:
    """What changes when one of the files does."""
    stamps: list[object] = []
    for path in paths:
        try:
            status = path.stat()
            stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError as error:
            stamps.append(error.errno)
    return tuple(stamps)
