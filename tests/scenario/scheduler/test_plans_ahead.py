"""Migrations ahead of a shortage, with the controllers over a store in memory and pretend nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.scenario.controllers.test_drain import mark, places
from tests.scenario.controllers.test_planned_migrations import rooms, until_none
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab
from tests.scenario.scheduler.test_rebalance_automatic import expect

from weft.kinds.migration import AHEAD_LABEL, GROUP_LABEL, MigrationMarks, MigrationSpec, MigrationStatus
from weft.kinds.profile import NODE_PROFILE, NodeProfileSpec, Pattern, Prediction, ProfileStatus
from weft.kinds.recommendation import RecommendationStatus
from weft.objects.envelope import Envelope, decode_part, merge_part

HOUR, DAY = 3600.0, 86_400.0


def forecast(now: float, cores: float, peak: float = 0.0, unit: str = "cores") -> ProfileStatus:
    """``cores`` of 8 now, and ``peak`` more in six hours, each day."""
    high = {
        "1h": Prediction(seconds=HOUR, value=cores, low=cores, high=cores, method="told"),
        "24h": Prediction(seconds=DAY, value=cores, low=cores, high=cores, method="told"),
    }
    fold = [cores + peak * max(0.0, math.cos((part - 12) / 48 * 2 * math.pi)) for part in range(48)]
    cycle = Pattern(type="diurnal", cycle_seconds=DAY, confidence=0.95, fold=fold, fold_at=now)
    return ProfileStatus(
        looked_at=now, sampled_at=now, unit=unit, full=8.0, prediction=high, patterns=[cycle] if peak else []
    )


async def tell(lab: MovingLab, node: str, status: ProfileStatus) -> None:
    """The node's profile says this from now on."""
    key, told = f"/nodeprofile/-/{node}", msgspec.structs.replace(status, looked_at=lab.clock.now())
    found = await lab.get(f"/node/-/{node}")
    assert found is not None
    if await lab.get(key) is None:
        spec = NodeProfileSpec(node=found.ref)
        await lab.put(NODE_PROFILE.name, node, spec, status=told, project=None)
        return

    def change(envelope: Envelope) -> None:
        envelope.status = merge_part(envelope.status, told)

    await lab.change(key, change)


async def threatened(lab: MovingLab, mode: str = "act", **spec: object) -> None:
    """Four VMs on n1, which will be short in a few hours; n2 and n3 are calm."""
    await lab.put("project", "default", {"plans_ahead": mode}, project=None)
    for name in ("n1", "n2", "n3"):
        await lab.add_node(name)
    for number in range(4):
        await lab.put_vm(f"vm-{number}", **{"memory": GIB * (number + 1), "cpu": 1.0, "node": "n1", **spec})
        await lab.until_phase(f"vm-{number}", "Running")
        await lab.change_spec(f"vm-{number}", node=None)
        await expect(lab, f"vm-{number}", 1.5, 1.5)
    for name in ("n2", "n3"):
        await tell(lab, name, forecast(lab.clock.now(), 1.0))
    await threaten(lab)


async def threaten(lab: MovingLab) -> None:
    """A shortage of n1 is forecast at two looks running."""
    for _ in range(2):
        await tell(lab, "n1", forecast(lab.clock.now(), 4.0, 4.0))
        await lab.pass_time(2)


async def ahead(lab: MovingLab) -> list[tuple[str, str, str]]:
    """Workload, target and phase of each migration ahead of a shortage."""
    found = [one for one in await lab.every("migration") if AHEAD_LABEL in one.labels]
    return sorted(
        (
            decode_part(one.spec, MigrationSpec).workload,
            decode_part(one.spec, MigrationSpec).to or "",
            decode_part(one.status, MigrationStatus).phase,
        )
        for one in found
    )


def wants(mode: str) -> Callable[[Envelope], None]:
    def change(envelope: Envelope) -> None:
        envelope.spec = merge_part(envelope.spec, {"plans_ahead": mode})

    return change


