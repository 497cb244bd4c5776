"""Images of every published layout become roots for the network: what is changed, what is told of it, what stays."""

from __future__ import annotations

import os
from dataclasses import asdict, replace

import pytest

from netbootd.boot.render import command_line
from netbootd.errors import ConfigError, FormatError
from netbootd.images import patches
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node
from tests.support import little_trees as trees
from tests.support.little_trees import fill, initramfs, root_tree, snapshot

PARAMETERS = patches.Parameters(ServerAddress("192.0.2.1"), "/var/lib/netbootd/images/noble/0123456789abcdef/root")
NETWORK = "ip=dhcp root=/dev/nfs nfsroot=192.0.2.1:/var/lib/netbootd/images/noble/0123456789abcdef/root,v3,tcp"
SEED = "ds=nocloud;s=http://192.0.2.1/"


@pytest.fixture
def ubuntu(tmp_path):
    initrd = initramfs(tmp_path / "initrd", trees.OVERLAYROOT)
    boot = fill(
        tmp_path / "boot",
        {"config.txt": trees.NOBLE_CONFIG, "cmdline.txt": trees.NOBLE_CMDLINE, "vmlinuz": "k", "initrd.img": initrd},
    )
    return boot, root_tree(tmp_path / "root")


def run(boot, root, parameters=PARAMETERS):
    facts = patches.survey(boot, root)
    return facts, patches.apply(boot, root, facts, parameters)


# ---------------------------------------------------------------- layouts


def test_ubuntu_24_04_flat(ubuntu):
    boot, root = ubuntu
    facts, _ = run(boot, root)
    base = "console=serial0,115200 multipath=off dwc_otg.lpm_enable=0 console=tty1"
    assert (boot / "cmdline.txt").read_text() == f"{base} {NETWORK} overlayroot=tmpfs:recurse=0 {SEED}\n"
    assert (boot / "config.txt").read_text() == trees.NOBLE_CONFIG
    assert (facts.cmdline_path, facts.cmdline_base) == ("cmdline.txt", base)
    assert (facts.kernels, facts.initramfs) == (("vmlinuz",), ("initrd.img",))
    assert (facts.os_id, facts.os_version) == ("ubuntu", "24.04")
    assert (facts.cloud_init_version, facts.datasource) == ("25.1.4-0ubuntu0~24.04.1", "nocloud")
    assert facts.initramfs_generator == "initramfs-tools"
    assert (root / "etc/fstab").read_text() == ""


@pytest.mark.parametrize("with_new", [False, True], ids=["current", "current-and-new"])
def test_ubuntu_25_10_a_b(tmp_path, with_new):
    initrd = initramfs(tmp_path / "initrd", trees.DRACUT)
    slots = ["current", "new"] if with_new else ["current"]
    line = trees.NOBLE_CMDLINE.replace("rootwait", "panic=10 rootwait")
    files = {"config.txt": trees.AB_CONFIG, "autoboot.txt": "[all]\ntryboot_a_b=1\n", "start4.elf": "firmware"}
    for slot in slots:
        files |= {f"{slot}/cmdline.txt": line, f"{slot}/vmlinuz": "k", f"{slot}/initrd.img": initrd}
    boot = fill(tmp_path / "boot", files)
    facts, made = run(boot, root_tree(tmp_path / "root"))
    assert facts.cmdline_path == "current/cmdline.txt"
    assert list(facts.other_cmdlines) == (["new/cmdline.txt"] if with_new else [])
    assert facts.kernels == tuple(f"{slot}/vmlinuz" for slot in slots)
    for slot in slots:
        text = (boot / slot / "cmdline.txt").read_text()
        assert "panic=10" in text
        assert f" {NETWORK} " in text
        assert "LABEL=" not in text
    assert not (boot / "cmdline.txt").exists()
    assert facts.initramfs_generator == "dracut"
    touched = {patch.path.partition("/")[2] for patch in made if patch.path.startswith("boot/")}
    assert touched == {f"{slot}/{name}" for slot in slots for name in ("cmdline.txt", "initrd.img")}


