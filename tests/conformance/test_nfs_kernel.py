"""Both ends of the kernel backend but the kernel: the privileged part as a process, MOUNT in an event loop, rpcbind.

The kernel's server is played by a `ServerControl` that remembers, its files by a folder; tests/qemu has the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netbootd.errors import HostError, NetbootdError, NotFoundError
from netbootd.nfsd import rpcbind
from netbootd.nfsd.kernel import protocol
from netbootd.nfsd.kernel.client import PrivilegedPart
from netbootd.nfsd.kernel.registrar import registrar
from netbootd.nfsd.kernel.server import KernelServer
from netbootd.nfsd.portmap import IPPROTO_TCP, Mapping
from netbootd.nfsd.rpc import Records, record
from netbootd.nfsd.server import NfsSettings
from netbootd.nfsd.xdr import u32
from tests.support import nfs_wire as nfs
from tests.support.nfs_server import Table, export_of
from tests.support.nfs_wire import Client
from tests.support.processes import REPOSITORY, Program, run, wait_until

# ---------------------------------------------------------------- the privileged part

PART = """
    import json, sys
    from pathlib import Path
    from netbootd.errors import NotFoundError
    from netbootd.nfsd.kernel.part import Part

    log = open(sys.argv[2], "a", buffering=1)

    class Played:
        def start(self, addresses, port): print("start", *addresses, port, file=log)
        def status(self): return {"running": True}
        def nfs4_clients(self): return ["192.0.2.5"]
        def register_mount(self, port): raise ZeroDivisionError
        def clients_changed(self): print("changed", file=log)
        def tick(self): pass
        def stop(self): print("stopped", file=log)
        def handle(self, image, generation, below, address):
            if image != "noble": raise NotFoundError("there is no " + image, hint="look")
            return b"/".join((generation.encode(), *below))

    Part(Played(), Path(sys.argv[1]), json.loads(sys.argv[3])).run(
        lambda: print("ready", file=log), lambda: print("reload", file=log))
