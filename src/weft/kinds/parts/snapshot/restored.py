"""Needs of a VM that begins from a snapshot, or goes back to one: the fields of its spec, and the manifests of a new VM. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.parts.nic import read_nic
from weft.kinds.parts.workload import ONCE_IN_SPEC
from weft.objects.identity import cut_name
from weft.objects.schema import field

ROOT = "root"
# Fields that a VM from a snapshot doesn't take over: what only one VM can have (ports, a lease, a place in a gang), what keeps it
# from the snapshot's node, and what acts on a first boot, which its disks have behind them.
LEFT_OUT = (
    *("publish", "force_publish", "lease", "reservation", "gang", "node", "anti_affinity_groups", "spread"),
    *("user_data", "run", "hold", "origin", "snapshots", "boot"),
    *ONCE_IN_SPEC,
)
# Beside these, of a VM that is only there to test: what would give it a part in what the original does: groups, its choice of
# nodes, GPUs, names for logins.
LEFT_OUT_OF_TESTS = (
    *("security_groups", "affinity_groups", "constraint", "prefer", "strategy", "tolerate", "storage_locality"),
    *("data_hints", "gpus", "gpu_share", "gpu_memory", "gpu_models", "resources", "iso", "type", "pool"),
)


class VmOrigin(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The snapshot that a VM begins from."""

    snapshot: Annotated[str, field("Snapshot that its disks come from", change="never", name=True)]
    memory: Annotated[bool, field("Go on from the snapshot's memory, too, if it has any", change="never")] = False


class VmRestore(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The last restore of a VM in place."""

    snapshot: Annotated[str, field("Snapshot that its disks go back to", name=True)]
    generation: Annotated[int, field("Generation of the VM that asked for it, which tells it from earlier ones", ge=1)]
    memory: Annotated[bool, field("Go on from the snapshot's memory")] = False
    keep: Annotated[bool, field("Keep what stood there as a snapshot")] = True


class VolumeOrigin(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The disk of a snapshot that a volume's data comes from."""

    snapshot: Annotated[str, field("Snapshot that its data comes from", change="never", name=True)]
    disk: Annotated[str, field("Name that the volume had when the snapshot was taken", change="never")]
    test: Annotated[bool, field("Set by the server for one of a VM that is only there to test", change="never")] = False
    alone: Annotated[bool, field("Its data comes without a VM that begins from it", change="never")] = False


class VolumeRestore(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The last restore of a volume in place."""

    snapshot: Annotated[str, field("Snapshot that its data goes back to", name=True)]
    generation: Annotated[int, field("Generation of the volume that asked for it", ge=1)]
    keep: Annotated[bool, field("Keep what stood there as a snapshot")] = True


def name_volume(vm: str, volume: str) -> str:
    """The name of a new VM's copy of a volume."""
    return cut_name(f"{vm}-{volume}")


def make_restored_vm(
    former: Mapping[str, Any], name: str, snapshot: str, disks: Mapping[str, int], *, memory: bool
) -> dict[str, Any]:
    """The manifest of a VM that begins from ``snapshot``, whose VM had the spec ``former``; ``disks`` are those of the snapshot by
    name, with their sizes in bytes."""
    kept = {key: value for key, value in former.items() if key not in LEFT_OUT}
    return {
        "kind": "vm",
        "name": name,
        "spec": {
            **kept,
            "disk": disks.get(ROOT, 0) or int(kept.get("disk", 0)),
            "networks": [read_nic(nic).network for nic in kept.get("networks", [])],
            "volumes": [name_volume(name, disk) for disk in disks if disk != ROOT],
            "origin": {"snapshot": snapshot, "memory": memory},
        },
    }


def make_restored_volumes(volumes: Mapping[str, tuple[int, str]], vm: str, snapshot: str) -> list[dict[str, Any]]:
    """The manifests of a new VM's volumes: ``volumes`` gives size and pool of each disk of the snapshot, by name."""
    return [
        {
            "kind": "volume",
            "name": name_volume(vm, name),
            "spec": {"size": size, **({"pool": pool} if pool else {})},
            "marks": {"origin": {"snapshot": snapshot, "disk": name}},
        }
        for name, (size, pool) in volumes.items()
        if name != ROOT
    ]
