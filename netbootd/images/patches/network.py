"""The network of a node whose root lives on it: the address that the boot began with is kept and renewed.

The initramfs has asked DHCP already, and the root is mounted over the address that it got. Whatever takes over must not
rename the link, flush it or come back with another address. systemd-networkd can do that (KeepConfiguration=, since
243) and is part of systemd itself, so every image gets the same few files, whatever manages its network otherwise:
networkd keeps wired links, and netplan, NetworkManager, ifupdown, dhcpcd and cloud-init leave them alone. Wi-Fi stays
with whom it was.

A DHCP server knows a client by option 61 where it sends one, else by its MAC (RFC 2131, section 4.2). The request that
networkd sends has to look like the one of the initramfs, or it is another client with another lease. The kernel and
klibc's ipconfig send no option 61; dracut has its clients send 01:MAC, and so does what `ramdisk` does to the dhcpcd of
Ubuntu's initramfs-tools. ``ClientIdentifier=mac`` is 01:MAC, too, which servers take for the MAC where they know of no
option 61 (RFC 2132, section 9.14).
"""

from __future__ import annotations

from netbootd.images.patches.services import find_unit, mask, unit_exists
from netbootd.images.patches.tree import Tree

NETWORKD = "systemd-networkd.service"
_NETWORK = "/etc/systemd/network/05-netbootd.network"
_LINK = "/etc/systemd/network/05-netbootd.link"
_RESOLV = "/usr/lib/netbootd/resolv-conf"

# Wired links of a bus (ID_PATH is what udev calls their place), not those that containers make.
_MATCH = "[Match]\nType=ether\nPath=*\n"

_NETWORK_TEXT = """\
# Written by netbootd: this machine's root is mounted over the address that its boot began with.
{match}
[Link]
RequiredForOnline=yes

[Network]
DHCP=ipv4
KeepConfiguration=yes
IgnoreCarrierLoss=yes

[DHCPv4]
ClientIdentifier=mac
UseHostname=no
SendRelease=no
"""
INITRAMFS_SETTINGS = _NETWORK_TEXT.format(match="[Match]\nType=ether\n")
"""networkd's settings for an initramfs, whose udev may not know of a link's place and where nobody makes links."""

_LINK_TEXT = """\
# Written by netbootd: the link that carries the root keeps the name that it has had since the initramfs.
{match}
[Link]
NamePolicy=keep
AlternativeNamesPolicy=database onboard slot path
MACAddressPolicy=none
"""
_ONLINE_TEXT = """\
# Written by netbootd: one wired link is enough, a second one may have no cable.
[Service]
ExecStart=
ExecStart={program} --any
"""
_NETWORK_MANAGER_TEXT = """\
# Written by netbootd: systemd-networkd keeps the wired links, over which the root is mounted.
[keyfile]
unmanaged-devices=type:ethernet
"""
_NETWORK_MANAGER_DNS = """
[main]
dns=none
"""
_RESOLV_SCRIPT = """\
#!/bin/sh
# Written by netbootd: name servers from the DHCP reply, where no other program of this system passes them on.
new=/run/netbootd-resolv.conf
{
    for file in /run/net-*.conf; do
        [ -r "$file" ] || continue
        DNSDOMAIN= IPV4DNS0= IPV4DNS1=
        . "$file"
        for server in "$IPV4DNS0" "$IPV4DNS1"; do
            case "$server" in ''|0.0.0.0) ;; *) echo "nameserver $server" ;; esac
        done
        case "$DNSDOMAIN" in ''|*[!A-Za-z0-9.-]*) ;; *) echo "search $DNSDOMAIN" ;; esac
    done
    for file in /run/systemd/netif/leases/*; do
        [ -r "$file" ] || continue
        while IFS='=' read -r key value; do
            case "$key" in
            DNS) for server in $value; do echo "nameserver $server"; done ;;
            DOMAINNAME) echo "search $value" ;;
            esac
        done < "$file"
    done
} | awk '!seen[$0]++' > "$new"
if [ -s "$new" ]; then
    rm -f /etc/resolv.conf
    cp "$new" /etc/resolv.conf
fi
"""
_RESOLV_UNIT = """\
[Unit]
Description=Name servers of the network that the root came over
After=systemd-networkd-wait-online.service
Before=network-online.target
Wants=systemd-networkd-wait-online.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh {script}

[Install]
WantedBy=network-online.target
"""


