"""Placement fields that all workload kinds share: what every workload may request of its place.

A workload's spec inherits it, and its kind's check calls ``check_placement``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.constraint import (
    Form,
    check_expressions,
    names_preferred,
    names_required,
    refuse_clash_with_named,
)
from weft.kinds.fields.affinity import check_affinity, check_near, device_of
from weft.kinds.fields.gang import read_gang
from weft.kinds.fields.lease import LeaseRequest, check_lease
from weft.kinds.fields.strategy import policies_named, read_strategy
from weft.kinds.fields.taint import check_taints
from weft.kinds.record import Reference
from weft.objects.errors import InvalidInput
from weft.objects.schema import field

MIB = 1024 * 1024

Name = Annotated[str, field("", name=True)]
Amount = Annotated[int, field("", quantity="amount")]
Share = Annotated[float, field("", quantity="ratio")]
REFUSALS = ("insufficientResources", "noAvailableAgents")  # no node takes it: a serverless workload fails for good


# What functions, which are placed by invocation, request of their place too.
Required = Annotated[
    Form | None,
    field(
        "Condition on the node, like storage=nvme,memory>=32GB; @NAME names a constraint, @PROJECT/NAME a shared one",
        shown="expression",
    ),
]
Preferred = Annotated[
    list[Annotated[Form, field("", shown="expression")]],
    field("Preferences for the node: EXPRESSION[;weight=0-1][;priority=N]"),
]
Strategy = Annotated[
    str | None, field("Placement strategies, like best-fit:0.7,data-locality:0.3, or @POLICY; the default if unset")
]
Tolerated = Annotated[list[str], field("Taints to tolerate: NAME, or NAME=VALUE for that value only", change="live")]
DataHints = Annotated[
    list[str], field("Data that the workload reads, as nodes declare it: ceph-pool:raw-data, or volume:NAME")
]


class RunSpec(msgspec.Struct, kw_only=True):
    """How much a workload gets, how it is reached, and when it runs."""

    cpu: Annotated[float, field("Cores; a fraction is a limit", change="plug", quantity="cpu")] = 1.0
    memory: Annotated[int, field("Memory", change="plug", quantity="bytes")] = 256 * MIB
    networks: Annotated[
        list[str],
        field(
            "Networks to join, one NIC each: NAME, or NAME:ADDRESS for an address; PROJECT/NAME is a shared one",
            change="plug",
        ),
    ] = msgspec.field(default_factory=lambda: ["default"])
    security_groups: Annotated[
        list[Name], field("Security groups; without any, everyone in the same networks may connect", change="live")
    ] = []
    publish: Annotated[list[str], field("Ports to publish: HOST:GUEST or HOST:GUEST/udp", change="live")] = []
    force_publish: Annotated[
        bool,
        field(
            "Publish even ports that are reserved or held by a program of a node, which keeps them there", change="live"
        ),
    ] = False
    restart: Annotated[
        Literal["always", "on-failure", "never"],
        field("When to restart a workload that has ended on its own", change="live"),
    ] = "on-failure"
    on_node_loss: Annotated[
        Literal["wait", "restart", "restart-from-backup"],
        field(
            "restart: once it has surely ended on a lost node, start it on another, if its disks can be had there; "
            "restart-from-backup: else from the newest good backup of the VM; wait: it waits for its node",
            change="live",
        ),
    ] = "wait"
    grace: Annotated[float, field("Time that the workload has to shut down", change="live", quantity="duration")] = 20.0
    run: Annotated[
        Literal["run", "stop", "suspend"], field("Desired state; the verbs start, stop and suspend set it")
    ] = "run"
    hold: Annotated[bool, field("Do not place the workload yet; the verbs hold and release set it")] = False
    lease: Annotated[
        LeaseRequest | None, field("When and for how long it has its place; unset: immediately, for good")
    ] = None


class PlacementSpec(RunSpec, msgspec.Struct, kw_only=True):
    type: Annotated[
        Literal["long-lived", "serverless"],
        field("long-lived waits for capacity; serverless is placed immediately or fails", change="live"),
    ] = "long-lived"
    constraint: Required = None
    prefer: Preferred = []
    strategy: Strategy = None
    reservation: Annotated[
        str | None,
        field("Reservation whose capacity it uses; it ends with that one", change="replace", name=True, shared=True),
    ] = None
    node: Annotated[str | None, field("Place on this node and no other", change="live", name=True)] = None
    tolerate: Tolerated = []
    affinity_groups: Annotated[
        list[str], field("Schedule on a node with members of these groups: NAME, or NAME:preferred", change="live")
    ] = []
    anti_affinity_groups: Annotated[
        list[str], field("Schedule on a node without members of these groups: NAME, or NAME:preferred", change="live")
    ] = []
    spread: Annotated[
        list[str],
        field("Spread the anti-affinity groups' members over zone, rack, host or a label: KEY[:SKEW][:preferred]"),
    ] = []
    near: Annotated[
        str | None,
        field(
            "Prefer nodes near the workloads that it talks to most (talkers), or near the gateway of a device (device/NAME)",
            change="live",
            shown="talkers or device/NAME",
        ),
    ] = None
    storage_locality: Annotated[
        Literal["required", "preferred"] | None,
        field("Require nodes that have the workload's data (volumes, hints), or prefer them (images too)"),
    ] = None
    data_hints: DataHints = []
    gang: Annotated[
        str | None, field("Gang whose members are placed together or not at all: NAME:COUNT", change="live")
    ] = None
    resources: Annotated[
        dict[str, Amount],
        field("Further resources of the node, as nodes declare them: sriov=2, hugepages=4G", change="replace"),
    ] = {}
    gpus: Annotated[int, field("Number of whole GPUs", change="replace", ge=0, le=64)] = 0
    gpu_share: Annotated[
        Share | None, field("A share of one GPU instead, like 0.5 or 25%", change="replace", quantity="ratio")
    ] = None
    gpu_memory: Annotated[int, field("Memory that each GPU must have", change="replace", quantity="bytes")] = 0
    gpu_models: Annotated[list[str], field("Acceptable models of GPU; any if unset", change="replace")] = []


def check_placement(spec: PlacementSpec) -> None:
    """Check what types can't say of them; what has several spellings gets its one. Raises InvalidInput."""
    if spec.constraint is not None or spec.prefer:
        spec.constraint, kept = check_expressions(spec.constraint, spec.prefer)
        spec.prefer = [*kept]
    if spec.strategy is not None:
        spec.strategy = read_strategy(spec.strategy)
    if spec.tolerate:
        check_taints(spec.tolerate, "spec.tolerate")
    check_devices(spec)
    check_near(spec.near)
    check_affinity(spec.affinity_groups, spec.anti_affinity_groups, spec.spread, spec.data_hints)
    if spec.gang is not None:
        read_gang(spec.gang)
    if spec.lease is not None:
        check_lease(spec.lease)
    if spec.reservation is not None:
        _check_reserved(spec)


