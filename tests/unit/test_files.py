"""What a node gets for a path: layer over layer, the generation that its boot began with, nothing that flashes."""

import pytest

from netbootd.boot.files import BootDirectory
from netbootd.boot.identify import Identities
from netbootd.boot.sessions import Sessions
from netbootd.errors import ConfigError, NotFoundError
from netbootd.images import patches
from netbootd.model.event import Stage
from netbootd.model.facts import ImageFacts
from netbootd.model.identity import Evidence, MacAddress, Serial
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node
from netbootd.model.resource import BootPath
from netbootd.store.generations import Generations
from netbootd.store.layout import Layout

SERVER = ServerAddress("192.0.2.1", 8080, 3049, 3049, 111)
SERIAL, MAC = Serial("1a2b3c4d"), MacAddress("dc:a6:32:01:36:c2")
FACTS = ImageFacts(
    cmdline_path="current/cmdline.txt",
    cmdline_base="console=tty1",
    cmdline_append="image=1",
    overlay=("overlayroot=tmpfs",),
    kernels=("current/vmlinuz",),
    cloud_init_version="24.1",
)


class World:
    """A state folder with images, folders of boot files, and the directory that resolves them."""

    def __init__(self, folder, token=None):
        self.folder = folder
        self.generations = Generations(Layout(folder / "state"))
        self.now = 0.0
        self.token = token
        self.defaults = ()
        self.asked = []

    def publish(self, ident, files, facts=FACTS, name="noble"):
        generation = self.generations.layout.generation(name, ident)
        work = self.generations.begin(generation)
        (work / "root").mkdir()
        for path, content in files.items():
            (work / "boot" / path).parent.mkdir(parents=True, exist_ok=True)
            (work / "boot" / path).write_text(content)
        self.generations.publish(work, generation, {"created": ident, "facts": facts.as_dict() if facts else None})
        return generation

    def layer(self, name, **files):
        folder = self.folder / name
        folder.mkdir()
        for path, content in files.items():
            (folder / path.replace("__", ".")).write_text(content)
        return folder

    def directory(self, *nodes):
        identities = Identities(nodes, stranger_image="noble", refuse_strangers=False, mac_of=lambda address: None)
        sessions = Sessions(
            lambda name: found.id if (found := self.generations.current(name)) else "",
            lambda name, ident: self.generations.find(name, ident) is not None,
            clock=lambda: self.now,
        )

        def server(local):
            self.asked.append(local)
            return SERVER

        return BootDirectory(identities, sessions, self.generations, self.defaults, server, self.token)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def node(name="valar-0", **values):
    return Node(**{"name": name, "image": "noble", "hostname": name, "serial": SERIAL, "configured": True, **values})


def text(resource):
    source = resource.open()
    try:
        data = source.read(1 << 20)
        assert len(data) == source.size() == resource.size  # known before the first byte
        return data.decode()
    finally:
        source.close()


def get(directory, who, path):
    return directory.resolve(who, BootPath.parse(path), "192.0.2.1")


# ---------------------------------------------------------------- layers


def test_the_first_layer_that_has_it_wins(world):
    world.publish("aaaaaaaa", {"config.txt": "image", "x": "image", "y": "image", "z": "image"})
    world.defaults = (world.layer("d1", x="d1", y="d1"), world.layer("d2", x="d2"))
    own = (world.layer("n1", x="n1", w="n1"), world.layer("n2", w="n2"))
    directory, who = world.directory(), node(boot_files=own)
    found = {path: get(directory, who, path) for path in "wxyz"}
    assert {path: (text(r), r.origin) for path, r in found.items()} == {
        "w": ("n2", "node"),  # the later folder lies over the earlier one
        "x": ("n1", "node"),
        "y": ("d1", "defaults"),
        "z": ("image", "image"),
    }
    other = node("valar-1", serial=Serial("2a2b3c4d"))
    assert text(get(directory, other, "x")) == "d2"
    with pytest.raises(NotFoundError, match="valar-1 has no boot file w"):
        get(directory, other, "w")
    assert directory.paths(who) == ["config.txt", "current/cmdline.txt", "w", "x", "y", "z"]


def test_the_command_line_below_the_prefix_is_rendered_over_every_layer(world):
    world.publish("aaaaaaaa", {"cmdline.txt": "not read", "current/cmdline.txt": "stale", "current/vmlinuz": "k"})
    (world.folder / "own" / "current").mkdir(parents=True)
    (world.folder / "own" / "current" / "cmdline.txt").write_text("mine")
    who = node(boot_files=(world.folder / "own",), cmdline_append="node=1")
    found = get(world.directory(), who, "current/cmdline.txt")
    assert found.origin == "rendered"
    line = text(found)
    assert line.endswith(" image=1 node=1\n")
    assert line.count("\n") == 1
    root = world.folder / "state" / "images" / "noble" / "aaaaaaaa" / "root"
    assert f"nfsroot=192.0.2.1:{root},v3,tcp,port=3049 overlayroot=tmpfs " in line
    assert "ds=nocloud;s=http://192.0.2.1:8080/nocloud/1a2b3c4d/ " in line
    assert world.asked == ["192.0.2.1"]
    assert text(get(world.directory(), who, "cmdline.txt")) == "not read"


