"""Talking to systemd without its library: readiness, watchdog, inherited sockets (sd_notify(3), sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import time

_FIRST_FD = 3


def notify(state: str) -> None:
    """Tell the service manager something, such as ``READY=1``; does nothing where none listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            return


def notify_reloading() -> None:
    """Tell the service manager that a reload begins; `notify("READY=1")` ends it (sd_notify(3), Type=notify-reload)."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_seconds() -> float | None:
    """How often `notify("WATCHDOG=1")` has to be said at the latest, None where no watchdog is set."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6


def inherited_sockets() -> dict[str, list[socket.socket]]:
    """Sockets that systemd has opened for us, by the name of their socket unit (FileDescriptorName=)."""
    if os.environ.get("LISTEN_PID", "") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0") or 0)
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for index in range(count):
        os.set_inheritable(_FIRST_FD + index, False)
        name = names[index] if index < len(names) else "unknown"
        found.setdefault(name, []).append(socket.socket(fileno=_FIRST_FD + index))
    return found
