"""What a job may be, how its tasks are called, and what its shell sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.cli.command.flags import flag_fields, flag_name
from weft.contracts.store import MAX_VALUE_BYTES
from weft.controllers.job.plan import TaskLedger
from weft.controllers.job.schedule import run_name
from weft.kinds.job import (
    FIXED,
    JOB,
    JobSpec,
    JobStatus,
    TaskSpec,
    check_job,
    check_job_change,
    first_exit_code,
    read_task_name,
    task_name,
)
from weft.kinds.parts.schema_upgrade import upgrade
from weft.kinds.vm import VM
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.errors import IllegalTransition, InvalidInput

IMAGE = "registry.example.org/work:1"


def make(task: dict[str, Any] | None = None, **spec: Any) -> JobSpec:
    return JobSpec(task=TaskSpec(**{"image": IMAGE, **(task or {})}), **spec)


def job(phase: str, **status: Any) -> dict[str, Any]:
    spec = msgspec.to_builtins(make())
    return {"kind": "job", "name": "thumbs", "spec": spec, "status": {"phase": phase, **status}}


def verb(name: str, obj: dict[str, Any]) -> dict[str, Any]:
    found = JOB.verb(name)
    assert found is not None and found.act is not None
    return found.act(obj, None)


def test_an_array_gets_its_one_spelling() -> None:
    spec = make(array="9,7-8, 1")
    check_job(spec)
    assert spec.array == "1,7-9"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (make({"image": "shop/a/web"}), "spec.task.image"),
        (make({"env": {"1": "x"}}), "spec.task.env"),
        (make({"publish": ["80:80"]}), "spec.task.publish"),
        (make({"restart": "always"}), "spec.task.restart"),
        (make({"run": "stop"}), "spec.task.run"),
        (make({"once": True}), "spec.task.once"),
        (make({"networks": ["default:10.0.0.9"]}, array="0-1"), "spec.task.networks"),
        (make(array="0-10000"), "spec.array"),
        (make(array="1000000"), "spec.array"),
        (make(array=""), "spec.array"),
        (make(job_timeout=0.0), "spec.job_timeout"),
        (make(task_timeout=0.5), "spec.task_timeout"),
        (make(task_timeout=61.0, job_timeout=60.0), "spec.task_timeout"),
        (make(gang=True, array="0-99", parallelism=33), "spec.parallelism"),
        (make(after=["a", "a:ended"]), "spec.after"),
        (make(after=[f"a{number}" for number in range(33)]), "spec.after"),
        (make(after=["a:failed"]), "spec.after[0]"),
        (make(after=["A"]), "spec.after[0]"),
        (make(schedule="x"), "spec.schedule"),
        (make(schedule="@daily", time_zone="Mars"), "spec.time_zone"),
        (make(schedule="@daily", after=["a"]), "spec.after"),
    ],
)
def test_what_can_be_no_job_is_refused_with_its_field(spec: JobSpec, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_job(spec)
    assert caught.value.field == field and field in caught.value.message


def test_what_a_task_is_may_be_said_as_it_is_anyway() -> None:
    check_job(make({**FIXED, "restart": "never"}, gang=True, array="0-99", parallelism=32, after=["a:ended", "b"]))
    check_job(make(task_timeout=60.0, job_timeout=60.0))
    check_job(make(after=[f"a{number}" for number in range(32)]))


def test_a_job_has_a_schedule_from_the_beginning_or_none() -> None:
    check_job_change(make(schedule="@daily"), make(schedule="@hourly"))
    with pytest.raises(InvalidInput):
        check_job_change(make(), make(schedule="@daily"))


@pytest.mark.parametrize("name", ["a", "a-1", "a-1-r2", "x" * 63, "x" * 60 + "-1"])
@pytest.mark.parametrize(("index", "attempt"), [(0, 1), (7, 1), (999_999, 1), (3, 2), (9999, 123)])
def test_a_task_is_found_by_its_name_again(name: str, index: int, attempt: int) -> None:
    container = task_name(name, index, attempt)
    assert len(container) <= 63
    assert read_task_name(name, container) == (index, attempt)


@pytest.mark.parametrize("container", ["a", "a-x", "b-1", "a-1-2", "a-01", "a-1-r1", "a-1-r02", "a-1-r2-0", "a1"])
def test_what_isnt_named_as_a_task_is_none(container: str) -> None:
    assert read_task_name("a", container) is None


def test_the_shell_sees_the_exit_code_of_the_first_task_that_failed() -> None:
    assert first_exit_code(job("Succeeded")) == 0
    assert first_exit_code(job("Failed", exit_codes={"1": "17-19", "3": "7,20", "none": "30"})) == 3
    assert first_exit_code(job("Failed", exit_codes={"none": "2", "3": "7"})) == 1
    assert first_exit_code(job("TimedOut")) == 1
    assert first_exit_code(job("Failed", exit_codes={"0": "0"})) == 1


def test_verbs_make_sense_in_their_phases_only() -> None:
    assert verb("cancel", job("Running"))["cancel"] is True
    assert verb("retry", job("Failed", round=0))["rounds"] == 1
    once_more = job("Cancelled", round=0)
    once_more["actions"] = {"cancel": True, "rounds": 1}
    assert verb("retry", once_more) == {}  # it is asked for already
    for name, phase in (("cancel", "Failed"), ("retry", "Running"), ("retry", "Succeeded"), ("hold", "Cancelled")):
        with pytest.raises(IllegalTransition):
            verb(name, job(phase))


def test_what_is_kept_of_ten_thousand_tasks_fits_into_one_object() -> None:
    spec = make(array="0-9999", retries=100)
    book = TaskLedger(spec, JobStatus())
    for index in book.order:
        book.tries[index] = 1 + index * 7 % 101
        book.excused[index] = index * 13 % 50
        if index % 2:
            book.failed[index] = str(index * 31 % 256)
        elif index % 20:
            book.succeeded.add(index)
        else:
            book.retry_at[index] = 1_900_000_000 + index
    status = JobStatus(message="x" * 200)
    book.write(status)
    size = len(msgspec.json.encode(status))
    assert 100_000 < size < MAX_VALUE_BYTES - 60_000, size
    again = TaskLedger(spec, status)
    assert (again.tries, again.failed, again.succeeded, again.retry_at) == (
        book.tries,
        book.failed,
        book.succeeded,
        book.retry_at,
    )


def test_a_job_of_an_older_weft_keeps_its_timeout_and_how_it_ended() -> None:
    old = msgspec.json.decode((Path(__file__).parent / "stored" / "job.1.json").read_bytes())
    old["status"] |= {"phase": "DeadlineExceeded", "ending": "DeadlineExceeded", "reason": "deadlineExceeded"}
    fresh = upgrade(JOB, old)
    assert fresh is not None and (fresh["spec"]["job_timeout"], fresh["status"]["reason"]) == (1.5, "jobTimedOut")
    envelope = decode_envelope(msgspec.json.encode(fresh))
    assert decode_part(envelope.spec, JobSpec).job_timeout == 1.5
    assert decode_part(envelope.status, JobStatus).phase == "TimedOut"


def test_the_lease_of_a_job_s_tasks_has_the_flags_of_a_vm_s_and_its_timeouts_have_others() -> None:
    flags = {doc.path: flag_name(doc) for doc in flag_fields(JOB)}
    for doc in flag_fields(VM):
        if doc.path.startswith("spec.lease.") and doc.path != "spec.lease.preemptible":
            assert flags[doc.path.replace("spec.", "spec.task.")] == flag_name(doc)
    assert (flags["spec.job_timeout"], flags["spec.task_timeout"]) == ("job-timeout", "task-timeout")
    assert len(set(flags.values())) == len(flags)


@pytest.mark.parametrize("length", range(40, 64))
def test_containers_of_a_schedule_s_runs_never_share_a_name_however_long_the_job_s_is(length: int) -> None:
    job = "weekly-rollup-of-all-sensors-in-building-number-17-on-the-east-side"[:length].rstrip("-")
    runs = [run_name(job, 1796000000.0 + 60 * minute) for minute in range(120)]
    made = [task_name(run, index, attempt) for run in runs for index in (0, 9, 10, 999) for attempt in (1, 2, 11)]
    assert len({*runs, *made}) == len(runs) + len(made)