async def until_phases(lab: MovingLab, *phases: str, seconds: float = 120.0) -> list[tuple[str, str, str]]:
    async def there() -> bool:
        return sorted(phase for _, _, phase in await ahead(lab)) == sorted(phases)

    await lab.until(there, seconds)
    return await ahead(lab)


async def test_the_cheapest_guest_leaves_before_the_shortage_and_nothing_else_does(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab)
        [(workload, to, _)] = await until_phases(lab, "Planned")
        assert workload == "vm/vm-0" and to in ("n2", "n3")
        assert [room.node for room in await rooms(lab)] == [to]
        [one] = await lab.every("migration")
        spec, status = decode_part(one.spec, MigrationSpec), decode_part(one.status, MigrationStatus)
        marks = decode_part(one.marks, MigrationMarks)
        assert "n1 would use up to 7.8 of 8 cores" in spec.reason and spec.window == "auto" and not marks.proposed
        assert one.labels[AHEAD_LABEL] == marks.ahead == "n1" and one.labels[GROUP_LABEL] != one.name
        assert status.window is not None and "no cycle found" in status.window.reason and status.window.quality == 0.0
        for turn in range(5):
            await lab.kill_controllers()
            lab.start_controllers(f"next-{turn}")
            await lab.pass_time(25)
        assert await until_phases(lab, "Succeeded", seconds=6 * HOUR) and (await places(lab))["vm-0"] == to
        await tell(lab, "n1", forecast(lab.clock.now(), 2.0, 3.0))
        await lab.pass_time(1300)
        assert len(await ahead(lab)) == 1 and await rooms(lab) == []


async def test_a_proposal_holds_nothing_until_it_is_accepted_and_calm_cancels_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab, "propose")
        await until_phases(lab, "Proposed")
        [one] = await lab.every("migration")
        status = decode_part(one.status, MigrationStatus)
        assert await rooms(lab) == [] and status.window is not None and status.target in ("n2", "n3")

        def accept(envelope: Envelope) -> None:
            spec = msgspec.structs.replace(
                decode_part(envelope.spec, MigrationSpec), not_before=lab.clock.now() + 3 * HOUR
            )
            envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(spec, not_after=None))
            envelope.marks = merge_part(envelope.marks, {"proposed": False})
            envelope.generation += 1

        await lab.change(one.key, accept)
        await until_phases(lab, "Planned")

        async def is_held() -> bool:
            return len(await rooms(lab)) == 1

        await lab.until(is_held)
        await tell(lab, "n1", forecast(lab.clock.now(), 2.0))
        await lab.pass_time(30)
        assert len(await rooms(lab)) == 1, "one calm look is not enough"
        await tell(lab, "n1", forecast(lab.clock.now(), 2.0))
        await until_phases(lab, "Cancelled")
        await until_none(lab)
        [one] = await lab.every("migration")
        assert "no shortage is forecast any more" in decode_part(one.spec, MigrationSpec).reason


async def test_a_proposal_that_nobody_accepts_ends_with_its_window_and_is_made_again(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab, "propose")
        await until_phases(lab, "Proposed")
        await until_phases(lab, "Cancelled", seconds=4 * HOUR)
        [one] = await lab.every("migration")
        assert "nobody accepted it in time" in decode_part(one.status, MigrationStatus).message
        await threaten(lab)
        await until_phases(lab, "Cancelled", "Proposed")
        assert set((await places(lab)).values()) == {"n1"}


