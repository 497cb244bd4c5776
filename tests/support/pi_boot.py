"""Plays a Raspberry Pi 4's network boot: DHCP (optional), then TFTP as the EEPROM and start4.elf do it.

As a program, since it runs in the client's namespace::

    python -m tests.support.pi_boot OUT --serial SERIAL --server ADDR [--port 6969]     TFTP only, needs no root
    python -m tests.support.pi_boot OUT --serial SERIAL --dhcp br0                      DHCP as PXEClient first

OUT/files/ holds everything that was read, under the names asked for; OUT/summary.json says what was asked, missed and
read (size, sha256, seconds), what config.txt came to, and which files would be started with which command line.

The wire behaviour follows what public sources say of the real one: options ``tsize 0`` and ``blksize``, no
``windowsize``; a new source port for each request; probe-and-abort (take the OACK, send ERROR 0, ask again from the
next port) before most files; optional files asked for and missed; the prefix dropped when it holds no start4.elf or
start.elf. Left out: running start4.elf (any non-empty file will do), applying overlays, EEPROM updates, IPv6. It shares
no code with the product, so that a misreading of config.txt shows.

Exit status: 0 a kernel and all that belongs to it was read; 2 not.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG_LIMIT = 98
"""Characters that the firmware reads of one line of config.txt."""

_LOSS_RETRIES = 5
_RETRY_SECONDS = 1.0


class BootError(Exception):
    """The boot ends here."""


class Missing(Exception):
    """The TFTP server answered with ERROR."""


# ---------------------------------------------------------------- TFTP


class Tftp:
    """A TFTP client with a Pi's habits (RFC 1350, 2347 to 2349).

    :param file_timeout: seconds for one whole file (the EEPROM's TFTP_FILE_TIMEOUT)
    """

    def __init__(self, server: str, port: int, source: str, blksize: int, file_timeout: float) -> None:
        self.server, self.port, self.source = server, port, source
        self.blksize, self.file_timeout = blksize, file_timeout
        self.requests = 0
        self._next_port = random.randrange(49152, 60000)

    def probe(self, name: str) -> int | None:
        """The file's size as the OACK tells it, None where the server knows no tsize; then the transfer is aborted."""
        size, _ = self._transfer(name, probe=True)
        return size

    def read(self, name: str) -> bytes:
        """The whole file."""
        _, data = self._transfer(name, probe=False)
        return data

    def _transfer(self, name: str, *, probe: bool) -> tuple[int | None, bytes]:
        self.requests += 1
        start = time.monotonic()
        request = b"\0\1" + os.fsencode(name) + b"\0octet\0tsize\0" + b"0\0"
        if self.blksize != 512:
            request += b"blksize\0" + str(self.blksize).encode() + b"\0"
        with self._socket() as sock:
            last, peer = (request, (self.server, self.port)), None
            blksize, tsize, block, tries = 512, None, 0, 0
            data = bytearray()
            sock.sendto(*last)
            while True:
                if time.monotonic() - start > self.file_timeout:
                    raise BootError(f"{name}: not read within {self.file_timeout:.0f} s")
                if not select.select([sock], [], [], _RETRY_SECONDS)[0]:
                    tries += 1
                    if tries > _LOSS_RETRIES:
                        raise BootError(f"{name}: no answer from {self.server}")
                    sock.sendto(*last)
                    continue
                packet, sender = sock.recvfrom(65536)
                if sender[0] != self.server or (peer and sender != peer) or len(packet) < 4:
                    continue
                opcode, number = struct.unpack_from(">HH", packet)
                if opcode == 5:
                    raise Missing(number, packet[4:].split(b"\0")[0].decode(errors="replace"))
                if opcode == 6 and peer is None:
                    words = [word.decode() for word in packet[2:].split(b"\0")]
                    options = dict(zip((word.lower() for word in words[::2]), words[1::2], strict=False))
                    peer, blksize = sender, int(options.get("blksize", "512"))
                    tsize = int(options["tsize"]) if "tsize" in options else None
                    if blksize > self.blksize:
                        raise BootError(f"{name}: the server raised blksize to {blksize}")
                    if probe:
                        sock.sendto(b"\0\5\0\0Early terminate\0", peer)
                        return tsize, b""
                    last = (b"\0\4\0\0", peer)
                    sock.sendto(*last)
                elif opcode == 3:
                    peer = sender
                    if probe:  # a server without options
                        sock.sendto(b"\0\5\0\0Early terminate\0", peer)
                        return None, b""
                    if number == (block + 1) & 0xFFFF:
                        tries, block = 0, block + 1
                        data += packet[4:]
                        last = (struct.pack(">HH", 4, number), peer)
                        sock.sendto(*last)
                        if len(packet) - 4 < blksize:
                            if tsize is not None and tsize != len(data):
                                raise BootError(f"{name}: tsize said {tsize}, got {len(data)} bytes")
                            return tsize, bytes(data)
                    elif number == block & 0xFFFF:
                        sock.sendto(*last)

    def _socket(self) -> socket.socket:
        """Bound to the next port after that of the request before."""
        for _ in range(100):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._next_port = 49152 if self._next_port >= 65535 else self._next_port + 1
            try:
                sock.bind((self.source, self._next_port))
            except OSError as error:
                sock.close()
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return sock
        raise BootError("no free source port")


# ---------------------------------------------------------------- DHCP


@dataclass(frozen=True, slots=True)
class Lease:
    """An address, and the TFTP server that came with it or from a proxyDHCP beside it."""

    address: str
    length: int
    server: str
    dhcp_server: str
    boot_server_from: str
    proxy: bool


@dataclass(frozen=True, slots=True)
class _Reply:
    sender: str
    address: str
    next_server: str
    options: dict[int, bytes]

    @property
    def leases(self) -> bool:
        return self.address != "0.0.0.0"

    @property
    def is_for_pi(self) -> bool:
        return b"Raspberry Pi Boot" in self.options.get(43, b"")

    @property
    def tftp_server(self) -> str:
        text = self.options.get(66, b"").rstrip(b"\0").decode(errors="replace")
        if re.fullmatch(r"\d+(\.\d+){3}", text):
            return text
        if not self.is_for_pi:  # any DHCP server names itself as the next server: that says nothing
            return ""
        if self.next_server != "0.0.0.0":
            return self.next_server
        # dnsmasq's proxy offer with only a pxe-service names no next server: take its server id (a guess)
        return socket.inet_ntoa(self.options[54]) if len(self.options.get(54, b"")) == 4 else ""


def ask_dhcp(interface: str, mac: bytes, serial: str, revision: int, wait: float, log: Callable[[str], None]) -> Lease:
    """DISCOVER, OFFER, REQUEST, ACK on `interface` as a Pi 4 does it; `wait` seconds are given to the offers."""
    # option 97 of a Pi 4: "RPi4", board revision, low 4 bytes of the MAC, low 4 bytes of the serial
    guid = b"RPi4" + struct.pack("<I", revision) + mac[2:] + bytes.fromhex(serial[-8:])[::-1]
    xid = random.getrandbits(32)
    options = {
        93: b"\0\0",
        94: b"\1\2\1",
        97: b"\0" + guid,
        60: b"PXEClient:Arch:00000:UNDI:002001",
        55: bytes([1, 3, 43, 60, 66, 67, 128, 129, 130, 131, 132, 133, 134, 135]),
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        sock.bind(("", 68))
        for _ in range(6):
            _send_dhcp(sock, xid, mac, {53: b"\1", **options})
            offers = _replies(sock, xid, mac, 2, wait, _enough_to_boot)
            lease = next((r for r in offers if r.leases), None)
            boot = next((r for r in offers if r.is_for_pi and r.tftp_server), None)
            boot = boot or (lease if lease and lease.tftp_server else None)
            for r in offers:
                log(f"offer of {r.sender}: address {r.address}, TFTP {r.tftp_server or '-'}, for a Pi {r.is_for_pi}")
            if lease and boot and _acknowledged(sock, xid, mac, lease, options, log):
                break
        else:
            raise BootError("no lease, or no offer that names a TFTP server")
    mask = lease.options.get(1, b"\xff\xff\xff\0")
    length = int.from_bytes(mask).bit_count()
    return Lease(lease.address, length, boot.tftp_server, lease.sender, boot.sender, boot is not lease)


def _acknowledged(
    sock: socket.socket,
    xid: int,
    mac: bytes,
    lease: _Reply,
    options: dict[int, bytes],
    log: Callable[[str], None],
) -> bool:
    """Ask for an address that was offered. If not, one begins anew (RFC 2131, section 3.1, step 5): of boards that are
    switched on together two may be offered the same one, and only the first to ask has it.
    """
    request = {53: b"\3", 50: socket.inet_aton(lease.address), 54: lease.options.get(54, bytes(4))}
    _send_dhcp(sock, xid, mac, {**request, **options})
    if _replies(sock, xid, mac, 5, 4, lambda found: any(r.address == lease.address for r in found)):
        return True
    log(f"{lease.address} was not acknowledged")
    return False


def _enough_to_boot(offers: list[_Reply]) -> bool:
    """An address and a TFTP server, be it from one offer or from two."""
    return any(r.leases for r in offers) and any(r.tftp_server and (r.leases or r.is_for_pi) for r in offers)


def _send_dhcp(sock: socket.socket, xid: int, mac: bytes, options: dict[int, bytes]) -> None:
    packet = struct.pack(">4BIHH16x", 1, 1, 6, 0, xid, 0, 0x8000) + mac.ljust(16, b"\0") + bytes(192)
    packet += b"\x63\x82\x53\x63" + b"".join(bytes([k, len(v)]) + v for k, v in options.items()) + b"\xff"
    sock.sendto(packet.ljust(300, b"\0"), ("255.255.255.255", 67))


def _replies(
    sock: socket.socket, xid: int, mac: bytes, kind: int, wait: float, enough: Callable[[list[_Reply]], bool]
) -> list[_Reply]:
    """The replies of message type `kind` that come within `wait` seconds, or until there are enough."""
    found: list[_Reply] = []
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0 and not enough(found):
        if not select.select([sock], [], [], left)[0]:
            break
        packet, sender = sock.recvfrom(4096)
        if len(packet) < 240 or packet[0] != 2 or struct.unpack_from(">I", packet, 4)[0] != xid or packet[28:34] != mac:
            continue
        options = _dhcp_options(packet)
        if options.get(53) == bytes([kind]):
            found.append(_Reply(sender[0], socket.inet_ntoa(packet[16:20]), socket.inet_ntoa(packet[20:24]), options))
    return found


def _dhcp_options(packet: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 240
    while at < len(packet) and packet[at] != 255:
        if packet[at] == 0:
            at += 1
            continue
        code, length = packet[at], packet[at + 1]
        options[code] = options.get(code, b"") + packet[at + 2 : at + 2 + length]
        at += 2 + length
    return options


# ---------------------------------------------------------------- config.txt


@dataclass(slots=True)
class Config:
    """What config.txt comes to for one board: `settings` by key (the last wins), overlays, initramfs files."""

    settings: dict[str, str] = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)
    initramfs: list[str] = field(default_factory=list)

    def get(self, key: str, default: str = "") -> str:
        return self.settings.get(key, default)


def parse_config(text: str, filters: set[str], include: Callable[[str], str], into: Config | None = None) -> Config:
    """Read config.txt as start4.elf does, for a board that the conditional `filters` apply to."""
    config, active = into or Config(), True
    for raw in text.splitlines():
        line = raw[:CONFIG_LIMIT].split("#", 1)[0].strip()
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1].strip().lower()
            active = name == "all" or (name != "none" and name in filters)
            continue
        if not active or not line:
            continue
        words = line.split()
        if words[0] == "include" and len(words) == 2:
            parse_config(include(words[1]), filters, include, config)
        elif words[0] == "initramfs" and len(words) >= 2:
            config.initramfs = [name for name in words[1].split(",") if name]
        elif "=" in line:
            key, value = (part.strip() for part in line.split("=", 1))
            if key == "dtoverlay":
                config.overlays.append(value)
            elif key == "ramfsfile":
                config.initramfs = [name for name in value.split(",") if name]
            else:
                config.settings[key] = value
    return config


# ---------------------------------------------------------------- the boot


@dataclass(frozen=True, slots=True)
class Loaded:
    """What lies in memory when the firmware jumps to the kernel; names as asked for, without the prefix."""

    kernel: str
    initramfs: list[str]
    cmdline: str
    config: Config


class Pi4:
    """The order in which a Pi 4 asks for its files."""

    device_tree = "bcm2711-rpi-4-b.dtb"

    def __init__(self, tftp: Tftp, out: Path, serial: str, prefix: str, log: Callable[[str], None]) -> None:
        self._tftp, self._out, self._log = tftp, out, log
        self._filters = {"pi4", f"0x{serial[-8:]}"}
        self.prefix, self.probes = prefix, 0
        self.files: list[dict[str, Any]] = []
        self.misses: list[str] = []
        self.paths: dict[str, Path] = {}

    def boot(self) -> Loaded:
        """Both stages. :raises BootError: something is missing without which there is no boot"""
        self._eeprom()
        return self._start4()

    def _eeprom(self) -> None:
        for prefix in dict.fromkeys((self.prefix, "")):
            self.prefix = prefix
            start = next((name for name in ("start4.elf", "start.elf") if self._probe(name)), "")
            if start:
                break
        else:
            raise BootError("no start4.elf or start.elf, with or without the prefix")
        config = self._config(probe=False)
        self._miss("vl805.sig", "pieeprom.sig", "recover4.elf", "recovery.elf")
        start = config.get("start_file", start)
        if not self._read(start):
            raise BootError(f"no {start}")
        self._read(config.get("fixup_file", start.replace("start", "fixup").replace(".elf", ".dat")))

    def _start4(self) -> Loaded:
        self._miss("recovery.elf")
        self._config()
        self._miss("dt-blob.bin", "recovery.elf")
        config = self._config()
        self._miss("bootcfg.txt")
        os_prefix = config.get("os_prefix")
        cmdline = self._read(os_prefix + config.get("cmdline", "cmdline.txt"), probe=True)
        if os_prefix and "kernel" not in config.settings and not self._probe(os_prefix + "kernel8.img"):
            os_prefix = ""  # the firmware drops a prefix that holds no kernel
        self._miss("recovery8.img", "recovery8-32.img", "recovery7l.img", "recovery7.img", "recovery.img")
        self._miss("armstub8-gic.bin")
        kernels = [config.get("kernel")]
        if "kernel" not in config.settings:
            kernels = [*(["kernel8.img"] if config.get("arm_64bit", "1") != "0" else []), "kernel7l.img", "kernel7.img"]
            self._miss("kernel8-32.img")
        initramfs = [os_prefix + name for name in config.initramfs if self._read(os_prefix + name, probe=True)]
        kernel = next((os_prefix + name for name in kernels if self._read(os_prefix + name, probe=True)), "")
        if not kernel:
            raise BootError("no kernel: " + ", ".join(os_prefix + name for name in kernels))
        if config.get("auto_initramfs") == "1" and not initramfs:
            name = os_prefix + Path(kernel).name.replace("kernel", "initramfs").removesuffix(".img")
            initramfs = [name] if self._read(name, probe=True) else []
        self._device_tree(config, os_prefix)
        line = (cmdline or b"").decode(errors="replace").split("\n")[0].strip()
        return Loaded(kernel, initramfs, line, config)

    def _device_tree(self, config: Config, os_prefix: str) -> None:
        self._read(os_prefix + config.get("device_tree", self.device_tree), probe=True)
        folder = config.get("overlay_prefix", "overlays/")
        if os_prefix and self._probe(os_prefix + folder + "README"):
            folder = os_prefix + folder
        self._read(folder + "overlay_map.dtb", probe=True)
        for name in dict.fromkeys(re.split("[,:]", overlay)[0].strip() for overlay in config.overlays):
            if name:
                self._read(f"{folder}{name}.dtbo", probe=True)

    def _config(self, *, probe: bool = True) -> Config:
        def text(name: str, probe: bool = False) -> str:
            return (self._read(name, probe=probe) or b"").decode(errors="replace")

        return parse_config(text("config.txt", probe), self._filters, text)

    def _probe(self, name: str) -> bool:
        self.probes += 1
        try:
            self._tftp.probe(self.prefix + name)
        except Missing:
            self.misses.append(self.prefix + name)
            return False
        return True

    def _read(self, name: str, *, probe: bool = False) -> bytes | None:
        """The file, or None where the server has none. `probe`: ask for its size first, and abort."""
        if probe and not self._probe(name):
            return None
        start, asked = time.monotonic(), self.prefix + name
        try:
            data = self._tftp.read(asked)
        except Missing:
            self.misses.append(asked)
            return None
        seconds = time.monotonic() - start
        path = self._out / "files" / Path(*[part for part in Path(asked).parts if part not in ("..", "/")])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self.files.append({"name": asked, "size": len(data), "sha256": digest, "seconds": round(seconds, 3)})
        self.paths[name] = path
        self._log(f"got {asked}, {len(data)} bytes in {seconds:.2f} s")
        return data

    def _miss(self, *names: str) -> None:
        """Ask for files that are mostly not there."""
        for name in names:
            self._read(name)


def boot(arguments: argparse.Namespace, log: Callable[[str], None]) -> dict[str, Any]:
    """The whole boot, as the summary that goes to summary.json."""
    summary: dict[str, Any] = {"serial": arguments.serial, "mac": arguments.mac, "ok": False}
    mac = bytes.fromhex(arguments.mac.replace(":", ""))
    prefixes = {"serial": arguments.serial[-8:] + "/", "mac": arguments.mac.lower().replace(":", "-") + "/", "none": ""}
    prefix = prefixes.get(arguments.prefix, arguments.prefix)
    lease: Lease | None = None
    try:
        if arguments.dhcp:
            lease = ask_dhcp(arguments.dhcp, mac, arguments.serial, arguments.revision, arguments.offer_wait, log)
            summary["dhcp"] = {name: getattr(lease, name) for name in Lease.__slots__}
            log(f"lease {lease.address}/{lease.length}, TFTP server {lease.server}")
            _ip("addr", "add", f"{lease.address}/{lease.length}", "dev", arguments.dhcp)
        server = lease.server if lease else arguments.server
        source = arguments.source or (lease.address if lease else "")
        tftp = Tftp(server, arguments.port, source, arguments.blksize, arguments.file_timeout)
        pi = Pi4(tftp, arguments.out, arguments.serial, prefix, log)
        start = time.monotonic()
        try:
            loaded = pi.boot()
        finally:
            summary |= {"server": server, "prefix": pi.prefix, "requests": tftp.requests, "probes": pi.probes}
            summary |= {"misses": pi.misses, "files": pi.files, "seconds": round(time.monotonic() - start, 3)}
        summary |= {"cmdline": loaded.cmdline, "config": loaded.config.settings, "overlays": loaded.config.overlays}
        summary |= {"kernel": str(pi.paths[loaded.kernel])}
        if loaded.initramfs:  # several lie in memory one after the other
            initramfs = arguments.out / "initramfs"
            initramfs.write_bytes(b"".join(pi.paths[name].read_bytes() for name in loaded.initramfs))
            summary["initramfs"] = str(initramfs)
        summary["ok"] = True
    except BootError as error:
        summary["error"] = str(error)
        log(f"no boot: {error}")
    finally:
        if lease:
            _ip("addr", "del", f"{lease.address}/{lease.length}", "dev", arguments.dhcp)
    return summary


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for files/ and summary.json")
    parser.add_argument("--serial", default="10000000a1b2c3d4", type=str.lower, help="8 to 16 hex digits")
    parser.add_argument("--mac", default="dc:a6:32:00:00:01")
    parser.add_argument("--revision", type=lambda text: int(text, 16), default=0xC03111, help="of the board, hex")
    parser.add_argument("--prefix", default="serial", help="serial, mac, none or a literal path (serial)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--server", help="TFTP server; no DHCP")
    where.add_argument("--dhcp", metavar="IFACE", help="ask DHCP there, and keep the lease on it while TFTP runs")
    parser.add_argument("--port", type=int, default=69)
    parser.add_argument("--source", default="", help="source address for TFTP")
    parser.add_argument("--offer-wait", type=float, default=3, help="seconds to wait for offers (3)")
    parser.add_argument("--blksize", type=int, default=1468, help="1468; older EEPROMs 1024")
    parser.add_argument("--file-timeout", type=float, default=30, help="seconds for one file (30)")
    arguments = parser.parse_args()
    if not re.fullmatch(r"[0-9a-f]{8,16}", arguments.serial):
        parser.error("--serial: 8 to 16 hex digits")
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - start:7.2f} {text}", flush=True)

    summary = boot(arguments, log)
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return 0 if summary["ok"] else 2


if __name__ == "__main__":
    sys.exit(main())