def _check_reserved(spec: PlacementSpec) -> None:
    """Raises InvalidInput for fields that don't go with a reservation."""
    if spec.lease is not None:
        raise InvalidInput(
            "spec.lease: a workload in a reservation has its place until that ends",
            field="spec.lease",
            hint="leave out either spec.lease or spec.reservation",
        )


def check_devices(spec: PlacementSpec) -> None:
    """Raises InvalidInput for an amount of 0, and for contradictory GPU fields."""
    for name, amount in spec.resources.items():
        if amount == 0 or name in ("cpu", "memory", "disk", "gpu", "gpus"):
            raise InvalidInput(
                f"spec.resources.{name[:80]}: {'leave out a resource of amount 0' if not amount else 'has a field of its own'}",
                field=f"spec.resources.{name[:80]}",
                hint="weft node describe NODE shows what a node declares; cpu, memory, disk and gpus are fields of their own",
            )
    if spec.gpu_share is not None and (spec.gpu_share > 1 or spec.gpus > 1):
        raise InvalidInput(
            "spec.gpu_share: a share is at most one GPU, and goes with no more than one",
            field="spec.gpu_share",
            hint="give gpu_share 0.5 alone, or gpus 2 without a share",
        )
    if (spec.gpu_memory or spec.gpu_models) and not (spec.gpus or spec.gpu_share):
        raise InvalidInput(
            "spec.gpus: a GPU's memory or model is given, but no GPU is requested",
            field="spec.gpus",
            hint="add gpus: 1",
        )


def placement_references() -> tuple[Reference, ...]:
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
        Reference("device", "spec.near", lambda spec: [name] if (name := device_of(spec.near)) else [], blocks=False),
    )
