"""The node that a lab's drivers are given: all that it has lies in one folder, so that labs never meet."""

from __future__ import annotations

import uuid
from pathlib import Path

from weft.contracts.driver.host import Capacity, Host


def make_node(folder: Path) -> Host:
    return Host(
        node="n1",
        node_uid=str(uuid.uuid4()),
        state_dir=str(folder / "state"),
        run_dir=str(folder / "run"),
        link_prefix="wt",
        underlay_address="127.0.0.1",
        underlay_link="lo",
        cgroup=f"weft-test-{folder.name[-8:]}/n1",
        capacity=Capacity(cpu=2, memory_bytes=4 << 30, disk_bytes=10 << 30),
    )
