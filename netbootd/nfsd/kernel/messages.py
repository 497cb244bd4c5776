"""Generic netlink messages of the family ``nfsd``, as pyroute2 classes.

From the kernel's specification, Documentation/netlink/specs/nfsd.yaml, and include/uapi/linux/nfsd_netlink.h. Linux
6.10 has threads, versions, listeners and rpc-status, 6.11 the pool mode. Attributes that hold attributes need
NLA_F_NESTED, or the kernel answers EINVAL; where the specification says ``multi-attr``, an attribute is there once for
each value.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
import struct

from pyroute2.netlink import NLA_F_NESTED, genlmsg, nla

FAMILY = "nfsd"
FAMILY_VERSION = 1


class Command(enum.IntEnum):
    """What is asked for: the operations of the specification, in its order."""

    RPC_STATUS_GET = 1
    THREADS_SET = 2
    THREADS_GET = 3
    VERSION_SET = 4
    VERSION_GET = 5
    LISTENER_SET = 6
    LISTENER_GET = 7
    POOL_MODE_SET = 8
    POOL_MODE_GET = 9


class rpc_status(genlmsg):  # noqa: N801 - pyroute2 finds nested classes by such names
    """One call that is being answered (a dump gives one message each). Addresses are there by the family in use."""

    prefix = "NFSD_A_RPC_STATUS_"
    nla_map = (
        ("NFSD_A_RPC_STATUS_UNSPEC", "none"),
        ("NFSD_A_RPC_STATUS_XID", "be32"),
        ("NFSD_A_RPC_STATUS_FLAGS", "uint32"),
        ("NFSD_A_RPC_STATUS_PROG", "uint32"),
        ("NFSD_A_RPC_STATUS_VERSION", "uint8"),
        ("NFSD_A_RPC_STATUS_PROC", "uint32"),
        ("NFSD_A_RPC_STATUS_SERVICE_TIME", "int64"),
        ("NFSD_A_RPC_STATUS_PAD", "hex"),
        ("NFSD_A_RPC_STATUS_SADDR4", "ip4addr"),
        ("NFSD_A_RPC_STATUS_DADDR4", "ip4addr"),
        ("NFSD_A_RPC_STATUS_SADDR6", "ip6addr"),
        ("NFSD_A_RPC_STATUS_DADDR6", "ip6addr"),
        ("NFSD_A_RPC_STATUS_SPORT", "be16"),
        ("NFSD_A_RPC_STATUS_DPORT", "be16"),
        ("NFSD_A_RPC_STATUS_COMPOUND_OPS", "uint32"),
    )


class server(genlmsg):  # noqa: N801
    """threads: of each pool its number; times in seconds; scope names the server to NFSv4 clients."""

    prefix = "NFSD_A_SERVER_"
    nla_map = (
        ("NFSD_A_SERVER_UNSPEC", "none"),
        ("NFSD_A_SERVER_THREADS", "uint32"),
        ("NFSD_A_SERVER_GRACETIME", "uint32"),
        ("NFSD_A_SERVER_LEASETIME", "uint32"),
        ("NFSD_A_SERVER_SCOPE", "asciiz"),
    )


class server_proto(genlmsg):  # noqa: N801
    """versions: those that this kernel has; `enabled` is a flag, present or not."""

    prefix = "NFSD_A_SERVER_PROTO_"
    nla_map = (("NFSD_A_SERVER_PROTO_UNSPEC", "none"), ("NFSD_A_SERVER_PROTO_VERSION", "version"))

    class version(nla):  # noqa: N801
        """One version of the protocol."""

        prefix = "NFSD_A_VERSION_"
        nla_map = (
            ("NFSD_A_VERSION_UNSPEC", "none"),
            ("NFSD_A_VERSION_MAJOR", "uint32"),
            ("NFSD_A_VERSION_MINOR", "uint32"),
            ("NFSD_A_VERSION_ENABLED", "flag"),
        )


class server_sock(genlmsg):  # noqa: N801
    """listeners: `NFSD_A_SOCK_ADDR` is a sockaddr_storage, see `pack_address`."""

    prefix = "NFSD_A_SERVER_SOCK_"
    nla_map = (("NFSD_A_SERVER_SOCK_UNSPEC", "none"), ("NFSD_A_SERVER_SOCK_ADDR", "sock"))

    class sock(nla):  # noqa: N801
        """One socket: its address and its transport's name, such as ``tcp``."""

        prefix = "NFSD_A_SOCK_"
        nla_map = (
            ("NFSD_A_SOCK_UNSPEC", "none"),
            ("NFSD_A_SOCK_ADDR", "cdata"),
            ("NFSD_A_SOCK_TRANSPORT_NAME", "asciiz"),
        )


