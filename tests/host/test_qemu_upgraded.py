"""A guest whose QEMU is upgraded under it runs on, and says so."""

from __future__ import annotations

import os
import shutil

import pytest
from guest_lab import GuestLab

from weft.drivers.runtime.qemu.probe import PROGRAM

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import until

pytestmark = pytest.mark.host


async def test_a_guest_in_an_earlier_qemu_is_outdated_until_it_starts_again(
    lab: GuestLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, installed = (
        lab.folder / "bin" / PROGRAM,
        shutil.which(PROGRAM, path=os.defpath),
    )  # not the one of tests/warm
    assert installed is not None
    program.parent.mkdir()
    shutil.copy(installed, program)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    driver, plan = lab.driver(), lab.plan("upgraded")
    await driver.start(plan)
    await until(driver, plan.id, lambda facts: facts.state == "running")
    assert not (await driver.inspect(plan.id)).outdated
    shutil.copy(installed, program.with_suffix(".dpkg-new"))
    program.with_suffix(".dpkg-new").rename(program)  # as dpkg does
    facts = await driver.inspect(plan.id)
    assert (facts.state, facts.outdated) == ("running", True)
    await driver.stop(plan.id, grace_seconds=0.0)
    assert not (await driver.inspect(plan.id)).outdated
    await driver.start(plan)
    await until(driver, plan.id, lambda facts: facts.state == "running")
    assert not (await driver.inspect(plan.id)).outdated
    await driver.stop(plan.id, grace_seconds=0.0)
