"""Three projects share a cluster under kill -9: the short form of ``make soak ONLY=department``, in which no node is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.soak.department import IMAGE, Department, Progress

from tests.cluster.cluster import Cluster
from tests.registry import push_busybox

pytestmark = pytest.mark.host
ROUNDS = 3
SEED = 42  # kills the server, an agent and the controllers


@pytest.mark.long
def test_leases_and_rights_hold_while_processes_are_killed(cluster: Cluster, registry: str, tmp_path: Path) -> None:
    push_busybox(tmp_path, f"{registry}/{IMAGE}", ["httpd"], {})
    department = Department(cluster, Progress(SEED), f"{registry}/{IMAGE}", tmp_path / "progress.json", short=True)
    department.run(ROUNDS)
    done = department.progress
    assert (
        done.killed == {"server": 1, "agent": 1, "controllers": 1}
        and done.ends["in time"] >= 1  # a kill may have come at the start of another
        and "missed" not in done.ends
    )
    assert done.requests["refused"] > 0 and done.requests["allowed"] > 0 and done.looks >= 3 * ROUNDS
