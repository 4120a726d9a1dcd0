"""Volume: a disk that outlives the VMs it is attached to. A directory volume lives on the node that first used it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.cells import AGE, NAME, size, text
from weft.kinds.record import Column, Kind
from weft.objects.errors import InvalidInput
from weft.objects.identity import Ref
from weft.objects.schema import field


class VolumeSpec(msgspec.Struct, kw_only=True):
    size: Annotated[int, field("Size", change="live", quantity="bytes")]


class VolumeStatus(msgspec.Struct, kw_only=True):
    """``node`` is where its data lies, once it has any; ``attached_to`` the workload whose allocation has it now."""

    phase: str = "Available"
    node: str | None = None
    node_uid: str | None = None
    attached_to: Ref | None = None


def check_volume(spec: VolumeSpec) -> None:
    if spec.size < 1024 * 1024:
        raise InvalidInput(f"spec.size: {spec.size} bytes is too small", field="spec.size", hint="give at least 1M")


VOLUME = Kind(
    name="volume",
    plural="volumes",
    title="volume",
    summary="A disk that outlives VMs",
    spec=VolumeSpec,
    status=VolumeStatus,
    check=check_volume,
    status_writer="volumes",
    finalizers=("volume",),
    columns=(
        NAME,
        Column("PHASE", text("status.phase", "Available")),
        Column("SIZE", size("spec.size"), align="right"),
        Column("NODE", text("status.node")),
        Column("ATTACHED", text("status.attached_to.name")),
        AGE,
    ),
)
