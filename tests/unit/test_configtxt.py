"""config.txt as firmware reads it (the vendor's config_txt.adoc), and our lines at its end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbootd.errors import ConfigError, FormatError
from netbootd.formats.configtxt import BOARDS, LINE_LIMIT, append, auto_initramfs_name, evaluate

# As in ubuntu-24.04 for Raspberry Pi, shortened.
UBUNTU_24 = """\
[all]
kernel=vmlinuz
cmdline=cmdline.txt
initramfs initrd.img followkernel

[pi4]
max_framebuffers=2
arm_boost=1

[all]
dtparam=audio=on
dtoverlay=vc4-kms-v3d
disable_fw_kms_setup=1
arm_64bit=1

[cm4]
dtoverlay=dwc2,dr_mode=host

[all]
"""

# The A/B layout since 25.10.
UBUNTU_26 = """\
[all]
kernel=vmlinuz
cmdline=cmdline.txt
initramfs initrd.img followkernel
os_prefix=current/
os_check=0
[tryboot]
os_prefix=new/
[all]
arm_64bit=1
"""

RASPBERRY_PI_OS = "dtparam=audio=on\nauto_initramfs=1\narm_64bit=1\n[cm5]\ndtoverlay=dwc2\n[all]\n"


def files(text, board, there, **values):
    found = evaluate(text, board, **values).boot_files(set(there).__contains__)
    return found.os_prefix, found.kernel, found.initramfs, found.cmdline


@pytest.mark.parametrize("board", ["pi3", "pi4", "pi5", "cm4"])
def test_ubuntus_layout(board):
    assert files(UBUNTU_24, board, ["vmlinuz", "initrd.img"]) == ("", "vmlinuz", ("initrd.img",), "cmdline.txt")


def test_ubuntus_two_systems():
    there = ["current/vmlinuz", "current/initrd.img", "new/vmlinuz"]
    assert files(UBUNTU_26, "pi4", there) == (
        "current/",
        "current/vmlinuz",
        ("current/initrd.img",),
        "current/cmdline.txt",
    )
    assert files(UBUNTU_26, "pi4", there, tryboot=True)[:2] == ("new/", "new/vmlinuz")


def test_a_prefix_without_a_kernel_is_dropped():
    assert files(UBUNTU_26, "pi4", ["vmlinuz"]) == ("", "vmlinuz", ("initrd.img",), "cmdline.txt")
    assert files(UBUNTU_26, "pi4", []) == ("current/", "", (), "current/cmdline.txt")


@pytest.mark.parametrize(
    ("board", "there", "kernel", "initramfs"),
    [
        (
            "pi5",
            ["kernel_2712.img", "kernel8.img", "initramfs_2712", "initramfs8"],
            "kernel_2712.img",
            "initramfs_2712",
        ),
        ("pi5", ["kernel8.img", "initramfs8"], "kernel8.img", "initramfs8"),
        ("pi4", ["kernel8.img", "kernel7l.img", "initramfs8"], "kernel8.img", "initramfs8"),
        ("pi4", ["kernel7l.img", "initramfs7l"], "kernel7l.img", "initramfs7l"),
        ("pi3", ["kernel8.img", "kernel7.img", "initramfs8"], "kernel8.img", "initramfs8"),
    ],
)
def test_the_names_that_firmware_tries_by_itself(board, there, kernel, initramfs):
    assert files(RASPBERRY_PI_OS, board, there) == ("", kernel, (initramfs,), "cmdline.txt")


def test_32_bit_where_the_board_starts_so():
    assert files("", "pi3", ["kernel8.img", "kernel7.img"])[1] == "kernel7.img"
    assert files("", "pi4", ["kernel8.img", "kernel7l.img"])[1] == "kernel8.img"
    assert files("arm_64bit=0", "pi4", ["kernel8.img", "kernel7l.img"])[1] == "kernel7l.img"


def value(text, board="pi4", **values):
    return evaluate(text, board, **values).values.get("x")


@pytest.mark.parametrize(
    ("text", "board", "expected"),
    [
        ("x=1\nx=2", "pi4", "2"),
        ("[pi4]\nx=1", "pi4", "1"),
        ("[pi4]\nx=1", "pi400", "1"),
        ("[pi400]\nx=1", "pi4", None),
        ("[pi4]\nx=1", "pi5", None),
        ("[pi5]\nx=1", "cm5", "1"),
        ("[cm4]\nx=1", "cm4", "1"),
        ("[pi3+]\nx=1", "pi3", None),
        ("[pi3+]\nx=1", "pi3+", "1"),
        ("[pi3]\nx=1", "pi3+", "1"),
        ("[PI4]\nx=1", "pi4", "1"),
        ("[pi4]\n[pi5]\nx=1", "pi4", None),  # filters of one kind replace each other
        ("[none]\nx=1\n[all]\nx=2", "pi4", "2"),
        ("[none]\nx=1", "pi4", None),
        ("[none]\n[pi4]\nx=1", "pi4", "1"),
        ("[board-type=0x11]\nx=1", "pi4", "1"),
        ("[board-type=0x17]\nx=1", "pi4", None),
        ("[board-type=rubbish]\nx=1", "pi4", None),
        ("[HDMI:1]\nx=1", "pi4", "1"),
        ("[gpio4=1]\nx=1", "pi4", None),
        ("[EDID=VSC-TD2220]\nx=1", "pi4", None),
        ("[nonsense]\nx=1", "pi4", None),
        ("[tryboot]\nx=1", "pi4", None),
        ("[partition=2]\nx=1", "pi4", None),
        ("# x=1\n  x = 2  # why\n", "pi4", "2"),
        ("x=a#b", "pi4", "a#b"),
        ("[pi4]\nx=1\r\n", "pi4", "1"),
        (" " * LINE_LIMIT + "x=1", "pi4", None),
        ("x=" + "1" * 200, "pi4", "1" * (LINE_LIMIT - 2)),
        ("X=1", "pi4", None),
    ],
)
def test_filters_and_settings(text, board, expected):
    assert value(text, board) == expected


def test_filters_on_the_serial():
    text = "[0x1a2b3c4d]\nx=1\n[0x99999999]\nx=2\n[all]\n"
    assert value(text, serial=0x1A2B3C4D) == "1"
    assert value(text, serial=5) is None
    assert value(text) is None
    assert value("[0x100000001a2b3c4d]\nx=1", serial=0x1A2B3C4D) == "1"


def test_filters_of_different_kinds_must_all_be_met():
    text = "[pi4]\n[0x1a2b3c4d]\nx=1"
    assert value(text, serial=0x1A2B3C4D) == "1"
    assert value(text, "pi5", serial=0x1A2B3C4D) is None
    assert value(text, serial=1) is None
    assert value("[pi4]\n[tryboot]\nx=1", tryboot=True) == "1"


def test_what_only_the_board_can_know_is_named():
    assert evaluate("[gpio4=1]\nx=1\n[all]\n[EDID=X]\n[partition>2]\n", "pi4").undecided == (
        "gpio4=1",
        "edid=x",
        "partition>2",
    )
    assert evaluate(UBUNTU_26, "pi4").undecided == ()


def test_includes_that_multiply():
    """Eight files deep and two hundred a file would be more than there are atoms in a grain of sand."""
    texts = {f"i{number}": f"include i{number + 1}\n" * 200 for number in range(7)}
    with pytest.raises(FormatError, match="more than 64 files"):
        evaluate("include i0\n", "pi4", include=texts.get)
    assert evaluate("include a\n" * 60, "pi4", include=lambda name: "x=1").values == {"x": "1"}


def test_more_text_than_any_board_reads():
    with pytest.raises(FormatError, match="more than 64 files or 128 KiB"):
        evaluate("include a\n" * 3, "pi4", include=lambda name: "# " * 30_000)


def test_includes_are_read_in_place_and_not_for_ever():
    texts = {"a.txt": "x=2\ninclude b.txt\n", "b.txt": "y=3", "loop.txt": "include loop.txt"}
    found = evaluate("x=1\ninclude a.txt\ninclude nosuch.txt\n[pi5]\ninclude b.txt\n", "pi4", include=texts.get)
    assert found.values == {"x": "2", "y": "3"}
    with pytest.raises(FormatError, match="included"):
        evaluate("include loop.txt", "pi4", include=texts.get)


def test_overlays_and_several_initramfs():
    found = evaluate(
        "dtoverlay=vc4-kms-v3d,cma-256\ndtoverlay=\ndtoverlay=dwc2:x\ndtoverlay=dwc2\ninitramfs a,b 0x1000", "pi4"
    )
    assert (found.overlays, found.initramfs) == (("vc4-kms-v3d", "dwc2"), ("a", "b"))
    assert evaluate("ramfsfile=c", "pi4").initramfs == ("c",)


def test_names_with_a_leading_slash_go_around_the_prefix():
    text = "os_prefix=a/\nkernel=/k\ncmdline=/c.txt\n"
    assert files(text, "pi4", ["k"]) == ("a/", "k", (), "c.txt")


def test_the_name_of_an_automatic_initramfs():
    assert auto_initramfs_name("kernel8.img") == "initramfs8"
    assert auto_initramfs_name("kernel_2712.img") == "initramfs_2712"
    assert auto_initramfs_name("x/kernel.img") == "x/initramfs"
    assert auto_initramfs_name("vmlinuz") == ""


# ---------------------------------------------------------------- our lines


def test_our_lines_hold_for_every_board():
    text = append("arm_64bit=1\n[cm4]\ndtoverlay=dwc2\n", ["x=1", "", "  y=2  "])
    assert text.startswith("arm_64bit=1\n[cm4]\ndtoverlay=dwc2\n")
    for board in BOARDS:
        assert value(text, board) == "1"


def test_appending_again_replaces_what_was_appended():
    once = append(UBUNTU_24, ["x=1"])
    assert append(once, ["x=1"]) == once
    assert append(once, ["x=2"]) == append(UBUNTU_24, ["x=2"])
    assert append(once, []) == UBUNTU_24
    assert append(UBUNTU_24, []) == UBUNTU_24


def test_line_ends_stay():
    assert append("a=1\r\n", ["x=1"]).endswith("[all]\r\nx=1\r\n")
    assert value(append("a=1", ["x=1"])) == "1"
    assert value(append("", ["x=1"])) == "1"


@pytest.mark.parametrize("line", ["x" * (LINE_LIMIT + 1), "a\nb", "a\x00b"])
def test_lines_that_firmware_can_not_read_are_refused(line):
    with pytest.raises(ConfigError, match="firmware"):
        append("", [line])


# ---------------------------------------------------------------- anything

_texts = st.lists(
    st.sampled_from([*UBUNTU_26.splitlines(), "[pi5]", "[0x1]", "include a", "initramfs", "=", "[", "]"])
    | st.text(max_size=20)
).map("\n".join)


@given(_texts, st.sampled_from(sorted(BOARDS)))
def test_anything_is_read(text, board):
    found = evaluate(text, board)
    found.boot_files(lambda path: path.endswith("z"))


@given(_texts, st.sampled_from(sorted(BOARDS)))
def test_our_lines_hold_whatever_stands_before(text, board):
    assert evaluate(append(text, ["zz=1"]), board).values["zz"] == "1"
