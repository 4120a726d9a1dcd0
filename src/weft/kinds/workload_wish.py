"""What every workload may wish of its place, whatever it is: the placement fields that all workload kinds share.

A workload's spec inherits it, and its kind's check calls ``check_wish``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.affinity import check_affinity
from weft.kinds.constraint import (
    Form,
    check_expressions,
    names_preferred,
    names_required,
    refuse_clash_with_named,
)
from weft.kinds.gang import read_gang
from weft.kinds.record import Reference
from weft.kinds.strategy import policies_named, read_strategy
from weft.kinds.taint import check_taints
from weft.objects.schema import field

REFUSALS = ("insufficientResources", "noAvailableAgents")  # no node takes it: for a serverless workload that is the end


class WorkloadWish(msgspec.Struct, kw_only=True):
    type: Annotated[
        Literal["long-lived", "serverless"],
        field("long-lived waits for a place; serverless is placed at once or fails", change="live"),
    ] = "long-lived"
    constraint: Annotated[
        Form | None,
        field("What its node must be, like storage=nvme,memory>=32GB; @NAME is a constraint", shown="expression"),
    ] = None
    prefer: Annotated[
        list[Annotated[Form, field("", shown="expression")]],
        field("What its node should rather be: EXPRESSION[;weight=0-1][;priority=N]"),
    ] = []
    strategy: Annotated[
        str | None,
        field("Placement strategies, like best-fit:0.7,data-locality:0.3, or @POLICY; the default if unset"),
    ] = None
    node: Annotated[str | None, field("Place on this node and no other", change="live", name=True)] = None
    tolerate: Annotated[
        list[str], field("Taints it can live with: NAME, or NAME=VALUE for that value only", change="live")
    ] = []
    affinity_groups: Annotated[
        list[str], field("Groups to lie with, on a node that has a member: NAME, or NAME:preferred", change="live")
    ] = []
    anti_affinity_groups: Annotated[
        list[str], field("Groups to lie apart from, on a node without a member: NAME, or NAME:preferred", change="live")
    ] = []
    spread: Annotated[
        list[str],
        field("Spread the anti-affinity groups' members over zone, rack, host or a label: KEY[:SKEW][:preferred]"),
    ] = []
    storage_locality: Annotated[
        Literal["required", "preferred"] | None,
        field("Only on nodes that have its data at hand (volumes, hints), or rather on these (images too)"),
    ] = None
    data_hints: Annotated[
        list[str], field("Data it reads, as nodes declare it: ceph-pool:raw-data, or volume:NAME")
    ] = []
    gang: Annotated[
        str | None, field("Place it together with the others of its gang, or not at all: NAME:COUNT", change="live")
    ] = None


def check_wish(spec: WorkloadWish) -> None:
    """What types can't say of them; what has several spellings gets its one. Raises InvalidInput."""
    spec.constraint, kept = check_expressions(spec.constraint, spec.prefer)
    spec.prefer = list[Form](kept)
    if spec.strategy is not None:
        spec.strategy = read_strategy(spec.strategy)
    check_taints(spec.tolerate, "spec.tolerate")
    check_affinity(spec.affinity_groups, spec.anti_affinity_groups, spec.spread, spec.data_hints)
    if spec.gang is not None:
        read_gang(spec.gang)


def wish_references() -> tuple[Reference, ...]:
    """The objects that these fields name."""
    return (
        Reference(
            "constraint",
            "spec.constraint",
            lambda spec: names_required(spec.constraint),
            awaited=True,
            agree=lambda spec, named: refuse_clash_with_named(spec.constraint, named),
        ),
        Reference("constraint", "spec.prefer", lambda spec: names_preferred(spec.prefer), awaited=True),
        Reference("placementpolicy", "spec.strategy", lambda spec: policies_named(spec.strategy), awaited=True),
    )