@pytest.mark.parametrize("line", [trees.RASPIOS_CMDLINE, trees.BOOKWORM_CMDLINE], ids=["trixie", "bookworm"])
def test_raspberry_pi_os(tmp_path, line):
    initrd = initramfs(tmp_path / "initrd", trees.INITRAMFS_TOOLS)
    boot = fill(tmp_path / "boot", {"config.txt": trees.RASPIOS_CONFIG, "cmdline.txt": line})
    fill(boot, {"kernel8.img": "k8", "kernel_2712.img": "k16", "initramfs8": initrd, "initramfs_2712": initrd})
    root = root_tree(tmp_path / "root", fstab=trees.RASPIOS_FSTAB)
    facts, made = run(boot, root)
    assert facts.kernels == ("kernel8.img", "kernel_2712.img")
    assert facts.initramfs == ("initramfs8", "initramfs_2712")
    text = (boot / "cmdline.txt").read_text()
    quiet = " quiet" if "quiet" in line else ""
    assert text == f"console=serial0,115200 console=tty1{quiet} {NETWORK} netbootd.overlay=tmpfs {SEED}\n"
    assert (root / "etc/fstab").read_text().splitlines() == [
        "proc            /proc           proc    defaults          0       0",
        "# a swapfile is not a swap partition, no line here",
        "#   use  dphys-swapfile swap[on|off]  for that",
    ]
    changed = {patch.path for patch in made}
    assert {"boot/initramfs8", "boot/initramfs_2712"} <= changed
    assert "boot/config.txt" not in changed


def test_an_initramfs_that_config_txt_leaves_out_is_loaded(tmp_path):
    initrd = initramfs(tmp_path / "initrd", trees.OVERLAYROOT)
    config = trees.RASPIOS_CONFIG.replace("auto_initramfs=1\n", "")
    boot = fill(tmp_path / "boot", {"config.txt": config, "cmdline.txt": "quiet\n"})
    fill(boot, {"kernel8.img": "k8", "initramfs8": initrd})
    facts, _ = run(boot, root_tree(tmp_path / "root"))
    assert facts.initramfs == ("initramfs8",)
    text = (boot / "config.txt").read_text()
    assert text.startswith(config)
    assert text.removeprefix(config).splitlines()[1:] == ["[all]", "auto_initramfs=1"]


def test_boards_with_command_lines_of_their_own(tmp_path, ubuntu):
    boot, root = ubuntu
    fill(boot, {"config.txt": trees.NOBLE_CONFIG + "[pi5]\ninclude five.txt\n", "five.txt": "cmdline=five.cmdline\n"})
    fill(boot, {"five.cmdline": "quiet root=/dev/sda2 five=1\n"})
    facts, _ = run(boot, root)
    assert facts.cmdline_path == "cmdline.txt"
    assert facts.other_cmdlines == {"five.cmdline": "quiet five=1"}
    assert (boot / "five.cmdline").read_text().startswith(f"quiet five=1 {NETWORK}")
    assert facts.for_cmdline("five.cmdline").cmdline_base == "quiet five=1"
    assert facts.for_cmdline("config.txt") is None
    assert type(facts).from_dict(facts.as_dict()) == facts


def test_no_kernel(tmp_path):
    boot = fill(tmp_path / "boot", {"config.txt": "kernel=elsewhere\n"})
    with pytest.raises(FormatError, match="leads no board to one"):
        patches.survey(boot, root_tree(tmp_path / "root"))


# ---------------------------------------------------------------- the account


def test_every_change_is_listed_and_nothing_else_is_changed(ubuntu):
    before = {name: snapshot(tree) for name, tree in zip(("boot", "root"), ubuntu, strict=True)}
    _, made = run(*ubuntu, replace(PARAMETERS, config_append="dtparam=watchdog=on"))
    after = {name: snapshot(tree) for name, tree in zip(("boot", "root"), ubuntu, strict=True)}
    changed = {
        f"{name}/{path}"
        for name in before
        for path in before[name].keys() | after[name].keys()
        if before[name].get(path) != after[name].get(path)
    }
    assert changed == {patch.path for patch in made}
    assert all(set(asdict(patch)) == {"path", "before", "after", "why"} and patch.why for patch in made)


