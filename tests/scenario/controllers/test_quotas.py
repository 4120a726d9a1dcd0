"""Quotas where controllers make what counts: tasks of jobs and the new workload of a conversion; and what a quota's status says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.controllers.test_conversions import ConvertingLab, begin
from tests.scenario.controllers.test_jobs import add_nodes
from tests.scenario.controllers_lab import GIB, Lab, SlowStore, VirtualClock

from weft.contracts.store import AtRevision, Delete, PreconditionFailed, Put
from weft.kinds.quota import AccountLimits, Limits, QuotaSpec, QuotaStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part
from weft.objects.identity import new_uid

KEY = "/quota/default/project"


async def put_quota(lab: Lab, **limits: Any) -> None:
    await lab.put("quota", "project", QuotaSpec(**limits), status=QuotaStatus())


async def change_quota(lab: Lab, **limits: Any) -> None:
    def change(envelope: Envelope) -> None:
        envelope.spec = merge_part(envelope.spec, {**msgspec.json.decode(envelope.spec), **limits})
        envelope.generation += 1

    await lab.change(KEY, change)


async def used(lab: Lab) -> dict[str, float]:
    quota = await lab.get(KEY)
    assert quota is not None
    return dict(decode_part(quota.status, QuotaStatus).used)


async def count_live(lab: Lab) -> int:
    return sum(not msgspec.json.decode(one.status).get("ended") for one in await lab.every("container"))


async def test_as_many_tasks_run_at_once_as_the_quota_has_amounts_for(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await put_quota(lab, cpu=0.3)
        await lab.put_job("thumbs", array="0-9", parallelism=8)
        most, reasons = 0, set()

        async def over() -> bool:
            nonlocal most
            status = await lab.job("thumbs")
            most = max(most, await count_live(lab))
            reasons.add((status.reason, status.message))
            return status.phase == "Succeeded"

        await lab.until(over, 120)
        assert most == 3
        assert ("quotaExceeded", "project default: cpu: 0.3 of 0.3 cores used, 0.1 more requested") in reasons
        assert (await lab.job("thumbs")).succeeded == 10
        await lab.pass_time(2)
        assert await used(lab) == {}


async def test_jobs_of_one_project_share_its_quota_and_all_end(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with Lab(tmp_path, clock=clock, store=SlowStore(clock, 7)) as lab:
        await add_nodes(lab)
        await put_quota(lab, instances=3)
        names = ["one", "two", "three"]
        for name in names:
            await lab.put_job(name, array="0-4", parallelism=5)
        most = 0

        async def over() -> bool:
            nonlocal most
            most = max(most, await count_live(lab))
            return all([(await lab.job(name)).phase == "Succeeded" for name in names])

        await lab.until(over, 240)
        assert most == 3


async def test_a_task_races_with_what_others_create(tmp_path: Path) -> None:
    """Others write the quota whenever they create something: as often as that happens between reading and writing, the job
    counts again."""
    clock = VirtualClock()
    async with Lab(tmp_path, clock=clock, store=SlowStore(clock, 3)) as lab:
        await add_nodes(lab)
        await put_quota(lab, instances=2)
        made: list[str] = []

        async def create(name: str) -> None:
            """A VM as the API server makes it: the quota's revision is read before the project's objects."""
            entry = await lab.store.get(KEY)
            assert entry is not None
            if await count_live(lab) + len(await lab.every("vm")) >= 2:
                return
            spec = msgspec.Raw(msgspec.json.encode(VmSpec(image="tiny", hold=True)))
            vm = Envelope(kind="vm", name=name, uid=new_uid(), project="default", spec=spec)
            try:
                await lab.store.commit(
                    [Put(vm.key, encode_envelope(vm)), Put(KEY, entry.value)], [AtRevision(KEY, entry.revision)]
                )
                made.append(vm.key)
            except PreconditionFailed:
                return

        await lab.put_job("thumbs", array="0-9", parallelism=8)
        number = 0

        async def over() -> bool:
            nonlocal number
            number += 1
            await create(f"v{number}")
            assert await count_live(lab) + len(await lab.every("vm")) <= 2
            if len(made) > 1 or number % 5 == 0:
                for key in made:
                    await lab.store.commit([Delete(key)])
                made.clear()
            return (await lab.job("thumbs")).phase == "Succeeded"

        await lab.until(over, 240)


async def test_a_gang_waits_for_all_of_its_amounts(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await put_quota(lab, cpu=0.35)
        await lab.put_vm("web", cpu=0.1)
        await lab.put_job("all", array="0-2", parallelism=3, gang=True)

        async def held() -> bool:
            return (await lab.job("all")).reason == "quotaExceeded"

        await lab.until(held)
        await lab.pass_time(10)
        assert await lab.every("container") == []
        await lab.delete("/vm/default/web")  # gives back
        assert (await lab.until_job("all", "Succeeded")).succeeded == 3


async def test_a_lowered_quota_ends_nothing_and_retries_take_the_place_of_what_failed(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        for node in nodes:
            node.program = lambda spec: None
        await put_quota(lab, instances=4)
        await lab.put_job("work", array="0-9", parallelism=10, retries=1)

        async def runs(count: int) -> bool:
            return (await lab.job("work")).running == count

        await lab.until(lambda: runs(4))
        await change_quota(lab, instances=2)
        await lab.pass_time(5)
        assert await runs(4)
        await lab.delete("/container/default/work-0")
        await lab.pass_time(30)
        assert await runs(3)
        await change_quota(lab, instances=5)
        await lab.until(lambda: runs(5))
        await lab.store.commit([Delete(KEY)])
        await lab.until(lambda: runs(10))


async def test_what_a_quota_s_objects_use_is_in_its_status_and_soft_limits_warn(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await put_quota(lab, cpu=8, soft=Limits(cpu=1.5))
        await lab.put_vm("web", cpu=1, memory=GIB)

        async def shows(**amounts: float) -> bool:
            return await used(lab) == amounts

        one = {"cpu": 1, "memory": GIB, "disk": 64 << 20, "instances": 1}
        await lab.until(lambda: shows(**one))
        await lab.put_vm("db", cpu=1, memory=GIB)
        await lab.until(lambda: shows(**{name: 2 * amount for name, amount in one.items()}))
        quota = await lab.get(KEY)
        within = quota.condition("WithinSoftLimits") if quota is not None else None
        assert within is not None
        assert (within.status, within.message) == ("False", "project default: cpu: 2 of 1.5 cores used")
        assert lab.journal.reasons("project") == ["SoftLimitExceeded"]
        await lab.delete("/vm/default/db")
        await lab.until(lambda: shows(**one))
        quota = await lab.get(KEY)
        within = quota.condition("WithinSoftLimits") if quota is not None else None
        assert within is not None and within.status == "True"


async def test_tasks_count_for_who_made_the_job_and_no_other_user_waits(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        each, ann = AccountLimits(cpu=0.2, soft=Limits(cpu=0.1)), AccountLimits(cpu=0.3)
        await put_quota(lab, instances=20, per_user=each, users={"ann": ann})
        most: dict[str, int] = {}
        for lab.creator in ("ann", "bob"):
            await lab.put_job(f"{lab.creator}-s", array="0-5", parallelism=6)
        reasons, seen = set(), dict[str, Any]()

        async def over() -> bool:
            nonlocal seen
            for user in ("ann", "bob"):
                live = [one for one in await lab.every("container") if one.creator == user]
                count = sum(not msgspec.json.decode(one.status).get("ended") for one in live)
                most[user] = max(most.get(user, 0), count)
            status = await lab.job("bob-s")
            reasons.add((status.reason, status.message))
            quota = await lab.get(KEY)
            assert quota is not None
            seen |= decode_part(quota.status, QuotaStatus).used_by_user
            return all([(await lab.job(name)).phase == "Succeeded" for name in ("ann-s", "bob-s")])

        await lab.until(over, 120)
        assert most == {"ann": 3, "bob": 2}
        message = "project default, user bob: cpu: 0.2 of 0.2 cores used, 0.1 more requested"
        assert ("quotaExceeded", message) in reasons
        assert seen.keys() == {"ann", "bob"} and seen["bob"].keys() >= {"cpu", "instances"}
        assert "SoftLimitExceeded" in lab.journal.reasons("project")
        await lab.pass_time(2)
        assert await used(lab) == {}


async def test_a_conversion_needs_amounts_for_both_workloads(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        await put_quota(lab, instances=1)
        await lab.convert("container/web", "vm")
        status = await lab.until_conversion("Failed")
        assert status.reason == "quotaExceeded"
        assert status.message == (
            "vm/web exceeds the quota while container/web is kept: "
            "project default: instances: 1 of 1 used, 1 more requested"
        )
        await change_quota(lab, instances=2)
        workload = await lab.get("/container/default/web")
        assert workload is not None

        def give(envelope: Envelope) -> None:
            envelope.created_by = "ann"

        await lab.change(workload.key, give)
        await change_quota(lab, users={"ann": {"instances": 1}})
        await lab.convert("container/web", "vm", called="c2")
        assert (
            "project default, user ann: instances: 1 of 1 used" in (await lab.until_conversion("Failed", "c2")).message
        )
        await change_quota(lab, users={})
        await lab.convert("container/web", "vm", called="d")
        await lab.until_conversion("AwaitingConfirmation", "d")
        await lab.ask("d", confirmed=True)
        await lab.until_conversion("Confirmed", "d")
        await lab.until_gone("/container/default/web")

        async def one_again() -> bool:
            return (await used(lab))["instances"] == 1

        await lab.until(one_again)
