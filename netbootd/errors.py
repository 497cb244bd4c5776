"""Every error a user can meet: what went wrong, what to try, and the exit status of the command.

The exit statuses are those of the operator's contract (docs/reference/exit-status.md). An error that means what a
built-in exception means inherits it too, so that callers may catch either. Only the command line turns an error into
an exit; a server turns it into its protocol's own word by the tables in tftpd, httpd and nfsd.
"""

from __future__ import annotations

from collections.abc import Iterable


class NetbootdError(Exception):
    """An expected failure.

    :param message: one sentence that says what was being done, to what, and why it failed
    :param hint: what to try, one sentence, may be empty
    :param details: further lines (for example every fault of a configuration)
    """

    code = "internal"
    exit_status = 1

    def __init__(self, message: str, *, hint: str = "", details: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    def __str__(self) -> str:
        return self.message

    def paragraph(self) -> str:
        """The whole error as shown to a person: message, details, hint."""
        lines = [self.message, *(f"  {detail}" for detail in self.details)]
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)


class UsageError(NetbootdError):
    """The command was called with arguments that do not go together."""

    code = "usage"
    exit_status = 2


class ConfigError(NetbootdError):
    """netbootd.toml or a cloud-init document is faulty; `details` has one line a fault."""

    code = "config"
    exit_status = 3


class HostError(NetbootdError, OSError):
    """This host can't: a port is taken, a right is missing, a disk is full, an attribute can't be kept."""

    code = "host"
    exit_status = 4


class NetworkError(NetbootdError, ConnectionError):
    """A server could not be reached, or did not give what was asked for."""

    code = "network"
    exit_status = 5


class VerificationError(NetbootdError):
    """A digest or a signature does not match, or there is none where one is needed."""

    code = "verification"
    exit_status = 6


class FormatError(NetbootdError, ValueError):
    """An image, archive or file is broken, hostile, or of a kind that is not supported."""

    code = "format"
    exit_status = 7


class NotFoundError(NetbootdError, LookupError):
    """No such node, image, release, generation or file."""

    code = "not-found"
    exit_status = 8


class BusyError(NetbootdError):
    """Another process holds the lock, or the server is at its limit."""

    code = "busy"
    exit_status = 9


class DeniedError(NetbootdError, PermissionError):
    """The peer may not have this file or document."""

    code = "denied"
    exit_status = 4