def test_before_and_after(ubuntu):
    boot, root = ubuntu
    config = trees.NOBLE_CONFIG
    _, made = run(boot, root, replace(PARAMETERS, config_append="dtparam=watchdog=on\n"))
    by_path = {patch.path: patch for patch in made}
    assert by_path["boot/cmdline.txt"].before == trees.NOBLE_CMDLINE
    assert by_path["boot/cmdline.txt"].after == (boot / "cmdline.txt").read_text()
    assert by_path["boot/config.txt"].before == config
    assert by_path["boot/config.txt"].after == (boot / "config.txt").read_text()
    assert by_path["root/etc/fstab"].before == trees.UBUNTU_FSTAB
    timer = by_path["root/etc/systemd/system/fstrim.timer"]
    assert (timer.before, timer.after) == (None, "-> /dev/null")
    assert by_path["root/etc/systemd/journald.conf.d"].after == "(a folder)"


def test_a_second_time_nothing_is_left_to_do(ubuntu):
    run(*ubuntu, replace(PARAMETERS, config_append="dtparam=watchdog=on"))
    before = [snapshot(tree) for tree in ubuntu]
    _, made = run(*ubuntu, replace(PARAMETERS, config_append="dtparam=watchdog=on"))
    assert made == []
    assert [snapshot(tree) for tree in ubuntu] == before


def test_the_operators_lines(ubuntu):
    boot, root = ubuntu
    run(boot, root, replace(PARAMETERS, cmdline_append="isolcpus=3 quiet", config_append="gpu_mem=16\n# mine"))
    assert (boot / "cmdline.txt").read_text().endswith(f"{SEED} isolcpus=3 quiet\n")
    assert (boot / "config.txt").read_text().endswith("[all]\ngpu_mem=16\n# mine\n")
    with pytest.raises(ConfigError, match="cannot read"):
        run(boot, root, replace(PARAMETERS, config_append="x" * 99))


def test_a_replaced_file_keeps_mode_and_times_and_its_other_names(ubuntu):
    root = ubuntu[1]
    fstab = root / "etc/fstab"
    fstab.chmod(0o640)
    os.utime(fstab, ns=(1, 1234567890123456789))
    (root / "etc/fstab.link").hardlink_to(fstab)
    folder = (root / "etc").stat().st_mtime_ns
    run(*ubuntu)
    status = fstab.stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, 1234567890123456789)
    assert (root / "etc/fstab.link").read_text() == trees.UBUNTU_FSTAB
    assert (root / "etc").stat().st_mtime_ns == folder


# ---------------------------------------------------------------- the root


def test_identity_is_not_shared(ubuntu):
    root = fill(
        ubuntu[1],
        {
            "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
            "var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n",
            "var/lib/systemd/random-seed": b"\1" * 512,
            "etc/ssh/ssh_host_ed25519_key": "SECRET KEY",
            "etc/ssh/ssh_host_ed25519_key.pub": "public",
            "etc/ssh/sshd_config": "UsePAM yes\n",
            "var/lib/dhcp/dhclient.eth0.leases": "lease {}",
            "var/lib/cloud/instance": "-> /var/lib/cloud/instances/old",
            "var/lib/cloud/instances/old/user-data.txt": "#cloud-config\n",
            "var/lib/cloud/seed/nocloud/user-data": "#cloud-config\n",
            "etc/cloud/cloud-init.disabled": "",
        },
    )
    _, made = run(*ubuntu)
    assert (root / "etc/machine-id").read_bytes() == b""
    assert os.readlink(root / "var/lib/dbus/machine-id") == "/etc/machine-id"
    assert os.listdir(root / "etc/ssh") == ["sshd_config"]
    for gone in ("var/lib/systemd/random-seed", "var/lib/cloud/instance", "var/lib/cloud/seed/nocloud"):
        assert not (root / gone).is_symlink()
        assert not (root / gone).exists()
    assert os.listdir(root / "var/lib/dhcp") == os.listdir(root / "var/lib/cloud/seed") == []
    assert not (root / "etc/cloud/cloud-init.disabled").exists()
    listed = {patch.path: patch for patch in made}
    assert "root/var/lib/cloud/instances/old/user-data.txt" in listed
    assert not any("SECRET" in str(patch) or "0123456789abcdef0123456789abcdef" in str(patch) for patch in made)


