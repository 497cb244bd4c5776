"""The kernel's server started, adopted, taken over, started again and ended; and exports beside those of others.

The kernel is played: a control that remembers, caches that take everything, an exportfs(8) of a few lines of shell.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from netbootd.errors import HostError, NotFoundError
from netbootd.model.export import Export
from netbootd.nfsd.kernel import exportfs, manager
from netbootd.nfsd.kernel.book import ExportBook
from netbootd.nfsd.kernel.control import Call, Listener, PoolMode, Setup, Version
from netbootd.nfsd.kernel.exportfs import Exportfs
from netbootd.nfsd.kernel.manager import Clients, KernelNfs, folder_beneath

V3, V4_2 = Version(3), Version(4, 2)
GENERATION = "0123456789abcdef"


class PlayedKernel:
    """A `ServerControl`; survives the managers that use it."""

    name = "played"

    def __init__(self, versions: Sequence[Version] = (V3, Version(4, 1), V4_2)) -> None:
        self.known = dict.fromkeys(versions, True)
        self.setup: Setup | None = None
        self.running = 0
        self.ports: list[Listener] = []
        self.refuses = False

    def threads(self) -> int:
        return self.running

    def versions(self) -> dict[Version, bool]:
        return self.known

    def listeners(self) -> list[Listener]:
        return self.ports

    def pool_mode(self) -> PoolMode | None:
        return None

    def calls(self) -> list[Call]:
        return []

    def start(self, setup: Setup) -> None:
        if self.refuses:
            raise HostError("The port is taken.")
        self.setup, self.running, self.ports = setup, setup.threads, list(setup.listeners)
        self.known = {version: version in setup.versions for version in self.known}

    def stop(self) -> None:
        self.running, self.ports = 0, []


class PlayedCaches:
    """In place of `Upcalls`."""

    said: list[str]

    def __init__(self, book: ExportBook, allow: object) -> None:
        self._book = book

    def start(self) -> None:
        PlayedCaches.said.append("start")
        self._book.refresh()

    def stop(self, *, forget: bool) -> None:
        PlayedCaches.said.append(f"stop, forget={forget}")

    def introduce(self, address: str) -> None:
        PlayedCaches.said.append(f"introduce {address}")

    def allowances_changed(self) -> None:
        PlayedCaches.said.append("allowances")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedKernel]:
    @contextlib.contextmanager
    def registrar() -> Iterator[None]:
        yield

    PlayedCaches.said = []
    monkeypatch.setattr(manager, "Upcalls", PlayedCaches)
    monkeypatch.setattr(manager, "registrar", registrar)
    monkeypatch.setattr(manager, "mount_nfsd", lambda folder: None)
    monkeypatch.setattr(manager, "grant_for_handle", lambda book, path: None)
    monkeypatch.setattr(exportfs, "answerer", lambda: "")
    return PlayedKernel()  # type: ignore[return-value]


@pytest.fixture
def make(kernel: PlayedKernel, tmp_path: Path) -> Any:
    root = tmp_path / "images/noble" / GENERATION / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "link").symlink_to("/etc")
    export = Export(os.fsencode(root), b"12345678", "noble", GENERATION)
    network = ipaddress.ip_network("192.0.2.0/24")
    (tmp_path / "proc").mkdir()

    def made() -> KernelNfs:
        return KernelNfs(
            lambda: [export],
            tmp_path / "images",
            Clients(lambda address: True, lambda: [network]),
            tmp_path / "run",
            proc=tmp_path / "proc",
            controls=lambda proc: kernel,
        )

    return made


def test_a_start_and_an_orderly_end(kernel: PlayedKernel, make: Any, tmp_path: Path) -> None:
    nfs = make()
    nfs.start(["192.0.2.1"], 2049)
    assert kernel.setup is not None
    assert kernel.setup.listeners == (Listener("tcp", "192.0.2.1", 2049),)
    assert kernel.setup.versions == (V3, V4_2) and kernel.setup.threads >= 8
    status = nfs.status()
    assert (status["running"], status["adopted"], status["exports"], status["by"]) == (True, False, 1, "played")
    nfs.start(["192.0.2.1"], 2049)  # again, as a serve that restarts does
    assert kernel.running and nfs.status()["adopted"] is False
    nfs.stop()
    assert not kernel.running
    assert PlayedCaches.said == ["start", "stop, forget=True"]
    assert not list((tmp_path / "run").iterdir())


def test_the_next_process_goes_on_where_one_died(kernel: PlayedKernel, make: Any) -> None:
    make().start(["192.0.2.1"], 2049)
    heir = make()
    heir.resume()
    assert heir.status()["adopted"] is False and kernel.running
    heir.stop()
    assert not kernel.running


def test_nothing_is_resumed_after_a_reboot(kernel: PlayedKernel, make: Any) -> None:
    nfs = make()
    nfs.resume()
    assert kernel.setup is None and nfs.status() == {"running": False}


def test_a_server_that_runs_is_used_and_left_running(kernel: PlayedKernel, make: Any) -> None:
    kernel.running, kernel.ports = 16, [Listener("tcp", "", 2049)]
    nfs = make()
    nfs.start(["0.0.0.0"], 2049)
    assert nfs.status()["adopted"] is True and kernel.setup is None
    make().resume()
    nfs.stop()
    assert kernel.running == 16


@pytest.mark.parametrize(
    ("versions", "port", "says"), [({V4_2: True, V3: False}, 2049, "version 3"), ({V3: True}, 12049, "port 12049")]
)
def test_a_server_that_lacks_what_nodes_need_is_told_of(
    kernel: PlayedKernel, make: Any, versions: dict[Version, bool], port: int, says: str
) -> None:
    kernel.running, kernel.ports, kernel.known = 16, [Listener("tcp", "", 2049)], versions
    with pytest.raises(HostError, match=says):
        make().start(["0.0.0.0"], port)
    assert kernel.running == 16


def test_a_start_that_fails_leaves_no_note(kernel: PlayedKernel, make: Any, tmp_path: Path) -> None:
    kernel.refuses = True
    with pytest.raises(HostError, match="taken"):
        make().start(["0.0.0.0"], 2049)
    assert not list((tmp_path / "run").iterdir())


def test_what_somebody_stopped_is_started_again(kernel: PlayedKernel, make: Any) -> None:
    nfs = make()
    nfs.start(["192.0.2.1"], 2049)
    nfs.tick()
    kernel.stop()
    nfs.tick()
    assert kernel.running
    nfs.stop()
    nfs.tick()
    assert not kernel.running


def test_rpc_mountd_comes_and_goes(kernel: PlayedKernel, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that answer the kernel's caches would refuse each other's exports."""
    reconciled: list[str] = []
    monkeypatch.setattr(exportfs.Exportfs, "reconcile", lambda self: reconciled.append("reconcile"))
    monkeypatch.setattr(exportfs.Exportfs, "withdraw", lambda self: reconciled.append("withdraw"))
    nfs = make()
    nfs.start(["192.0.2.1"], 2049)
    monkeypatch.setattr(exportfs, "answerer", lambda: "rpc.mountd")
    nfs.tick()
    assert PlayedCaches.said == ["start", "stop, forget=True"] and reconciled == ["reconcile"]
    assert nfs.status()["exports_by"] == "exportfs"
    monkeypatch.setattr(exportfs, "answerer", lambda: "")
    nfs.tick()
    assert PlayedCaches.said == ["start", "stop, forget=True", "start"]
    assert nfs.status()["exports_by"] == "caches"