async def test_nothing_is_planned_where_it_is_off_or_nothing_is_forecast(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab, "off")
        await lab.pass_time(60)
        assert await ahead(lab) == []

        await lab.change("/project/-/default", wants("act"))
        await tell(lab, "n1", ProfileStatus(unit="cores", full=8.0))
        await lab.pass_time(60)
        assert await ahead(lab) == []
        of_others = msgspec.structs.replace(forecast(lab.clock.now(), 4.0, 4.0), guests="of others")
        await tell(lab, "n1", of_others)
        await lab.pass_time(60)
        assert await ahead(lab) == [], "its cycles are of guests that are elsewhere"
        await tell(lab, "n1", forecast(lab.clock.now(), 4.0, 4.0))
        await lab.pass_time(60)
        assert await ahead(lab) == [], "one look is not enough"
        await threaten(lab)
        await until_phases(lab, "Planned")
        await tell(lab, "n1", ProfileStatus(unit="cores", full=8.0))  # its history is off, which is written only once
        await until_phases(lab, "Cancelled")
        [one] = await lab.every("migration")
        assert "nothing is forecast any more" in decode_part(one.spec, MigrationSpec).reason
        await until_none(lab)


async def test_a_proposal_leaves_time_to_accept_it_however_near_the_shortage_is(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab, "off")
        await lab.change("/project/-/default", wants("propose"))
        for _ in range(2):
            await tell(lab, "n1", forecast(lab.clock.now(), 7.8))
            await lab.pass_time(2)
        await until_phases(lab, "Proposed")
        [one] = await lab.every("migration")
        spec = decode_part(one.spec, MigrationSpec)
        assert spec.not_after is not None and spec.not_before is not None
        assert spec.not_after - spec.not_before >= 1800


async def test_an_old_forecast_or_plans_turned_off_cancel_what_has_not_begun(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab)
        await until_phases(lab, "Planned")

        def ages(envelope: Envelope) -> None:
            old = decode_part(envelope.status, ProfileStatus)
            envelope.status = merge_part(envelope.status, msgspec.structs.replace(old, looked_at=old.looked_at - DAY))

        await lab.change("/nodeprofile/-/n1", ages)
        await until_phases(lab, "Cancelled")
        [one] = await lab.every("migration")
        assert "nothing is forecast any more" in decode_part(one.spec, MigrationSpec).reason
        await until_none(lab)
        await threaten(lab)
        await until_phases(lab, "Cancelled", "Planned")
        await lab.change("/project/-/default", wants("off"))
        await tell(lab, "n1", forecast(lab.clock.now(), 4.0, 4.0))
        await until_phases(lab, "Cancelled", "Cancelled")
        await until_none(lab)


async def test_a_label_that_somebody_set_keeps_no_plan_from_being_made(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab, "off")
        await lab.put("migration", "squat", {"workload": "vm/vm-3", "to": "n2", "not_before": lab.clock.now() + DAY})

        def claims(envelope: Envelope) -> None:
            envelope.labels = {AHEAD_LABEL: "n1"}

        [squat] = await lab.every("migration")
        await lab.change(squat.key, claims)
        await lab.change("/project/-/default", wants("act"))
        await threaten(lab)
        await until_phases(lab, "Planned", "Planned")
        assert {decode_part(one.marks, MigrationMarks).ahead for one in await lab.every("migration")} == {"", "n1"}


async def test_a_lost_or_filled_target_is_replaced_and_a_deleted_guest_lets_go(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab)
        [(_, to, _)] = await until_phases(lab, "Planned")
        other = "n3" if to == "n2" else "n2"
        await mark(lab, to, cordoned=True)
        await tell(lab, "n1", forecast(lab.clock.now(), 4.0, 4.0))
        await until_phases(lab, "Cancelled")
        await lab.pass_time(35)
        await threaten(lab)
        found = await until_phases(lab, "Cancelled", "Planned")
        assert ("vm/vm-0", other, "Planned") in found

        async def is_held() -> bool:
            return [room.node for room in await rooms(lab)] == [other]

        await lab.until(is_held)
        await lab.delete("/vm/default/vm-0")
        await until_phases(lab, "Cancelled", "Cancelled")
        await until_none(lab)
        await mark(lab, to, cordoned=False)


