"""Changes the share of the node that a running container has: CPU, memory and processes, through its holder."""

from __future__ import annotations

import msgspec

from weft.contracts.driver.container import ContainerPlan
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.translate import PERIOD_MICROSECONDS, OciHostFacts, translate_resources
from weft.objects.errors import DriverFailed, InvalidInput

LIVE = ("cpu", "memory_bytes", "pids", "incarnation")


def list_frozen(old: ContainerPlan, new: ContainerPlan) -> list[str]:
    """Pure. The fields that differ and can't change while it runs."""
    before, after = msgspec.structs.asdict(old), msgspec.structs.asdict(new)
    return [name for name in before if name not in LIVE and before[name] != after[name]]


async def adjust_container(container: Container, plan: ContainerPlan, facts: OciHostFacts) -> None:
    """Raises InvalidInput (``restartNeeded``), DriverFailed (``guestHolds``: memory that it uses)."""
    if frozen := list_frozen(container.record.plan, plan):
        raise InvalidInput(
            f"container/{plan.name}: {', '.join(frozen)} can't change while it runs",
            reason="restartNeeded",
            field=frozen[0],
            hint=f"weft container restart {plan.name}",
        )
    resources = translate_resources(plan, facts, [])
    del resources["devices"]
    if not plan.cpu:
        resources["cpu"] |= {"quota": -1, "period": PERIOD_MICROSECONDS}
    try:
        await container.holder.update(container, resources)
    except DriverFailed as error:
        if plan.memory_bytes >= container.record.plan.memory_bytes:
            raise
        raise DriverFailed(
            f"container/{plan.name} uses more memory than {plan.memory_bytes >> 20} MiB ({error.message})",
            reason="guestHolds",
        ) from error
    container.record.plan = msgspec.structs.replace(
        container.record.plan,
        cpu=plan.cpu,
        memory_bytes=plan.memory_bytes,
        pids=plan.pids,
        incarnation=plan.incarnation,
    )
    await container.save()
