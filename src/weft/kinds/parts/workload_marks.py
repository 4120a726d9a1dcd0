"""What was decided of a workload beside what people want of it. Only VMs have any; of every other kind these are the defaults."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.objects.schema import field


class WorkloadTest(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """That a VM is only there to test a backup, or to rehearse a recovery."""

    backup: Annotated[str, field("Backup that it tests; unset: none", name=True)] = ""
    recovery: Annotated[str, field("Recovery plan that it rehearses; unset: none", name=True)] = ""
    hostname: Annotated[
        str, field("Name that its guest and its networks call it by; unset: that of the VM", name=True)
    ] = ""
    check: Annotated[str, field("Command that must end with exit code 0; unset: the guest answers")] = ""
    within: Annotated[float, field("Time until it must", quantity="duration")] = 0.0


class WorkloadMarks(msgspec.Struct, kw_only=True, frozen=True):
    fenced: Annotated[str, field("Replication that left it to another cluster: it can't be started", name=True)] = ""
    arrives: Annotated[str, field("Arrival that it comes by from another cluster, until it runs here", name=True)] = ""
    departed: Annotated[
        str, field("Where it migrated to, as CLUSTER/PROJECT/NAME: nothing of it is here", max_length=200)
    ] = ""
    guard: Annotated[
        Literal["", "begin", "hold"],
        field(
            "hold: its replica takes over automatically, so its node runs it only while this cluster is known to be primary; "
            "begin: nodes find out whether they can"
        ),
    ] = ""
    test: Annotated[WorkloadTest | None, field("Why it is only there to test")] = None
