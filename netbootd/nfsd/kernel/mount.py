"""MOUNT version 3 for exports of the kernel's server: the privileged part is asked for each file handle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from netbootd.errors import NetbootdError, NotFoundError
from netbootd.model.export import Export
from netbootd.nfsd.mount import MNT3ERR_ACCES, MNT3ERR_IO, MNT3ERR_NOENT, ExportTable, MountV3, OnMount
from netbootd.nfsd.rpc import AUTH_SYS, Answer, Caller
from netbootd.nfsd.v3 import Trees, Work
from netbootd.nfsd.xdr import opaque, u32

_log = logging.getLogger(__name__)

HandleOf = Callable[[str, str, Sequence[bytes], str], bytes]
"""(image, generation, names below its root, client's address) to a file handle; blocks; raises NetbootdError."""


class KernelMountV3(MountV3):
    """Like `MountV3`, with handles that the kernel made."""

    def __init__(
        self,
        exports: ExportTable,
        trees: Trees,
        on_mount: OnMount,
        loop: asyncio.AbstractEventLoop,
        handle_of: HandleOf,
    ) -> None:
        super().__init__(exports, trees, on_mount)
        self._loop = loop
        self._handle_of = handle_of

    def _open(self, export: Export, path: bytes, below: list[bytes], caller: Caller) -> Answer:
        if export.attributes is not None:
            _log.error(
                "MOUNT for %s: generation %s of %s was made with --unprivileged, and the kernel can't serve it;"
                " netbootd's own server can (--nfs embedded, or a restart where [nfs] backend is auto)",
                caller.address,
                export.generation,
                export.image,
            )
            return u32(MNT3ERR_ACCES)

        def ask() -> bytes:
            try:
                handle = self._handle_of(export.image, export.generation, below, caller.address)
            except NotFoundError:
                return u32(MNT3ERR_NOENT)
            except NetbootdError as error:
                _log.error("MOUNT for %s: %s", caller.address, error)
                return u32(MNT3ERR_IO)
            seconds = time.monotonic() - caller.received
            self._loop.call_soon_threadsafe(self._mounted, export, path, caller.address, seconds)
            return u32(0) + opaque(handle) + u32(1) + u32(AUTH_SYS)

        return Work(ask)