def test_lines_of_boards_that_read_another_file_are_rendered_too(world):
    facts = ImageFacts(cmdline_path="a.txt", cmdline_base="a", other_cmdlines={"b.txt": "b"})
    world.publish("aaaaaaaa", {}, facts)
    directory = world.directory()
    assert [text(get(directory, node(), path)).split()[0] for path in ("a.txt", "b.txt")] == ["a", "b"]
    assert directory.paths(node()) == ["a.txt", "b.txt"]


def test_the_etag_of_the_line_is_that_of_its_bytes(world):
    world.publish("aaaaaaaa", {})
    directory = world.directory()
    first, same = (get(directory, node(), "current/cmdline.txt").etag for _ in range(2))
    other = get(directory, node(cmdline_append="x"), "current/cmdline.txt").etag
    assert first == same != other


def test_each_node_has_its_own_identity_on_the_line(world):
    world.publish("aaaaaaaa", {})
    directory = world.directory()
    nodes = [node(), node("b", serial=None, mac=MAC), node("c", serial=None, address="192.0.2.9")]
    lines = [text(get(directory, each, "current/cmdline.txt")).split() for each in nodes]
    seeds = [word.partition(";s=")[2] for line in lines for word in line if word.startswith("ds=")]
    ids = [word for line in lines for word in line if word.startswith("systemd.machine_id=")]
    assert seeds == [
        f"http://192.0.2.1:8080/{path}" for path in ("nocloud/1a2b3c4d/", "nocloud/dc-a6-32-01-36-c2/", "")
    ]
    assert len(set(ids)) == 2  # a machine that is known by its address only must not get one: addresses move on


def test_the_token_of_a_boot_is_in_its_address(tmp_path):
    world = World(tmp_path, token=lambda node: "t0ken")
    world.publish("aaaaaaaa", {})
    directory = world.directory()
    assert "/nocloud/1a2b3c4d/t0ken/ " in text(get(directory, node(), "current/cmdline.txt"))
    assert "t0ken" not in text(get(directory, node(serial=None, address="192.0.2.9"), "current/cmdline.txt"))


def test_a_line_that_is_too_long_says_so(world):
    world.publish("aaaaaaaa", {})
    with pytest.raises(ConfigError, match="bytes"):
        get(world.directory(), node(cmdline_append="x" * 700), "current/cmdline.txt")


# ---------------------------------------------------------------- what flashes a board


FLASHING = [
    "pieeprom.upd",
    "pieeprom.sig",
    "PIEEPROM.UPD",
    "vl805.bin",
    "vl805.sig",
    "recovery.bin",
    "recovery.elf",
    "recovery8.img",
    "sub/pieeprom.bin",
]


@pytest.mark.parametrize("path", FLASHING)
def test_what_flashes_a_board_never_comes_from_an_image(world, path):
    world.publish("aaaaaaaa", {path: "image"})
    directory = world.directory()
    with pytest.raises(NotFoundError):
        get(directory, node(), path)
    assert directory.paths(node()) == ["current/cmdline.txt"]


@pytest.mark.parametrize("path", FLASHING)
def test_what_flashes_a_board_comes_from_folders_that_the_operator_laid_there(world, path):
    world.publish("aaaaaaaa", {path: "image"})
    folder = world.folder / "eeprom"
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_text("mine")
    assert text(get(world.directory(), node(boot_files=(folder,)), path)) == "mine"
    world.defaults = (folder,)
    assert text(get(world.directory(), node(), path)) == "mine"


def test_names_that_only_look_alike_are_served(world):
    world.publish("aaaaaaaa", {"my-pieeprom.upd": "x", "vl8051": "x", "notrecovery": "x"})
    for path in ("my-pieeprom.upd", "vl8051", "notrecovery"):
        assert get(world.directory(), node(), path).origin == "image"


def test_no_path_leads_out(world):
    generation = world.publish("aaaaaaaa", {"x": "x"})
    (generation.boot / "up").symlink_to("..")
    (generation.boot / "out").symlink_to("/etc/passwd")
    for path in ("up/image.json", "out", "x/../../image.json"):
        with pytest.raises((NotFoundError, ValueError)):
            get(world.directory(), node(), path)


# ---------------------------------------------------------------- generations


