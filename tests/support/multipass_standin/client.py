"""One call of the stand-in: ``client.py WORDS``, its memory in the folder $MULTIPASS_STANDIN."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))

import guest
from arguments import Mistake, parse

FOLDER = Path(os.environ["MULTIPASS_STANDIN"])
COMMAND_LINE, COMMAND, TIMEOUT = 1, 2, 5  # include/multipass/cli/return_codes.h, constants.h

_NAME = re.compile(r"([a-zA-Z]|[a-zA-Z][a-zA-Z0-9-]*[a-zA-Z0-9])\Z")  # src/utils/utils.cpp, valid_hostname
_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\Z")  # src/utils/utils.cpp, valid_mac_address
_SIZE = re.compile(r"\s*(\d+)(?:\.(\d+)(?=[KMG]))?(?:([KMG])(?:i?B)?|B)?\s*\Z", re.IGNORECASE)  # memory_size.cpp
_RELEASES = {
    **dict.fromkeys(("26.04", "resolute", "lts"), "26.04 LTS"),
    **dict.fromkeys(("24.04", "noble"), "24.04 LTS"),
}

FAULTS = {
    # src/platform/backends/shared/base_virtual_machine.cpp, wait_for_cloud_init: the instance stays, and goes on
    "initialization": "launch failed: The following errors occurred:\ntimed out waiting for initialization to complete",
    # base_virtual_machine.cpp, timeout_ssh
    "ssh": "{command} failed: The following errors occurred:\n{name}: timed out waiting for response",
    # src/platform/backends/shared/linux/backend_utils.cpp
    "kvm": "launch failed: KVM support is not enabled on this machine.\nPlease ensure the following:\n"
    "1. The system's CPU supports virtualization.\n2. Virtualization is enabled in the system BIOS.\n"
    "3. The KVM kernel modules are loaded.",
    "kvm-busy": "launch failed: Another virtual machine manager is currently running. Please shut it down before "
    "starting a Multipass instance.",
    "bridge": "launch failed: Could not create bridge. Failed to connect to D-Bus system bus: unknown cause",
    # src/platform/backends/hyperv/hyperv_virtual_machine_factory.cpp
    "hyperv": "launch failed: The Hyper-V Windows feature is disabled. Please enable by using the following\n"
    "command in an Administrator Powershell and reboot:\n"
    "Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All",
    # src/platform/backends/applevz/applevz_virtual_machine_factory.cpp
    "applevz": "launch failed: Virtualization is not supported on this system.",
    # src/platform/platform_osx.cpp, vm_backend: the daemon ends, so this is in its log; the client sees no daemon
    "images": "launch failed: cannot connect to the image servers",  # src/daemon/daemon.cpp
    "hash": "launch failed: Downloaded image hash does not match",  # docs, troubleshoot-launch-start-issues.md
    # include/multipass/exceptions/not_implemented_on_this_backend_exception.h
    "networks": "networks failed: The networks feature is not implemented on this backend.",
    # src/daemon/daemon_rpc.cpp
    "unauthenticated": "{command} failed: The user is not authenticated with the Multipass service.\n\nPlease "
    "authenticate before proceeding (e.g. via 'multipass authenticate'). Note that you first need an authenticated "
    "user to set and provide you with a trusted passphrase (e.g. via 'multipass set local.passphrase').",
    # include/multipass/cli/dispatch_rpc.h
    "denied": "{command} failed: multipass socket access denied\n"
    "Please check that you have read/write permissions to '/run/multipass_socket'",
    "client-timer": "Timed out waiting for instance launch.",  # src/client/cli/cmd/launch.cpp, make_timer
}
"""What can be told to go wrong: ``faults = {COMMAND: KEY}`` in the state."""


def fail(status: int, text: str) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(status)


class Client:
    def __init__(self, command: str, words: list[str]) -> None:
        self.command, self.words = command, words
        self.state: dict[str, Any] = json.loads((FOLDER / "state.json").read_text())
        self.state["calls"].append([command, *words])
        self.save()
        self.instances: dict[str, Any] = self.state["instances"]

    def save(self) -> None:
        (FOLDER / "state.json").write_text(json.dumps(self.state))

    def arguments(self, options: str = "", flags: str = "") -> tuple[list[str], dict[str, list[str]]]:
        """Parse; `options` and `flags` are ``long`` or ``s:long``, separated by spaces."""

        def names(text: str) -> dict[str, str]:
            return {name: word.split(":")[-1] for word in text.split() for name in word.split(":")}

        try:
            return parse(self.words, names(options), names(flags))
        except Mistake as error:
            fail(COMMAND_LINE, str(error))

    def daemon(self, *, name: str = "") -> None:
        """Reach the daemon, or fail as include/multipass/cli/dispatch_rpc.h does (a NOT_FOUND, hence status 2)."""
        if not self.state["daemon"]:
            fail(
                COMMAND,
                f"{self.command} failed: cannot connect to the multipass socket\n"
                "Please ensure multipassd is running and '/run/multipass_socket' is accessible",
            )
        fault = self.state["faults"].get(self.command)
        if fault and fault != "initialization":
            fail(TIMEOUT if fault == "client-timer" else COMMAND, FAULTS[fault].format(command=self.command, name=name))

    def refuse(self, *lines: str) -> NoReturn:
        """src/daemon/daemon.cpp, grpc_status_for."""
        text = "\n".join(lines)
        fail(COMMAND, f"{self.command} failed: The following errors occurred:\n{text}")

    def operative(self, name: str) -> dict[str, Any]:
        """src/daemon/daemon.cpp, require_operative_instances_reaction."""
        if name not in self.instances:
            self.refuse(f'instance "{name}" does not exist')
        instance: dict[str, Any] = self.instances[name]
        if instance["state"] == "Deleted":
            self.refuse(f'instance "{name}" is deleted')
        return instance

    def json_format(self, found: dict[str, list[str]]) -> None:
        wanted = found.get("format", ["table"])[-1]
        if wanted not in ("table", "json", "csv", "yaml"):
            fail(COMMAND_LINE, "Invalid format type given.")  # src/client/cli/cmd/common_cli.cpp
        if wanted != "json":
            raise NotImplementedError(f"this stand-in speaks JSON only, not {wanted}")

    def none_but_options(self, positional: list[str]) -> None:
        if positional:
            fail(COMMAND_LINE, "This command takes no arguments")

    # ---------------------------------------------------------------- asking

    def version(self) -> None:
        """src/client/cli/cmd/version.cpp: no daemon, no ``multipassd``, and status 0 all the same."""
        positional, found = self.arguments("format")
        self.none_but_options(positional)
        self.json_format(found)
        told = {"multipass": "1.16.3"}
        if self.state["daemon"] and "version" not in self.state["faults"]:
            told["multipassd"] = "1.16.3"
        print(json.dumps(told, indent=4))

    def networks(self) -> None:
        """src/client/cli/formatter/json_formatter.cpp, format(NetworksReply)."""
        positional, found = self.arguments("format")
        self.none_but_options(positional)
        self.json_format(found)
        self.daemon()
        rows = sorted(self.state["networks"], key=lambda row: row["name"])
        print(json.dumps({"list": [{key: row[key] for key in ("name", "type", "description")} for row in rows]}))

    def list(self) -> None:
        """json_formatter.cpp, generate_instances_list; daemon.cpp, list."""
        positional, found = self.arguments("format", "snapshots no-ipv4")
        self.none_but_options(positional)
        self.json_format(found)
        self.daemon()
        rows = [
            {
                "name": name,
                "state": instance["state"],
                "ipv4": guest.addresses(instance) if instance["state"] == "Running" else [],
                "release": f"Ubuntu {instance['release']}" if instance["release"] else "Not Available",
                "zone": {"name": "zone1", "available": True},
            }
            for name, instance in self.instances.items()
        ]
        print(json.dumps({"list": rows}, indent=4))

    def get(self) -> None:
        """src/client/cli/cmd/get.cpp."""
        positional, _ = self.arguments("", "raw keys")
        if len(positional) > 1:
            fail(COMMAND_LINE, "Need at most one setting key.")
        if not positional or positional[0] not in self.state["settings"]:
            fail(COMMAND_LINE, f"Unrecognized settings key: '{positional[0] if positional else ''}'")
        print(self.state["settings"][positional[0]] or "<empty>")

    # ---------------------------------------------------------------- changing

    def launch(self) -> None:
        """src/client/cli/cmd/launch.cpp, then src/daemon/daemon.cpp, create_vm, in their order."""
        positional, found = self.arguments(
            "c:cpus d:disk m:memory n:name cloud-init network zone mount timeout", "bridged"
        )
        if len(positional) > 1:
            fail(COMMAND_LINE, "Too many arguments supplied")
        last = {key: values[-1] for key, values in found.items() if values}
        cpus = last.get("cpus", "1")
        if not re.fullmatch(r"\s*\d+\s*", cpus) or int(cpus) < 1:
            fail(COMMAND_LINE, f"Error: invalid CPU count '{cpus}', need a positive integer value.")
        for key in ("memory", "disk"):
            if key in last and not _SIZE.match(last[key]):
                fail(
                    COMMAND_LINE,
                    f"[error] [client] Caught an unhandled exception: {last[key]} is not a valid memory size - need a "
                    "non-negative integer (in base 10) or a decimal followed by K, M, or G (e.g. 1234B, 42MiB, 0.5G)",
                )
        user_data = self._cloud_init(last.get("cloud-init", ""))
        networks = [self._network(spec) for spec in found.get("network", [])]
        timeout = last.get("timeout", "300")
        if not timeout.isdigit() or int(timeout) <= 0:
            fail(COMMAND_LINE, "error: --timeout value has to be a positive integer")
        name = last.get("name", "primary-otter")
        self.daemon(name=name)
        self._validate(last, name)
        cards = self._bridges(networks)
        if name in self.instances:
            self.refuse(f'instance "{name}" already exists')
        image = positional[0] if positional else "lts"
        if image not in _RELEASES:
            # include/multipass/exceptions/image_vault_exceptions.h
            fail(COMMAND, f'launch failed: Unable to find an image matching "{image}" in remote "".')
        instance = {
            "state": "Running",
            "release": _RELEASES[image],
            "cpus": int(cpus),
            "memory": last.get("memory", "1G"),
            "disk": last.get("disk", "5G"),
            "cards": cards,
            "user_data": user_data,
        }
        self.instances[name] = instance
        guest.first_boot(FOLDER, name, instance)
        self.save()
        if self.state["faults"].get("launch") == "initialization":
            fail(COMMAND, FAULTS["initialization"])
        print(f"Launched: {name} in zone1")

    def _cloud_init(self, where: str) -> str:
        if not where:
            return ""
        if where != "-" and not Path(where).is_file():
            # the snap sees only what is in the home folder and not hidden (docs/explanation/platform.md)
            fail(
                COMMAND_LINE,
                f"Could not load cloud-init configuration: bad file: {where}\n"
                "Please ensure that Multipass can read it.",
            )
        return sys.stdin.read() if where == "-" else Path(where).read_text()

    @staticmethod
    def _network(spec: str) -> dict[str, str]:
        """launch.cpp, net_digest."""
        network = {"mode": "auto", "mac": "", "name": ""}
        parts = [part for part in spec.split(",") if part]
        for part in parts:
            pair = [half for half in part.split("=") if half]
            if len(pair) == 2:
                key, value = pair[0].lower(), pair[1]
                if key not in network:
                    fail(COMMAND_LINE, f"error: Bad network field: {key}")
                if key == "mode" and value.lower() not in ("auto", "manual"):
                    fail(COMMAND_LINE, f"error: Bad network mode '{value.lower()}', need 'auto' or 'manual'")
                if key == "mac" and not _MAC.match(value):
                    fail(COMMAND_LINE, f"error: Invalid MAC address: {value}")
                network[key] = value
            elif len(pair) == 1 and len(parts) == 1:
                network["name"] = pair[0]
            else:
                fail(COMMAND_LINE, f"error: Bad network field definition: {part}")
        if not network["name"]:
            fail(COMMAND_LINE, "error: Bad network definition, need at least a 'name' field")
        return network

    def _validate(self, last: dict[str, str], name: str) -> None:
        """daemon.cpp, validate_create_arguments; the words of launch.cpp, on_failure."""
        for key, least, word in (("disk", 1 << 30, "disk"), ("memory", 512 << 20, "memory")):
            if key in last and _bytes(last[key]) < least:
                details = f"Invalid {word} size value supplied: {last[key]}."
                fail(COMMAND, f"launch failed: Invalid arguments supplied\n{details}")
        if not _NAME.match(name):
            fail(COMMAND, f"launch failed: Invalid arguments supplied\nInvalid instance name supplied: {name}")

    def _bridges(self, networks: list[dict[str, str]]) -> list[dict[str, str]]:
        """daemon.cpp, validate_extra_interfaces; prompters.cpp, BridgePrompter asks on a terminal only."""
        details = (
            "Invalid network options. To troubleshoot, see "
            "https://canonical.com/multipass/docs/stable/how-to-guides/troubleshoot/"
        )
        for network in networks:
            host = next((row for row in self.state["networks"] if row["name"] == network["name"]), None)
            if host is None:
                fail(COMMAND, f"launch failed: Invalid arguments supplied\n{details}")
            if host.get("needs_authorization"):
                if sys.stdin.isatty() and sys.stdout.isatty():
                    print(
                        f"Multipass needs to create a bridge to connect to {network['name']}.\nThis will temporarily "
                        "disrupt connectivity on that interface.\n\nDo you want to continue (yes/no)? ",
                        end="",
                        flush=True,
                    )
                    if sys.stdin.readline().strip().lower() in ("y", "yes"):
                        continue
                fail(COMMAND, f"launch failed: Missing bridges\n{details}")
        return networks

    def start(self) -> None:
        """src/client/cli/cmd/start.cpp; daemon.cpp, start."""
        positional, _ = self.arguments("timeout", "all")
        for name in positional:
            self.daemon(name=name)
            if name not in self.instances:
                fail(COMMAND, f"start failed: instance(s) missing\nInstance '{name}' does not exist.")
            instance = self.instances[name]
            if instance["state"] == "Deleted":
                fail(
                    COMMAND,
                    f"start failed: instance(s) missing\nInstance '{name}' is deleted. Use 'recover' to recover it or "
                    "'purge' to permanently delete it.",
                )
            if instance["state"] == "Unknown":
                self.refuse(f"Instance '{name}' is already running, but in an unknown state.", "Try to stop it first.")
            instance["state"] = "Running"
            guest.boot(FOLDER, name)
        self.save()

    def stop(self) -> None:
        """src/client/cli/cmd/stop.cpp; daemon.cpp, stop."""
        positional, found = self.arguments("t:time", "all c:cancel force")
        if not positional and "all" not in found:
            fail(COMMAND_LINE, "Name argument or --all is required\nNote: the primary instance is disabled.")
        self.daemon()
        for name in positional:
            instance = self.operative(name)
            if instance["state"] == "Suspended" and "force" not in found:
                # base_virtual_machine.cpp, check_state_for_shutdown
                fail(COMMAND, "stop failed: Cannot shut down suspended instance.\nUse --force to power it off.")
            instance["state"] = "Stopped"
        self.save()

    def delete(self) -> None:
        """src/client/cli/cmd/delete.cpp; daemon.cpp, delet: deleted ones may be purged, too."""
        positional, found = self.arguments("", "all p:purge")
        if not positional and "all" not in found:
            fail(COMMAND_LINE, "Name argument or --all is required")
        self.daemon()
        for name in positional:
            if name not in self.instances:
                self.refuse(f'instance "{name}" does not exist')
            if "purge" in found:
                del self.instances[name]
                shutil.rmtree(FOLDER / "guests" / name)
            else:
                self.instances[name]["state"] = "Deleted"
        self.save()

    # ---------------------------------------------------------------- within it

    def exec(self) -> None:
        """src/client/cli/cmd/exec.cpp: options of the inner command need ``--`` before them."""
        options = "d:working-directory"
        try:
            names = {name: word.split(":")[-1] for word in options.split() for name in word.split(":")}
            flag = "no-map-working-directory"
            positional, _ = parse(self.words, names, {"n": flag, flag: flag})
        except Mistake as error:
            advice = ""
            if "--" not in self.words and "Unknown option" in str(error):
                advice = (
                    '\n\nOptions to the inner command should come after "--", like this:\n'
                    "multipass exec <instance> -- <command> <arguments>"
                )
            fail(COMMAND_LINE, f"{error}{advice}")
        if len(positional) < 2:
            fail(COMMAND_LINE, "Wrong number of arguments")
        self.daemon()
        name, *command = positional
        instance = self.operative(name)
        if instance["state"] != "Running":  # exec.cpp, on_failure: ABORTED starts it
            instance["state"] = "Running"
            guest.boot(FOLDER, name)
            self.save()
        sys.exit(guest.run(FOLDER, name, instance, self.state["guest"], command))

    def shell(self) -> None:
        """src/client/cli/cmd/shell.cpp."""
        positional, _ = self.arguments("timeout")
        if len(positional) > 1:
            fail(COMMAND_LINE, "Too many arguments given")
        self.daemon()
        instance = self.operative(positional[0])
        sys.exit(guest.run(FOLDER, positional[0], instance, self.state["guest"], ["sh"]))

    def transfer(self) -> None:
        """src/client/cli/cmd/transfer.cpp, of a stream to an instance (parse_streaming)."""
        positional, _ = self.arguments("", "r:recursive p:parents")
        if len(positional) < 2:
            fail(COMMAND_LINE, "Not enough arguments given")
        source, target = positional[0], positional[-1]
        name, colon, path = target.partition(":")
        if source != "-":
            raise NotImplementedError("this stand-in takes streams only")
        if len(positional) > 2:
            fail(COMMAND_LINE, "Only two arguments allowed when using '-'")
        if not colon:
            fail(COMMAND_LINE, "Target must be inside an instance")
        self.daemon()
        self.operative(name)
        (guest.root(FOLDER, name) / "home/ubuntu" / path).write_bytes(sys.stdin.buffer.read())


def _bytes(text: str) -> int:
    match = _SIZE.match(text)
    assert match
    scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[(match[3] or "").upper()]
    return int(float(f"{match[1]}.{match[2] or 0}") * scale)


def main() -> None:
    command, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    aliases = {"sh": "shell", "connect": "shell", "copy-files": "transfer", "ls": "list"}
    command = aliases.get(command, command)
    known = ["version", "networks", "list", "get", "launch", "start", "stop", "delete", "exec", "shell", "transfer"]
    if command not in known:
        print(f'Error: Unknown command or alias \'{command}\' (try "multipass help" or "multipass aliases")')
        sys.exit(COMMAND_LINE)
    getattr(Client(command, words), command)()


if __name__ == "__main__":
    main()
