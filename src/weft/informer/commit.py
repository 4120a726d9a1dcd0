"""One change of the fabric as a value: what the plans of controllers and scheduler are made of. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.contracts.journal import Event
from weft.contracts.store import Absent, AtRevision, Delete, Precondition, Put, Write
from weft.informer.view import Item
from weft.objects.envelope import Condition, Envelope, encode_envelope, merge_part, set_condition


class Commit(msgspec.Struct, frozen=True):
    """Writes that succeed or fail together. ``key`` is their object: it is planned again if they fail. ``events`` go to the
    journal once the writes are durable. ``made`` are written objects as items, so that the cache needn't decode them; nobody
    changes them after that."""

    key: str
    writes: Sequence[Write]
    preconditions: Sequence[Precondition] = ()
    events: Sequence[Event] = ()
    made: Sequence[Item] = ()
    planned_at: float = 0.0  # since when it was planned (unix seconds); 0: with others of its batch


class Draft:
    """A commit's writes, gathered, each with what must hold for it; ``read`` are objects that must be as they were read."""

    def __init__(self, *read: Item) -> None:
        self.writes: list[Write] = []
        self.preconditions: list[Precondition] = [unchanged(item) for item in read]

    def make(self, envelope: Envelope) -> None:
        self.writes.append(put(envelope))
        self.preconditions.append(Absent(envelope.key))

    def change(
        self,
        item: Item,
        *,
        spec: msgspec.Struct | None = None,
        actions: msgspec.Struct | None = None,
        marks: msgspec.Struct | None = None,
        status: msgspec.Struct | None = None,
        deleting_since: float | None = None,
        conditions: Sequence[Condition] = (),
    ) -> Envelope:
        """Write these parts of it, with the spec or actions its next generation. One that is being deleted is so since it was."""
        envelope = edit(item)
        if spec is not None:
            envelope.spec = merge_part(envelope.spec, spec)
        if actions is not None:
            envelope.actions = merge_part(envelope.actions, actions)
        if spec is not None or actions is not None:
            envelope.generation += 1
        if marks is not None:
            envelope.marks = merge_part(envelope.marks, marks)
        if status is not None:
            envelope.status = merge_part(envelope.status, status)
        if envelope.deleting_since is None:
            envelope.deleting_since = deleting_since
        for condition in conditions:
            set_condition(envelope, condition)
        self.writes.append(put(envelope))
        self.preconditions.append(unchanged(item))
        return envelope

    def delete(self, item: Item) -> None:
        self.writes.append(delete(item))
        self.preconditions.append(unchanged(item))

    def commit(self, key: str, events: Sequence[Event] = ()) -> Commit | None:
        """All of it at once; None if there is nothing to write."""
        return Commit(key, self.writes, list(dict.fromkeys(self.preconditions)), events) if self.writes else None


def edit(item: Item) -> Envelope:
    """A copy of an object's envelope, to change and write back."""
    return msgspec.structs.replace(item.envelope)


def put(envelope: Envelope) -> Put:
    return Put(envelope.key, encode_envelope(envelope))


def unchanged(item: Item) -> AtRevision:
    """Holds while nobody has written ``item`` since it was read."""
    return AtRevision(item.key, item.envelope.revision)


def delete(item: Item) -> Delete:
    return Delete(item.key)


def let_go(item: Item, finalizer: str) -> Write:
    """Remove this finalizer; without finalizers the object is deleted."""
    envelope = edit(item)
    envelope.finalizers = [name for name in envelope.finalizers if name != finalizer]
    return put(envelope) if envelope.finalizers else delete(item)
