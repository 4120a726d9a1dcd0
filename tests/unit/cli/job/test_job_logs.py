"""Which tasks of a job are followed: the newest try of each, what begins meanwhile, never too many at once."""

from __future__ import annotations

from typing import Any

import click
import pytest

from weft.cli.job.logs import Joining
from weft.cli.verbs.logs import list_newest
from weft.kinds.job import task_name


def job(**tries: str) -> dict[str, Any]:
    return {"name": "sums", "status": {"tries": {count[1:]: indexes for count, indexes in tries.items()}}}


def names(joining: Joining) -> list[str]:
    return [one.container for one in joining.take()]


def test_a_followed_job_begins_with_each_task_s_newest_try_and_takes_up_what_begins_later() -> None:
    joining = Joining()
    joining.see(job(x1="0-1", x3="4"))
    assert names(joining) == ["sums-0", "sums-1", "sums-4-r3"]
    joining.see(job(x1="0", x2="1", x3="4"))
    assert names(joining) == ["sums-1-r2"]
    joining.see(job(x1="0,7", x2="1", x5="4"))
    assert names(joining) == ["sums-4-r4", "sums-4-r5", "sums-7"], "no try is passed over"
    joining.see(job(x1="0,7", x2="1", x5="4"))
    assert names(joining) == []


def test_of_a_job_with_many_tasks_only_some_are_followed_at_once_and_all_in_the_end() -> None:
    joining = Joining(most=3)
    joining.see(job(x1="0-99"))
    seen: list[str] = []
    open_ = 0
    while not joining.is_idle:
        fresh = names(joining)
        open_ += len(fresh)
        seen += fresh
        assert open_ <= 3
        joining.end()
        open_ -= 1
    assert seen == [f"sums-{index}" for index in range(100)]


def test_beside_other_logs_a_job_is_the_newest_try_of_each_of_its_tasks() -> None:
    job = {"kind": "job", "name": "sums", "spec": {"array": "0-2"}, "status": {"tries": {"1": "0", "2": "2"}}}
    assert [target.what for target in list_newest(job)] == [
        f"container/{task_name('sums', task, attempt)}" for task, attempt in ((0, 1), (2, 2))
    ]
    with pytest.raises(click.UsageError, match="each run is a job"):
        list_newest({**job, "spec": {"schedule": "@daily"}})
