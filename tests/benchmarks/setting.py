"""What every table of figures says above itself: the command, the commit, the machine, the versions of the peers."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence

from tests.support.processes import Argument, run


def describe(command: str, peers: Sequence[str]) -> str:
    """One paragraph for the head of a table."""
    commit = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
    dirty = "" if run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip() == "" else " (modified)"
    return (
        f"`{command}`, commit {commit}{dirty}, Linux {platform.release().partition('-')[0]} on {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}; {', '.join(peers)}."
    )


def version_line(argv: Sequence[Argument]) -> str:
    """A peer's name and version, from the first line that it prints."""
    done = run(argv, check=False)
    first = (done.stdout + done.stderr).strip().splitlines()[0]
    match = re.search(r"\d+(\.\d+)+\S*", first)
    return f"{os.path.basename(os.fspath(argv[0]))} {match[0].rstrip(',') if match else first}"
