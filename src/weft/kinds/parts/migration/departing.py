"""Find what keeps a VM here since another cluster can't have it; and describe a VM that was handed over to one by a migration that
a restored store doesn't have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.parts.convert_verb import refuse_departed, refuse_fenced
from weft.kinds.parts.goal import find_condition, is_settled
from weft.kinds.record import Object
from weft.objects.errors import IllegalTransition, WeftError
from weft.objects.schema import field

HANDED_OVER = "handedOver"


def list_kept_here(name: str, spec: Mapping[str, Any], guard: str) -> list[str]:
    """Properties of a VM that another cluster can't have, in sentences with their remedies."""
    found = []
    if spec.get("gpus") or spec.get("gpu_share"):
        found.append("spec.gpus: a GPU stays with its node")
    if spec.get("iso"):
        found.append(f'spec.iso: weft vm set {name} --iso "" takes the CD out')
    if spec.get("lease"):
        found.append("spec.lease: its place is leased here")
    if spec.get("gang"):
        found.append("spec.gang: its gang stays here")
    if guard:
        found.append(f"its failover is automatic, so another cluster may start it: weft replication pause {name}")
    if shared := [one for one in spec.get("networks") or () if "/" in one]:
        found.append(f"spec.networks: {', '.join(shared)} is another project's network")
    return found


def refuse_kept_here(obj: Object) -> None:
    """Raises IllegalTransition for a VM with something that another cluster can't have, with all of it at once."""
    if found := list_kept_here(obj["name"], obj["spec"], dig(obj, "marks.guard", "")):
        raise IllegalTransition(
            f"vm/{obj['name']} can't migrate to another cluster: {'; '.join(found)}",
            reason="cantLeave",
            details={"reasons": found},
        )


def describe_lost(what: str, peer: str) -> str:
    """Describe for people a VM whose guest was handed over by a migration that a restored store doesn't have."""
    cluster, name = peer.partition("/")[0], what.partition("/")[2]
    return (
        f"its guest was handed over to {peer} by a migration that the restored store doesn't know of. If {what} runs at {cluster}, "
        f"weft vm delete {name} here; if not, weft vm reclaim {name}: it goes on here once {cluster} says that it never ran there"
    )


RECLAIMED = "Reclaimed"  # the condition that says whether it goes on here, and why


class VmReclaim(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Request to take back a VM whose guest was handed over."""

    key: Annotated[str, field("Key of the migration that handed it over", max_length=80)]
    force: Annotated[bool, field("Whatever the other cluster says, since people say that it doesn't run there")] = False


class ReclaimInput(msgspec.Struct, kw_only=True):
    force: Annotated[
        bool, field("Take it back whatever the other cluster says: you know that it runs nowhere else")
    ] = False


def reclaim_lost(obj: Object, given: ReclaimInput) -> dict[str, Any]:
    """The act of the verb ``reclaim`` of VMs. Raises IllegalTransition for a VM that its node hasn't handed over so."""
    what, key = f"{obj['kind']}/{obj['name']}", dig(obj, "status.handed_over", "")
    refuse_departed(obj)
    if not key:
        refuse_fenced(obj)  # it was left to another cluster by a replication, which says where it is
        raise IllegalTransition(
            f"{what} isn't missing: no node has handed it over to another cluster by a migration that this one doesn't know",
            hint=f"weft vm describe {obj['name']} says how it is; by a migration that it knows: weft migration reclaim NAME",
        )
    return {"reclaim": msgspec.to_builtins(VmReclaim(key=key, force=given.force))}


def is_reclaimed(obj: Object | None) -> bool:
    """Whether its node lets it go on."""
    if obj is None or not is_settled(obj):
        return False
    return not any(dig(obj, path, "") for path in ("actions.reclaim", "marks.departed", "status.handed_over"))


def find_not_reclaimed(obj: Object, what: str) -> WeftError | None:
    """Why a VM that people asked to take back stays as it is."""
    if where := dig(obj, "marks.departed", ""):
        return IllegalTransition(
            f"{what} is not taken back: its node says that it migrated to {where}", reason="notReclaimed"
        )
    told = find_condition(obj, RECLAIMED)
    if told is None or told["status"] != "False" or dig(obj, "actions.reclaim"):
        return None
    hint = f"if it surely runs nowhere: weft vm reclaim {what.partition('/')[2]} --force"
    return IllegalTransition(f"{what} is not taken back: {told.get('message', '')}", reason="notReclaimed", hint=hint)
