"""What a dracut initramfs without nfs gets: hooks, and a program that gets an address, with its libraries."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from netbootd.errors import FormatError
from netbootd.formats import elf
from netbootd.formats.cpio import Member
from netbootd.formats.initramfs import Contents
from netbootd.images.patches import netroot, programs
from netbootd.images.patches.tree import Tree
from tests.support.little_trees import fill

HOOKS = "usr/lib/dracut/hooks"
EMPTY = Contents({})
PASSWD = "root:x:0:0::/root:/bin/sh\nsystemd-network:x:998:998::/:/usr/sbin/nologin\n"
GROUP = "root:x:0:\nsystemd-network:x:998:\n"


def compiled(folder, name, source, *options):
    """A program or library by the host's C compiler."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    code = folder / "code.c"
    code.write_text(source)
    subprocess.run(["cc", "-o", path, code, *options], check=True, capture_output=True)
    code.unlink()
    return path


@pytest.fixture
def image(tmp_path):
    """Add files to a root, and see what an initramfs of these files gets from it."""
    root = fill(tmp_path / "root", {"lib": "-> usr/lib", "usr/lib/systemd": None})

    def members(files=None, contents=EMPTY):
        fill(root, files or {})
        with Tree(root, "root") as tree:
            return netroot.members(tree, contents, HOOKS, "initrd.img")

    members.root = root
    return members


def names(members):
    return [member.name for member in members]


def hook_of(members):
    """The hook that mounts, checked by a shell."""
    text = next(m for m in members if m.name == f"{HOOKS}/mount/50-netbootd-root.sh").data.decode()
    for member in members:
        if member.data.startswith(b"#!/"):
            subprocess.run(["sh", "-n"], input=member.data, check=True)
            assert member.mode == 0o100755
    return text


def host(path):
    """A program of this machine, and where its libraries are: as ldd has it."""
    lines = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [word for line in lines for word in line.split() if word.startswith("/")]
    return Path(path).read_bytes(), paths


def with_host_program(program, place):
    data, libraries = host(program)
    return {place: data, **{path.lstrip("/"): Path(path).read_bytes() for path in libraries}}, libraries


def test_networkd_comes_with_its_user_and_settings(image):
    files, libraries = with_host_program("/bin/ls", "usr/lib/systemd/systemd-networkd")
    made = image({**files, "etc/passwd": PASSWD, "etc/group": GROUP})
    assert "/usr/lib/systemd/systemd-networkd &" in hook_of(made)
    brought = {member.name: member for member in made}
    assert brought["usr/lib/systemd/systemd-networkd"].mode == 0o100755
    for path in libraries:
        assert brought[path.lstrip("/")].data == Path(path).read_bytes()
    assert brought["etc/passwd"].data.decode() == PASSWD.splitlines()[1] + "\n"
    assert brought["etc/group"].data.decode() == GROUP.splitlines()[1] + "\n"
    assert b"ClientIdentifier=mac\n" in brought["etc/systemd/network/05-netbootd.network"].data


def test_what_the_initramfs_has_is_not_brought_again(image):
    files, libraries = with_host_program("/bin/ls", "usr/lib/systemd/systemd-networkd")
    there = [Member(path.lstrip("/"), 0o100755) for path in libraries]
    there += [Member("etc/passwd", 0o100644, PASSWD.encode()), Member("etc/group", 0o100644, b"root:x:0:")]
    made = image({**files, "etc/passwd": PASSWD, "etc/group": GROUP}, Contents({m.name: m for m in there}))
    assert not set(names(made)) & {path.lstrip("/") for path in libraries}
    assert "etc/passwd" not in names(made)
    group = next(member for member in made if member.name == "etc/group")
    assert group.data.decode() == "root:x:0:\nsystemd-network:x:998:\n"


def test_networkd_of_the_initramfs_is_started(image):
    unit = Member("usr/lib/systemd/system/systemd-networkd.service", 0o100644)
    made = image(contents=Contents({unit.name: unit}))
    assert "systemctl start systemd-networkd.service" in hook_of(made)
    assert names(made)[2:] == ["etc/systemd/network/05-netbootd.network"]


@pytest.mark.parametrize(
    ("place", "said"),
    [("usr/lib/klibc/bin/ipconfig", "netbootd/ipconfig -t"), ("usr/bin/busybox", "netbootd/busybox udhcpc")],
)
def test_other_clients(image, place, said):
    files, _ = with_host_program("/bin/ls", place)
    files[place] += b"\0udhcpc\0"
    made = image(files)
    assert said in hook_of(made)
    assert f"usr/lib/netbootd/{place.rpartition('/')[2]}" in names(made)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"usr/bin/busybox": b"\x7fELF broken"},
        {"usr/bin/busybox": "#!/bin/sh\n"},
        {"usr/bin/busybox": "-> /usr/bin/busybox"},
        {"usr/bin/busybox": Path("/bin/ls").read_bytes() + b"udhcpc"},  # without its libraries
    ],
)
def test_nothing_in_the_image_gets_an_address(image, files):
    with pytest.raises(FormatError, match=r"boot/initrd\.img of the image: it was made by dracut without") as caught:
        image(files)
    assert "busybox" in caught.value.hint


def test_a_busybox_without_a_dhcp_client(image):
    files, _ = with_host_program("/bin/ls", "usr/bin/busybox")
    with pytest.raises(FormatError, match="nor a busybox with udhcpc"):
        image(files)


