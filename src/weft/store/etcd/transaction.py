"""A weft commit as one etcd transaction: what is compared, what is done, what is read when it may not go through. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from weft.contracts.store import Absent, AtRevision, LeaseHeld, Precondition, Present, Put, Write
from weft.store.etcd import wire

_HIGHEST = 2**63 - 1

# Never holds: no key's version is negative.
NEVER = wire.Compare(result=wire.EQUAL, target=wire.OF_VERSION, key=b"\0", version=-1)


def is_absent(key: bytes) -> Any:
    return wire.Compare(result=wire.EQUAL, target=wire.OF_VERSION, key=key, version=0)


def is_unchanged(key: bytes, mod_revision: int) -> Any:
    """Holds while ``key`` was last written at ``mod_revision``."""
    if not 0 < mod_revision <= _HIGHEST:  # 0 would mean "absent" to etcd
        return NEVER
    return wire.Compare(result=wire.EQUAL, target=wire.OF_MOD, key=key, mod_revision=mod_revision)


def is_same(key: bytes, create_revision: int) -> Any:
    """Holds while ``key`` is the one made at ``create_revision``, however often written since."""
    if not 0 < create_revision <= _HIGHEST:
        return NEVER
    return wire.Compare(result=wire.EQUAL, target=wire.OF_CREATE, key=key, create_revision=create_revision)


def is_present(key: bytes) -> Any:
    return wire.Compare(result=wire.NOT_EQUAL, target=wire.OF_VERSION, key=key, version=0)


def put(key: bytes, value: bytes) -> Any:
    return wire.RequestOp(put=wire.PutRequest(key=key, value=value))


def delete(key: bytes) -> Any:
    return wire.RequestOp(delete_range=wire.DeleteRangeRequest(key=key))


def read(key: bytes, *, keys_only: bool = False) -> Any:
    return wire.RequestOp(range=wire.RangeRequest(key=key, keys_only=keys_only))


def choose(condition: Any, success: Any, failure: Any) -> Any:
    """One step of a transaction: ``success`` if ``condition`` held before the whole of it, else ``failure``."""
    return wire.RequestOp(txn=wire.TxnRequest(compare=[condition], success=[success], failure=[failure]))


def plan_compare(preconditions: Sequence[Precondition], places: Sequence[bytes]) -> list[Any]:
    """Comparisons that must hold in etcd to let the commit through; ``places`` are the keys that the preconditions are about.

    A lease's fence is the revision its key was made at."""
    out = []
    for precondition, key in zip(preconditions, places, strict=True):
        match precondition:
            case AtRevision():
                out.append(is_unchanged(key, precondition.revision))
            case Absent():
                out.append(is_absent(key))
            case Present():
                out.append(is_present(key))
            case LeaseHeld():
                out.append(is_same(key, precondition.fence))
    return out


def plan_writes(writes: Sequence[Write], place: Callable[[str], bytes]) -> list[Any]:
    return [put(place(w.key), w.value) if isinstance(w, Put) else delete(place(w.key)) for w in writes]


def find_value(response: Any) -> Any | None:
    """The one key-value a read found, or None."""
    return response.range.kvs[0] if response.range.kvs else None
