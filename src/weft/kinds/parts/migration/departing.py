"""What of a VM can't be had by another cluster, so that it stays here; and a VM that was handed over to one by a migration that
a restored store doesn't have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.kinds.fields.cells import dig
from weft.kinds.record import Object
from weft.objects.errors import IllegalTransition

HANDED_OVER = "handedOver"


def list_kept_here(name: str, spec: Mapping[str, Any]) -> list[str]:
    """What a VM's spec has that another cluster can't have, in sentences with their remedies."""
    found = []
    if spec.get("gpus") or spec.get("gpu_share"):
        found.append("spec.gpus: a GPU stays with its node")
    if spec.get("iso"):
        found.append(f'spec.iso: weft vm set {name} --iso "" takes the CD out')
    if spec.get("lease"):
        found.append("spec.lease: its place is leased here")
    if spec.get("gang"):
        found.append("spec.gang: its gang stays here")
    if spec.get("guard"):
        found.append(
            f"spec.guard: its failover is automatic, so another cluster may start it: weft replication pause {name}"
        )
    if shared := [one for one in spec.get("networks") or () if "/" in one]:
        found.append(f"spec.networks: {', '.join(shared)} is another project's network")
    return found


def refuse_kept_here(obj: Object) -> None:
    """Raises IllegalTransition for a VM with something that another cluster can't have, with all of it at once."""
    if found := list_kept_here(obj["name"], obj["spec"]):
        raise IllegalTransition(
            f"vm/{obj['name']} can't migrate to another cluster: {'; '.join(found)}",
            reason="cantLeave",
            details={"reasons": found},
        )


def describe_lost(what: str, peer: str) -> str:
    """What people see of a VM whose guest was handed over by a migration that a restored store doesn't have."""
    cluster, name = peer.partition("/")[0], what.partition("/")[2]
    return (
        f"its guest was handed over to {peer} by a migration that the restored store doesn't know of. Look at {cluster}: "
        f"if {what} runs there, weft vm delete {name} here; if not, cancel its arrival there, and once that is over without it: "
        f"weft vm reclaim {name}"
    )


def reclaim_lost(obj: Object, _: Any) -> dict[str, Any]:
    """The change of the verb ``reclaim`` of VMs. Raises IllegalTransition for a VM that its node hasn't handed over so."""
    what, key = f"{obj['kind']}/{obj['name']}", dig(obj, "status.handed_over", "")
    if not key:
        raise IllegalTransition(
            f"{what}: nothing is missing: no node says that it handed it over by a migration which isn't here",
            hint=f"weft vm describe {obj['name']}; of a migration that is here: weft migration reclaim NAME",
        )
    return {**obj["spec"], "reclaimed": key}