@pytest.mark.parametrize(
    ("hooks", "ifup", "complete"),
    [
        (["cmdline/90-parse-nfsroot.sh"], True, True),
        (["cmdline/90-parse-nfsroot.sh"], False, False),
        (["cmdline/90-parse-nfsroot.sh", "initqueue/settled/99-networkd-run.sh"], False, True),
        (["cmdline/90-parse-nfsroot.sh", "initqueue/settled/99-nm-run.sh"], False, True),
        (["initqueue/settled/99-nm-run.sh"], True, False),
    ],
)
def test_what_mounts_by_itself(hooks, ifup, complete):
    there = Contents({"sbin/ifup": Member("sbin/ifup", 0o100755)} if ifup else {})
    assert netroot.is_complete(there, [f"{HOOKS}/{name}" for name in hooks]) is complete


def run_hook(folder, hook, cmdline, *, online):
    """Source the mount hook as dracut does, with stand-ins for what it runs; what was mounted."""
    (folder / "cmdline").write_text(cmdline)
    (folder / "route").write_text("Iface\tDestination\n" + ("eth0\t0002000C\n" if online else ""))
    (folder / "hook.sh").write_text(
        hook.replace("/proc/cmdline", f"{folder}/cmdline").replace("/proc/net/route", f"{folder}/route")
    )
    script = f"""
        mount() {{ echo mount "$@"; }}
        sleep() {{ echo 'eth0 0' >> {folder}/route; }}
        systemctl() {{ echo systemctl "$@"; }}
        NEWROOT=/sysroot; . {folder}/hook.sh"""
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(
    ("nfsroot", "mounted"),
    [
        ("192.0.2.1:/s/root,v3,tcp", "addr=192.0.2.1,v3,tcp 192.0.2.1:/s/root"),
        ("192.0.2.1:/s/root", "addr=192.0.2.1 192.0.2.1:/s/root"),
        ("192.0.2.1:/s/a.b,v3,tcp,port=1,mountport=2", "addr=192.0.2.1,v3,tcp,port=1,mountport=2 192.0.2.1:/s/a.b"),
    ],
)
def test_the_hook_mounts_what_the_command_line_says(image, tmp_path, online, nfsroot, mounted):
    unit = Member("usr/lib/systemd/system/systemd-networkd.service", 0o100644)
    hook = hook_of(image(contents=Contents({unit.name: unit})))
    line = f'quiet a="b * c" ip=dhcp root=/dev/nfs nfsroot={nfsroot} ds=nocloud;s=http://192.0.2.1/ rw\n'
    said = run_hook(tmp_path, hook, line, online=online)
    asked = [] if online else ["systemctl start systemd-networkd.service"]
    assert said == [*asked, f"mount -i -t nfs -o ro,nolock,{mounted} /sysroot"]
    assert run_hook(tmp_path, hook, "root=/dev/sda1 ro\n", online=online) == []


def test_libraries_of_any_size_are_not_read(image, monkeypatch):
    files, libraries = with_host_program("/bin/ls", "usr/bin/busybox")
    files["usr/bin/busybox"] += b"udhcpc"
    size = sum(len(data) for data in files.values())
    monkeypatch.setattr(programs, "_LIMIT", size)
    assert len(names(image(files))) == len(libraries) + 4
    monkeypatch.setattr(programs, "_LIMIT", size - 1)
    with pytest.raises(FormatError, match="are the most that such a file can have"):
        image(files)


# ---------------------------------------------------------------- ELF


def test_elf_as_readelf_sees_it():
    for path in ("/bin/sh", "/bin/ls", shutil.which("readelf"), shutil.which("mount")):
        found = elf.read(Path(path).read_bytes())
        text = subprocess.run(["readelf", "-dlW", path], capture_output=True, text=True, check=True).stdout
        needed = [line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line]
        assert list(found.needed) == needed != []
        assert f"interpreter: {found.interpreter}]" in text


def test_a_library_is_found_where_its_user_says(tmp_path):
    root = tmp_path / "root"
    one = compiled(
        root, "opt/x/lib/libone.so", "int one(void) { return 1; }", "-shared", "-nostdlib", "-Wl,-soname,libone.so"
    )
    program = compiled(
        root,
        "opt/x/bin/p",
        "int one(void); void _start(void) { one(); }",
        "-nostdlib",
        one,
        "-Wl,-rpath,$ORIGIN/../lib",
    )
    assert elf.read(program.read_bytes()).search == ("$ORIGIN/../lib",)
    interpreter = elf.read(program.read_bytes()).interpreter
    fill(root, {interpreter.lstrip("/"): b"loader"})
    # A library of another architecture under the same name is passed over.
    foreign = bytearray(one.read_bytes())
    foreign[18:20] = b"\xb7\0"
    needed = elf.read(program.read_bytes()).needed[0]
    with Tree(root, "root") as tree:
        got = programs.with_libraries(tree, EMPTY, "/opt/x/bin/p", "usr/lib/netbootd/p")
        assert got and len(got) == 3 and got[2].name.endswith("libone.so")
        one.write_bytes(bytes(foreign))
        assert programs.with_libraries(tree, EMPTY, "/opt/x/bin/p", "usr/lib/netbootd/p") is None
    assert needed.endswith("libone.so")


def test_broken_elf_files_are_refused():
    good = Path("/bin/ls").read_bytes()[: 1 << 14]
    for at in (*range(4, 64), *range(64, 700, 3)):
        for value in (0, 1, 0x7F, 0xFF):
            broken = bytearray(good)
            broken[at] = value
            try:
                elf.read(bytes(broken))
            except FormatError:
                pass
    for size in range(0, 2000, 13):
        try:
            elf.read(good[:size])
        except FormatError:
            pass
    with pytest.raises(FormatError, match="no ELF file"):
        elf.read(b"#!/bin/sh\n")