"""


@pytest.fixture
def part(tmp_path: Path) -> Iterator[tuple[Program, PrivilegedPart, Path]]:
    said, path = tmp_path / "said", tmp_path / "socket"
    argv = [sys.executable, "-c", textwrap.dedent(PART), path, said, "[]"]
    with Program(argv, tmp_path / "part.log") as program:
        wait_until(lambda: said.exists() and "ready" in said.read_text(), "the part", alive=[program])
        yield program, PrivilegedPart(path), said


def test_requests_are_answered(part: tuple[Program, PrivilegedPart, Path]) -> None:
    _, asked, said = part
    assert asked.start(["0.0.0.0", "::"], 2049) == {"running": True}
    assert "start 0.0.0.0 :: 2049" in said.read_text()
    assert asked.handle("noble", "0123456789abcdef", [b"usr", b"l b"], "192.0.2.9") == b"0123456789abcdef/usr/l b"
    assert asked.nfs4_clients() == ["192.0.2.5"]
    with pytest.raises(NotFoundError, match="there is no jammy"):
        asked.handle("jammy", "0123456789abcdef", [], "192.0.2.9")


def test_a_failure_of_ours_ends_one_request(part: tuple[Program, PrivilegedPart, Path]) -> None:
    program, asked, _ = part
    with pytest.raises(HostError, match="failed"):
        asked.register(20048)
    assert asked.status() == {"running": True}
    assert "ZeroDivisionError" in program.output()


def test_signals(part: tuple[Program, PrivilegedPart, Path]) -> None:
    program, asked, said = part
    program.signal(signal.SIGHUP)
    wait_until(lambda: "reload\nchanged\n" in said.read_text(), "reload", alive=[program])
    assert asked.status() == {"running": True}
    program.signal(signal.SIGTERM)
    assert program.wait(10) == 0
    assert said.read_text().endswith("stopped\n")
    with pytest.raises(HostError, match="privileged part") as caught:
        asked.status()
    assert "netbootd-nfs" in caught.value.hint


def test_peers_that_say_nothing_or_rubbish_harm_nobody(
    part: tuple[Program, PrivilegedPart, Path], tmp_path: Path
) -> None:
    _, asked, _ = part
    silent = []
    for _ in range(40):  # more than are kept
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(tmp_path / "socket"))
        silent.append(sock)
    for sock in silent[:5]:
        sock.settimeout(5)
        sock.send(b"\xff" * 20000)
        with pytest.raises(NetbootdError, match="no JSON"):
            protocol.parse_answer(sock.recv(4096))
    for sock in silent:
        sock.close()
    assert asked.status() == {"running": True}


def test_other_users_are_refused(tmp_path: Path) -> None:
    """By the credentials that the kernel tells (SO_PEERCRED), whatever the socket's mode."""
    if os.geteuid() != 0:
        allowed = os.geteuid()
        argv = [sys.executable, "-c", textwrap.dedent(PART), tmp_path / "socket", tmp_path / "said", f"[{allowed}]"]
        with Program(argv, tmp_path / "part.log") as program:
            wait_until((tmp_path / "said").exists, "the part", alive=[program])
            assert PrivilegedPart(tmp_path / "socket").status() == {"running": True}
        return
    folder = Path(f"/tmp/nfs-part-{os.getpid()}")  # one that other users can enter
    folder.mkdir(mode=0o755)
    try:
        argv = [sys.executable, "-c", textwrap.dedent(PART), folder / "socket", tmp_path / "said", "[1234]"]
        with Program(argv, tmp_path / "part.log") as program:
            wait_until((folder / "socket").exists, "the part", alive=[program])
            wait_until(lambda: "ready" in (tmp_path / "said").read_text(), "the part", alive=[program])
            (folder / "socket").chmod(0o666)
            ask = (
                "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
                'import os; os.setuid(int(sys.argv[2])); s.connect(sys.argv[1]); s.send(b\'{"do": "status"}\');'
                "print(s.recv(4096).decode())"
            )
            answers = [
                json.loads(
                    subprocess.run(
                        [sys.executable, "-c", ask, folder / "socket", uid], check=True, capture_output=True, text=True
                    ).stdout
                )
                for uid in ("0", "1234", "1235")
            ]
        assert answers[:2] == [{"answer": {"running": True}}] * 2
        assert answers[2]["error"] == "denied"
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


# ---------------------------------------------------------------- the stand-in for rpcbind


def call(sock: socket.socket, procedure: int, args: bytes) -> bytes:
    head = b"xid1" + u32(0) + u32(2) + u32(100000) + u32(4) + u32(procedure)
    sock.sendall(record(head, bytes(16), args))
    records = Records(4096)
    while True:
        for reply in records.feed(sock.recv(4096)):
            return reply


def test_the_kernels_registrations_are_taken_while_it_starts(tmp_path: Path) -> None:
    path, abstract = str(tmp_path / "rpcbind.sock"), f"\0netbootd-test-{os.getpid()}"
    with registrar(path, abstract):
        for name in (path, abstract):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(5)
                sock.connect(name)
                assert call(sock, 0, b"")[8:] == bytes(16)
                for procedure in (2, 1, 1):  # UNSET, SET, SET
                    assert call(sock, procedure, b"\0" * 40)[-4:] == u32(1)
    assert not Path(path).exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(abstract)


def test_an_rpcbind_that_is_there_is_left_in_peace(tmp_path: Path) -> None:
    path, abstract = str(tmp_path / "rpcbind.sock"), f"\0netbootd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
        there.bind(path)
        there.listen()
        with (
            registrar(path, abstract),
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock,
            pytest.raises(ConnectionRefusedError),
        ):
            sock.connect(abstract)
        assert Path(path).is_socket()


# ---------------------------------------------------------------- MOUNT


