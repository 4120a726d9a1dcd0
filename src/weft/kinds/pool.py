"""Pool: a storage that nodes offer for disks. The pools controller makes one for each storage that a node reports: one for all
nodes that share it, and one for each node's own, ``local``. Administrators say how much of it may be promised, when it counts as
nearly full, and whether it takes new disks.

A driver says what the storage is. ``directory`` is a folder: where it lies is a matter of each node (``weft agent --pool
NAME=PATH``). One that weft mounts or opens itself will have its place in the spec, beside the driver: [0237]."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.allocation import LOCAL
from weft.kinds.fields.cells import AGE, NAME, dig, size, text
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Object, Stored
from weft.objects.envelope import Envelope, decode_part, take_from_spec
from weft.objects.errors import InUse, InvalidInput
from weft.objects.schema import field, words

DEFAULT_OVERCOMMIT = 2.0  # disks are thin: most of them never fill
FULL = 0.95  # of the capacity used: no new disks
MOST_NAMED = 64  # nodes

Driver = Literal["directory", "rbd"]


class PoolSpec(msgspec.Struct, kw_only=True):
    overcommit: Annotated[
        float | None,
        field(
            f"Bound of what is promised, as a multiple of the capacity; {DEFAULT_OVERCOMMIT:g} if unset. Of a node's "
            "own pool, the node's overcommit of disk says it",
            quantity="ratio",
        ),
    ] = None
    alarm: Annotated[
        float, field("Share of the capacity in use from which it counts as nearly full", quantity="ratio")
    ] = 0.8
    closed: Annotated[bool, field("Place no new disks here; those that are here stay")] = False


class PoolMarks(msgspec.Struct, kw_only=True, frozen=True):
    """Facts of the storage that nodes report once and for all."""

    id: Annotated[str, field("Id of the storage")] = ""
    pool: Annotated[str, field("Name that nodes and disks call it by")] = ""
    driver: Annotated[Driver, field("What the storage is")] = "directory"


class PoolStatus(msgspec.Struct, kw_only=True):
    """Sizes in bytes."""

    phase: Annotated[str, words("Ready", "NearlyFull", "Full", "Missing")] = "Ready"
    message: str = ""
    capacity: int = 0
    used: int = 0  # by whatever lies there, in steps of a hundredth of the capacity
    free: int = 0
    given: int = 0  # promised to root disks and volumes, and taken by snapshots
    bound: int = 0  # of what is promised
    nodes: int = 0  # that offer it now
    node_names: list[str] = []  # the first of them
    since: float = 0.0  # of the phase: seconds since 1970


def pool_key(pool: str, storage: str, node_uid: str) -> str:
    """Key by which a pool's promises are counted: the id of its storage, or of a node's own pool the node's uid; "": not known."""
    return node_uid if pool == LOCAL else storage


def check_pool(spec: PoolSpec) -> None:
    """Check what types can't say. Raises InvalidInput."""
    if spec.alarm > FULL:
        raise InvalidInput(
            f"spec.alarm: {spec.alarm:.0%} is above {FULL:.0%}, from which a pool takes no new disks at all",
            field="spec.alarm",
            hint="give a smaller share, like 80%",
        )


def refuse_overcommit_of_own(pool: Envelope, spec: PoolSpec, now: float) -> None:
    """Raises InvalidInput for the overcommit of a node's own pool."""
    if spec.overcommit is not None and decode_part(pool.marks, PoolMarks).pool == LOCAL:
        raise InvalidInput(
            "spec.overcommit: a node's own pool promises what the node's overcommit of disk says",
            field="spec.overcommit",
            hint="weft node set NODE --overcommit disk=2",
        )


def refuse_made(_: PoolSpec) -> None:
    raise InvalidInput(
        "pools are made by the server, for the storage that nodes report",
        hint="start the agent of each node that has it with --pool NAME=PATH",
    )


def refuse_offered(pool: Envelope, now: float) -> None:
    """Raises InUse for a pool that nodes offer: it would be made again at once, without what people have set."""
    status = decode_part(pool.status, PoolStatus)
    if status.nodes:
        more = f" and {status.nodes - 2} more" if status.nodes > 2 else ""
        raise InUse(
            f"pool/{pool.name} is offered by {', '.join(status.node_names[:2])}{more}",
            hint="start the agents of these nodes without it first; to place no new disks there: "
            f"weft pool set {pool.name} --closed",
        )


POOLS_BY_ID = Index("pools by id of their storage")


POOLS_BEYOND_ALARM = Index("pools beyond their alarm, by the name that disks call them by", reads_status=True)


def _beyond_alarm(item: Stored) -> tuple[str, ...]:
    return (item.marks(PoolMarks).pool,) if item.status(PoolStatus).phase in ("NearlyFull", "Full") else ()


def _by_id(item: Stored) -> tuple[str, ...]:
    return (item.marks(PoolMarks).id,)


def _nodes(obj: Object) -> str:
    names, count = dig(obj, "status.node_names") or [], dig(obj, "status.nodes", 0)
    shown = ", ".join(names[:2])
    return f"{shown} and {count - 2} more" if count > 2 else shown or "–"


def _share(obj: Object) -> str:
    used, capacity = dig(obj, "status.used", 0), dig(obj, "status.capacity", 0)
    return f"{used / capacity:.0%}" if capacity else "–"


def _overcommit(obj: Object) -> str:
    """Overcommitment of the pool; that of a node's own pool is shown at the node."""
    return "–" if dig(obj, "marks.pool") == LOCAL else f"{dig(obj, 'spec.overcommit') or DEFAULT_OVERCOMMIT:.4g}"


def _state(obj: Object) -> str:
    phase = str(dig(obj, "status.phase", "Ready"))
    return "Closed" if phase == "Ready" and dig(obj, "spec.closed") else phase


POOL = Kind(
    name="pool",
    plural="pools",
    title="pool",
    summary="A storage that nodes offer for disks",
    scope="fabric",
    spec=PoolSpec,
    marks=PoolMarks,
    status=PoolStatus,
    schema=2,
    upgrades=(take_from_spec(marks=PoolMarks),),
    indexes={POOLS_BY_ID: _by_id, POOLS_BEYOND_ALARM: _beyond_alarm},
    access=Access(
        readers="shared",
        status_writer="pools",
        condition_writers=dict.fromkeys(("NearlyFull", "Full"), "pools"),
        mark_writers=dict.fromkeys(PoolMarks.__struct_fields__, ("pools",)),
    ),
    admission=Admission(
        check=check_pool,
        check_new=refuse_made,
        change_guard=refuse_overcommit_of_own,
        delete_guard=refuse_offered,
    ),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("DRIVER", text("marks.driver", "directory")),
            Column("NODES", _nodes),
            Column("CAPACITY", size("status.capacity"), align="right"),
            Column("USED", _share, align="right"),
            Column("GIVEN", size("status.given"), align="right"),
            Column("OVERCOMMIT", _overcommit, align="right"),
            Column("STATE", _state, keep=True),
            Column("MOST GIVEN", size("status.bound"), align="right", wide=True),
            Column("FREE", size("status.free"), align="right", wide=True),
            Column("POOL", text("marks.pool"), wide=True),
            Column("ID", text("marks.id"), wide=True),
            AGE,
        ),
    ),
)
