"""The kernel's command line: what of an image's own stays, and what a node's is made of."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbootd.config import values
from netbootd.errors import ConfigError
from netbootd.formats.cmdline import LINE_LIMIT, base_of, machine_id, name_of, render, value_of, words
from netbootd.model.facts import ImageFacts
from netbootd.model.network import ServerAddress

SERVER = ServerAddress("192.0.2.1")
ROOT = "/var/lib/netbootd/images/noble/abc123/root"

# What the publishers' images have, and what of it holds without a disk.
BASES = {
    "Ubuntu 24.04": (
        "console=serial0,115200 multipath=off dwc_otg.lpm_enable=0 console=tty1 root=LABEL=writable rootfstype=ext4 "
        "rootwait fixrtc\n",
        "console=serial0,115200 multipath=off dwc_otg.lpm_enable=0 console=tty1",
    ),
    "Raspberry Pi OS": (
        "console=serial0,115200 console=tty1 root=PARTUUID=4f6b1a10-02 rootfstype=ext4 fsck.repair=yes rootwait "
        "quiet init=/usr/lib/raspberrypi-sys-mods/firstboot cfg80211.ieee80211_regdom=DE\n",
        "console=serial0,115200 console=tty1 quiet cfg80211.ieee80211_regdom=DE",
    ),
    "Raspberry Pi Imager's first boot": (
        "console=tty1 root=PARTUUID=x rootwait systemd.run=/boot/firstrun.sh systemd.run_success_action=reboot "
        "systemd.unit=kernel-command-line.target",
        "console=tty1",
    ),
    "an earlier network boot": (
        "console=tty1 ip=dhcp root=/dev/nfs nfsroot=192.0.2.9:/x,v3 overlayroot=tmpfs ds=nocloud;s=http://x/ rw",
        "console=tty1",
    ),
    "Raspberry Pi Imager's cloud-init": (
        "console=tty1 root=PARTUUID=x rootwait resize cfg80211.ieee80211_regdom=GB ds=nocloud;i=rpi-imager-1764000000",
        "console=tty1 cfg80211.ieee80211_regdom=GB",
    ),
    "a root over NBD": ("console=tty1 ip=dhcp nbdroot=192.0.2.9/x root=/dev/nbd0p2 rw", "console=tty1"),
    "disks that dracut waits for": (
        "root=/dev/vg/root rd.lvm.lv=vg/root rd.luks.uuid=1 rd.luks=0 rd.md.uuid=1:2 quiet",
        "rd.luks=0 quiet",
    ),
    "cloud-init is not switched off": ("cloud-init=disabled quiet", "quiet"),
    "only the first line counts": ("console=tty1 root=/dev/sda\nignored=1\n", "console=tty1"),
    "a byte order mark and Windows": ("\ufeffconsole=tty1 rootwait\r\n", "console=tty1"),
    "what init gets stays": ("console=tty1 root=/dev/sda -- root=kept single", "console=tty1 -- root=kept single"),
    "another unit stays": ("systemd.unit=rescue.target init=/bin/sh", "systemd.unit=rescue.target init=/bin/sh"),
    "quotes hold words together": ('a="b c" root="LABEL=x y" d', 'a="b c" d'),
    "an open quote is closed": ('a root=/dev/sda b="c d', 'a b="c d"'),
    "dashes are underscores": ("systemd.machine-id=1 root-flags=x", "root-flags=x"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("name", BASES)
def test_what_stays_of_an_images_own(name):
    text, base = BASES[name]
    assert base_of(text) == base
    assert base_of(base) == base


def test_a_nodes_line_is_the_contracts():
    line = render(
        "console=tty1",
        server=ServerAddress("192.0.2.1", 8080),
        root=ROOT,
        overlay=("overlayroot=tmpfs:recurse=0",),
        machine_id=machine_id("1a2b3c4d"),
        seed="http://192.0.2.1:8080/nocloud/1a2b3c4d/",
        append="cgroup_enable=memory quiet",
    )
    assert line == (
        f"console=tty1 ip=dhcp root=/dev/nfs nfsroot=192.0.2.1:{ROOT},v3,tcp overlayroot=tmpfs:recurse=0"
        f" systemd.machine_id={machine_id('1a2b3c4d')} ds=nocloud;s=http://192.0.2.1:8080/nocloud/1a2b3c4d/"
        " cgroup_enable=memory quiet"
    )


@pytest.mark.parametrize(
    ("server", "options"),
    [
        (ServerAddress("192.0.2.1"), "v3,tcp"),
        (ServerAddress("192.0.2.1", nfs_port=3049, mount_port=3049), "v3,tcp,port=3049"),
        (
            ServerAddress("192.0.2.1", nfs_port=3049, mount_port=4049, portmap_port=None),
            "v3,tcp,port=3049,mountport=4049",
        ),
        (ServerAddress("192.0.2.1", portmap_port=11111), "v3,tcp,port=2049,mountport=2049"),
    ],
)
def test_ports_are_named_where_nobody_could_find_them(server, options):
    assert value_of(render("", server=server, root="/r"), "nfsroot") == f"192.0.2.1:/r,{options}"


def test_what_init_gets_stays_last():
    assert render("a -- single", server=SERVER, root="/r", append="b").endswith(" b -- single")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"server": ServerAddress("2001:db8::1")}, "IPv6"),
        ({"server": ServerAddress("")}, "address"),
        ({"root": "/with space/root"}, "--state"),
        ({"root": "/with,comma"}, "--state"),
        ({"root": "relative"}, "--state"),
        ({"root": "/x%s"}, "--state"),
        ({"machine_id": "xyz"}, "machine id"),
        ({"seed": "http://x/ y"}, "seed URL"),
        ({"datasource": ""}, "datasource"),
        ({"overlay": ("a b",)}, "overlay"),
        ({"append": "root=/dev/sda"}, "root=/dev/sda"),
        ({"append": '"root=/dev/sda"'}, "root="),
        ({"append": "nfsroot=x"}, "nfsroot=x"),
        ({"append": "quiet ro"}, "ro"),
        ({"append": "-- single"}, "--"),
        ({"append": "a\nb"}, "line break"),
        ({"append": 'a="b'}, "open quote"),
        ({"base": "x" * LINE_LIMIT}, "bytes"),
        ({"append": "x" * LINE_LIMIT}, "Shorten cmdline_append"),
    ],
)
def test_what_can_not_stand_on_the_line_is_an_error_that_says_so(change, says):
    given = {"base": "", "server": SERVER, "root": "/r", "seed": "http://x/", **change}
    base = given.pop("base")
    with pytest.raises(ConfigError) as caught:
        render(base, **given)
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_the_limit_is_the_firmwares_less_what_it_adds_itself():
    fixed = len(render("", server=SERVER, root="/r", append="x")) - 1
    assert len(render("", server=SERVER, root="/r", append="x" * (LINE_LIMIT - fixed))) == LINE_LIMIT
    with pytest.raises(ConfigError, match=f"{LINE_LIMIT + 1} bytes, {LINE_LIMIT} are possible"):
        render("", server=SERVER, root="/r", append="x" * (LINE_LIMIT - fixed + 1))
    with pytest.raises(ConfigError):  # bytes count, not characters
        render("", server=SERVER, root="/r", append="ä" * (LINE_LIMIT - fixed))


def test_the_configuration_refuses_what_the_line_would():
    for text in ("root=/dev/sda", "a -- b", "ro", 'x="1'):
        with pytest.raises(ValueError, match=r"must not have|quote"):
            values.kernel_arguments(text)
    assert values.kernel_arguments(" overlayroot=tmpfs:swap=1 init=/bin/x ") == "overlayroot=tmpfs:swap=1 init=/bin/x"


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("22.4.2-1+deb12u4", "nocloud-net"),
        ("23.1.2-0ubuntu0~22.04.1", "nocloud-net"),
        ("1:22.4-1", "nocloud-net"),
        ("23.2", "nocloud"),
        ("24.1.3-0ubuntu3", "nocloud"),
        ("26.2", "nocloud"),
        ("", "nocloud"),
        ("unknown", "nocloud"),
    ],
)
def test_old_versions_of_cloud_init_want_the_old_name(version, name):
    assert ImageFacts(cloud_init_version=version).datasource == name


def test_machine_ids_are_steady_different_and_valid():
    ids = {machine_id(f"{n:08x}") for n in range(200)}
    assert len(ids) == 200
    assert all(re.fullmatch("[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", ident) for ident in ids)
    assert machine_id("1A2B3C4D") == machine_id("1a2b3c4d")


# ---------------------------------------------------------------- anything

_lines = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=80)


@given(_lines)
def test_the_base_of_anything_is_its_own_base_and_has_no_root(text):
    base = base_of(text)
    assert base_of(base) == base
    kernels = words(base)[: words(base).index("--")] if "--" in words(base) else words(base)
    assert not {name_of(word) for word in kernels} & {"root", "rootwait", "nfsroot", "ip", "ds", "ro", "rw"}
    assert "\n" not in base


@given(_lines, _lines)
def test_whatever_is_appended_the_root_stays_ours(base, append):
    try:
        line = render(base_of(base), server=SERVER, root="/r", seed="http://x/", append=append)
    except ConfigError:
        return
    assert "\n" not in line
    before_init = words(line)[: words(line).index("--")] if "--" in words(line) else words(line)
    assert [word for word in before_init if name_of(word) == "root"] == ["root=/dev/nfs"]
    assert [word for word in before_init if name_of(word) == "nfsroot"] == ["nfsroot=192.0.2.1:/r,v3,tcp"]