class PlayedPart:
    """What KernelServer asks."""

    def __init__(self, exports_by: str = "caches") -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._exports_by = exports_by

    def start(self, addresses: Sequence[str], port: int) -> dict[str, Any]:
        self.asked.append(("start", *addresses, port))
        return {"running": True, "exports_by": self._exports_by}

    def handle(self, image: str, generation: str, below: Sequence[bytes], address: str) -> bytes:
        self.asked.append(("handle", image, generation, *below, address))
        if b"nothing" in below:
            raise NotFoundError("no such folder")
        if b"broken" in below:
            raise HostError("the kernel refuses")
        return b"handle of the kernel"

    def register(self, mount_port: int) -> None:
        self.asked.append(("register", mount_port))


def serving(part: PlayedPart, table: Table, mounts: list[Any], **settings: Any) -> KernelServer:
    given = {"addresses": ("127.0.0.1",), "port": 2049, "mount_port": 0, "portmap_port": 0, **settings}
    return KernelServer(table, NfsSettings(**given), lambda *seen: mounts.append(seen), part)  # type: ignore[arg-type]


async def mount(client: Client, path: bytes) -> tuple[int, bytes]:
    outcome = await client.outcome(nfs.call_record(nfs.MOUNT, 3, 1, nfs.opaque(path)))
    assert isinstance(outcome, nfs.Accepted)
    answer = nfs.Unpacker(outcome.body)
    status = answer.u32()
    return status, b"" if status else answer.opaque()


async def test_mount_gives_what_the_kernel_made(tmp_path: Path) -> None:
    part, mounts = PlayedPart(), []  # type: ignore[var-annotated]
    server = serving(part, Table([export_of(tmp_path)]), mounts)
    await server.start()
    try:
        assert part.asked == [("start", "127.0.0.1", 2049)]
        assert server.ports.port == 2049 and server.ports.mount_port != 2049
        async with await Client.connect(server.ports.mount_port) as client:
            root = bytes(tmp_path)
            assert await mount(client, root) == (0, b"handle of the kernel")
            assert part.asked[-1] == ("handle", "image", tmp_path.name, "127.0.0.1")
            assert await mount(client, root + b"/usr//lib/") == (0, b"handle of the kernel")
            assert part.asked[-1] == ("handle", "image", tmp_path.name, b"usr", b"lib", "127.0.0.1")
            assert (await mount(client, root + b"/nothing"))[0] == 2  # MNT3ERR_NOENT
            assert (await mount(client, root + b"/broken"))[0] == 5  # MNT3ERR_IO
            assert (await mount(client, b"/etc"))[0] == 2
        assert [(address, export.path) for address, export, _ in mounts] == [("127.0.0.1", root)] * 2
        portmap = server.ports.portmap_port
        assert portmap is not None
        async with await Client.connect(portmap) as client:
            for program, version, port in (
                (nfs.NFS, 3, 2049),
                (nfs.NFS, 4, 2049),
                (nfs.MOUNT, 3, server.ports.mount_port),
            ):
                args = nfs.u32(program, version, nfs.TCP, 0)
                outcome = await client.outcome(nfs.call_record(nfs.PORTMAP, 2, 3, args, nfs.auth_none()))
                assert isinstance(outcome, nfs.Accepted)
                assert nfs.Unpacker(outcome.body).u32() == port
    finally:
        await server.stop(0)


async def test_a_generation_of_a_plain_user_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel would show what its files have on disk: the privileged part isn't even asked."""
    part, recorded = PlayedPart(), replace(export_of(tmp_path), attributes=bytes(tmp_path / "attributes"))
    server = serving(part, Table([recorded]), [], portmap_port=None)
    await server.start()
    try:
        async with await Client.connect(server.ports.mount_port) as client:
            assert await mount(client, bytes(tmp_path)) == (13, b"")  # MNT3ERR_ACCES
            assert await mount(client, bytes(tmp_path / "usr")) == (13, b"")
        assert [asked[0] for asked in part.asked] == ["start"]
        assert "was made with --unprivileged" in caplog.text and "--nfs embedded" in caplog.text
    finally:
        await server.stop(0)


