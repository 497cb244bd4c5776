"""The life of the virtual machine: made, brought up to date, looked at, stopped, deleted.

`Lifecycle.up` may be called again and again: each step looks first, and does only what is missing.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netbootd import __version__
from netbootd.config.schema import Config
from netbootd.errors import (
    BusyError,
    ConfigError,
    FormatError,
    HostError,
    NetbootdError,
    NetworkError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from netbootd.model.identity import MacAddress
from netbootd.vm.bundle import Bundle, collect
from netbootd.vm.cloudconfig import MARKER, netplan, render
from netbootd.vm.failures import BRIDGES, recognised
from netbootd.vm.multipass import HostNetwork, Instance, Launch, Multipass
from netbootd.vm.workstation import Workstation, derived_mac, identity, time_zone

NETBOOTD = "/usr/local/bin/netbootd"
"""The program within the virtual machine, with the services' environment (vm/provision.sh)."""
UNITS = (
    *("netbootd.service", "netbootd-tftp.socket", "netbootd-http.socket"),
    *("netbootd-portmap.socket", "netbootd-nfs.service", "netbootd-nfs.socket"),
)
_NFS_UNITS = (
    "netbootd-nfs.service",
    "netbootd-nfs.socket",
)  # of the kernel's server, and of our own: one of them is used

_STAGING = "/srv/netbootd/new"
_SENT = "netbootd-sent.b64"  # in the home folder of Multipass's user
_PROVISION_SECONDS = 1800.0
_PREPARE_SECONDS = 6 * 3600.0
_ADDRESS_SECONDS = 60.0
_READY_SECONDS = 60.0
_POLL_SECONDS = 2.0
_BY_STATUS: dict[int, type[NetbootdError]] = {
    kind.exit_status: kind
    for kind in (UsageError, ConfigError, HostError, NetworkError, VerificationError, FormatError, BusyError)
}


@dataclass(frozen=True, slots=True)
class Report:
    """What `up` did (or, with `dry_run`, would do), and where the virtual machine is reached.

    `changed` has what was brought up to date in it: created, started, code, site, network, environment, units, images.
    """

    name: str
    mac: str
    network: str
    address: str
    changed: tuple[str, ...]
    steps: tuple[str, ...]
    images: tuple[dict[str, Any], ...]
    next: tuple[str, ...]
    cloud_init: str
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Talk:
    """How the person is spoken with: a sentence on the way, and a choice among networks (None: nobody is there)."""

    say: Callable[[str], None]
    choose: Callable[[Sequence[HostNetwork]], str] | None


