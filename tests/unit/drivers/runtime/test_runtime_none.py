"""A node that runs no VMs says so, and the scheduler places none there."""

from __future__ import annotations

from typing import Any, cast

import pytest

from weft.drivers.runtime.none.driver import NoMachines
from weft.kinds.node import NodeReport, NodeRuntime
from weft.objects.errors import DriverFailed
from weft.scheduler.node.facts import read_runtimes


async def test_it_offers_no_vm_and_starts_none() -> None:
    driver = NoMachines(cast(Any, None))
    probe = await driver.probe()
    assert (probe.usable, probe.machines, await driver.recover()) == (False, [], [])
    report = NodeReport(runtimes=[NodeRuntime(name=probe.driver, usable=probe.usable, kinds=list(probe.kinds))])
    assert read_runtimes(report) == []
    with pytest.raises(DriverFailed, match="runs no VMs"):
        await driver.start(cast(Any, type("Plan", (), {"name": "web"})))