def test_a_file_system_that_can_not_be_exported_stops_the_start(
    kernel: PlayedKernel, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(book: ExportBook, path: bytes) -> None:
        raise HostError("Invalid argument")

    monkeypatch.setattr(manager, "grant_for_handle", refuse)
    with pytest.raises(HostError, match="Invalid"):
        make().start(["192.0.2.1"], 2049)
    assert kernel.setup is None and PlayedCaches.said == ["start", "stop, forget=True"]


def test_a_kernel_without_version_3_or_4(kernel: PlayedKernel, make: Any) -> None:
    kernel.known = {V3: True}
    make().start(["192.0.2.1"], 2049)
    assert kernel.setup is not None and kernel.setup.versions == (V3,)
    kernel.stop()
    kernel.known = {V4_2: True}
    with pytest.raises(HostError, match="no version 3"):
        make().start(["192.0.2.1"], 2049)


def test_handles_are_asked_of_the_kernel(make: Any, tmp_path: Path) -> None:
    nfs = make()
    nfs.start(["192.0.2.1"], 2049)
    (tmp_path / "proc/filehandle").write_bytes(b"\\x0100ff\n")
    os.truncate(tmp_path / "proc/filehandle", 0)
    asked: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager.os, "write", lambda fd, data: asked.append(data))
        patch.setattr(manager.os, "read", lambda fd, count: b"\\x0100ff\n")
        assert nfs.handle("noble", GENERATION, [b"usr", b"lib"], "192.0.2.5") == b"\x01\x00\xff"
    root = tmp_path / "images/noble" / GENERATION / "root"
    assert asked == [b"netbootd %b/usr/lib 64\n" % os.fsencode(root)]
    assert PlayedCaches.said[-1] == "introduce 192.0.2.5"
    for image, generation, below in (
        ("jammy", GENERATION, []),
        ("noble", "f" * 16, []),
        ("noble", GENERATION, [b"nothing"]),
        ("noble", GENERATION, [b"link"]),
    ):
        with pytest.raises(NotFoundError):
            nfs.handle(image, generation, below, "192.0.2.5")


