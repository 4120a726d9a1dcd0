"""What a guest does to its memory is told from outside, by reading a few of its pages again and again."""

from __future__ import annotations

import pytest
from guest_lab import GuestLab

from weft.contracts.driver.migration import Load

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run

MIB = 1 << 20
PAGES_PER_SECOND = 3000


@pytest.mark.host
@pytest.mark.long
async def test_each_kind_of_load_is_told_from_the_others_without_stopping_the_guest(
    lab: GuestLab, verifier: bytes
) -> None:
    driver, plan = lab.driver(), lab.plan("sampled")
    await ready(driver, plan)
    await run(driver, plan.id, "sh", "-c", "cat > /root/verifier; chmod +x /root/verifier", stdin=verifier)
    idle = await driver.migrations.sample(plan.id)
    loads: dict[str, Load] = {}
    for kind in "crt":
        start = f"/root/verifier 24 {PAGES_PER_SECOND} /root/counter /dev/shm/verdict {kind} >/dev/null 2>&1 & echo $!"
        pid = (await run(driver, plan.id, "sh", "-c", start))[0].decode().strip()
        rounds = "until grep -qs 'rounds=[1-9]' /dev/shm/verdict; do sleep 0.1; done; rm /dev/shm/verdict"
        await run(driver, plan.id, "sh", "-c", rounds)
        loads[kind] = await driver.migrations.sample(plan.id)
        await run(driver, plan.id, "kill", pid)
    facts = await driver.inspect(plan.id)
    assert (facts.state, facts.reason) == ("running", None)
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    await lab.close_drivers()
    assert idle.dirty_bytes_per_second < 2 * MIB
    assert 10 * MIB < idle.memory_bytes < 128 * MIB
    for load in loads.values():
        assert (
            2 * MIB < load.dirty_bytes_per_second < 1.3 * PAGES_PER_SECOND * 4096
        )  # it also looks, and may be starved
        assert load.memory_bytes > 24 * MIB
        assert load.written_bytes >= 2 * MIB
    assert loads["c"].changed_share < 0.05
    assert loads["r"].changed_share > 0.8 < loads["t"].changed_share
    assert loads["r"].compression < 1.1 < 1.5 < loads["t"].compression < 3
