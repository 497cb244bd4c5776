"""Which event loop the service runs on: asyncio's own, or uvloop where that is installed and asked for."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable, Coroutine
from typing import Any

from netbootd.errors import UsageError

ENVIRONMENT = "NETBOOTD_LOOP"
LOOPS = ("asyncio", "uvloop")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service to its end on the loop that the environment names; asyncio's, unless it names another.

    :raises UsageError: there is no such loop, or it is not installed
    """
    name = os.environ.get(ENVIRONMENT) or LOOPS[0]
    if name not in LOOPS:
        raise UsageError(f"{ENVIRONMENT}={name}: there is no such event loop.", hint=f"Use {' or '.join(LOOPS)}.")
    if name == "asyncio":
        asyncio.run(main())
        return
    try:
        runner = importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"{ENVIRONMENT}={name}: uvloop is not installed.", hint="pip install 'netbootd[uvloop]' installs it."
        ) from None
    runner.run(main())
