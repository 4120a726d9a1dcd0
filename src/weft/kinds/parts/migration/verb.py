"""The verb ``migrate`` of VMs and containers: what it takes, and the Migration that it makes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.parts.convert_verb import refuse_converting, refuse_fenced
from weft.kinds.parts.migration.departing import refuse_kept_here
from weft.kinds.record import Object
from weft.objects.errors import IllegalTransition
from weft.objects.identity import cut_name
from weft.objects.lifecycle import Phase, describe_phase
from weft.objects.schema import field

DEFAULT_TIMEOUT_SECONDS = 600.0


# The kinds that have the verb migrate, and how each can migrate, by default as the first.
Mode = Literal["live", "cold", "storage", "best", "saved"]


MIGRATION_MODES: dict[str, tuple[Mode, ...]] = {
    "vm": ("live", "cold", "storage", "saved"),
    "container": ("best", "live", "cold"),
}


def is_carried(kind: str, mode: str, suspended: bool) -> bool:
    """Whether its saved memory migrates with its disks, and it stays suspended meanwhile."""
    return mode == "saved" or (mode == "cold" and suspended and "saved" in MIGRATION_MODES[kind])


class MigrationInput(msgspec.Struct, kw_only=True):
    """Input of a migration, as in MigrationSpec."""

    to: Annotated[str | None, field("Target node; the scheduler chooses one if unset", name=True)] = None
    timeout_seconds: Annotated[float, field("Timeout of the migration", quantity="duration")] = DEFAULT_TIMEOUT_SECONDS
    bytes_per_second: Annotated[int, field("Limit on the transfer rate, per second", quantity="bytes", ge=0)] = 0
    not_before: Annotated[float | None, field("Earliest start", quantity="moment")] = None
    not_after: Annotated[float | None, field("Latest start", quantity="moment")] = None
    window: Annotated[Literal["", "auto"], field("auto: the time was chosen because the workload does least then")] = ""
    reason: Annotated[str, field("Reason, for people", max_length=200)] = ""


class MigrateInput(MigrationInput, kw_only=True):
    cluster: Annotated[str | None, field("Linked cluster to migrate to", name=True)] = None
    mode: Annotated[Literal["live", "cold", "storage"], field("live, cold or storage")] = "live"
    pool: Annotated[str | None, field("Target pool of the disk (storage)", name=True)] = None
    volume: Annotated[str | None, field("Volume to relocate; the root disk if unset (storage)", name=True)] = None
    pause_ms: Annotated[int, field("Longest downtime to aim for", ge=1, le=60_000)] = 300


class MigrateContainerInput(MigrationInput, kw_only=True):
    mode: Annotated[
        Literal["best", "live", "cold"],
        field(
            "live: saved on the source and restored on the target; "
            "cold: stopped on the source and started on the target; best: live if both nodes can"
        ),
    ] = "best"


def make_migration(obj: Object, given: MigrateInput | MigrateContainerInput, mark: str) -> dict[str, Any]:
    """The manifest of the Migration that ``migrate`` of a workload makes; ``mark`` makes its name unique. Raises
    IllegalTransition for a workload that can't migrate, or that migrates already."""
    name, phase = obj["name"], dig(obj, "status.phase", "Pending")
    what, under_way = f"{obj['kind']}/{name}", dig(obj, "status.migration", "")
    if under_way:
        raise IllegalTransition(
            f"{what} is migrating already: migration/{under_way}",
            reason="alreadyMigrating",
            hint=f"weft wait migration/{under_way}, or: weft migration cancel {under_way}",
            details={"migration": under_way},
        )
    refuse_converting(obj)
    refuse_fenced(obj)
    if dig(obj, "spec.once", False):
        raise IllegalTransition(
            f"{what} runs once (spec.once), so it can't migrate",
            reason="runsOnce",
            hint=f"wait until it has ended: weft wait {what}",
        )
    if given.to is not None and given.to == dig(obj, "status.node"):
        raise IllegalTransition(
            f"{what} is on {given.to} already", field="to", hint="name another node, or none; weft node list shows them"
        )
    migratable: tuple[Phase, ...] = (Phase.RUNNING, Phase.BOOT, Phase.PROLOG, Phase.UNKNOWN)
    saved = given.not_before is None and is_carried(obj["kind"], given.mode, phase == Phase.SUSPENDED)
    migratable += (Phase.STOPPED,) if given.mode != "live" else ()
    if given.not_before is None and phase not in migratable and not saved:
        hints = {
            Phase.STOPPED: "start it" if getattr(given, "cluster", None) else "start it, or migrate it with --cold",
            Phase.SUSPENDED: "resume it, or migrate it with --cold: its memory goes with it",
        }
        raise IllegalTransition(
            f"{what} is {describe_phase(phase)}: it can't migrate",
            hint=hints.get(Phase(phase), "migrate it while it runs"),
            details={"phase": str(phase), "verb": "migrate"},
        )
    if given.not_before is None and given.mode != "storage":
        _check_free(obj, given)
    if isinstance(given, MigrateInput) and given.cluster is not None:
        refuse_kept_here(obj)
    return {
        "kind": "migration",
        "name": cut_name(name, f"-{mark}"),
        "spec": {**msgspec.to_builtins(given), "workload": what, **({"mode": "saved"} if saved else {})},
    }


def _check_free(obj: Object, given: MigrateInput | MigrateContainerInput) -> None:
    """Raises IllegalTransition for a workload that its own spec keeps on its node: waiting would change nothing."""
    what, bound = f"{obj['kind']}/{obj['name']}", dig(obj, "spec.node")
    if reservation := dig(obj, "spec.reservation"):
        raise IllegalTransition(
            f"{what} is in reservation/{reservation}, so it stays on its node until that ends",
            reason="inReservation",
            hint=f"weft reservation describe {reservation} shows when that is",
        )
    if bound is not None and (bound == dig(obj, "status.node") or given.to not in (None, bound)):
        raise IllegalTransition(
            f"{what} is bound to node {bound} (spec.node), so it can't go to {given.to or 'another'}",
            reason="pinned",
            hint=f'weft {obj["kind"]} set {obj["name"]} --node "" lets it go anywhere',
        )
    if given.mode == "live" and dig(obj, "spec.gpus", 0):
        raise IllegalTransition(
            f"{what} uses a GPU of its node, so it can't migrate live",
            reason="gpusStay",
            hint=f"weft {obj['kind']} migrate {obj['name']} --cold",
        )
