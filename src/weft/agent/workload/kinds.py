"""The kinds of workloads that a node runs, by name. A new kind is one line here, and its file."""

from __future__ import annotations

from weft.agent.workload.container import Container
from weft.agent.workload.kind import WorkloadKind
from weft.agent.workload.vm import Vm
from weft.kinds.allocation import AllocationSpec

KINDS: dict[str, WorkloadKind] = {"vm": Vm(), "container": Container()}


def kind_of(spec: AllocationSpec) -> WorkloadKind:
    return KINDS[spec.workload.kind]
