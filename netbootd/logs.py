"""Logging: one sentence a record, its context as fields; to a console, as JSON lines, or to the journal.

Context is given as ``extra={"fields": {"NODE": "valar-0", "PATH": "cmdline.txt"}}``. The console shows the sentence
alone, JSON and the journal keep the fields (journal native protocol: systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
from typing import Any

from netbootd.errors import HostError

_JOURNAL_SOCKET = "/run/systemd/journal/socket"
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The context that a record carries, upper-case keys to values."""
    fields = getattr(record, "fields", None)
    return {key: value for key, value in fields.items() if value not in ("", None)} if isinstance(fields, dict) else {}


def printable(text: str) -> str:
    """A text in which nothing drives a terminal: control characters are escaped, but for the ends of lines.

    Names in images and what servers say come into sentences; quoted or not, they are only letters there.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class ConsoleFormatter(logging.Formatter):
    """``12:34:56 warning sentence`` for people; INFO is not named."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        text = printable(super().format(record))
        if record.levelno == logging.INFO:
            return text
        head, _, rest = text.partition(" ")
        return f"{head} {record.levelname.lower()}: {rest}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields in lower case."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        row: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        row.update({key.lower(): value for key, value in fields_of(record).items()})
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


class JournalHandler(logging.Handler):
    """Sends records to systemd's journal with their fields."""

    def __init__(self) -> None:
        """Connect to the journal.

        :raises HostError: this host has none
        """
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(_JOURNAL_SOCKET)
        except OSError as error:
            self._socket.close()
            raise HostError(
                f"Opening the journal {_JOURNAL_SOCKET}: {error.strerror or error}.",
                hint="Use --log-format text or json where systemd does not run.",
            ) from error

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            message = record.getMessage()
            if record.exc_info:
                message += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
            fields = {
                "MESSAGE": message,
                "PRIORITY": _PRIORITY.get(record.levelno, 6),
                "SYSLOG_IDENTIFIER": "netbootd",
                "LOGGER": record.name,
                **fields_of(record),
            }
            self._socket.send(b"".join(_journal_field(key, str(value)) for key, value in fields.items()))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """See `logging.Handler`."""
        self._socket.close()
        super().close()


def _journal_field(key: str, value: str) -> bytes:
    name, data = key.encode(), value.encode("utf-8", "surrogateescape")
    if b"\n" not in data:
        return name + b"=" + data + b"\n"
    return name + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def setup(style: str, verbosity: int) -> None:
    """Send the program's log to stderr or the journal.

    :param style: ``auto`` (the journal when stderr is connected to it, else text), ``text``, ``json`` or ``journal``
    :param verbosity: -1 warnings only, 0 what matters, 1 and more: debug
    """
    if style == "auto":
        style = "journal" if _stderr_is_journal() else "text"
    handler: logging.Handler
    if style == "journal":
        handler = JournalHandler()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG
    root.setLevel(logging.WARNING)  # libraries speak up only when something is wrong
    logging.getLogger("netbootd").setLevel(level)


def _stderr_is_journal() -> bool:
    """Whether stderr is the journal's stream (``JOURNAL_STREAM`` names its device and inode, see sd-daemon)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return device == str(status.st_dev) and inode == str(status.st_ino)
