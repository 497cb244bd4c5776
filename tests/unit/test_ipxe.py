"""PCs: an ISO becomes a generation, and iPXE gets a script for each machine; as the command line and HTTP have it."""

import asyncio
import errno
import json
import os
import re
from pathlib import Path

import aiohttp
import pytest

from netbootd.boot import ipxe
from netbootd.boot.files import BootDirectory
from netbootd.boot.identify import Identities
from netbootd.boot.sessions import Sessions
from netbootd.errors import ConfigError
from netbootd.httpd.bootfiles import BootFileRoutes
from netbootd.httpd.ipxe import IpxeRoutes
from netbootd.httpd.server import HttpServer, HttpSettings
from netbootd.images import build, pc
from netbootd.model.facts import PC, ImageFacts
from netbootd.model.identity import MacAddress, Serial
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node
from netbootd.service.exports import GenerationExports
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout
from tests.support.live_iso import FILES, INITRD, KERNEL, live_iso
from tests.support.publisher import sha256

ISO = "ubuntu-24.04.3-live-server-amd64.iso"
MAC = MacAddress("52:54:00:12:34:56")
SERVER = ServerAddress("192.0.2.1", 8080)
FACTS = ImageFacts(kind=PC, cmdline_path="", kernels=("vmlinuz",), initramfs=("initrd",), extra={"iso": "x.iso"})


def node(**values):
    return Node(**{"name": "pc-0", "image": "pc", "hostname": "pc-0", "mac": MAC, "configured": True, **values})


# ---------------------------------------------------------------------------------------------------- the script


def understood(script):
    """A script as iPXE reads it: commands as lists of words, split at its operators (src/core/exec.c)."""
    first, *lines = script.splitlines()
    assert first == "#!ipxe"
    for line in lines:
        command = []
        for word in line.split():
            if word.startswith("#"):
                break
            if word in ("||", "&&", ";"):
                yield command
                command = []
            else:
                command.append(word)
        if command:
            yield command


def test_a_script_boots_kernel_and_initrd_with_autoinstall():
    script = ipxe.boot(FACTS, node(cmdline_append="quiet"), SERVER)
    commands = list(understood(script))
    (kernel,) = (words for words in commands if words[0] == "kernel")
    base = "http://192.0.2.1:8080"
    assert kernel[1] == f"{base}/boot/52-54-00-12-34-56/vmlinuz"
    assert kernel[2:] == [
        "initrd=initrd",
        "ip=dhcp",
        f"url={base}/boot/52-54-00-12-34-56/x.iso",
        "autoinstall",
        f"ds=nocloud-net;s={base}/nocloud/52-54-00-12-34-56/",
        "cloud-config-url=/dev/null",
        "quiet",
        "---",
    ]
    (initrd,) = (words for words in commands if words[0] == "initrd")
    assert initrd[1:] == ["--name", "initrd", f"{base}/boot/52-54-00-12-34-56/initrd"]
    assert ["boot"] in commands
    labels = {words[0][1:] for words in commands if words[0].startswith(":")}
    assert {words[1] for words in commands if words[0] == "goto"} <= labels


def test_the_seed_goes_by_serial_and_token_and_by_the_age_of_cloud_init():
    known = ImageFacts(**{**FACTS.as_dict(), "cloud_init_version": "25.1.4"})
    script = ipxe.boot(known, node(serial=Serial("1a2b3c4d")), ServerAddress("fd00::1"), "cafe")
    assert " ds=nocloud;s=http://[fd00::1]/nocloud/1a2b3c4d/cafe/ " in script
    assert " url=http://[fd00::1]/boot/1a2b3c4d/x.iso " in script


@pytest.mark.parametrize("appended", ["a=${net0/mac}", "a || shell", "a ;", "x #y", "umlaut=\u00e4"])
def test_what_ipxe_would_take_for_its_own_is_refused(appended):
    with pytest.raises(ConfigError, match="cmdline_append"):
        ipxe.boot(FACTS, node(cmdline_append=appended), SERVER)


def test_a_line_that_is_too_long_is_refused_and_a_separator_of_ones_own_counts():
    with pytest.raises(ConfigError, match="2047"):
        ipxe.boot(FACTS, node(cmdline_append="x" * 2000), SERVER)
    line = ipxe.boot(FACTS, node(cmdline_append="a --- b;c"), SERVER)
    assert line.count("---") == 1
    assert " a --- b;c || goto failed" in line


