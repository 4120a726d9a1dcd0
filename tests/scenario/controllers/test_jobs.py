"""Jobs with pretended nodes and time moved by hand: each task runs as often as it must, and no more."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
from tests.scenario.controllers_lab import EndsAs, Lab, PretendNode

from weft.kinds.allocation import AllocationSpec
from weft.kinds.container import ContainerSpec
from weft.kinds.node import Gpu, NodeRuntime, NodeStatus
from weft.kinds.report import ReportStatus
from weft.kinds.volume import VolumeSpec, VolumeStatus
from weft.objects.envelope import Envelope, decode_part

RUNS = NodeRuntime(name="crun", version="1.8", kinds=["container"], isolations=["container"])


async def add_nodes(lab: Lab, count: int = 2, **report: object) -> list[PretendNode]:
    nodes = [await lab.add_node(f"n{number}", runtimes=[RUNS], **report) for number in range(count)]
    for node in nodes:
        node.program = lambda spec: EndsAs(1.0)
    return nodes


def index_of(spec: AllocationSpec) -> int:
    assert spec.container is not None
    return int(spec.container.env["WEFT_TASK_INDEX"])


def began(nodes: list[PretendNode]) -> Counter[str]:
    return Counter(name for node in nodes for name in node.began)


async def test_an_array_runs_each_index_once_and_tells_each_its_number(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        await lab.put_job("thumbs", array="0-4,9", parallelism=2, task={"env": {"MODE": "fast"}})
        status = await lab.until_job("thumbs", "Succeeded")
        assert (status.tasks, status.succeeded, status.failed, status.pending, status.running) == (6, 6, 0, 0, 0)
        assert status.succeeded_indexes == "0-4,9"
        assert began(nodes) == Counter({f"thumbs-{index}": 1 for index in (0, 1, 2, 3, 4, 9)})
        three = decode_part((await lab.vm("thumbs-9", "container")).spec, ContainerSpec)
        assert three.env == {
            "MODE": "fast",
            "WEFT_JOB": "thumbs",
            "WEFT_TASK_INDEX": "9",
            "WEFT_TASK_COUNT": "6",
            "WEFT_TRY": "1",
        }
        assert (three.restart, three.once) == ("never", True)


async def test_no_more_tasks_run_at_once_than_it_may(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await lab.put_job("thumbs", array="0-9", parallelism=3)
        most = 0

        async def over() -> bool:
            nonlocal most
            status = await lab.job("thumbs")
            live = [c for c in await lab.every("container") if not msgspec.json.decode(c.status).get("ended")]
            most = max(most, len(live))
            return status.phase == "Succeeded"

        await lab.until(over, 120)
        assert most == 3


async def test_as_many_tasks_as_run_at_once_unless_told_otherwise_find_room_on_three_small_nodes(
    tmp_path: Path,
) -> None:
    """What each may write is counted, and that of a hundred tasks is no more than small disks have."""
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab, 3, disk=10 << 30)
        for node in nodes:
            node.program = lambda spec: EndsAs(30.0)
        await lab.put_job("many", array="0-299", task={"cpu": 0.02, "memory": 16 << 20})

        async def all_at_once() -> bool:
            return sum(len(node.running) for node in nodes) == 100

        await lab.until(all_at_once, 20.0)
        assert {spec.resources.disk for node in nodes for spec in node.specs.values()} == {256 << 20}
        status = await lab.until_job("many", "Succeeded", 600.0)
        assert status.succeeded == 300


async def test_what_fails_is_tried_again_after_growing_pauses_and_counts_as_failed_at_last(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)

        def program(spec: AllocationSpec) -> EndsAs:
            assert spec.container is not None
            attempt = int(spec.container.env["WEFT_TRY"])
            code = {3: 7, 5: 0 if attempt == 2 else 1}.get(index_of(spec), 0)
            return EndsAs(1.0, code)

        for node in nodes:
            node.program = program
        start = lab.clock.now()
        await lab.put_job("thumbs", array="0-9", retries=3, backoff=10.0)
        status = await lab.until_job("thumbs", "Failed", 300)
        assert lab.clock.now() - start > 10 + 20 + 40
        assert (status.succeeded, status.failed, status.retried) == (9, 1, 4)
        assert (status.failed_indexes, status.exit_codes) == ("3", {"7": "3"})
        assert status.tries == {"1": "0-2,4,6-9", "2": "5", "4": "3"}
        assert (status.reason, status.message) == ("taskFailed", "task 3: exit code 7 (try 4 of 4)")
        told = began(nodes)
        assert {told[f"thumbs-3{more}"] for more in ("", "-r2", "-r3", "-r4")} == {1} and "thumbs-3-r5" not in told


async def test_a_failed_job_is_retried_where_it_failed_and_only_there(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        for node in nodes:
            node.program = lambda spec: EndsAs(1.0, 1 if index_of(spec) == 1 else 0)
        await lab.put_job("thumbs", array="0-2")
        assert (await lab.until_job("thumbs", "Failed")).failed_indexes == "1"
        for node in nodes:
            node.program = lambda spec: EndsAs(1.0)
        await lab.ask("thumbs", "job", rounds=1)
        status = await lab.until_job("thumbs", "Succeeded")
        assert (status.succeeded_indexes, status.exit_codes, status.round) == ("0-2", {}, 1)
        assert began(nodes) == Counter(["thumbs-0", "thumbs-1", "thumbs-1-r2", "thumbs-2"])


async def test_a_task_that_was_lost_with_its_node_is_tried_again_at_no_cost(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)

        def program(spec: AllocationSpec) -> EndsAs:
            assert spec.container is not None
            if spec.container.env["WEFT_TRY"] == "1" and index_of(spec) == 1:
                return EndsAs(1.0, None, "nodeRestarted")
            return EndsAs(1.0)

        for node in nodes:
            node.program = program
        await lab.put_job("thumbs", array="0-1")
        status = await lab.until_job("thumbs", "Succeeded")
        assert (status.lost, status.retried, status.excused) == (1, 0, {"1": "1"})


async def test_at_its_deadline_all_that_runs_is_stopped(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        for node in nodes:
            node.program = lambda spec: EndsAs(1.0) if index_of(spec) == 0 else None
        await lab.put_job("thumbs", array="0-3", parallelism=2, job_timeout=20.0)
        status = await lab.until_job("thumbs", "TimedOut")
        assert status.started_at is not None and status.ended_at is not None
        assert 20 <= status.ended_at - status.started_at < 25
        assert (status.succeeded, status.failed, status.running) == (1, 0, 0)
        assert "thumbs-3" not in began(nodes)


async def test_a_try_that_runs_too_long_is_stopped_and_has_failed(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        for node in nodes:
            node.program = lambda spec: None
        await lab.put_job("slow", task_timeout=10.0, retries=1, backoff=1.0)
        status = await lab.until_job("slow", "Failed", 120)
        assert (status.retried, status.exit_codes) == (1, {"143": "0"})
        assert status.message == "task 0: it was stopped, by somebody or after its task_timeout of 10s (try 2 of 2)"


async def test_a_cancelled_job_ends_what_runs_and_begins_no_more(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        for node in nodes:
            node.program = lambda spec: None
        await lab.put_job("thumbs", array="0-9", parallelism=4)

        async def run() -> bool:
            return (await lab.job("thumbs")).running == 4

        await lab.until(run)
        await lab.ask("thumbs", "job", cancel=True)
        status = await lab.until_job("thumbs", "Cancelled")
        assert (status.succeeded, status.failed, status.running) == (0, 0, 0)
        assert len(began(nodes)) == 4


async def test_one_that_follows_waits_and_fails_with_what_it_follows(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        for node in nodes:
            node.program = lambda spec: EndsAs(5.0, 1 if spec.workload.name.startswith("bad") else 0)
        for name in ("good", "bad"):
            await lab.put_job(name)
        await lab.put_job("after-good", after=["good"])
        await lab.put_job("after-bad", after=["bad"])
        await lab.put_job("after-end", after=["bad:ended", "good"])
        await lab.put_job("tick", schedule="0 0 1 1 *")
        await lab.put_job("after-tick", after=["tick:ended"])  # as an older weft took it

        async def said() -> bool:
            status = await lab.job("after-good")
            return (status.phase, status.reason, status.message) == ("Pending", "waiting", "for good to end")

        await lab.until(said)
        assert await lab.until_job("after-good", "Succeeded")
        assert await lab.until_job("after-end", "Succeeded")
        failed = await lab.until_job("after-bad", "Failed")
        assert failed.reason == "dependencyFailed"
        assert "after-bad-0" not in began(nodes)
        failed = await lab.until_job("after-tick", "Failed")
        assert "has a schedule and never ends" in failed.message


async def test_a_gang_is_placed_whole_or_not_at_all(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab, 1, cpu=4.0)
        await lab.put_job("solve", array="0-5", parallelism=3, gang=True, task={"cpu": 2.0})
        await lab.pass_time(20)
        assert not began(nodes) and (await lab.job("solve")).reason == "tasksWait"
        nodes += [await lab.add_node("more", cpu=2.0, runtimes=[RUNS])]
        nodes[-1].program = lambda spec: EndsAs(1.0)
        status = await lab.until_job("solve", "Succeeded", 200)
        assert status.wave == 2


async def test_ended_tasks_leave_their_room_to_others(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, 1, cpu=2.0)
        await lab.put_job("big", array="0-5", task={"cpu": 2.0})
        await lab.until_job("big", "Succeeded")


async def test_ended_tasks_count_as_nothing_on_their_node_and_are_in_no_drains_way(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, 1)
        await lab.put_job("sums", array="0-2")
        await lab.until_job("sums", "Succeeded")
        assert len(await lab.allocations()) == 3

        async def counted() -> bool:
            return decode_part((await lab.get("/node/-/n0")).status, NodeStatus).allocations == 0  # type: ignore[union-attr]

        await lab.until(counted)
        await lab.put("report", "ask", {"subject": "drain", "node": "n0"}, project=None)

        async def answered() -> bool:
            return decode_part((await lab.get("/report/-/ask")).status, ReportStatus).phase == "Done"  # type: ignore[union-attr]

        await lab.until(answered)
        assert decode_part((await lab.get("/report/-/ask")).status, ReportStatus).leaving == []  # type: ignore[union-attr]


async def test_only_the_newest_ended_tasks_are_kept(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await lab.put_job("thumbs", array="0-9", keep_tasks=3)
        await lab.until_job("thumbs", "Succeeded")

        async def trimmed() -> bool:
            return len(await lab.every("container")) == 3

        await lab.until(trimmed)
        await lab.delete("/job/default/thumbs")
        await lab.until_gone("/job/default/thumbs")
        assert await lab.every("container") == [] and await lab.allocations() == []


async def test_a_name_that_is_taken_is_waited_for(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        await lab.put_container("thumbs-1")
        await lab.put_job("thumbs", array="0-1")

        async def said() -> bool:
            return (await lab.job("thumbs")).reason == "nameTaken"

        await lab.until(said)
        await lab.delete("/container/default/thumbs-1")
        status = await lab.until_job("thumbs", "Succeeded")
        assert (status.reason, began(nodes)) == ("", Counter(["thumbs-0", "thumbs-1"]))


async def test_controllers_killed_again_and_again_run_nothing_twice_and_forget_nothing(tmp_path: Path) -> None:
    async with Lab(tmp_path, slow=4) as lab:
        nodes = await add_nodes(lab, 3)
        for node in nodes:
            node.program = lambda spec: EndsAs(0.5, 1 if index_of(spec) % 7 == 3 else 0)
        await lab.put_job("thumbs", array="0-39", parallelism=8, retries=1, backoff=1.0)
        turns = 0

        async def over() -> bool:
            nonlocal turns
            turns += 1
            if turns % 3 == 0:
                await lab.kill_controllers()
                lab.start_controllers()
            for _ in range(turns % 11 * 7):
                await asyncio.sleep(0)
            return (await lab.job("thumbs")).phase == "Failed"

        await lab.until(over, 3000)
        status = await lab.job("thumbs")
        assert status.failed_indexes == "3,10,17,24,31,38" and status.succeeded == 34 and status.retried == 6
        told = began(nodes)
        assert set(told.values()) == {1} and len(told) == 46


async def test_a_schedule_makes_a_run_for_each_time_and_keeps_the_newest(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        await lab.put_job("tick", schedule="* * * * *", history=2)
        await lab.until_job("tick", "Scheduled")
        await lab.pass_time(300)
        assert 4 <= len(began(nodes)) <= 5

        async def trimmed() -> bool:
            return len(await lab.every("job")) == 3

        await lab.until(trimmed, 120)
        assert all(name.startswith("tick-2023") and name.endswith("-0") for name in began(nodes))


async def test_what_was_due_while_nobody_decided_runs_once(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        await lab.put_job("tick", schedule="* * * * *")
        await lab.until_job("tick", "Scheduled")
        await lab.kill_controllers()
        await lab.pass_time(600)
        lab.start_controllers()
        await lab.pass_time(20)
        assert len(began(nodes)) == 1


async def test_runs_that_take_longer_are_left_alone_replaced_or_joined(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        for node in nodes:
            node.program = lambda spec: None
        for concurrency in ("allow", "forbid", "replace"):
            await lab.put_job(concurrency, schedule="* * * * *", concurrency=concurrency)
        await lab.pass_time(200)
        phases = {
            concurrency: Counter(
                msgspec.json.decode(job.status)["phase"]
                for job in await lab.every("job")
                if job.owner is not None and job.owner.name == concurrency
            )
            for concurrency in ("allow", "forbid", "replace")
        }
        assert phases["allow"]["Running"] >= 3
        assert phases["forbid"] == Counter(Running=1)
        assert phases["replace"]["Running"] == 1 and phases["replace"]["Cancelled"] >= 2


async def test_the_youngest_preemptible_tasks_give_way_and_run_afresh_elsewhere(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab, 1, cpu=4.0)
        nodes[0].program = lambda spec: None

        async def full() -> bool:
            return (await lab.job("older")).running == 2 == (await lab.job("newer")).running

        await lab.put_job("older", array="0-1", preemptible=True, task={"cpu": 1.0})
        await lab.pass_time(5)
        await lab.put_job("newer", array="0-1", preemptible=True, task={"cpu": 1.0})
        await lab.until(full)
        await lab.put_vm("web", cpu=2.0)
        await lab.until_phase("web", "Running")
        (place,) = [spec for spec in await lab.allocations() if spec.workload.kind == "vm"]
        assert place.waits_for is None
        left = [spec.workload.name for spec in await lab.allocations() if spec.workload.kind == "container"]
        assert sorted(left) == ["older-0", "older-1"]
        assert all("Preempted" in lab.journal.reasons(name) for name in ("newer-0", "newer-1"))
        assert (await lab.status("newer-0", "container")).phase == "Pending"
        nodes += [await lab.add_node("more", runtimes=[RUNS])]
        for node in nodes:
            node.program = lambda spec: EndsAs(1.0)
        await lab.until(full)
        status = await lab.job("newer")
        assert (status.retried, status.failed, status.tries) == (0, 0, {"1": "0-1"})


async def test_nobody_gives_way_in_vain_or_to_others_that_give_way(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab, 1, cpu=4.0)
        nodes[0].program = lambda spec: None
        await lab.put_job("filler", array="0-3", preemptible=True, task={"cpu": 1.0})

        async def full() -> bool:
            return (await lab.job("filler")).running == 4

        await lab.until(full)
        await lab.put_vm("huge", cpu=5.0)
        await lab.until_refused("huge", "insufficientResources")
        await lab.put_job("other", preemptible=True, task={"cpu": 1.0})
        await lab.pass_time(10)
        assert (await lab.job("filler")).running == 4 and began(nodes) == Counter(f"filler-{i}" for i in range(4))


async def test_the_winner_waits_until_the_room_is_really_free(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab, 1, cpu=4.0)
        nodes[0].program = lambda spec: None
        await lab.put_job("filler", preemptible=True, task={"cpu": 4.0})

        async def full() -> bool:
            return (await lab.job("filler")).running == 1

        await lab.until(full)
        nodes[0].slow = True
        await lab.put_vm("web", cpu=2.0)

        async def placed() -> bool:
            return len(await lab.allocations()) == 2

        await lab.until(placed)
        (web,) = [spec for spec in await lab.allocations() if spec.workload.kind == "vm"]
        (filler,) = [e for e in await lab.every("allocation") if decode_part(e.spec, AllocationSpec).preemptible]
        assert web.waits_for == filler.name and filler.deleting_since is not None
        await lab.kill_controllers()
        lab.start_controllers()
        nodes[0].slow = False
        for envelope in await lab.every("allocation"):
            await nodes[0].act(envelope.key)
        await lab.until_phase("web", "Running")
        assert len(await lab.allocations()) == 1


async def test_whoever_writes_the_job_meanwhile_makes_no_task_run_twice_or_not_at_all(tmp_path: Path) -> None:
    async with Lab(tmp_path, slow=7) as lab:
        nodes = await add_nodes(lab)
        await lab.put_job("thumbs", array="0-19", parallelism=3)
        over = asyncio.Event()

        async def write() -> None:
            number = 0
            while not over.is_set():
                number += 1
                mark = str(number)

                def change(envelope: Envelope, mark: str = mark) -> None:
                    envelope.labels = {"mark": mark}

                await lab.change("/job/default/thumbs", change)
                for _ in range(25 + number % 60):
                    await asyncio.sleep(0)

        writing = asyncio.ensure_future(write())
        status = await lab.until_job("thumbs", "Succeeded", 600)
        over.set()
        await writing
        assert (status.succeeded, status.failed, status.lost) == (20, 0, 0)
        assert began(nodes) == Counter(f"thumbs-{index}" for index in range(20))


async def test_ended_tasks_leave_their_devices_to_others(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, 1, gpus=[Gpu(model="A", memory=8 << 30)])
        await lab.put_job("train", array="0-3", task={"gpus": 1})
        await lab.until_job("train", "Succeeded", 60)


async def test_tasks_that_mount_one_volume_have_it_one_after_the_other(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = await add_nodes(lab)
        await lab.put("volume", "shelf", VolumeSpec(size=1 << 30), finalizers=("volume",))
        await lab.put_job("index", array="0-3", task={"mounts": ["shelf:/srv"]})
        most = 0

        async def over() -> bool:
            nonlocal most
            status = await lab.job("index")
            most = max(most, status.running)
            return status.phase == "Succeeded"

        await lab.until(over, 120)
        assert most == 1
        assert sum(bool(node.began) for node in nodes) == 1  # where its data lies
        volume = await lab.get("/volume/default/shelf")
        assert volume is not None
        assert decode_part(volume.status, VolumeStatus).attached_to is None


async def test_tasks_that_can_t_be_begun_say_why_and_end_with_their_job(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        (node,) = await add_nodes(lab, 1)
        node.stuck = "there is no such image"
        await lab.put_job("bad", job_timeout=20.0)

        async def said() -> bool:
            status = await lab.job("bad")
            return (status.reason, status.message) == ("tasksWait", "task 0: imageGone: there is no such image")

        await lab.until(said)
        status = await lab.until_job("bad", "TimedOut")
        assert (status.reason, status.running) == ("jobTimedOut", 0) and not node.began
        await lab.put_job("worse")
        await lab.until(lambda: says(lab, "worse", "tasksWait"))
        await lab.ask("worse", "job", cancel=True)
        await lab.until_job("worse", "Cancelled")


async def says(lab: Lab, name: str, reason: str) -> bool:
    return (await lab.job(name)).reason == reason
