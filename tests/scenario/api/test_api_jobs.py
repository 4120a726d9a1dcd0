"""What the API server refuses of jobs because of other jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.scenario.api_lab import ApiLab

from weft.objects.errors import InvalidInput


@pytest.mark.parametrize("after", ["tick", "tick:ended"])
def test_a_job_that_would_wait_for_a_job_with_a_schedule_is_refused_with_what_to_name_instead(
    tmp_path: Path, after: str
) -> None:
    lab = ApiLab(tmp_path)
    try:
        task = {"image": "registry.example.org/work:1"}
        lab.client.create({"kind": "job", "name": "tick", "spec": {"task": task, "schedule": "@hourly"}})
        with pytest.raises(InvalidInput, match=r"spec\.after: job/tick has a schedule, so it never ends") as refused:
            lab.client.create({"kind": "job", "name": "follow", "spec": {"task": task, "after": [after]}})
        assert refused.value.hint == "name one of its runs: weft job list -l job=tick"
        assert [one["name"] for one in lab.client.list("job").items] == ["tick"]
    finally:
        lab.close()
