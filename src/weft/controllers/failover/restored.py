"""Prepare a store's replications when it is restored from a backup: it may be older than what the other cluster knows. Pure.

While both clusters and the witness are cut off from each other, nobody could tell a restored store so. So it begins with
what can't start a second guest, whatever happened since the backup:
- the VM of each replication over a link is held, as if its replica took over automatically: since the backup the link may have
  got a witness, and people may have promoted the replica. Nothing of it starts before the witness or the other cluster has
  confirmed this one; a guest that no node held runs on. If nothing shall take over, the hold ends once one of them has answered
  that;
- no replica takes over, until its source says again that it may, nor promises anything to its source, until the witness
  has said that it wasn't promoted since the backup;
- turns go on from the time of the restore, which is more than any turn from before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from weft.kinds.cluster import CLUSTER
from weft.kinds.parts.schema_upgrade import upgrade
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.replica import PRIMARY, REPLICA, ReplicaMarks
from weft.kinds.replication import REPLICATION, ReplicationMarks
from weft.kinds.vm import VM
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import InvalidInput
from weft.objects.identity import object_key

Entry = tuple[str, bytes]
_LEFT = ("Stale", "HandedOver", "Failed")  # phases of a replication whose VM here isn't the one that writes


def hold_restored(read: Callable[[], Iterable[Entry]], now: float) -> Iterator[Entry]:
    """The entries that ``read`` gives each time it is called, as the restored store begins with them. ``now``: seconds since
    1970."""
    held = _find_held(read)
    for key, value in read():
        match _kind_of(key):
            case REPLICATION.name if (envelope := _upgrade(REPLICATION, value)).key in held.replications:
                turn = decode_part(envelope.marks, ReplicationMarks).arming
                envelope.marks = merge_part(envelope.marks, change_replication(turn, now))
                yield key, encode_envelope(envelope)
            case REPLICA.name if (
                marks := decode_part((envelope := _upgrade(REPLICA, value)).marks, ReplicaMarks)
            ).role != PRIMARY:
                envelope.marks = merge_part(envelope.marks, mark_replica(marks.renewals))
                yield key, encode_envelope(envelope)
            case VM.name if (envelope := _upgrade(VM, value)).uid in held.workloads:
                envelope.marks = merge_part(envelope.marks, {"guard": "hold"})
                yield key, encode_envelope(envelope)
            case "allocation" if _workload_of(envelope := decode_envelope(value)) in held.workloads:
                yield key, _encode(envelope, {"guard": "hold"})
            case _:
                yield key, value


def check_entries(read: Callable[[], Iterable[Entry]]) -> None:
    """Raises InvalidInput, which names the object, if one of the entries that ``read`` gives can't be read."""
    last = ""

    def watch() -> Iterator[Entry]:
        nonlocal last
        for key, value in read():
            last = key
            if _kind_of(key) in BY_NAME:
                decode_part(decode_envelope(value).spec, dict)
            yield key, value

    try:
        for _ in hold_restored(watch, 0.0):
            pass
        list_unknown(watch)
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as problem:
        raise InvalidInput(
            f"the object {last} in the backup can't be read: {problem}", hint="nothing was changed; use another backup"
        ) from None


def list_unknown(read: Callable[[], Iterable[Entry]]) -> dict[str, list[str]]:
    """VMs that run in projects of a link, by its name, and have no replication over it in the backup: one may have got it since, so
    its copy may run there. Nothing in the store says so: people look."""
    projects, replicated, running = dict[str, set[str]](), set[tuple[str, str]](), list[tuple[str, str, str]]()
    for key, value in read():
        match _kind_of(key):
            case CLUSTER.name:
                envelope = decode_envelope(value)
                projects[envelope.name] = set(msgspec.json.decode(envelope.spec).get("projects") or ())
            case "vm":
                envelope = decode_envelope(value)
                if msgspec.json.decode(envelope.spec).get("run", "start") != "stop":
                    running.append((key, envelope.project or "", envelope.name))
            case REPLICATION.name:
                envelope = decode_envelope(value)
                spec = msgspec.json.decode(envelope.spec)
                vm = object_key("vm", envelope.project, str(spec["of"]).removeprefix("vm/"))
                replicated.add((str(spec["cluster"]), vm))
    found = {
        link: [name for key, project, name in running if project in there and (link, key) not in replicated]
        for link, there in projects.items()
    }
    return {link: names for link, names in found.items() if names}


def change_replication(arming: int, now: float) -> dict[str, Any]:
    """Changes to the marks of one whose VM is held."""
    return {"guard": "hold", "arming": max(arming + 1, int(now))}


def mark_replica(renewals: int) -> dict[str, Any]:
    """Changes to its marks."""
    return {"automatic": False, "restored": True, "renewals": renewals + 1}


def _upgrade(kind: Kind, value: bytes) -> Envelope:
    """An object of the backup, which an older weft may have written."""
    fresh = upgrade(kind, msgspec.json.decode(value))
    return decode_envelope(value if fresh is None else msgspec.json.encode(fresh))


class _Held(msgspec.Struct):
    replications: frozenset[str]  # keys
    workloads: frozenset[str]  # uids


def _find_held(read: Callable[[], Iterable[Entry]]) -> _Held:
    links, workloads, replications = set[str](), dict[str, str](), list[tuple[Envelope, str, str]]()
    for key, value in read():
        match _kind_of(key):
            case CLUSTER.name:
                links.add(decode_envelope(value).name)
            case "vm":
                workloads[key] = decode_envelope(value).uid
            case REPLICATION.name:
                envelope = _upgrade(REPLICATION, value)
                spec = msgspec.json.decode(envelope.spec)
                replications.append((envelope, str(spec["of"]), str(spec["cluster"])))
    keys, uids = set[str](), set[str]()
    for envelope, of, cluster in replications:
        status = msgspec.json.decode(envelope.status)
        vm = workloads.get(object_key("vm", envelope.project, of.removeprefix("vm/")))
        is_its = vm is not None and status.get("workload_uid", "") in ("", vm)
        if (
            vm is not None
            and is_its
            and status.get("phase") not in _LEFT
            and (cluster in links or decode_part(envelope.marks, ReplicationMarks).guard)
        ):
            keys.add(envelope.key)
            uids.add(vm)
    return _Held(frozenset(keys), frozenset(uids))


def _kind_of(key: str) -> str:
    return key.split("/", 2)[1] if key.startswith("/") else ""


def _workload_of(allocation: Envelope) -> str:
    return str((msgspec.json.decode(allocation.spec).get("workload") or {}).get("uid", ""))


def _encode(envelope: Envelope, part: dict[str, Any]) -> bytes:
    changed = replace(envelope, spec=merge_part(envelope.spec, part), generation=envelope.generation + 1)
    return encode_envelope(changed)
