"""What is said of a broken or unsupported ext4 file system."""

from __future__ import annotations

from netbootd.errors import FormatError


def damaged(what: str) -> FormatError:
    """The error for a file system that contradicts itself; `what` names the part and the contradiction."""
    return FormatError(
        f"reading the ext4 file system: {what}",
        hint="The image is damaged or was never meant to be read; fetch it again, or run e2fsck -fn on the partition.",
    )


def unsupported(what: str, hint: str) -> FormatError:
    """The error for a sound file system that this reader can't read."""
    return FormatError(f"reading the ext4 file system: {what}", hint=hint)