def test_a_boot_keeps_the_generation_that_it_began_with(world):
    world.publish("aaaaaaaa", {"start4.elf": "old", "config.txt": "old", "current/vmlinuz": "old"})
    directory, who = world.directory(), node()
    first = get(directory, who, "start4.elf")
    opened = first.open()
    world.publish("bbbbbbbb", {"start4.elf": "new", "config.txt": "new", "current/vmlinuz": "new"})
    world.now += 1
    assert text(get(directory, who, "config.txt")) == "old"
    assert "/aaaaaaaa/root" in text(get(directory, who, "current/cmdline.txt"))
    assert directory.generation_of(who) == "aaaaaaaa"
    other = node("valar-1", serial=Serial("2a2b3c4d"))
    assert text(get(directory, other, "config.txt")) == "new"
    world.now += 200
    assert text(get(directory, who, "start4.elf")) == "new"
    assert "/bbbbbbbb/root" in text(get(directory, who, "current/cmdline.txt"))
    world.generations.prune("noble", 1, ())
    assert opened.read(10) == b"old"  # an open transfer has its file whatever becomes of the name
    opened.close()


def test_without_an_image_the_folders_are_served_alone(world):
    world.defaults = (world.layer("d1", config__txt="mine", cmdline__txt="as it is"),)
    directory = world.directory()
    assert text(get(directory, node(), "cmdline.txt")) == "as it is"
    assert directory.generation_of(node()) == ""
    with pytest.raises(NotFoundError):
        get(directory, node(), "start4.elf")


def test_an_image_without_facts_is_served_as_it_lies(world):
    world.publish("aaaaaaaa", {"cmdline.txt": "as it is", "kernel8.img": "k"}, facts=None)
    directory = world.directory()
    assert text(get(directory, node(), "cmdline.txt")) == "as it is"
    assert get(directory, node(), "kernel8.img").stage is Stage.KERNEL


def test_the_kernels_of_the_image_tell_the_stage(world):
    world.publish("aaaaaaaa", {"current/vmlinuz": "k", "kernel8.img": "not booted", "start4.elf": "f"})
    directory = world.directory()
    stages = [get(directory, node(), path).stage for path in ("current/vmlinuz", "kernel8.img", "start4.elf")]
    assert stages == [Stage.KERNEL, Stage.FIRMWARE, Stage.FIRMWARE]


# ---------------------------------------------------------------- one truth for prepare and serve


@pytest.mark.parametrize("prefix", ["", "current/"])
def test_what_is_served_equals_what_prepare_wrote(world, prefix):
    """`prepare` writes what any TFTP server could serve; `resolve` renders it. Both must say the same."""
    server = ServerAddress("192.0.2.1")
    config = f"[all]\nkernel=vmlinuz\ninitramfs initrd.img followkernel\nos_prefix={prefix}\n[cm4]\ncmdline=cm4.txt\n"
    files = {
        "config.txt": config,
        f"{prefix}cmdline.txt": "console=tty1 root=LABEL=writable rootwait quiet\n",
        f"{prefix}cm4.txt": "console=ttyS0 root=LABEL=writable\n",
        f"{prefix}vmlinuz": "kernel",
        f"{prefix}initrd.img": "initrd",
        "start4.elf": "firmware",
        "pieeprom.upd": "never served",
    }
    generation = world.generations.layout.generation("noble", "aaaaaaaa")
    work = world.generations.begin(generation)
    for path, content in files.items():
        (work / "boot" / path).parent.mkdir(parents=True, exist_ok=True)
        (work / "boot" / path).write_text(content)
    for path, content in {
        "etc/os-release": 'ID=ubuntu\nVERSION_ID="24.04"\n',
        "etc/fstab": "LABEL=writable / ext4\n",
        "etc/machine-id": "0" * 32 + "\n",
    }.items():
        (work / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (work / "root" / path).write_text(content)
    facts = patches.survey(work / "boot", work / "root")
    patches.apply(
        work / "boot",
        work / "root",
        facts,
        patches.Parameters(
            server, str(generation.root), cmdline_append="quiet cgroup_enable=memory", config_append="dtparam=x"
        ),
    )
    manifest = {**facts.as_dict(), "cmdline_append": "quiet cgroup_enable=memory"}
    world.generations.publish(work, generation, {"created": "1", "facts": manifest})

    identities = Identities((), stranger_image="noble", refuse_strangers=False, mac_of=lambda address: None)
    sessions = Sessions(lambda name: "aaaaaaaa", lambda name, ident: True)
    directory = BootDirectory(identities, sessions, world.generations, (), lambda local: server, None)
    anybody = identities.identify(Evidence("tftp", "192.0.2.9"))
    on_disk = {str(path.relative_to(generation.boot)) for path in generation.boot.rglob("*") if path.is_file()}
    assert set(directory.paths(anybody)) == on_disk - {"pieeprom.upd"}
    for path in directory.paths(anybody):
        assert text(get(directory, anybody, path)) == (generation.boot / path).read_text(), path
    rendered = {path for path in directory.paths(anybody) if get(directory, anybody, path).origin == "rendered"}
    assert rendered == {f"{prefix}cmdline.txt", f"{prefix}cm4.txt"}
    for path in rendered:
        assert "nfsroot=192.0.2.1:" in (generation.boot / path).read_text()