async def test_a_privileged_part_that_was_restarted_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("netbootd.nfsd.kernel.server._KEEP_SECONDS", 0.01)
    part = PlayedPart()
    server = serving(part, Table([]), [])
    await server.start()
    try:
        async with asyncio.timeout(10):
            while len(part.asked) < 3:
                await asyncio.sleep(0.01)
        monkeypatch.setattr(part, "start", lambda addresses, port: (_ for _ in ()).throw(HostError("It is gone.")))
        async with asyncio.timeout(10):
            while "It is gone." not in caplog.text:
                await asyncio.sleep(0.01)
    finally:
        await server.stop(0)
    assert caplog.text.count("It is gone.") == 1


async def test_a_kernel_that_can_not_leaves_no_port_open(tmp_path: Path) -> None:
    class Refusing(PlayedPart):
        def start(self, addresses: Sequence[str], port: int) -> dict[str, Any]:
            raise HostError("This kernel has no NFS server.")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = serving(Refusing(), Table([]), [], mount_port=port)
    with pytest.raises(HostError, match="no NFS server"):
        await server.start()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))
    await server.stop(0)


async def test_where_mountd_answers_its_port_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpcbind, "port_of", lambda program, version, port: 40123)
    part = PlayedPart("exportfs")
    server = serving(part, Table([export_of(tmp_path)]), [])
    await server.start()
    try:
        assert (server.ports.port, server.ports.mount_port, server.ports.portmap_port) == (2049, 40123, 111)
    finally:
        await server.stop(0)


async def test_rpcbind_is_asked_for_a_port(tmp_path: Path) -> None:
    """Against our own port mapper: it tells what it has, and nothing of what it hasn't."""
    server = serving(PlayedPart(), Table([]), [])
    await server.start()
    try:
        portmap = server.ports.portmap_port or 0
        assert await asyncio.to_thread(rpcbind.port_of, 100005, 3, portmap) == server.ports.mount_port
        with pytest.raises(HostError, match="knows of no program"):
            await asyncio.to_thread(rpcbind.port_of, 100021, 4, portmap)
    finally:
        await server.stop(0)


async def test_rpcbind_is_told_by_the_privileged_part(tmp_path: Path) -> None:
    part = PlayedPart()
    server = serving(part, Table([]), [])
    await server._register([Mapping(100003, 3, IPPROTO_TCP, 2049), Mapping(100005, 3, IPPROTO_TCP, 20048)], [2], 111)
    assert part.asked == [("register", 20048)]


# ---------------------------------------------------------------- a host that can't


def test_a_host_that_may_not_is_told_so(tmp_path: Path) -> None:
    """Without rights (and so on any kernel) the first step fails with a sentence."""
    code = (
        "import sys; from pathlib import Path; from netbootd.errors import HostError;"
        "from netbootd.nfsd.kernel.manager import mount_nfsd\n"
        "try: mount_nfsd(Path(sys.argv[1]))\n"
        "except HostError as error: print(error, error.hint)"
    )
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    said = run([*without, sys.executable, "-c", code, tmp_path]).stdout
    assert "Mounting the file system nfsd" in said and "--nfs embedded" in said


def test_the_privileged_part_as_a_program(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "netbootd", "--state", tmp_path / "state", "nfs-kernel", "--socket", tmp_path / "s"]
    argv += ["--user", pwd.getpwuid(os.geteuid()).pw_name]
    with Program(argv, tmp_path / "log", cwd=REPOSITORY) as program:
        wait_until((tmp_path / "s").is_socket, "the socket", alive=[program])
        status = wait_until(lambda: answered(tmp_path / "s"), "an answer", alive=[program])
        assert status == {"running": False}
        assert program.stop() == 0
    assert not (tmp_path / "s").exists()


def answered(path: Path) -> dict[str, Any] | None:
    try:
        return PrivilegedPart(path).status()
    except HostError:
        return None