class Lifecycle:
    """One virtual machine of one configuration."""

    def __init__(
        self,
        config: Config,
        workstation: Workstation,
        multipass: Multipass,
        talk: Talk,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._vm = config.vm
        self._workstation = workstation
        self._multipass = multipass
        self._talk = talk
        self._sleep = sleep
        self._clock = clock
        self._steps: list[str] = []

    @property
    def terminal(self) -> bool:
        """Whether a person can be asked."""
        return self._workstation.terminal

    # ---------------------------------------------------------------- up

    def up(self, *, rebuild: bool = False, dry_run: bool = False) -> Report:
        """Make the virtual machine, or bring it to what the configuration says.

        :param rebuild: delete it first, with its images
        :param dry_run: only look, and tell the steps
        :raises NetbootdError: a step failed; what was done stays, and another call goes on from there
        """
        self._steps = []
        self._check_host()
        mac = self._vm.mac or derived_mac(self._vm.name, identity())
        bundle = collect(self._config, self._workstation.home, __version__, netplan(self._config, mac))
        for text in bundle.notes:
            self._talk.say(f"warning: {text}")
        instance = self._multipass.instance(self._vm.name)
        changed: list[str] = []
        if instance and rebuild:
            self._step(f"delete the virtual machine {self._vm.name} with its images")
            if not dry_run:
                self._multipass.delete(self._vm.name)
            instance = None
        network, cloud_init = "", ""
        if instance is None:
            network = self._network().name
            cloud_init = render(self._config, mac, time_zone())
            self._step(
                f"launch Ubuntu {self._vm.release} as {self._vm.name}: {self._vm.cpus} CPUs, {self._vm.memory} memory, "
                f"{self._vm.disk} of disk, bridged to {network} as {mac}"
            )
            changed.append("created")
            if not dry_run:
                self._launch(network, mac, cloud_init)
        else:
            mac, started = self._revive(instance, mac, dry_run)
            changed += ["started"] if started else []
        if dry_run:
            self._step("install or update netbootd and its units in it; restart only what changed")
            self._step("prepare the configured images")
            return self._report(mac, network, "", changed, [], cloud_init, dry_run=True)
        self._wait_for_first_boot()
        changed += self._provision(bundle, mac)
        address = self._wait_for_address(mac)
        images = self._prepare()
        changed += ["images"] if any(image.get("changed") for image in images) else []
        self._wait_for_readiness()
        return self._report(mac, network, address, changed, images, cloud_init, dry_run=False)

    def _check_host(self) -> None:
        """Whether Multipass can do it here at all."""
        _, daemon = self._multipass.versions()
        system = self._workstation.system
        if not daemon:
            raise recognised("Asking Multipass for its version", 0, "cannot connect to the multipass socket", system)
        if system == "macos" and self._workstation.machine in ("arm64", "aarch64"):
            driver = self._multipass.setting("local.driver")
            if driver in ("virtualbox", "hyperkit"):
                raise HostError(
                    f"Multipass is set to the driver {driver}, which can't run Ubuntu for ARM on Apple silicon.",
                    hint="multipass set local.driver=qemu",
                )

    def _network(self) -> HostNetwork:
        """The network of this computer that nodes are on.

        :raises HostError: there is none, or which is meant can't be known
        """
        networks = self._multipass.networks()
        wanted = self._vm.network
        fit = [network for network in networks if network.reaches_the_lan]
        have = [f"{network.name}: {network.kind}, {network.description}" for network in networks]
        if wanted:
            found = next((network for network in networks if network.name == wanted), None)
            if found is None:
                raise HostError(
                    f"[vm] network: this computer has no network {wanted} that Multipass could bridge.",
                    details=have,
                    hint="Name one of these." if have else _no_network(self._workstation),
                )
        elif not fit:
            raise HostError(
                "Looking for the network that nodes are on: Multipass can bridge none of this computer's.",
                details=have,
                hint=_no_network(self._workstation),
            )
        elif len(fit) == 1:
            found = fit[0]
        elif self._talk.choose is not None:
            chosen = self._talk.choose(fit)
            found = next(network for network in fit if network.name == chosen)
        else:
            raise HostError(
                "Looking for the network that nodes are on: this computer has several.",
                details=have,
                hint=f'Say which, in netbootd.toml: [vm] network = "{fit[0].name}"',
            )
        if set(found.name) & {",", "="}:
            raise HostError(
                f"The network {found.name} can't be named to Multipass, which takes commas and = for its own.",
                hint="Give it another name.",
            )
        if found.kind == "wifi":
            self._talk.say(f"warning: {found.name} is wireless; few access points let a bridged machine speak.")
        return found

    def _launch(self, network: str, mac: MacAddress, cloud_init: str) -> None:
        with _in_home(self._workstation.home, cloud_init) as path:
            vm = self._vm
            launch = Launch(vm.name, vm.release, vm.cpus, vm.memory, vm.disk, network, mac, str(path))
            self._multipass.launch(launch, terminal=self._workstation.terminal)

    def _revive(self, instance: Instance, mac: MacAddress, dry_run: bool) -> tuple[MacAddress, bool]:
        """The bridged card's MAC of a virtual machine that is there, running now; and whether it had to be started."""
        name = instance.name
        if instance.state == "Deleted":
            raise HostError(
                f"The virtual machine {name} is deleted, and not yet gone.",
                hint=f"Bring it back with: multipass recover {name}, or make a new one with: netbootd vm up --rebuild",
            )
        if instance.state in ("Unknown", "Unavailable"):
            raise HostError(
                f"Multipass has lost track of the virtual machine {name} (its state: {instance.state}).",
                hint=f"multipass stop --force {name}, then run the command again.",
            )
        started = instance.state != "Running"
        if started:
            self._step(f"start the virtual machine {name}")
            if dry_run:
                return mac, True
            self._multipass.start(name)
        marker = self._multipass.run(name, ["cat", MARKER])
        try:
            return MacAddress.parse(marker.output.strip()), started
        except ValueError:
            raise HostError(
                f"There is a virtual machine {name} that netbootd did not make.",
                hint='Choose another [vm] name, such as name = "netboot"; or give it up: netbootd vm up --rebuild',
            ) from None

    # ---------------------------------------------------------------- what happens within it

    def _wait_for_first_boot(self) -> None:
        done = self._multipass.run(self._vm.name, ["cloud-init", "status", "--wait"], timeout=_PROVISION_SECONDS)
        if done.status in (0, 2):  # 2: with recoverable errors (cloud-init 23.4 and later)
            return
        told = self._multipass.run(self._vm.name, ["cloud-init", "status", "--long"])
        raise HostError(
            f"The first boot of the virtual machine {self._vm.name} failed.",
            details=told.output.splitlines()[:12],
            hint="netbootd vm logs tells more; netbootd vm up --rebuild begins anew.",
        )

    def _provision(self, bundle: Bundle, mac: MacAddress) -> list[str]:
        """Send what changed and install it; what was brought up to date."""
        name = self._vm.name
        there = self._multipass.run(name, ["cat", "/srv/netbootd/digests/code", "/srv/netbootd/digests/site"])
        if there.output.split("\n")[:2] != [bundle.code, bundle.site]:
            self._step("copy the program and the configuration to it")
            text = base64.encodebytes(bundle.data).decode("ascii")
            self._multipass.put(name, text, _SENT)
            unpack = (
                f"set -e; rm -rf {_STAGING}; mkdir -p {_STAGING}; "
                f'base64 --decode --ignore-garbage "$1" | tar -xz --no-same-owner -C {_STAGING}; rm "$1"; '
                f"mv {_STAGING}/provision.sh /srv/netbootd/provision.sh"
            )
            self._within(["sudo", "sh", "-c", unpack, "sh", f"/home/ubuntu/{_SENT}"], "Unpacking what was copied")
        self._step("install it and its units, as far as they changed")
        script = ["sudo", "sh", "/srv/netbootd/provision.sh", str(mac), __version__]
        said = self._within(script, "Installing netbootd", timeout=_PROVISION_SECONDS)
        last = next((line for line in reversed(said.splitlines()) if line.startswith("changed:")), "changed:")
        return last.removeprefix("changed:").split()

    def _wait_for_address(self, mac: MacAddress) -> str:
        """The IPv4 address of the bridged card.

        :raises HostError: it has none after a minute
        """
        deadline = self._clock() + _ADDRESS_SECONDS
        while True:
            done = self._multipass.run(self._vm.name, ["ip", "-json", "address", "show"])
            card, address = address_of(done.output, mac)
            if address:
                return address
            if self._clock() > deadline:
                break
            self._sleep(_POLL_SECONDS)
        if not card:
            raise HostError(
                f"The virtual machine {self._vm.name} has no network card {mac}.",
                hint="It was made without it, or for another [vm] mac: netbootd vm up --rebuild makes a new one.",
            )
        raise HostError(
            f"The virtual machine's card on your network ({card}, {mac}) got no address by DHCP.",
            hint="Is the cable in, and the right network in [vm] network? Else give it a fixed one with [vm] address.",
        )

    def _prepare(self) -> list[dict[str, Any]]:
        self._step("prepare the images")
        said = self._within(["sudo", NETBOOTD, "prepare", "--json"], "Preparing the images", timeout=_PREPARE_SECONDS)
        try:
            return list(json.loads(said[said.index("{") :])["images"])
        except (ValueError, KeyError):
            return []

    def _wait_for_readiness(self) -> None:
        deadline = self._clock() + _READY_SECONDS
        while True:
            done = self._multipass.run(self._vm.name, ["systemctl", "is-active", "netbootd.service"])
            state = done.output.strip()
            if state == "active":
                return
            if state == "failed" or self._clock() > deadline:
                break
            self._sleep(_POLL_SECONDS)
        log = self._multipass.run(
            self._vm.name, ["sudo", "journalctl", "--unit=netbootd", "--lines=8", "--output=cat", "--no-pager"]
        )
        raise HostError(
            f"netbootd does not serve in the virtual machine {self._vm.name} (its unit: {state or 'unknown'}).",
            details=log.output.splitlines()[-8:],
            hint="netbootd vm status shows what its own doctor says.",
        )

    def _within(self, command: Sequence[str], doing: str, *, timeout: float = 300.0) -> str:
        """What a command of ours in the virtual machine prints; its progress goes to our stderr as it comes.

        :raises NetbootdError: it failed, of the kind that its exit status means
        """
        done = self._multipass.run(self._vm.name, command, timeout=timeout, progress=sys.stderr)
        if done.status == 0:
            return done.output
        kind = _BY_STATUS.get(done.status, HostError)
        lines = [line for line in done.errors.splitlines() if line.strip()]
        raise kind(
            f"{doing} in the virtual machine {self._vm.name} failed with status {done.status}.",
            details=lines[-5:],
            hint="Run the command again when that is mended: it goes on from here.",
        )

    # ---------------------------------------------------------------- the other commands

    def down(self) -> bool:
        """Shut it down; whether it was running."""
        instance = self._there()
        if instance.state in ("Stopped", "Deleted"):
            return False
        self._multipass.stop(instance.name)
        return True

    def delete(self) -> None:
        """Remove it with all its images."""
        self._multipass.delete(self._there().name)

    def shell(self) -> int:
        """A shell in it; its exit status."""
        return self._multipass.shell(self._running().name)

    def logs(self, lines: int, follow: bool) -> int:
        """Its journal of our units on our stdout; the exit status."""
        command = ["sudo", "journalctl", "--no-pager", f"--lines={lines}", "--unit=netbootd*"]
        return self._multipass.follow(self._running().name, [*command, *(["--follow"] if follow else [])])

    def status(self) -> dict[str, Any]:
        """How it is, and what its own doctor and status say where it runs."""
        instance = self._multipass.instance(self._vm.name)
        told: dict[str, Any] = {
            "name": self._vm.name,
            "state": instance.state if instance else "absent",
            "release": instance.release if instance else "",
            "addresses": list(instance.addresses) if instance else [],
            "address": "",
            "mac": "",
            "units": {},
            "doctor": [],
            "nodes": [],
        }
        if instance is None or instance.state != "Running":
            return told
        name = instance.name
        told["mac"] = self._multipass.run(name, ["cat", MARKER]).output.strip()
        try:
            mac = MacAddress.parse(told["mac"])
        except ValueError:
            raise HostError(
                f"There is a virtual machine {name} that netbootd did not make.", hint="Choose another [vm] name."
            ) from None
        told["address"] = address_of(self._multipass.run(name, ["ip", "-json", "address", "show"]).output, mac)[1]
        states = self._multipass.run(name, ["systemctl", "is-active", *UNITS]).output.split()
        units = told["units"] = dict(zip(UNITS, states, strict=False))
        used = [unit for unit in _NFS_UNITS if units.get(unit) == "active"]
        for unit in set(_NFS_UNITS) - {*used, *([] if used else _NFS_UNITS)}:
            del units[unit]
        told["doctor"] = self._told(["doctor", "--json"]).get("findings", [])
        told["nodes"] = self._told(["status", "--json"]).get("nodes", [])
        return told

    def _told(self, words: Sequence[str]) -> dict[str, Any]:
        done = self._multipass.run(self._vm.name, ["sudo", NETBOOTD, *words])
        try:
            told = json.loads(done.output)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    def _there(self) -> Instance:
        instance = self._multipass.instance(self._vm.name)
        if instance is None:
            raise NotFoundError(f"There is no virtual machine {self._vm.name}.", hint="netbootd vm up makes it.")
        return instance

    def _running(self) -> Instance:
        instance = self._there()
        if instance.state != "Running":
            raise HostError(
                f"The virtual machine {instance.name} does not run (its state: {instance.state}).",
                hint="netbootd vm up starts it.",
            )
        return instance

    # ---------------------------------------------------------------- telling

    def _step(self, text: str) -> None:
        self._steps.append(text)
        self._talk.say(text)

    def _report(
        self,
        mac: MacAddress,
        network: str,
        address: str,
        changed: list[str],
        images: list[dict[str, Any]],
        cloud_init: str,
        *,
        dry_run: bool,
    ) -> Report:
        return Report(
            name=self._vm.name,
            mac=str(mac),
            network=network,
            address=address,
            changed=tuple(changed),
            steps=tuple(self._steps),
            images=tuple(images),
            next=() if dry_run else next_steps(address),
            cloud_init=cloud_init,
            dry_run=dry_run,
        )


def next_steps(address: str) -> tuple[str, ...]:
    """What is left for a person to do."""
    return (
        f"Nodes find the server by DHCP: set option 66 of your router to {address}, once.",
        f"Or, without touching the router, in each Pi's EEPROM (rpi-eeprom-config --edit): TFTP_IP={address}",
        "A Pi boots from the network with BOOT_ORDER=0xf142 (network after SD card) or 0xf2 (network only).",
        "Then power a Pi on; netbootd vm status shows how far it has come.",
    )


def address_of(told: str, mac: MacAddress) -> tuple[str, str]:
    """Name and first global IPv4 address of the card with that MAC, by ``ip -json address``; "" for none."""
    try:
        links = json.loads(told)
    except ValueError:
        return "", ""
    for link in links if isinstance(links, list) else []:
        if str(link.get("address", "")).lower() != str(mac):
            continue
        for address in link.get("addr_info", []):
            if address.get("family") == "inet" and address.get("scope") == "global":
                return str(link.get("ifname", "")), str(address.get("local", ""))
        return str(link.get("ifname", "")), ""
    return "", ""


def _no_network(workstation: Workstation) -> str:
    return BRIDGES[workstation.system]


@contextmanager
def _in_home(home: Path, text: str) -> Iterator[Path]:
    """A file with that text, in the home folder and not hidden there: Multipass's snap sees nothing else."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=home, prefix="netbootd-", suffix=".yaml", delete=False, encoding="ascii", newline="\n"
        ) as file:
            file.write(text)
        path = Path(file.name)
    except OSError as error:
        raise HostError(f"Writing a file to {home}: {error.strerror or error}.", hint="Free some room.") from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
