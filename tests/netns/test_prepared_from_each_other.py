"""What one netbootd has prepared, another prepares from its list for Raspberry Pi Imager: the same trees come of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from tests.support.image_cache import tiny_image
from tests.support.manifest import differences
from tests.support.netbootd import NETBOOTD
from tests.support.netlab import SERVER, Lab
from tests.support.processes import run, wait_until


def test_a_second_server_takes_its_images_from_the_first(lab: Lab, tmp_path: Path) -> None:
    image = tiny_image()
    packed = tmp_path / "web" / "my-image.img.gz"
    packed.parent.mkdir()
    run(["sh", "-c", 'gzip -1 < "$1" > "$2"', "sh", image.path, packed])
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()

    def command(state: str, *words: object) -> str:
        argv = [*NETBOOTD, "--state", tmp_path / state, *words]
        return run([str(word) for word in argv], namespace=lab.server, timeout=120).stdout

    web = lab.start(lab.server, [sys.executable, "-m", "http.server", "8000", "--directory", packed.parent], "web")
    wait_until(
        lambda: run(["curl", "-sf", f"http://{SERVER}:8000/"], namespace=lab.server, check=False).returncode == 0,
        "web server",
        timeout=20,
        alive=[web],
    )
    source = ["--source", f"http://{SERVER}:8000/{packed.name}", "--sha256", sha256, "--name", "first"]
    command("a", "prepare", *source, "--advertise", SERVER)
    ready = tmp_path / "ready.json"
    argv = [*NETBOOTD, "--state", tmp_path / "a", "serve", "--bind", SERVER, "--ready-file", ready]
    first = lab.start(lab.server, argv, "serve")
    wait_until(ready.exists, "ready file", timeout=60, alive=[first])
    mirror = ["--mirror", f"http://{SERVER}/imager/os_list.json"]
    offers = json.loads(command("b", "images", "releases", *mirror, "--json"))["releases"]
    assert [offer["name"] for offer in offers] == ["my-image"]
    (made,) = json.loads(command("b", "prepare", "--release", "my-image", *mirror, "--advertise", SERVER, "--json"))[
        "images"
    ]
    generation = Path(made["path"])
    told = json.loads((generation / "image.json").read_text())
    assert (told["source"]["sha256"], told["source"]["verified"]) == (sha256, True)
    assert differences(image, generation) == []
    shutil.rmtree(tmp_path / "a" / "images")
    shutil.rmtree(tmp_path / "b" / "images")