class pool_mode(genlmsg):  # noqa: N801
    """How threads are put into pools: ``auto``, ``global``, ``percpu`` or ``pernode``."""

    prefix = "NFSD_A_POOL_MODE_"
    nla_map = (
        ("NFSD_A_POOL_MODE_UNSPEC", "none"),
        ("NFSD_A_POOL_MODE_MODE", "asciiz"),
        ("NFSD_A_POOL_MODE_NPOOLS", "uint32"),
    )


ANSWERS: dict[Command, type[genlmsg]] = {
    Command.RPC_STATUS_GET: rpc_status,
    Command.THREADS_SET: server,
    Command.THREADS_GET: server,
    Command.VERSION_SET: server_proto,
    Command.VERSION_GET: server_proto,
    Command.LISTENER_SET: server_sock,
    Command.LISTENER_GET: server_sock,
    Command.POOL_MODE_SET: pool_mode,
    Command.POOL_MODE_GET: pool_mode,
}
"""The class of each command's messages, both ways."""


def message(command: Command) -> genlmsg:
    """An empty request."""
    made = ANSWERS[command]()
    made["cmd"] = int(command)
    made["version"] = FAMILY_VERSION
    return made


def threads_set(counts: list[int], *, grace: int | None = None) -> genlmsg:
    """Ask for so many threads in each pool (one number: the kernel divides it); `grace`: NFSv4's, in seconds."""
    made = message(Command.THREADS_SET)
    made["attrs"] = [("NFSD_A_SERVER_THREADS", count) for count in counts]
    if grace is not None:
        made["attrs"].append(("NFSD_A_SERVER_GRACETIME", grace))
    return made


def version_set(enabled: list[tuple[int, int]]) -> genlmsg:
    """Enable exactly these (major, minor)."""
    made = message(Command.VERSION_SET)
    for major, minor in enabled:
        inner = [("NFSD_A_VERSION_MAJOR", major), ("NFSD_A_VERSION_MINOR", minor), ("NFSD_A_VERSION_ENABLED", None)]
        made["attrs"].append(("NFSD_A_SERVER_PROTO_VERSION", {"attrs": inner}, NLA_F_NESTED))
    return made


def listener_set(listeners: list[tuple[str, str, int]]) -> genlmsg:
    """Listen at exactly these (transport, address, port)."""
    made = message(Command.LISTENER_SET)
    for transport, address, port in listeners:
        inner = [("NFSD_A_SOCK_ADDR", pack_address(address, port)), ("NFSD_A_SOCK_TRANSPORT_NAME", transport)]
        made["attrs"].append(("NFSD_A_SERVER_SOCK_ADDR", {"attrs": inner}, NLA_F_NESTED))
    return made


def pool_mode_set(mode: str) -> genlmsg:
    """Put threads into pools by `mode`."""
    made = message(Command.POOL_MODE_SET)
    made["attrs"] = [("NFSD_A_POOL_MODE_MODE", mode)]
    return made


_STORAGE = 128
_IPV4 = struct.Struct("=H2s4s")
_IPV6 = struct.Struct("=H2sI16sI")


def pack_address(address: str, port: int) -> bytes:
    """A sockaddr_storage (socket(7)): the family in the machine's byte order, port and address in the network's."""
    ip = ipaddress.ip_address(address)
    network_port = port.to_bytes(2, "big")
    if ip.version == 4:
        return _IPV4.pack(socket.AF_INET, network_port, ip.packed).ljust(_STORAGE, b"\0")
    return _IPV6.pack(socket.AF_INET6, network_port, 0, ip.packed, 0).ljust(_STORAGE, b"\0")


def unpack_address(data: bytes) -> tuple[str, int]:
    """Address and port of a sockaddr; another family than IP's is ("", 0)."""
    if len(data) >= _IPV6.size:
        family, port, _, packed, _ = _IPV6.unpack_from(data)
        if family == socket.AF_INET6:
            return str(ipaddress.ip_address(packed)), int.from_bytes(port, "big")
    if len(data) >= _IPV4.size:
        family, port, packed = _IPV4.unpack_from(data)
        if family == socket.AF_INET:
            return str(ipaddress.ip_address(packed)), int.from_bytes(port, "big")
    return "", 0