def test_a_unit_that_the_image_has_is_masked_and_no_other(ubuntu):
    system = ubuntu[1] / "etc/systemd/system"
    fill(system, {"apt-daily.timer": "[Timer]\n"})
    run(*ubuntu)
    assert os.readlink(system / "fstrim.timer") == os.readlink(system / "apt-daily.timer") == "/dev/null"
    assert not (system / "dphys-swapfile.service").is_symlink()


def test_raspberry_pi_os_makes_no_swap_file_and_looks_for_no_card(ubuntu):
    root = ubuntu[1]
    units = {f"usr/lib/systemd/system/{name}": "[Unit]\n" for name in ("sshswitch.service", "rpi-resize.service")}
    fill(root, {"usr/lib/systemd/system-generators/rpi-swap-generator": "", "etc/rpi/swap.conf": "[Main]\n", **units})
    run(*ubuntu)
    assert "\nMechanism=zram\n" in (root / "etc/rpi/swap.conf.d/90-netbootd.conf").read_text()
    assert (root / "etc/rpi/swap.conf").read_text() == "[Main]\n"
    for unit in ("sshswitch.service", "rpi-resize.service"):
        assert os.readlink(root / "etc/systemd/system" / unit) == "/dev/null"


def test_units_that_mount_a_disk_are_masked_and_no_other(ubuntu):
    etc, usr = ubuntu[1] / "etc/systemd/system", ubuntu[1] / "usr/lib/systemd/system"
    fill(
        etc,
        {
            "boot-efi.mount": "[Mount]\nWhat=/dev/disk/by-label/EFI\nWhere=/boot/efi\n",
            "boot-efi.automount": "[Automount]\nWhere=/boot/efi\n",
            "srv.mount": "[Mount]\nWhat=nas:/srv\nWhere=/srv\nType=nfs\n",
        },
    )
    fill(
        usr,
        {
            "var-swap.swap": "[Swap]\nWhat = x\nWhat=UUID=1234\n",
            "dev-hugepages.mount": "[Mount]\nWhat=hugetlbfs\nWhere=/dev/hugepages\n",
            "lost.automount": "[Automount]\nWhere=/lost\n",
        },
    )
    run(*ubuntu)
    for unit in ("boot-efi.mount", "boot-efi.automount", "var-swap.swap"):
        assert os.readlink(etc / unit) == "/dev/null"
    for unit in ("srv.mount", "dev-hugepages.mount", "lost.automount"):
        assert not (etc / unit).is_symlink()


def test_an_image_without_rpi_swap_gets_no_settings_for_it(ubuntu):
    run(*ubuntu)
    assert not (ubuntu[1] / "etc/rpi").exists()


