"""The privileged part of the kernel backend, put together: exports of a state folder, who may use them, a socket."""

from __future__ import annotations

import grp
import logging
import pwd
from collections.abc import Callable, Iterable
from pathlib import Path

from netbootd.config.schema import Config
from netbootd.errors import ConfigError, HostError
from netbootd.host import systemd
from netbootd.host.links import AllowedPeers, Network, interface_name, local_addresses
from netbootd.nfsd.kernel.manager import Clients, KernelNfs
from netbootd.nfsd.kernel.part import Part
from netbootd.service.exports import GenerationExports
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout

_log = logging.getLogger(__name__)


class PrivilegedService:
    """Runs until SIGTERM.

    :param read: gives the configuration as its file says now
    :param path: of the socket; its folder keeps a note of what was started, too
    :param user: the name of the user that serves; "" or one that is unknown: root alone may ask
    """

    def __init__(self, read: Callable[[], Config], layout: Layout, path: Path, user: str) -> None:
        self._read = read
        config = read()
        self._server = config.server
        self._allowed = AllowedPeers(self._server.allow, self._server.interface)
        exports = GenerationExports(Generations(layout))
        clients = Clients(self._allowed, self._networks)
        self._nfs = KernelNfs(exports.all, layout.images, clients, path.parent, secure=config.nfs.secure)
        self._part = Part(self._nfs, path, *_ids(user))

    def run(self) -> None:
        """Serve.

        :raises HostError: the socket can't be made
        """
        try:
            self._nfs.resume()
        except HostError as error:
            _log.error("%s", error)
        try:
            self._part.run(lambda: systemd.notify("READY=1"), self._reload)
        finally:
            self._allowed.close()

    def _networks(self) -> Iterable[Network]:
        if self._server.allow is not None:
            return self._server.allow
        name = interface_name(self._server.interface) if self._server.interface else ""
        return {a.network for a in local_addresses() if not name or a.interface == name or a.network.is_loopback}

    def _reload(self) -> None:
        systemd.notify_reloading()
        try:
            self._server = self._read().server
        except ConfigError as error:
            _log.error("The configuration stays as it was: %s", error.paragraph())
        else:
            self._allowed.reconfigure(self._server.allow, self._server.interface)
        systemd.notify("READY=1")


def _ids(user: str) -> tuple[tuple[int, ...], int | None]:
    """Who may ask, and the group of the socket."""
    try:
        entry = pwd.getpwnam(user)
        return (entry.pw_uid,), grp.getgrgid(entry.pw_gid).gr_gid
    except KeyError:
        return (), None
