"""The lab's wire: network namespaces on one bridge, with nothing of the host's own network. Needs root.

A `Lab` has one namespace for the netboot server (a bridge ``br0`` that carries its address), one for the LAN's ordinary
router (DHCP by dnsmasq), and one for each client: a bridge ``br0`` without an address that joins its uplink and the tap
``tap0``, so that the player of a boot ROM and the virtual machine which takes over from it share one wire and one MAC.
All addresses are of TEST-NET-1 (RFC 5737).
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.processes import Argument, Program, read_text, run, wait_until

SERVER, ROUTER, NETWORK, LENGTH = "192.0.2.1", "192.0.2.2", "192.0.2.0", 24
FIRST_LEASE, LAST_LEASE = "192.0.2.50", "192.0.2.99"

_PREFIX = "nbtest"
_numbers = itertools.count()


class Lab:
    """One LAN. A context manager: leaving it ends every program started through it and removes the namespaces.

    :param folder: logs of the programs go here
    """

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            raise PermissionError("network namespaces need root: run the tests with sudo")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._stem = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._namespaces: list[str] = []
        self._programs: list[Program] = []
        self._closers: list[Callable[[], object]] = []
        try:
            self.server = self._namespace("server")
            _ip(self.server, "link", "add", "br0", "type", "bridge")
            _ip(self.server, "link", "set", "br0", "up")
            _ip(self.server, "addr", "add", f"{SERVER}/{LENGTH}", "dev", "br0")
            self.router = self._namespace("router")
            self._plug("vrouter", self.router, "eth0")
            _ip(self.router, "addr", "add", f"{ROUTER}/{LENGTH}", "dev", "eth0")
        except BaseException:
            self.close()
            raise

    def client(self, name: str) -> str:
        """A client's namespace: ``br0`` for a boot ROM, ``tap0`` for a virtual machine. `name`: at most 12 letters."""
        namespace = self._namespace(name)
        _ip(namespace, "link", "add", "br0", "type", "bridge")
        self._plug(f"v{name}", namespace, "up0")
        _ip(namespace, "tuntap", "add", "tap0", "mode", "tap")
        for port in ("up0", "tap0"):
            _ip(namespace, "link", "set", port, "master", "br0", "up")
        _ip(namespace, "link", "set", "br0", "up")
        return namespace

    def host(self, name: str, address: str) -> str:
        """The namespace of an ordinary host with a fixed address on ``eth0``. `name`: at most 12 letters."""
        namespace = self._namespace(name)
        self._plug(f"v{name}", namespace, "eth0")
        _ip(namespace, "addr", "add", f"{address}/{LENGTH}", "dev", "eth0")
        return namespace

    def start(
        self,
        namespace: str,
        argv: Sequence[Argument],
        name: str,
        *,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Start a program there; its log is ``<folder>/<name>.log``. It ends with the lab, if not before."""
        program = Program(argv, self.folder / f"{name}.log", namespace=namespace, env=env)
        self._programs.append(program)
        return program

    def on_close(self, closer: Callable[[], object]) -> None:
        """Call this before the programs are ended."""
        self._closers.append(closer)

    def close(self) -> None:
        for closer in reversed(self._closers):
            closer()
        for program in reversed(self._programs):
            program.stop()
        for namespace in reversed(self._namespaces):
            remove_namespace(namespace)
        self._closers, self._programs, self._namespaces = [], [], []

    def set_client_mac(self, namespace: str, mac: str) -> None:
        """Give a client's ``br0`` the MAC of the board whose boot ROM is played; "" gives it one of its own again."""
        _ip(namespace, "link", "set", "br0", "address", mac or "02:00:00:00:00:01")

    def _namespace(self, name: str) -> str:
        namespace = f"{self._stem}-{name}"
        run(["ip", "netns", "add", namespace])
        self._namespaces.append(namespace)
        _ip(namespace, "link", "set", "lo", "up")
        return namespace

    def _plug(self, port: str, namespace: str, interface: str) -> None:
        """Join a namespace to the server's bridge by a virtual cable."""
        _ip(self.server, "link", "add", port, "type", "veth", "peer", "name", interface, "netns", namespace)
        _ip(self.server, "link", "set", port, "master", "br0", "up")
        _ip(namespace, "link", "set", interface, "up")

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Router:
    """The LAN's ordinary DHCP server: dnsmasq in the router's namespace.

    :param lease: as dnsmasq takes it; 2m is the shortest that it grants
    :param tftp_server: what option 66 says; "" leaves the boot information to somebody else (a proxyDHCP)
    :param boot_file: what a boot ROM is to load, for iPXE an URL; "" names none
    """

    def __init__(self, lab: Lab, *, lease: str = "1h", tftp_server: str = SERVER, boot_file: str = "") -> None:
        self._leases = lab.folder / "router.leases"
        argv = [*_DNSMASQ, "--interface=eth0", f"--dhcp-range={FIRST_LEASE},{LAST_LEASE},{lease}"]
        argv += ["--dhcp-authoritative", "--no-ping", f"--dhcp-leasefile={self._leases}"]
        if tftp_server:
            argv.append(f"--dhcp-option=66,{tftp_server}")
        if boot_file:
            argv.append(f"--dhcp-boot={boot_file}")
        self.program = _start_dnsmasq(lab, lab.router, argv, "router")

    def leases(self) -> dict[str, str]:
        """Addresses by MAC, of the leases that run now."""
        rows = [line.split() for line in read_text(self._leases).splitlines()]
        return {row[1].lower(): row[2] for row in rows if len(row) >= 4}

    def messages(self, mac: str) -> list[tuple[str, str]]:
        """What was said about one MAC, oldest first: ("DHCPDISCOVER", ""), ("DHCPACK", "192.0.2.60") and so on."""
        # DHCPREQUEST(eth0) 192.0.2.60 dc:a6:32:00:00:01
        pattern = rf"(DHCP[A-Z]+)\(eth0\) (?:(\d+\.\d+\.\d+\.\d+) )?{re.escape(mac)}"
        return [(match[1], match[2] or "") for match in re.finditer(pattern, self.program.output())]


def start_proxy_dhcp(lab: Lab) -> Program:
    """An ordinary proxyDHCP beside the netboot server that tells a Raspberry Pi to boot from there."""
    argv = [*_DNSMASQ, "--interface=br0", f"--dhcp-range={NETWORK},proxy", "--pxe-service=0,Raspberry Pi Boot   "]
    return _start_dnsmasq(lab, lab.server, argv, "proxy-dhcp")


def _start_dnsmasq(lab: Lab, namespace: str, argv: list[str], name: str) -> Program:
    program = lab.start(namespace, argv, name)
    wait_until(lambda: "sockets bound" in program.output(), f"start of dnsmasq ({name})", alive=[program])
    return program


_DNSMASQ = (
    *("dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null", "--bind-interfaces"),
    *("--user=root", "--pid-file=", "--log-facility=-"),
)


def remove_namespace(namespace: str) -> None:
    """End what is left in a namespace of ours, and remove it."""
    for pid in run(["ip", "netns", "pids", namespace], check=False).stdout.split():
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            pass
    run(["ip", "netns", "del", namespace], check=False)


def sweep() -> list[str]:
    """Remove the namespaces of test runs that died without cleaning up; their names."""
    removed = []
    for line in run(["ip", "netns", "list"], check=False).stdout.splitlines():
        match = re.match(rf"({_PREFIX}-(\d+)-\S+)", line)
        if match and not Path("/proc", match[2]).exists():
            remove_namespace(match[1])
            removed.append(match[1])
    return removed


def _ip(namespace: str, *words: str) -> None:
    run(["ip", "-n", namespace, *words])


if __name__ == "__main__":
    for name in sweep():
        print(f"removed the namespace {name} of a test run that died", file=sys.stderr)
