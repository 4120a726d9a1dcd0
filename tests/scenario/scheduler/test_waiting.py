"""What waits, in which order, until when, and why: the questions behind ``weft queue``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.scenario.controllers.test_jobs import RUNS
from tests.scenario.controllers_lab import EndsAs, Lab
from tests.scenario.scheduler.test_scheduler_answers import answer_to

from weft.kinds.accounting_record import AccountingSpec, AccountingStatus, RunTime
from weft.kinds.fields.lease import LeaseRequest, check_lease
from weft.kinds.report import QueuedWorkload, ReportStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import decode_part
from weft.objects.quantity import format_time

HOUR = 3600.0


def lease(**fields: Any) -> LeaseRequest:
    made = LeaseRequest(**fields)
    check_lease(made)
    return made


_asked = iter(range(10**6))


async def queue(lab: Lab) -> list[QueuedWorkload]:
    """As those of project "default" see it."""
    name = f"asked-{next(_asked)}"
    await lab.put("recommendation", name, {"subject": "queue"})
    return (await answer_to(lab, name)).queue


async def put_elsewhere(lab: Lab, name: str, project: str, **spec: Any) -> None:
    await lab.put("image", "tiny", {"url": "file:///none"}, project=project)
    await lab.put("vm", name, VmSpec(image="tiny", **spec), project=project)


def find(found: list[QueuedWorkload], name: str) -> QueuedWorkload:
    return next(one for one in found if one.workload.endswith(f"/{name}"))


async def test_starts_follow_from_ends_of_leases_and_from_those_before(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        began = lab.clock.now()
        await lab.put_vm("now", cpu=4.0, grace=0, lease=lease(mode="immediate", duration=HOUR))
        await lab.until_phase("now", "Running")
        await lab.put_vm("first", cpu=4.0, grace=0, lease=lease(duration=2 * HOUR))
        await lab.pass_time(1)
        await lab.put_vm("second", cpu=2.0, grace=0, lease=lease(duration=HOUR))
        await lab.pass_time(1)
        await lab.put_vm("last", cpu=3.0)
        await lab.pass_time(5)
        found = await queue(lab)
        assert [(one.place, one.workload, one.kind, one.project) for one in found] == [
            (1, "vm/second", "vm", "default"),  # it is shorter
            (2, "vm/first", "vm", "default"),
            (3, "vm/last", "vm", "default"),
        ]
        assert {one.confidence for one in found} == {"high"}
        starts = [round((one.expected_start or 0.0) - began) for one in found]
        assert abs(starts[0] - HOUR) <= 5 and abs(starts[1] - 2 * HOUR) <= 5 and abs(starts[2] - 4 * HOUR) <= 5
        assert 5 <= found[1].waiting_seconds <= 9
        assert [one.passed_by for one in found] == [
            "",
            "vm/second came later and comes first: it is expected to run 1h, this one 2h",
            "",
        ]
        assert {one.held_by.reason for one in found} == {"insufficientResources"}
        assert "1 cpu" not in found[2].held_by.message and "needs 3 cpu" in found[2].held_by.message
        again = await queue(lab)
        assert [(one.place, one.expected_start) for one in again] == [(one.place, one.expected_start) for one in found]
        # And so it comes about.
        await lab.until_phase("second", "Running", 4000)
        assert abs(lab.clock.now() - (found[0].expected_start or 0.0)) < 30


async def test_without_known_ends_there_is_no_start_and_none_behind_is_sure(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        await lab.put_vm("leased", cpu=2.0, grace=0, lease=lease(mode="immediate", duration=HOUR))
        await lab.put_vm("open", cpu=2.0)
        await lab.until_phase("open", "Running")
        await lab.put_vm("all", cpu=4.0, lease=lease(duration=HOUR, priority=1))
        await lab.put_vm("half", cpu=2.0, lease=lease(duration=HOUR))
        await lab.put_vm("never", cpu=1.0, tolerate=[], constraint='name == "n9"')
        await lab.pass_time(5)
        found = await queue(lab)
        assert [one.workload for one in found] == ["vm/all", "vm/half", "vm/never"]
        assert (found[0].expected_start, found[0].confidence, found[0].priority) == (None, "none", 1)
        assert (
            found[1].expected_start is not None and found[1].confidence == "low"
        )  # vm/open may go, and vm/all come first
        assert (found[2].expected_start, found[2].confidence) == (None, "none")
        assert found[2].held_by.reason == "noAvailableAgents"


async def test_a_promised_start_is_told_and_takes_no_place(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        start = lab.clock.now() + HOUR
        await lab.put_vm("later", cpu=4.0, lease=lease(start=start, duration=HOUR))
        await lab.pass_time(5)
        await lab.put_vm("long", cpu=4.0, lease=lease(duration=2 * HOUR))
        await lab.pass_time(5)
        await lab.put_vm("open", cpu=4.0)
        await lab.pass_time(5)
        found = await queue(lab)
        assert [(one.place, one.workload) for one in found] == [(1, "vm/long"), (2, "vm/open"), (None, "vm/later")]
        later = find(found, "later")
        assert (later.expected_start, later.confidence, later.held_by.reason) == (start, "high", "leaseWaits")
        grace = VmSpec(image="tiny").grace
        assert find(found, "long").expected_start == start + HOUR + grace
        assert find(found, "open").expected_start == start + 3 * HOUR + 2 * grace  # it needs capacity for good


async def test_what_lacks_more_than_capacity_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        await lab.put_vm("imageless", image="none")
        await lab.put_vm("alone", gang="pair:2")
        await lab.pass_time(5)
        found = await queue(lab)
        assert {one.workload: one.held_by.reason for one in found} == {
            "vm/imageless": "imageNotReady",
            "vm/alone": "gangIncomplete",
        }
        assert {(one.expected_start, one.confidence) for one in found} == {(None, "none")}


async def test_an_hour_s_wait_comes_before_a_higher_priority(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        await lab.put_vm("now", cpu=4.0, grace=0, lease=lease(mode="immediate", duration=1.5 * HOUR))
        await lab.until_phase("now", "Running")
        await lab.put_vm("old", cpu=4.0)
        await lab.pass_time(HOUR / 2)
        await lab.put_vm("dear", cpu=4.0, lease=lease(priority=9))
        await lab.pass_time(5)
        assert [one.workload for one in await queue(lab)] == ["vm/dear", "vm/old"]
        await lab.pass_time(0.6 * HOUR)
        assert [one.workload for one in await queue(lab)] == ["vm/old", "vm/dear"]
        await lab.until_phase("old", "Running", 2 * HOUR)
        assert (await lab.status("dear")).phase == "Pending"


async def test_a_suspended_vm_waits_with_the_others(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0, capabilities=["suspend"])
        await lab.put_vm("spare", cpu=4.0, lease=lease(duration=3 * HOUR))
        await lab.until_phase("spare", "Running")
        await lab.put_vm("web", cpu=4.0, grace=0, lease=lease(mode="immediate", duration=HOUR))
        await lab.until_phase("web", "Running")
        until = (await lab.status("web")).lease
        await lab.put_vm("later", cpu=4.0, lease=lease(start=lab.clock.now() + 5 * HOUR, duration=HOUR))
        await lab.pass_time(5)
        found = (await queue(lab))[:1]  # what is left of its lease fits before vm/later
        assert [(one.place, one.workload, one.held_by.reason) for one in found] == [(1, "vm/spare", "preempted")]
        assert until is not None and found[0].expected_start == until.end and found[0].confidence == "high"
        assert "vm/web" in found[0].held_by.message


async def test_ends_of_tasks_are_guessed_from_their_project_s_last_jobs(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1", cpu=4.0, runtimes=[RUNS])
        node.program = lambda spec: EndsAs(600.0)
        await lab.put_job("past", task={"cpu": 1.0})
        await lab.pass_time(700)
        await lab.put_job("present", task={"cpu": 4.0})
        await lab.pass_time(60)
        began = lab.clock.now() - 60
        await lab.put_vm("web", cpu=4.0)
        await lab.pass_time(5)
        (found,) = [one for one in await queue(lab) if one.workload == "vm/web"]
        assert found.confidence == "low" and found.expected_start is not None
        assert abs(found.expected_start - began - 600) < 60


async def test_places_count_everybody_and_only_one_s_own_project_is_shown(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=1.0)
        await lab.put("project", "lab", {}, project=None)
        await put_elsewhere(lab, "theirs", "lab", cpu=64.0)
        await lab.pass_time(2)
        await lab.put_vm("mine", cpu=64.0)
        await lab.pass_time(2)
        assert [(one.place, one.workload, one.project) for one in await queue(lab)] == [(2, "vm/mine", "default")]
        await lab.put("report", "all", {"subject": "queue"}, project=None)
        await lab.pass_time(2)
        envelope = await lab.get("/report/-/all")
        assert envelope is not None
        status = decode_part(envelope.status, ReportStatus)
        assert [(one.place, one.workload, one.project) for one in status.queue] == [
            (1, "vm/theirs", "lab"),
            (2, "vm/mine", "default"),
        ]
        assert status.queued == 2


async def test_a_gap_is_filled_and_the_queue_says_by_what(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        await lab.put_vm("now", cpu=3.0, grace=0, lease=lease(mode="immediate", duration=600.0))
        await lab.until_phase("now", "Running")
        await lab.put_vm("large", cpu=4.0, grace=0, lease=lease(duration=600.0, priority=2))
        await lab.pass_time(5)
        await lab.put_vm("long", cpu=1.0, grace=0, lease=lease(duration=1200.0))
        await lab.pass_time(5)
        await lab.put_vm("short", cpu=1.0, grace=0, lease=lease(duration=300.0))
        await lab.until_phase("short", "Running")
        found = await queue(lab)
        assert [one.workload for one in found] == ["vm/large", "vm/long"]
        started = f"vm/short started before it at {format_time(lab.clock.now())}: expected to run 5m"
        assert found[0].passed_by == f"{started} and to take nothing of what is held for this one"
        kept = "the capacity is kept for vm/large, which comes first and starts by "
        assert found[1].held_by.message.startswith(kept) and found[1].passed_by == ""
        await lab.until_phase("large", "Running", 700)
        assert (await lab.status("long")).phase == "Pending"


async def test_who_requests_little_and_extends_does_not_delay_the_first(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        await lab.put_vm("now", cpu=3.0, grace=0, lease=lease(mode="immediate", duration=600.0))
        await lab.until_phase("now", "Running")
        await lab.put_vm("large", cpu=4.0, grace=0, lease=lease(duration=600.0, priority=2))
        await lab.pass_time(5)
        await lab.put_vm("liar", cpu=1.0, grace=0, lease=lease(duration=60.0))
        await lab.until_phase("liar", "Running")
        await lab.change_spec("liar", lease={"mode": "best-effort", "duration": 1800.0, "preemptible": True})
        await lab.until_phase("large", "Running", 700)


async def test_what_was_promised_is_kept_whatever_is_predicted(tmp_path: Path) -> None:
    """Predictions of a minute, leases of ten minutes that last them, and a reservation in five."""
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        run_times = [RunTime(60.0)] * 10
        spec = AccountingSpec(project="default", period="recent", start=0.0)
        await lab.put(
            "accountingrecord", "recent.default", spec, status=AccountingStatus(run_times={"": run_times}), project=None
        )
        await lab.kill_controllers()
        lab.start_controllers("again")
        start = lab.clock.now() + 300.0
        await lab.put_vm("promised", cpu=4.0, grace=0, lease=lease(start=start, duration=600.0))
        await lab.until_lease("promised", "Scheduled")
        for number in range(6):
            await lab.put_vm(f"long{number}", cpu=2.0, grace=0, lease=lease(duration=600.0))
        await lab.put_vm("short", cpu=2.0, grace=0, lease=lease(duration=120.0))
        await lab.until_phase("short", "Running")
        await lab.until_lease("promised", "Active", 400)
        assert start <= lab.clock.now() <= start + 5
        assert {(await lab.status(f"long{number}")).phase for number in range(6)} == {"Pending"}