def test_explanations_are_shown_as_they_are():
    for prepared in (True, False):
        echo = next(understood(ipxe.explain(node(), prepared=prepared)))
        assert echo[0] == "echo"
        assert "pc-0" in echo
    assert "$" not in ipxe.say("a ${x} || b # c ; d\nshell")
    assert [words[0] for words in understood(ipxe.say("a || b\nshell"))] == ["echo", "sleep", "exit"]


# ------------------------------------------------------------------------------------------------------- preparing


@pytest.fixture
def run(netbootd):
    """Run netbootd in an empty folder: (exit status, stdout, stderr)."""

    def call(*words):
        if words[0] == "prepare":
            words = ("prepare", "--advertise", "192.0.2.1", *words[1:])
        status, out, err = netbootd(*words)
        assert "Traceback" not in err
        return status, out, err

    return call


def offer(publisher, keys, iso, name=ISO, folder="noble"):
    """Lay the ISO out as releases.ubuntu.com does."""
    sums = f"{sha256(iso)} *{name}\n{'0' * 64} *ubuntu-24.04.3-desktop-amd64.iso\n".encode()
    publisher.files |= {f"/{folder}/{name}": iso, f"/{folder}/SHA256SUMS": sums}
    publisher.files[f"/{folder}/SHA256SUMS.gpg"] = keys.sign(sums, "publisher")


def test_a_release_for_pcs(run, publisher, keys, tmp_path):
    iso = live_iso(tmp_path / "made.iso", maker="xorriso").read_bytes()
    offer(publisher, keys, iso)
    offer(publisher, keys, b"older", "ubuntu-24.04.2-live-server-amd64.iso", "24.04.2")
    (tmp_path / "ring.gpg").write_bytes(keys.export("publisher"))
    words = ("prepare", "--release", "noble", "--arch", "amd64", "--mirror", publisher.url, "--json")
    status, _, err = run(*words)
    assert status == 6 and "--insecure-skip-verify" in err
    status, out, err = run(*words, "--keyring", "ring.gpg")
    assert status == 0, err
    (result,) = json.loads(out)["images"]
    path = Path(result["path"])
    assert result["changed"] and path.parts[-2] == "noble"
    assert {p.name: p.read_bytes() for p in (path / "boot").iterdir()} == {
        "vmlinuz": KERNEL,
        "initrd": INITRD,
        ISO: iso,
    }
    assert not (path / "root").exists()
    assert (path / "boot" / ISO).samefile(tmp_path / "state" / "downloads" / sha256(iso) / ISO)
    told = json.loads((path / "image.json").read_text())
    assert (told["source"]["verified"], told["source"]["sha256"]) == (True, sha256(iso))
    assert told["source"]["url"] == f"{publisher.url}/noble/{ISO}" and len(told["source"]["key"]) == 40
    assert (told["facts"]["kind"], told["facts"]["os_version"], told["patches"]) == ("pc", "24.04", [])
    assert told["facts"]["cloud_init_version"] == "25.1.4-0ubuntu0~24.04.1"
    assert json.loads(run(*words, "--keyring", "ring.gpg")[1])["images"][0]["changed"] is False
    assert run("nodes", "list")[0] == 0
    assert run("prepare", "--release", "noble", "--arch", "amd64", "--mirror", tmp_path)[0] == 8
    assert run("prepare", "--release", "noble-desktop", "--arch", "amd64", "--mirror", publisher.url)[0] == 8
    assert run("prepare", "--release", "24.04.4", "--arch", "amd64", "--mirror", publisher.url)[0] == 8


def test_nfs_exports_what_has_a_root(run, tmp_path):
    live_iso(tmp_path / "x.iso")
    assert run("prepare", "--source", "x.iso")[0] == 0
    generations = Generations(Layout(tmp_path / "state"))
    current = generations.current("x")
    exports = GenerationExports(generations)
    assert list(exports.all()) == []
    assert exports.find(os.fsencode(current.root)) is None


def test_a_file_of_ones_own_is_copied_and_may_change_afterwards(run, tmp_path):
    iso = live_iso(tmp_path / "my ISO+x.iso", maker="genisoimage")
    data = iso.read_bytes()
    status, out, err = run("prepare", "--source", iso, "--name", "mine", "--json")
    assert status == 0, err
    boot = Path(json.loads(out)["images"][0]["path"]) / "boot"
    iso.write_bytes(b"another")
    assert sorted(path.name for path in boot.iterdir()) == ["initrd", "my_ISO_x.iso", "vmlinuz"]
    assert (boot / "my_ISO_x.iso").read_bytes() == data
    assert run("prepare", "--source", iso, "--name", "mine")[0] == 7


