"""``[nfs] secure``: what a plain user of a node can read as anybody, and what only the node's root can.

The client is libnfs, which calls from a reserved port where it may, and as whom it is told to.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from tests.support.nfs_server import Running, serving
from tests.support.nfs_wire import Client
from tests.support.processes import run

SECRET = "root:$y$j9T$secret:20000::::::\n"
USER = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    shadow = tmp_path / "etc/shadow"
    shadow.write_text(SECRET)
    os.chown(shadow, 0, 42)
    shadow.chmod(0o640)
    return tmp_path


async def shadow_of(running: Running, tree: Path, *, user: int, claims: tuple[int, int]) -> str:
    """What a process of a user reads with the ids that it claims; empty where it is refused."""
    ports = running.server.ports
    ids = f"nfsport={ports.port}&mountport={ports.mount_port}&version=3&uid={claims[0]}&gid={claims[1]}"
    words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    url = f"nfs://127.0.0.1{tree}/etc/shadow?{ids}"
    done = await asyncio.to_thread(run, [*words, "nfs-cat", url], check=False, timeout=60)
    assert (done.returncode == 0) is (done.stdout == SECRET), done
    return done.stdout


@pytest.mark.parametrize("secure", [False, True])
async def test_who_reads_the_root_s_secrets(tree: Path, secure: bool) -> None:
    """Without it nobody is stopped from calling themselves root, or a member of shadow: it is all that proves it."""
    async with serving(tree, secure=secure) as running:
        assert await shadow_of(running, tree, user=0, claims=(0, 0)) == SECRET
        assert await shadow_of(running, tree, user=0, claims=(1000, 1000)) == ""
        for claims in ((0, 0), (1000, 42)):
            assert await shadow_of(running, tree, user=USER, claims=claims) == ("" if secure else SECRET)


async def test_any_reserved_port_will_do(tree: Path) -> None:
    """1023 is the last one (IPPORT_RESERVED)."""
    async with serving(tree, secure=True) as running:
        for port in (700, 1023):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
                sock.connect(("127.0.0.1", running.port))
                reader, writer = await asyncio.open_connection(sock=sock.dup())
                async with Client(reader, writer, b"") as client:
                    assert await client.mount(bytes(tree))
