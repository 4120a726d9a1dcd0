"""The store as one request sees it: each object read once, and the request's own planned writes on top."""

from __future__ import annotations

from collections.abc import Iterable

from weft.api.admission.usage import Usage
from weft.contracts.store import Store
from weft.kinds.record import Kind
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.identity import object_key


class View:
    def __init__(self, store: Store) -> None:
        self.store = store
        self._read: dict[str, Envelope | None] = {}
        self._planned: dict[str, Envelope] = {}
        self.usages: dict[str, Usage] = {}  # of projects with a quota, once they are needed

    async def get(self, kind: Kind, project: str | None, name: str) -> Envelope | None:
        """The object as planned, else as stored; None if there is neither."""
        return await self.get_key(object_key(kind.name, project if kind.scope == "project" else None, name))

    async def get_key(self, key: str) -> Envelope | None:
        if key in self._planned:
            return self._planned[key]
        if key not in self._read:
            entry = await self.store.get(key)
            self._read[key] = None if entry is None else decode_envelope(entry.value, entry.revision)
        return self._read[key]

    def plan(self, key: str, envelope: Envelope) -> None:
        """Put ``envelope`` on top of what is stored at ``key``: later objects of this request may refer to it."""
        self._planned[key] = envelope

    def list_planned(self) -> Iterable[tuple[str, Envelope]]:
        return self._planned.items()

    def is_planned(self, key: str) -> bool:
        return key in self._planned
