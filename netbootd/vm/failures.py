"""What Multipass says when it fails, and what to do about it on each system.

The texts are those of Multipass 1.16's sources (canonical/multipass), named beside each; they are matched rather than
exit statuses, since nearly every failure has status 2 (include/multipass/cli/return_codes.h).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from netbootd.errors import DeniedError, HostError, NetbootdError, NetworkError, NotFoundError, VerificationError
from netbootd.vm.workstation import System

_STATUS_TIMEOUT = 5  # include/multipass/constants.h: timeout_exit_code


@dataclass(frozen=True, slots=True)
class Failure:
    """One known failure: how it is recognised, what it means, and the remedy, by system or for all (``""``)."""

    pattern: str
    meaning: str
    remedy: dict[str, str] = field(default_factory=dict)
    kind: type[NetbootdError] = HostError


_RESTART = {
    "linux": "sudo snap restart multipass",
    "macos": "sudo launchctl kickstart -k system/com.canonical.multipassd",
    "windows": "Restart-Service Multipass, in a PowerShell that was opened as administrator",
}

_LOGS = {
    "linux": "journalctl -u snap.multipass.multipassd says more.",
    "macos": "/Library/Logs/Multipass/multipassd.log says more.",
    "windows": "The Event Viewer, under Windows Logs, Application, source Multipass, says more.",
}

BRIDGES = {
    "linux": "A bridge of your own can be named in [vm] network; Multipass makes one itself only with NetworkManager.",
    "windows": "In Hyper-V Manager, make a virtual switch of the kind External on your Ethernet adapter, and name it "
    "in [vm] network.",
    "macos": "Name an Ethernet device of `multipass networks` in [vm] network.",
}

KNOWN: tuple[Failure, ...] = (
    Failure(  # include/multipass/cli/dispatch_rpc.h
        r"cannot connect to the multipass socket",
        "Multipass's daemon is not running",
        {system: f"Start it: {command}" for system, command in _RESTART.items()},
    ),
    Failure(  # include/multipass/cli/dispatch_rpc.h
        r"multipass socket access denied",
        "you may not speak with Multipass's daemon",
        {
            "linux": "Join the group of its socket, /var/snap/multipass/common/multipass_socket, then log in again.",
            "": "Run it as a user with administrative rights.",
        },
        DeniedError,
    ),
    Failure(  # src/daemon/daemon_rpc.cpp
        r"not authenticated with the Multipass service",
        "Multipass does not know you yet",
        {"": "Run `multipass authenticate`; who is known to it sets its passphrase: multipass set local.passphrase"},
        DeniedError,
    ),
    Failure(  # include/multipass/exceptions/not_implemented_on_this_backend_exception.h
        r"feature is not implemented on this backend",
        "the driver that Multipass uses can't bridge a network",
        {
            "linux": "multipass set local.driver=qemu",
            "macos": "multipass set local.driver=qemu",
            "windows": "multipass set local.driver=hyperv, or virtualbox where Windows has no Hyper-V",
        },
    ),
    Failure(  # src/platform/platform_linux.cpp, platform_osx.cpp, platform_win.cpp
        r"Unsupported virtualization driver|Invalid virtualization driver",
        "this build of Multipass does not have the driver that it is set to",
        {
            "linux": "multipass set local.driver=qemu",
            "macos": "multipass set local.driver=qemu; on Apple silicon VirtualBox and hyperkit can't run it",
            "windows": "multipass set local.driver=hyperv, or virtualbox where Windows has no Hyper-V",
        },
    ),
    Failure(  # src/daemon/daemon.cpp, create_vm: the client asks only on a terminal (src/client/common/prompters.cpp)
        r"Missing bridges",
        "Multipass has to make a bridge on your network card first, and asks for leave only on a terminal",
        {
            "linux": f"Run the command in a terminal. {BRIDGES['linux']}",
            "": "Run the command in a terminal and answer its question with yes.",
        },
    ),
    Failure(  # src/platform/backends/shared/linux/backend_utils.cpp, CreateBridgeException
        r"Could not (?:create|rollback) bridge",
        "Multipass could not make a bridge on your network card",
        BRIDGES,
    ),
    Failure(  # src/client/cli/cmd/launch.cpp, INVALID_NETWORK
        r"Invalid network options|Invalid network '",
        "Multipass can't bridge that network",
        {"": "Name one of `multipass networks` in [vm] network."},
    ),
    Failure(  # src/daemon/daemon.cpp, validate_extra_interfaces
        r"Automatic network configuration not available",
        "that release is too old for a second network card",
        {"": 'Set [vm] release to "26.04" or another of this decade.'},
    ),
    Failure(  # src/daemon/daemon.cpp, require_missing_instances_reaction
        r'instance "[^"]*" already exists',
        "Multipass has a virtual machine of that name already",
        {"": "Choose another [vm] name, or remove it: multipass delete --purge NAME"},
    ),
    Failure(  # src/daemon/daemon.cpp, create_vm
        r'instance "[^"]*" is being prepared',
        "another launch of that name is under way",
        {"": "Wait until it is done, then run the command again."},
    ),
    Failure(  # src/daemon/daemon.cpp, require_operative_instances_reaction; src/client/cli/cmd/start.cpp
        r"instance \"[^\"]*\" is deleted|Instance '[^']*' is deleted",
        "the virtual machine is deleted, and not yet gone",
        {"": "Bring it back with `multipass recover NAME`, or run netbootd vm up --rebuild."},
    ),
    Failure(  # src/daemon/daemon.cpp
        r"instance \"[^\"]*\" does not exist|[Ii]nstance '[^']*' does not exist",
        "there is no virtual machine of that name",
        {"": "netbootd vm up makes it."},
        NotFoundError,
    ),
    Failure(  # src/daemon/daemon.cpp, start and reboot_vm
        r"in an unknown state",
        "Multipass has lost track of the virtual machine",
        {"": "multipass stop --force NAME, then run the command again."},
    ),
    Failure(  # src/daemon/daemon.cpp, mount
        r"Mounts are disabled on this installation",
        "Multipass may not mount folders here",
        {"": "multipass set local.privileged-mounts=Yes (netbootd itself copies and needs no mounts)."},
    ),
    Failure(  # src/platform/backends/shared/base_virtual_machine.cpp, wait_for_cloud_init
        r"timed out waiting for initialization to complete",
        "the virtual machine started, and did not finish its first boot in time",
        {"": "It goes on by itself: run netbootd vm up again in some minutes; netbootd vm logs tells how far it is."},
    ),
    Failure(  # base_virtual_machine.cpp, timeout_ssh; launch.cpp and start.cpp, the client's own timer
        r"timed out waiting for response|Timed out waiting for instance",
        "the virtual machine did not answer in time",
        {
            "macos": "Its firewall may keep bootpd from giving it an address: System Settings, Network, Firewall, "
            "allow /usr/libexec/bootpd. Then netbootd vm up --rebuild.",
            "windows": "Remove its stale lines from C:\\Windows\\System32\\drivers\\etc\\hosts.ics, look for a VPN or "
            "firewall that is in the way, then netbootd vm up --rebuild.",
            "": "Look for a VPN or firewall that is in the way, then netbootd vm up --rebuild.",
        },
    ),
    Failure(  # docs/how-to-guides/troubleshoot/troubleshoot-networking.md
        r"Unable to determine IP address|Could not retrieve (?:the )?IP",
        "the virtual machine got no address of Multipass's own network",
        {"": "Look for a VPN or firewall that is in the way of Multipass, then netbootd vm up --rebuild."},
    ),
    Failure(  # include/multipass/exceptions/image_vault_exceptions.h
        r"Unable to find an image matching",
        "Multipass has no such Ubuntu",
        {"": "Name a release of `multipass find` in [vm] release, or update Multipass."},
        NotFoundError,
    ),
    Failure(  # src/daemon/daemon.cpp, wait_ready; src/network/url_downloader.cpp
        r"cannot connect to the image servers|[Ff]ailed to download|Network timeout",
        "Multipass could not fetch Ubuntu",
        {"": "Look at this computer's connection to https://cloud-images.ubuntu.com, and try again."},
        NetworkError,
    ),
    Failure(  # docs/how-to-guides/troubleshoot/troubleshoot-launch-start-issues.md
        r"Downloaded image hash does not match",
        "what Multipass downloaded is not what Ubuntu published",
        {"": "multipass find --force-update, then run the command again."},
        VerificationError,
    ),
    Failure(  # src/platform/backends/shared/linux/backend_utils.cpp, check_for_kvm_support, check_if_kvm_is_in_use
        r"KVM support is not enabled|KVM device cannot be opened",
        "this computer does not let Multipass use its processor's virtualisation",
        {"": "Switch it on in the firmware's setup, load the kvm module, and: snap connect multipass:kvm"},
    ),
    Failure(
        r"Another virtual machine manager is currently running",
        "another virtual machine manager has the processor's virtualisation",
        {"": "Stop it (VirtualBox, VMware), then run the command again."},
    ),
    Failure(  # src/platform/backends/hyperv/hyperv_virtual_machine_factory.cpp
        r"Hyper-V|VirtualizationFirmwareEnabled|Virtualization support appears to be disabled|Windows 10 version 1803",
        "Hyper-V can't be used as Windows is set up",
        {
            "": "As administrator: Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All, then "
            "restart. Windows Home has none: install VirtualBox, and multipass set local.driver=virtualbox"
        },
    ),
    Failure(  # src/platform/backends/applevz/applevz_virtual_machine_factory.cpp
        r"Virtualization is not supported on this system",
        "this Mac can't run the driver that Multipass is set to",
        {"": "multipass set local.driver=qemu"},
    ),
    Failure(  # src/client/cli/cmd/launch.cpp
        r"Invalid (?:disk|memory) size value|Invalid instance name|invalid CPU count|not a valid memory size",
        "Multipass does not take a value of [vm]",
        {"": "It wants at least 1 CPU, 512M of memory and 1G of disk, and a name of letters, digits and dashes."},
    ),
    Failure(
        r"[Nn]o space left|not enough (?:disk )?space|[Aa]vailable disk .*below minimum",
        "this computer's disk has no room for the virtual machine",
        {"": "Free some, or make [vm] disk smaller."},
    ),
)


def recognised(doing: str, status: int, said: str, system: System) -> NetbootdError:
    """What to tell a person of a call that failed.

    :param doing: what was being done, and to what: ``Launching the virtual machine netbootd``
    :param status: of the multipass program
    :param said: what it wrote to stderr
    """
    lines = tuple(line.strip() for line in said.splitlines() if line.strip())[:12]
    for known in KNOWN:
        if re.search(known.pattern, said):
            hint = known.remedy.get(system) or known.remedy.get("", "")
            return known.kind(f"{doing}: {known.meaning}.", hint=hint, details=lines)
    if status == _STATUS_TIMEOUT:
        return HostError(f"{doing}: it took too long.", hint=_LOGS[system], details=lines)
    return HostError(f"{doing}: Multipass failed with status {status}.", hint=_LOGS[system], details=lines)
