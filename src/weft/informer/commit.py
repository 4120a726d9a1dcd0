"""One change of the fabric as a value: what the plans of controllers and scheduler are made of. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.contracts.journal import Event
from weft.contracts.store import AtRevision, Delete, Precondition, Put, Write
from weft.informer.view import Item
from weft.objects.envelope import Envelope, encode_envelope


class Commit(msgspec.Struct, frozen=True):
    """Writes that succeed or fail together. ``key`` is their object: it is planned again if they fail. ``events`` go to the
    journal once the writes are durable. ``made`` are written objects as items, so that the cache needn't decode them; nobody
    changes them after that."""

    key: str
    writes: Sequence[Write]
    preconditions: Sequence[Precondition] = ()
    events: Sequence[Event] = ()
    made: Sequence[Item] = ()


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
