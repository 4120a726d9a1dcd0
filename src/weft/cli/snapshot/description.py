"""Snapshots in words: what one holds, what stays of a deleted VM, and what a VM from a snapshot does not take over. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from weft.kinds.fields.cells import dig
from weft.kinds.parts.nic import read_nic
from weft.kinds.registry import BY_NAME
from weft.objects.identity import cut_name
from weft.objects.quantity import format_bytes

Object = Mapping[str, Any]
MOST_NAMED = 5
_CONSISTENCY = {
    "memory": "memory and disks of one instant",
    "filesystem": "with frozen file systems",
    "crash": "as after a power failure",
    "stopped": "of a stopped VM",
    "unused": "nothing used it",
}
# What only one VM can have, by the name of its field.
_OF_ONE = {
    "publish": "published ports",
    "lease": "its lease",
    "reservation": "its reservation",
    "gang": "its gang",
    "node": "its node",
    "snapshots": "its regular snapshots",
}

# Of its status: what programs go by, and of the VM's spec then what people know a VM by.
_IDS = (
    *("node_uid", "pool_id", "workload_uid", "image_sha256", "listed"),
    *("repository_id", "snapshot_uid", "order", "read_generation"),  # of a backup
)
_KNOWN_BY = ("cpu", "memory", "image", "disk", "networks", "volumes", "gpus")


def name_snapshot(vm: str, now: float) -> str:
    """``web-20261125-100000``: the second in UTC, so that names sort by time whatever a clock's zone is."""
    return cut_name(vm, f"-{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}")


def _is_of_machine(snapshot: Object) -> bool:
    kind = BY_NAME.get(str(dig(snapshot, "spec.of", "")).partition("/")[0])
    return kind is None or kind.snapshots == "machine"


def describe_taken(snapshot: Object) -> str:
    """Describe how it was taken: ``with frozen file systems, the VM paused for 8 ms; 12 MiB of its own``: the rest it shares with
    the VM's disks."""
    consistency, pause = str(dig(snapshot, "status.consistency", "")), float(dig(snapshot, "status.pause_ms", 0) or 0)
    of_vm = _is_of_machine(snapshot)
    how = _CONSISTENCY.get("unused" if consistency == "stopped" and not of_vm else consistency, consistency)
    paused = "the VM paused" if of_vm else "writers paused"
    how += f", {paused} for {max(1, round(pause))} ms" if pause and consistency != "stopped" else ""
    size, memory = (int(dig(snapshot, f"status.{part}", 0) or 0) for part in ("size", "memory"))
    own = f"{format_bytes(size)} of its own" + (f", {format_bytes(memory)} of memory" if memory else "")
    return f"{how}; {own}"


def shorten_snapshot(snapshot: Object) -> dict[str, Any]:
    """A snapshot or a backup without ids, and with the few fields of the VM's spec then that people know it by."""
    status = {key: value for key, value in (snapshot.get("status") or {}).items() if key not in _IDS and value != ""}
    former = {
        key: value for key, value in (status.pop("workload_spec", None) or {}).items() if key in _KNOWN_BY and value
    }
    return {**snapshot, "status": {**status, **({"vm_then": former} if former else {})}}


def describe_use(snapshot: Object) -> str:
    """Describe what to type to go back to it."""
    if dig(snapshot, "status.phase") != "Ready":
        return ""
    if not _is_of_machine(snapshot):
        disks = sorted(dig(snapshot, "status.disks", {}) or {})
        commands = [f"weft volume restore {disk} --snapshot {snapshot['name']}" for disk in disks[:MOST_NAMED]]
        return "\n".join(
            line for one in commands for line in (f"go back          {one}", f"as a new volume  {one} --new-name NAME")
        )
    command = f"weft restore {dig(snapshot, 'spec.of', '')} --snapshot {snapshot['name']}"
    return f"go back      {command}\nas a new VM  {command} --new-name NAME"


def describe_left_out(snapshot: Object) -> list[str]:
    """Describe what a new VM from this snapshot doesn't take over, each in a few words."""
    former = dig(snapshot, "status.workload_spec", {}) or {}
    found = [words for field, words in _OF_ONE.items() if former.get(field)]
    fixed = [nic.address for given in former.get("networks", []) if (nic := read_nic(given)).address]
    return [*found, *([f"fixed addresses: {', '.join(fixed)}"] if fixed else [])]


def describe_stay(vm: str, snapshots: Sequence[Object], in_project: str = "", which: str = "") -> str:
    """``2 snapshots of vm/web stay, with 12 MiB: weft snapshot delete web-1 web-2``; ``which``: "earlier " for those of another VM
    that had the name before."""
    count, names = len(snapshots), [str(one["name"]) for one in snapshots]
    held = format_bytes(sum(int(dig(one, "status.size", 0) or 0) for one in snapshots))
    command = f"weft snapshot delete {' '.join(names)}"
    if count > MOST_NAMED:
        command = f"weft snapshot delete --field spec.of={vm}"
    of = f"an {which}{vm}" if which else vm
    stay = f"1 snapshot of {of} stays" if count == 1 else f"{count} snapshots of {of} stay"
    return f"{stay}, with {held}: {command}{in_project}"
