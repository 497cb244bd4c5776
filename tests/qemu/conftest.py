"""The virtual machine that some modules share as their server, since bringing it up takes minutes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netbootd.vm.lifecycle import Report
from tests.support.desk import Desk, desk


@pytest.fixture(scope="session")
def workstation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A workstation without a virtual machine."""
    with desk(tmp_path_factory.mktemp("desk")) as found:
        yield found


@pytest.fixture(scope="session")
def first_up(workstation: Desk) -> Report:
    """What the first ``netbootd vm up`` told."""
    return workstation.lifecycle.up()


@pytest.fixture(scope="session")
def server(workstation: Desk, first_up: Report) -> Desk:
    """The workstation whose virtual machine is up."""
    assert first_up.address
    return workstation
