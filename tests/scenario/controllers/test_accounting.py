"""What projects requested and used is counted while they hold it, through kills, deletions and restores, and never twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab
from tests.scenario.controllers_lab import GIB, Lab

from weft.kinds.accounting_record import (
    ACCOUNTING_RECORD,
    DAY,
    HOUR,
    AccountingEntry,
    AccountingSpec,
    AccountingStatus,
    name_day,
    name_month,
    start_of_day,
    start_of_month,
)
from weft.objects.envelope import decode_part
from weft.objects.errors import Forbidden
from weft.protocol.heartbeat import Digest, Use, write_digest


async def entries(lab: Lab) -> list[AccountingEntry]:
    records = await lab.every("accountingrecord")
    return [entry for one in records for entry in decode_part(one.status, AccountingStatus).entries]


async def cpu(lab: Lab) -> float:
    """Core-seconds that are stored."""
    return sum(entry.cpu for entry in await entries(lab))


async def until_counted(lab: Lab, through: float) -> None:
    async def counted() -> bool:
        records = await lab.every("accountingrecord")
        return any(decode_part(one.status, AccountingStatus).through >= through for one in records)

    await lab.until(counted, 90)


async def make(lab: Lab, name: str, **spec: Any) -> float:
    """A running VM; when its allocation was made."""
    await lab.put_vm(name, **{"cpu": 2.0, "memory": 4 * GIB, **spec})
    await lab.until_phase(name, "Running")
    return max(one.created_at for one in await lab.every("allocation"))


async def test_an_allocation_counts_from_its_creation_to_its_release_and_stays_counted(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        began = await make(lab, "web")
        lab.clock.advance(1.5 * HOUR)
        await until_counted(lab, lab.clock.now() - 1)
        [record, *_] = await lab.every("accountingrecord")
        through = decode_part(record.status, AccountingStatus).through
        assert await cpu(lab) == pytest.approx(2 * (through - began))
        assert len(await entries(lab)) in (2, 3)
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        gone = lab.clock.now()
        await lab.pass_time(6)
        total = await cpu(lab)
        assert total == pytest.approx(2 * (gone - began), abs=4)
        lab.clock.advance(HOUR)
        await lab.pass_time(70)
        assert await cpu(lab) == total


async def test_killed_controllers_count_on_from_what_is_stored(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        began = await make(lab, "web")
        for n in range(4):
            lab.clock.advance(700 + n)
            await lab.pass_time(70 if n % 2 else 2)
            await lab.kill_controllers()
            lab.clock.advance(300)
            lab.start_controllers()
            await lab.pass_time(15)
        await until_counted(lab, lab.clock.now())
        [record] = await lab.every("accountingrecord")
        through = decode_part(record.status, AccountingStatus).through
        assert await cpu(lab) == pytest.approx(2 * (through - began))


async def test_a_lease_that_is_suspended_and_resumes_between_two_kills_counts_for_what_it_had(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0, capabilities=["suspend"])
        began = await make(
            lab, "batch", cpu=4.0, lease={"mode": "best-effort", "duration": 9000.0, "preemptible": True}
        )
        await lab.pass_time(100)
        await lab.put_vm("class", cpu=4.0, grace=0.0, lease={"mode": "immediate", "duration": 600.0})
        await lab.until_lease("batch", "Suspended")
        for _ in range(2):
            await lab.pass_time(10)
            await lab.kill_controllers()
            lab.clock.advance(250)
            lab.start_controllers()
        await lab.until_lease("batch", "Active", 200)
        await lab.pass_time(10)
        await lab.kill_controllers()
        lab.clock.advance(1000)
        lab.start_controllers()
        await until_counted(lab, lab.clock.now())
        [record] = await lab.every("accountingrecord")
        through = decode_part(record.status, AccountingStatus).through
        assert await cpu(lab) == pytest.approx(4 * (through - began), abs=4 * 15)  # one of the two had the node's cores


async def test_a_store_that_went_back_counts_no_time_twice(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        began = await make(lab, "web")
        lab.clock.advance(1000)
        await until_counted(lab, lab.clock.now())
        [old] = await lab.every("accountingrecord")
        await lab.pass_time(130)
        await lab.kill_controllers()

        def go_back(envelope: Any) -> None:
            envelope.status = old.status

        await lab.change(old.key, go_back)
        lab.start_controllers()
        await until_counted(lab, lab.clock.now())
        [record] = await lab.every("accountingrecord")
        through = decode_part(record.status, AccountingStatus).through
        assert await cpu(lab) == pytest.approx(2 * (through - began))


async def test_what_nodes_measure_is_counted_as_used(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        await make(lab, "web")
        node.saying = write_digest(Digest({(await lab.vm("web")).uid: Use(500, 2 * GIB, 0)}))
        await node.heartbeat()
        await lab.pass_time(200)
        used = sum(entry.used_cpu for entry in await entries(lab))
        assert 0.5 * 55 <= used <= 0.5 * 200
        assert sum(entry.used_memory for entry in await entries(lab)) == pytest.approx(4 * used)


async def test_what_users_made_is_counted_as_theirs(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        for lab.creator in ("ann", "token:ci", ""):
            await make(lab, f"of-{lab.creator.replace(':', '-') or 'nobody'}", cpu=1.0, memory=GIB)
        lab.clock.advance(HOUR)
        await until_counted(lab, lab.clock.now() - 1)
        found = await entries(lab)
        assert {one.user for one in found} == {"ann", "token:ci", ""}
        for user in ("ann", "token:ci", ""):
            assert sum(one.cpu for one in found if one.user == user) == pytest.approx(HOUR, abs=200)


async def test_old_days_become_part_of_their_month_and_old_months_go(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.kill_controllers()
        now = lab.clock.now()
        old = start_of_month(now - 60 * DAY) + 3 * DAY
        for start in (old, old + DAY):
            spec = AccountingSpec(project="web", period="day", start=start)
            hours = [AccountingEntry(start=start + n * HOUR, cpu=100.0, user=user) for n in range(24) for user in "ab"]
            await put_record(lab, name_day("web", start), spec, AccountingStatus(through=start + DAY, entries=hours))
        ancient = start_of_month(now - 500 * DAY)
        spec = AccountingSpec(project="web", period="month", start=ancient)
        await put_record(
            lab, name_month("web", ancient), spec, AccountingStatus(entries=[AccountingEntry(start=ancient)])
        )
        await lab.add_node("n1")
        lab.start_controllers()

        async def folded() -> bool:
            return [one.name for one in await lab.every("accountingrecord")] == [name_month("web", old)]

        await lab.until(folded)
        found = [(one.start, one.user, one.cpu) for one in await entries(lab)]
        assert found == [(start, user, 2400.0) for start in (old, old + DAY) for user in "ab"]


async def put_record(lab: Lab, name: str, spec: AccountingSpec, status: AccountingStatus) -> None:
    await lab.put("accountingrecord", name, msgspec.to_builtins(spec), status=status, project=None)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    for name in ("web", "db"):
        lab.client.create({"kind": "project", "name": name, "spec": {}})
    yield lab
    lab.close()


def fill(lab: ApiLab) -> float:
    """Yesterday of two projects, and a day 50 days ago of one; the start of yesterday."""
    now = lab.clock.now()
    day, old = start_of_day(now) - DAY, start_of_day(now - 50 * DAY)
    for project, user in (("web", "ann"), ("db", "")):
        hours = [
            AccountingEntry(start=day + n * HOUR, user=user, cpu=2 * 3600.0, memory=3600.0, used_cpu=360.0)
            for n in range(24)
        ]
        put(lab, name_day(project, day), project, "day", day, hours)
    put(lab, name_month("web", old), "web", "month", start_of_month(old), [AccountingEntry(start=old, cpu=3600.0)])
    return day


def put(lab: ApiLab, name: str, project: str, period: Any, start: float, hours: list[AccountingEntry]) -> None:
    spec = AccountingSpec(project=project, period=period, start=start)
    status = AccountingStatus(through=start + DAY, entries=hours)
    lab.put(ACCOUNTING_RECORD.make(name, spec, lab.clock.now(), status=status))


def ask(client: Any, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.http.request("GET", path).json()
    return answer


def test_the_api_adds_up_the_hours_of_a_span_for_one_project_or_all(lab: ApiLab) -> None:
    day = fill(lab)
    assert ask(lab.client, "/v1/accounting")["items"] == [
        {"project": project, "user": user, "requested": asked, "used": used}
        for project, user, asked, used in (
            ("db", "", requested(48.0, 24.0), USED),
            ("web", "ann", requested(48.0, 24.0), USED),
        )
    ]
    [one] = ask(lab.client, f"/v1/projects/web/accounting?since={day + 1.5 * HOUR}&until={day + 3 * HOUR}")["items"]
    assert one["requested"]["core_hours"] == 4.0
    whole = ask(lab.client, f"/v1/projects/web/accounting?since={day - 60 * DAY}")
    assert [(one["user"], one["requested"]["core_hours"]) for one in whole["items"]] == [("", 1.0), ("ann", 48.0)]
    assert whole["through"] == day + DAY
    # A day that is folded while it is read is in both.
    put(lab, name_month("db", day), "db", "month", start_of_month(day), [AccountingEntry(start=day, cpu=48 * 3600.0)])
    [db] = ask(lab.client, "/v1/projects/db/accounting")["items"]
    assert db["requested"]["core_hours"] == 48.0
    assert ask(lab.client, "/v1/projects/none/accounting")["items"] == []


def requested(cores: float, memory: float) -> dict[str, float]:
    return {"core_hours": cores, "memory_gib_hours": memory, "disk_gib_hours": 0.0, "gpu_hours": 0.0}


USED = {"core_hours": 2.4, "memory_gib_hours": 0.0, "disk_gib_hours": 0.0}


def test_a_project_s_reader_sees_its_own_project_only(lab: ApiLab) -> None:
    fill(lab)
    ann = lab.with_token(use="access", role="viewer", project="web")
    assert [one["project"] for one in ask(ann, "/v1/projects/web/accounting")["items"]] == ["web"]
    for path in ("/v1/projects/db/accounting", "/v1/accounting"):
        answer = ann.http.request("GET", path)
        assert answer.status == 403 and answer.json()["reason"] == Forbidden.reason
    auditor = lab.with_token(use="access", role="auditor")
    assert len(ask(auditor, "/v1/accounting")["items"]) == 2


@pytest.mark.parametrize(
    "query", ["since=soon", "since=nan", "since=-1", "since=1e300", "since=5&until=4", "until=inf", "sinse=4"]
)
def test_wrong_times_are_refused(lab: ApiLab, query: str) -> None:
    answer = lab.client.http.request("GET", f"/v1/accounting?{query}")
    assert answer.status == 400, answer.json()
    assert answer.json()["field"] in ("since", "until", "sinse")


def test_the_longest_span_is_answered_from_what_is_kept(lab: ApiLab) -> None:
    fill(lab)
    assert ask(lab.client, "/v1/accounting?since=0&until=253402300799")["items"][1]["requested"]["core_hours"] > 0