def test_nothing_that_only_root_can_do_is_asked_for(run, tmp_path, monkeypatch):
    def never(folder):
        raise AssertionError(f"{folder} was asked to keep owners and device nodes")

    live_iso(tmp_path / "x.iso")
    monkeypatch.setattr(build, "check_target", never)
    assert run("prepare", "--source", "x.iso")[0] == 0


def test_where_no_link_can_be_made_it_is_copied(run, publisher, keys, tmp_path, monkeypatch):
    iso = live_iso(tmp_path / "made.iso").read_bytes()
    offer(publisher, keys, iso)
    (tmp_path / "ring.gpg").write_bytes(keys.export("publisher"))

    def refuse(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(pc.fcntl, "ioctl", refuse)
    words = ("--release", "noble", "--arch", "amd64", "--mirror", publisher.url, "--keyring", "ring.gpg", "--json")
    status, out, err = run("prepare", *words)
    assert status == 0, err
    boot = Path(json.loads(out)["images"][0]["path"]) / "boot"
    assert (boot / ISO).read_bytes() == iso
    assert (boot / "vmlinuz").read_bytes() == KERNEL


@pytest.mark.parametrize("files", [{".disk/info": b"x"}, {"casper/vmlinuz": b"x"}, {"casper/initrd": b"x"}])
def test_an_iso_without_kernel_or_initrd(run, tmp_path, files):
    live_iso(tmp_path / "x.iso", files)
    status, out, err = run("prepare", "--source", "x.iso")
    assert (status, out) == (7, "") and "casper/vmlinuz" in err
    assert not list((tmp_path / "state" / "images" / "x").glob("[0-9a-f]*"))


def test_what_is_only_called_an_iso_and_what_can_be_no_card(run, tmp_path):
    (tmp_path / "x.iso").write_bytes(b"no iso" * 10_000)
    assert run("prepare", "--source", "x.iso")[0] == 7
    live_iso(tmp_path / "y.iso")
    status, _, err = run("prepare", "--target", "sdcard", "--source", "y.iso", "--output", "card.img")
    assert status == 2 and "installs PCs" in err
    assert not (tmp_path / "card.img").exists()


# ------------------------------------------------------------------------------------------------------- over HTTP


class Site:
    """Routes over a state folder; `known` is the neighbour table (address to MAC)."""

    def __init__(self, folder, *nodes, refuse=False, stranger_image="pc"):
        self.generations = Generations(Layout(folder / "state"))
        self.known = {}
        self.events = []
        identities = Identities(
            nodes,
            stranger_image=stranger_image,
            refuse_strangers=refuse,
            mac_of=lambda address: self.known.get(address),
        )
        sessions = Sessions(
            lambda name: found.id if (found := self.generations.current(name)) else "",
            lambda name, ident: self.generations.find(name, ident) is not None,
        )
        self.files = BootDirectory(identities, sessions, self.generations, (), self._server, None)
        self.port = 0

    def _server(self, local):
        return ServerAddress(local, self.port)

    def get(self, *paths):
        """(status, body) of each path, asked one after the other."""

        async def ask():
            routes = (IpxeRoutes(self.files, self.events.append), BootFileRoutes(self.files, self.events.append))
            server = HttpServer(HttpSettings((("127.0.0.1", 0),), lambda peer: True), *routes)
            server.bind()
            self.port = server.port
            await server.start()
            try:
                async with aiohttp.ClientSession() as session:
                    for path in paths:
                        async with session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
                            answers.append((answer.status, await answer.text(errors="replace")))
            finally:
                await server.stop(0)

        answers = []
        asyncio.run(ask())
        return answers


@pytest.fixture
def prepared(run, tmp_path):
    live_iso(tmp_path / "x.iso", {**FILES, "casper/initrd": b"an initrd"})
    assert run("prepare", "--source", "x.iso", "--name", "pc")[0] == 0
    generations = Generations(Layout(tmp_path / "state"))
    pi = generations.layout.generation("pi", "aaaaaaaaaaaaaaaa")
    work = generations.begin(pi)
    (work / "boot").mkdir()
    generations.publish(work, pi, {"created": "2026", "facts": ImageFacts().as_dict()})
    return tmp_path


def test_a_machine_names_its_mac_and_gets_its_script_and_files(prepared):
    site = Site(prepared, node())
    (status, first), (named, script) = site.get("/ipxe/boot.ipxe", "/ipxe/boot.ipxe?mac=52-54-00-12-34-56")
    assert (status, named) == (200, 200)
    chain = next(words for words in understood(first) if words[0] == "chain")
    asked = chain[-1].replace("${netX/mac:hexhyp}", "52-54-00-12-34-56")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ipxe/boot\.ipxe\?mac=52-54-00-12-34-56", asked)
    assert "pc-0 boots image pc" in script
    (kernel,) = (words for words in understood(script) if words[0] == "kernel")
    (initrd,) = (words for words in understood(script) if words[0] == "initrd")
    urls = [kernel[1], initrd[-1], next(w for w in kernel if w.startswith("url=")).removeprefix("url=")]
    bodies = site.get(*(re.sub(r"http://[^/]+", "", url) for url in urls))
    assert [status for status, _ in bodies] == [200, 200, 200]
    assert bodies[0][1].encode() == KERNEL and bodies[1][1] == "an initrd"
    stages = [(event.path, str(event.stage), event.node, str(event.outcome)) for event in site.events]
    assert stages == [
        ("ipxe/boot.ipxe", "firmware", "pc-0", "ok"),
        ("vmlinuz", "kernel", "pc-0", "ok"),
        ("initrd", "firmware", "pc-0", "ok"),
        ("x.iso", "firmware", "pc-0", "ok"),
    ]


def test_a_machine_that_is_known_by_its_address_gets_its_script_at_once(prepared):
    site = Site(prepared, node())
    site.known["127.0.0.1"] = MAC
    ((status, script),) = site.get("/ipxe/boot.ipxe")
    assert status == 200 and "chain" not in script
    assert "/nocloud/52-54-00-12-34-56/" in script


def test_a_node_whose_image_is_for_pis_or_not_prepared_is_told_so(prepared):
    site = Site(prepared, node(image="pi"))
    ((status, script),) = site.get("/ipxe/boot.ipxe?mac=52:54:00:12:34:56")
    assert status == 200 and "is for Raspberry Pis" in script and "kernel" not in script
    assert [str(event.outcome) for event in site.events] == ["failed"]
    ((status, script),) = Site(prepared, node(image="none")).get("/ipxe/boot.ipxe?mac=52:54:00:12:34:56")
    assert status == 200 and "is not prepared" in script


def test_arguments_that_ipxe_would_change_are_told_on_the_screen(prepared):
    site = Site(prepared, node(cmdline_append="x=${y}"))
    ((status, script),) = site.get("/ipxe/boot.ipxe?mac=52:54:00:12:34:56")
    assert status == 200 and [words[0] for words in understood(script)] == ["echo", "sleep", "exit"]
    assert "cmdline_append" in script


def test_strangers_are_served_or_refused(prepared):
    stranger = "/ipxe/boot.ipxe?mac=52-54-00-aa-aa-aa"
    (bare, named) = Site(prepared).get("/ipxe/boot.ipxe", stranger)
    assert "/nocloud/52-54-00-aa-aa-aa/" in named[1]
    assert "/nocloud/${netX/mac:hexhyp}/" in bare[1] and "chain" in bare[1]  # what it boots should asking again fail
    (bare, named, known) = Site(prepared, node(), refuse=True).get(
        "/ipxe/boot.ipxe", stranger, "/ipxe/boot.ipxe?mac=52-54-00-12-34-56"
    )
    assert (bare[0], named[0], known[0]) == (200, 403, 200)
    assert "chain" in bare[1] and "kernel" not in bare[1] and "kernel" in known[1]


def test_what_is_no_mac_is_not_there(prepared):
    for text in ("x", "52-54-00-12-34", "52-54-00-12-34-56%0ashell", "${net0/mac}"):
        assert Site(prepared).get(f"/ipxe/boot.ipxe?mac={text}")[0][0] == 404


def test_every_file_of_the_node_is_listed(prepared, run, tmp_path):
    (tmp_path / "netbootd.toml").write_text('[[node]]\nname = "pc-0"\nmac = "52:54:00:12:34:56"\nimage = "pc"\n')
    status, out, err = run("nodes", "show", "pc-0", "--json")
    assert status == 0, err
    for name in ("vmlinuz", "initrd", "x.iso"):
        assert f'"{name}"' in out
    told = json.loads(run("nodes", "explain", "pc-0", "x.iso", "--json")[1])
    assert (told["layer"], told["sha256"]) == ("image", sha256((tmp_path / "x.iso").read_bytes()))
    told = json.loads(run("nodes", "explain", "pc-0", "ipxe/boot.ipxe", "--json")[1])
    assert (told["layer"], told["content"].splitlines()[0]) == ("rendered", "#!ipxe")
    assert "/nocloud/52-54-00-12-34-56/" in told["content"]