def manager_of(tree: Tree) -> str:
    """What manages wired links in this image: ``networkmanager``, ``netplan``, ``ifupdown``, ``dhcpcd``, ``networkd``.

    Empty where nothing was found.
    """
    for name, units in (
        ("networkmanager", ("NetworkManager.service",)),
        ("dhcpcd", ("dhcpcd.service",)),
        ("netplan", ()),
        ("ifupdown", ("networking.service",)),
        ("networkd", (NETWORKD,)),
    ):
        if name == "netplan":
            if tree.is_there("/usr/sbin/netplan"):
                return name
        elif any(unit_exists(tree, unit) for unit in units):
            return name
    return ""


def can_keep_address(tree: Tree) -> bool:
    """Whether the image has systemd-networkd."""
    return bool(find_unit(tree, NETWORKD))


def apply(tree: Tree) -> None:
    """Write the configuration. Nothing is done in an image without systemd-networkd."""
    unit = find_unit(tree, NETWORKD)
    if not unit:
        return
    keep = "Keeps and renews the address that the kernel booted with; another one would cut the node off its root."
    tree.write(_NETWORK, _NETWORK_TEXT.format(match=_MATCH), keep)
    tree.write(_LINK, _LINK_TEXT.format(match=_MATCH), "Never renames the link that the root is mounted over.")
    _enable(tree, unit.rpartition("/")[0])
    _hand_over(tree)
    if not unit_exists(tree, "systemd-resolved.service"):
        _name_servers(tree)


def _enable(tree: Tree, units: str) -> None:
    why = "systemd-networkd keeps the wired links."
    wants = {
        "multi-user.target.wants/systemd-networkd.service": "systemd-networkd.service",
        "sockets.target.wants/systemd-networkd.socket": "systemd-networkd.socket",
        "network-online.target.wants/systemd-networkd-wait-online.service": "systemd-networkd-wait-online.service",
        "dbus-org.freedesktop.network1.service": "systemd-networkd.service",
    }
    for link, unit in wants.items():
        if tree.is_file(f"{units}/{unit}") and not tree.is_file(f"/etc/systemd/system/{link}"):
            tree.symlink(f"/etc/systemd/system/{link}", f"{units}/{unit}", why)
    for unit in wants.values():
        if tree.link(f"/etc/systemd/system/{unit}") == "/dev/null":
            tree.remove(f"/etc/systemd/system/{unit}", f"{unit} was masked; {why}")
    online = "systemd-networkd-wait-online"
    for program in (f"/usr/lib/systemd/{online}", f"/lib/systemd/{online}"):
        if tree.is_file(program):
            path = f"/etc/systemd/system/{online}.service.d/50-netbootd.conf"
            tree.write(
                path, _ONLINE_TEXT.format(program=program), "A wired link without a cable must not delay the boot."
            )
            break


def _hand_over(tree: Tree) -> None:
    """Whoever else would configure wired links leaves them alone."""
    if unit_exists(tree, "NetworkManager.service"):
        text = _NETWORK_MANAGER_TEXT
        if not unit_exists(tree, "systemd-resolved.service"):
            text += _NETWORK_MANAGER_DNS  # it would write a resolv.conf without any name server
        why = "NetworkManager leaves the wired links, over which the root is mounted, to systemd-networkd."
        tree.write("/etc/NetworkManager/conf.d/50-netbootd.conf", text, why)
    for unit in ("networking.service", "ifup@.service", "dhcpcd.service", "dhcpcd5.service"):
        mask(tree, unit, "It would configure the link, over which the root is mounted, anew and flush it at the end.")


def _name_servers(tree: Tree) -> None:
    why = "Nothing else in this image writes the DHCP reply's name servers into resolv.conf."
    tree.write(_RESOLV, _RESOLV_SCRIPT, why, mode=0o755)
    unit = "netbootd-resolv-conf.service"
    tree.write(f"/etc/systemd/system/{unit}", _RESOLV_UNIT.format(script=_RESOLV), why)
    tree.symlink(f"/etc/systemd/system/network-online.target.wants/{unit}", f"/etc/systemd/system/{unit}", why)
