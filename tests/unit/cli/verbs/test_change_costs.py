"""When a change takes effect, as set, apply and plan say it."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.verbs.apply import describe_change
from weft.kinds.container import CONTAINER
from weft.kinds.vm import VM

LATER = "the guest sees fewer CPUs only after a restart"


@pytest.mark.parametrize(
    ("kind", "change", "is_later"),
    [
        (VM, {"path": "spec.cpu", "old": 2.0, "new": 1.0, "mode": "live"}, True),
        (VM, {"path": "spec.cpu", "old": 1.0, "new": 2.0, "mode": "live"}, False),
        (VM, {"path": "spec.cpu", "old": 2.0, "new": 1.5, "mode": "live"}, False),  # it keeps both
        (VM, {"path": "spec.cpu", "old": 2.0, "new": 1.0, "mode": "start"}, False),
        (VM, {"path": "spec.memory", "old": 2 << 30, "new": 1 << 30, "mode": "live"}, False),
        (CONTAINER, {"path": "spec.cpu", "old": 2.0, "new": 1.0, "mode": "live"}, False),  # it sees the node's
    ],
)
def test_fewer_cpus_of_a_running_vm_are_a_limit_now_and_gone_after_a_restart(
    kind: Any, change: dict[str, Any], is_later: bool
) -> None:
    assert (LATER in describe_change(change, kind)) == is_later