def test_the_address_is_kept_by_networkd_and_by_nobody_else(ubuntu):
    root = fill(
        ubuntu[1],
        {
            "usr/lib/systemd/system/NetworkManager.service": "[Unit]\n",
            "usr/lib/systemd/system/networking.service": "[Unit]\n",
            "etc/init.d/dhcpcd": "#!/bin/sh\n",
            "etc/systemd/system/systemd-networkd.service": "-> /dev/null",
        },
    )
    facts, _ = run(*ubuntu)
    assert facts.network_manager == "networkmanager"
    network = (root / "etc/systemd/network/05-netbootd.network").read_text().splitlines()
    assert {"DHCP=ipv4", "KeepConfiguration=yes", "ClientIdentifier=mac", "SendRelease=no"} <= set(network)
    assert "NamePolicy=keep" in (root / "etc/systemd/network/05-netbootd.link").read_text().splitlines()
    system = root / "etc/systemd/system"
    enabled = system / "multi-user.target.wants/systemd-networkd.service"
    assert os.readlink(enabled) == "/usr/lib/systemd/system/systemd-networkd.service"
    assert not (system / "systemd-networkd.service").is_symlink()
    assert os.readlink(system / "networking.service") == os.readlink(system / "dhcpcd.service") == "/dev/null"
    assert "unmanaged-devices=type:ethernet" in (root / "etc/NetworkManager/conf.d/50-netbootd.conf").read_text()
    cloud = (root / "etc/cloud/cloud.cfg.d/zz-netbootd.cfg").read_text()
    assert "network:\n  config: disabled\n" in cloud


@pytest.mark.parametrize("resolved", [True, False])
def test_name_servers_without_resolved(ubuntu, resolved):
    root = fill(ubuntu[1], {"usr/lib/systemd/system/systemd-resolved.service": "[Unit]\n"} if resolved else {})
    run(*ubuntu)
    assert (root / "usr/lib/netbootd/resolv-conf").exists() is not resolved


def test_host_keys_are_made_where_there_is_no_cloud_init(ubuntu):
    root = fill(ubuntu[1], {"var/lib/dpkg/status": "Package: other\nStatus: install ok installed\nVersion: 1\n"})
    facts, _ = run(*ubuntu)
    assert facts.cloud_init_version == ""
    assert "ssh-keygen -A" in (root / "etc/systemd/system/ssh.service.d/50-netbootd.conf").read_text()
    assert not (root / "etc/cloud/cloud.cfg.d/zz-netbootd.cfg").exists()


@pytest.mark.parametrize(
    ("status", "version", "datasource"),
    [
        (
            "Package: cloud-init\nStatus: install ok installed\nPriority: optional\nVersion: 22.4.2-1\n",
            "22.4.2-1",
            "nocloud-net",
        ),
        ("Package: cloud-init-base\nStatus: install ok installed\nVersion: 2:26.2-0\n", "26.2-0", "nocloud"),
        ("Package: cloud-init\nStatus: deinstall ok config-files\nVersion: 25.1\n", "", "nocloud"),
        ("Package: cloud-initramfs-growroot\nStatus: install ok installed\nVersion: 0.18\n", "", "nocloud"),
    ],
)
def test_cloud_inits_version(ubuntu, status, version, datasource):
    fill(ubuntu[1], {"var/lib/dpkg/status": status})
    facts = patches.survey(*ubuntu)
    assert (facts.cloud_init_version, facts.datasource) == (version, datasource)


def test_an_image_without_systemd_or_anything(tmp_path):
    boot = fill(tmp_path / "boot", {"kernel8.img": "k"})
    root = fill(tmp_path / "root", {"etc/hostname": "x\n"})
    facts, made = run(boot, root)
    assert facts.overlay == ()
    assert {patch.path for patch in made} == {"boot/cmdline.txt", "root/etc/machine-id"}


def test_a_state_folder_that_can_not_be_named(ubuntu):
    before = [snapshot(tree) for tree in ubuntu]
    with pytest.raises(ConfigError, match="characters"):
        run(*ubuntu, replace(PARAMETERS, root_path="/with space"))
    assert [snapshot(tree) for tree in ubuntu] == before


def test_the_line_on_disk_is_the_one_that_is_rendered_for_a_node_without_identity(ubuntu):
    facts, _ = run(*ubuntu, replace(PARAMETERS, cmdline_append="isolcpus=3"))
    node = Node("nobody", "noble", "nobody")
    rendered = command_line(replace(facts, cmdline_append="isolcpus=3"), node, PARAMETERS.server, PARAMETERS.root_path)
    assert (ubuntu[0] / "cmdline.txt").read_text() == rendered