@pytest.mark.parametrize("hours", [1, pytest.param(6, marks=pytest.mark.long)])
async def test_one_look_is_enough_only_for_a_shortage_that_begins_within_two_hours(tmp_path: Path, hours: int) -> None:
    """That one look isn't enough for a later one is also shown above, where nothing is forecast before."""
    async with MovingLab(tmp_path) as lab:
        await threatened(lab)
        await until_phases(lab, "Planned")
        for one in await lab.every("migration"):
            await lab.cancel(one.name)
        await until_phases(lab, "Cancelled")
        await lab.pass_time(5 * HOUR)  # a plan that people cancelled isn't made again before
        now = lab.clock.now()
        for number in range(4):
            await expect(lab, f"vm-{number}", 1.5, 1.5)
        for name in ("n2", "n3"):
            await tell(lab, name, forecast(now, 1.0))
        told = forecast(now, 4.0, 4.0)
        told.patterns[0] = msgspec.structs.replace(
            told.patterns[0], fold_at=now - (6 - hours) * HOUR
        )  # its peak is so far away
        if hours == 1:
            told.prediction["1h"] = Prediction(seconds=HOUR, value=8.0, low=8.0, high=8.0, method="told")
        await tell(lab, "n1", told)
        await lab.pass_time(700)
        phases = [phase for _, _, phase in await ahead(lab)]
        assert phases.count("Cancelled") == 1 and len(phases) == (2 if hours == 1 else 1)


async def test_a_guest_that_left_by_hand_needs_no_plan_and_another_one_is_planned(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab)
        [(_, to, _)] = await until_phases(lab, "Planned")
        await lab.migrate("vm-0", "by-hand", to="n3" if to == "n2" else "n2")
        await lab.until_migration("Succeeded", "by-hand")
        await until_phases(lab, "Cancelled")
        await until_none(lab)
        [one] = [one for one in await lab.every("migration") if AHEAD_LABEL in one.labels]
        assert decode_part(one.status, MigrationStatus).message == "vm/vm-0 has left n1 already"
        await lab.pass_time(35)
        await threaten(lab)
        found = await until_phases(lab, "Cancelled", "Planned")
        assert [workload for workload, _, phase in found if phase == "Planned"] != ["vm/vm-0"]


async def test_a_window_is_chosen_and_better_nodes_are_recommended(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await threatened(lab, "off")

        async def answer(name: str, spec: dict[str, object]) -> RecommendationStatus:
            await lab.put("recommendation", name, spec)

            async def is_done() -> bool:
                envelope = await lab.get(f"/recommendation/default/{name}")
                return envelope is not None and decode_part(envelope.status, RecommendationStatus).phase != "Pending"

            await lab.until(is_done)
            envelope = await lab.get(f"/recommendation/default/{name}")
            assert envelope is not None
            return decode_part(envelope.status, RecommendationStatus)

        asked = await answer("window", {"workload": "vm/vm-1", "migration": {"to": "n2", "window": True}})
        assert asked.best == "n2" and asked.window is not None and asked.window.quality == 0.0
        assert 0 < asked.window.start - lab.clock.now() <= 61 and "any time is as good" in asked.window.reason
        assert (await answer("plain", {"workload": "vm/vm-1"})).suggestions == []
        better = await answer("better", {"workload": "vm/vm-1", "suggest": True})
        assert {one.node for one in better.suggestions} == {"n2", "n3"}
        first = better.suggestions[0]
        assert first.gain > 0 and first.bytes > 0 and any("load is more even" in why for why in first.reasons)
        assert any("n1 is forecast to be short of cores" in why for why in first.reasons)
        await lab.nodes["n1"].die()
        await lab.pass_time(60)
        silence = "n1 sends no heartbeat, so vm/vm-1 can't leave it before it is back"
        assert silence in (await answer("silent", {"workload": "vm/vm-1"})).notes
        for name, to in (("anywhere", None), ("to-n2", "n2")):
            refused = await answer(name, {"workload": "vm/vm-1", "migration": {"to": to}})
            assert (refused.phase, refused.reason, refused.best) == ("Failed", "nodeLost", "")
            assert refused.message == silence
