"""NFS clients that read as fast as they can, and what TFTP and HTTP of the same ``netbootd serve`` get done beside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.netbootd import NETBOOTD
from tests.support.processes import Program, run, wait_until

READERS = 4
GENERATION = "0123456789abcdef"


def make_state(folder: Path) -> Path:
    """A state folder with one generation; gives its root."""
    generation = folder / "images" / "noble" / GENERATION
    root = generation / "root"
    (root / "many").mkdir(parents=True)
    for number in range(2000):
        (root / "many" / f"{number:05}").touch()
    with (root / "large").open("wb") as file:
        file.truncate(64 << 20)
    (generation / "boot").mkdir()
    (generation / "image.json").write_text("{}")
    (generation.parent / "current").symlink_to(GENERATION)
    return root


@contextmanager
def busy(commands: list[list[str]], folder: Path) -> Iterator[list[Path]]:
    """Every command again and again; a file of each has a line for every time that it has succeeded."""
    logs = [folder / f"reader-{number}" for number in range(len(commands))]
    script = 'while "$@" >/dev/null; do echo; done'
    running = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as out:
                argv = ["sh", "-c", script, "sh", *command]
                running.append(subprocess.Popen(argv, stdout=out, start_new_session=True))
        yield logs
        assert all(one.poll() is None for one in running), "no reader has failed"
    finally:
        for one in running:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()


def test_tftp_and_http_go_on_while_nfs_is_read(tmp_path: Path) -> None:
    state, files, ready = tmp_path / "state", tmp_path / "files", tmp_path / "ready.json"
    root = make_state(state)
    files.mkdir()
    (files / "kernel").write_bytes(os.urandom(100_000))
    ports = [word for service in ("tftp", "http", "nfs", "portmap") for word in (f"--{service}-port", "0")]
    argv = [*NETBOOTD, "--state", state, "serve", "--bind", "127.0.0.1", "--boot-files", files, *ports]
    with Program([*argv, "--ready-file", ready], tmp_path / "log", env={"NETBOOTD_CONFIG": ""}) as server:
        wait_until(ready.exists, "ready file", alive=[server])
        told = json.loads(ready.read_text())
        port = told["nfs"]["port"]
        query = f"?nfsport={port}&mountport={told['nfs']['mount_port']}&version=3"
        commands = [["nfs-cat", f"nfs://127.0.0.1{root}/large{query}"] for _ in range(READERS)]
        commands.append(["nfs-ls", f"nfs://127.0.0.1{root}/many{query}"])
        kernel, health = tmp_path / "kernel", tmp_path / "health"
        urls = {kernel: f"tftp://{told['tftp'][0]}/kernel", health: f"http://{told['http'][0]}/healthz"}
        with busy(commands, tmp_path) as logs:
            wait_until(lambda: all(log.stat().st_size for log in logs), "first reads", alive=[server])
            before = [log.stat().st_size for log in logs]
            took = []
            for _ in range(8):
                for copy, url in urls.items():
                    began = time.monotonic()
                    run(["curl", "-sf", "--max-time", "20", "-o", copy, url])
                    took.append(time.monotonic() - began)
                assert kernel.read_bytes() == (files / "kernel").read_bytes()
            wait_until(
                lambda: all(log.stat().st_size > had for log, had in zip(logs, before, strict=True)),
                "every NFS client to be served meanwhile",
                alive=[server],
            )
        assert sorted(took)[len(took) // 2] < 2, took