@pytest.mark.parametrize("names", [[b".."], [b""], [b"usr/lib"], [b"usr", b".."], [b"link", b"passwd"], [b"u\0"]])
def test_no_name_leads_out_of_a_tree(names: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(NotFoundError):
        folder_beneath(os.fsencode(tmp_path), names)


# ---------------------------------------------------------------- exportfs

ETAB_OTHERS = "/srv/other\t192.0.2.9(ro,sync)\n/var/images\t*(rw)\n"
EXPORTFS = """#!/bin/sh
# exportfs -o OPTIONS CLIENT:PATH | -u CLIENT:PATH, as nfs-utils 2.8 does with the table ETAB
echo "$*" >> LOG
case $1 in -o) target=$3 ;; -u) target=$2 ;; esac
path=/${target#*:/} client=$(echo "${target%%:/*}" | tr -d '[]')
grep -v "^$path	$client(" ETAB > ETAB.new; mv ETAB.new ETAB
[ "$1" = -u ] || printf '%s\\t%s(%s)\\n' "$path" "$client" "$2" >> ETAB
"""


@pytest.fixture
def etab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    table = tmp_path / "etab"
    table.write_text(ETAB_OTHERS)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/exportfs"
    program.write_text(EXPORTFS.replace("ETAB", str(table)).replace("LOG", str(tmp_path / "log")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return table


def test_the_table_of_mountd_holds_ours_and_others(tmp_path: Path, etab: Path) -> None:
    exports: list[Export] = []
    for number, generation in enumerate((GENERATION, "f" * 16)):
        root = tmp_path / "images/noble" / generation / "root"
        root.mkdir(parents=True)
        exports.append(Export(os.fsencode(root), bytes([number]) * 8, "noble", generation))
    networks = [ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/64")]
    ours = os.fsencode(tmp_path / "images")
    kept = Exportfs(ExportBook(lambda: exports), lambda: networks, ours, etab)
    kept.reconcile()
    lines = etab.read_text().splitlines()
    assert lines[:2] == ETAB_OTHERS.splitlines()
    assert len(lines) == 2 + 4
    assert all("ro,no_root_squash" in line and "fsid=" in line for line in lines[2:])
    asked = (tmp_path / "log").read_text()
    assert f"[2001:db8::]/64:{tmp_path}" in asked and f"192.0.2.0/24:{tmp_path}" in asked
    kept.reconcile()
    assert (tmp_path / "log").read_text() == asked  # nothing to do
    etab.write_text(ETAB_OTHERS)  # somebody's exportfs -r
    kept.reconcile()
    assert len(etab.read_text().splitlines()) == 2 + 4
    assert all(",insecure," in line for line in etab.read_text().splitlines()[2:])
    Exportfs(ExportBook(lambda: exports, secure=True), lambda: networks, ours, etab).reconcile()
    assert len(etab.read_text().splitlines()) == 2 + 4  # replaced: a process that died had left the others
    assert all(",secure," in line for line in etab.read_text().splitlines()[2:])
    kept.reconcile()
    gone = exports.pop()
    kept.reconcile()
    assert os.fsdecode(gone.path) not in etab.read_text() and len(etab.read_text().splitlines()) == 2 + 2
    kept.withdraw()
    assert etab.read_text() == ETAB_OTHERS


@pytest.mark.parametrize("failures", [1, 3, 4])
def test_an_end_goes_on_although_exportfs_fails(
    failures: int, tmp_path: Path, etab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "images/noble/r/root"
    root.mkdir(parents=True)
    export = Export(os.fsencode(root), bytes(8), "noble", GENERATION)
    networks = [ipaddress.ip_network(f"192.0.{number}.0/24") for number in (2, 3, 4)]
    kept = Exportfs(ExportBook(lambda: [export]), lambda: networks, os.fsencode(tmp_path / "images"), etab)
    kept.reconcile()
    working, left = tmp_path / "bin/exportfs", tmp_path / "left"
    left.write_text("x" * failures)
    shell, _, rest = working.read_text().partition("\n")
    busy = f"[ -s {left} ] && {{ truncate -s -1 {left}; echo busy >&2; exit 1; }}"
    working.write_text(f"{shell}\n{busy}\n{rest}")
    kept.withdraw()
    assert etab.read_text().count(str(root)) == (1 if failures == 4 else 0)
    assert ("Some exports are left" in caplog.text) is (failures == 4)


def test_a_failing_exportfs_is_told(tmp_path: Path, etab: Path) -> None:
    (tmp_path / "bin/exportfs").write_text("#!/bin/sh\necho 'exportfs: not supported' >&2; exit 1\n")
    root = tmp_path / "images/noble/r/root"
    root.mkdir(parents=True)
    export = Export(os.fsencode(root), bytes(8), "noble", GENERATION)
    kept = Exportfs(
        ExportBook(lambda: [export]), lambda: [ipaddress.ip_network("192.0.2.0/24")], os.fsencode(tmp_path), etab
    )
    with pytest.raises(HostError, match="not supported"):
        kept.reconcile()


def test_who_answers_the_caches_is_told_by_its_name(tmp_path: Path) -> None:
    for pid, name in (("1", "systemd"), ("12", "rpc.statd"), ("self", "rpc.mountd")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(name + "\n")
    (tmp_path / "99").mkdir()
    assert exportfs.answerer(tmp_path) == ""
    (tmp_path / "12/comm").write_text("rpc.mountd\n")
    assert exportfs.answerer(tmp_path) == "rpc.mountd"


def test_the_note_is_json_that_the_next_process_reads(kernel: PlayedKernel, make: Any, tmp_path: Path) -> None:
    make().start(["192.0.2.1", "2001:db8::1"], 2049)
    note = json.loads((tmp_path / "run/serving.json").read_text())
    assert note == {"addresses": ["192.0.2.1", "2001:db8::1"], "port": 2049, "ours": True}
    (tmp_path / "run/serving.json").write_text("{")
    make().resume()  # a broken one is as good as none
