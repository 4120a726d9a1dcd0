"""What of a VM can't be had by another cluster, so that it stays here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.kinds.record import Object
from weft.objects.errors import IllegalTransition


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
