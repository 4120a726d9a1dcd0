"""Window of one tab on a table, and the changes sent to it: the difference between what it has and what is so now.

A tab that reads slowly gets the newest state, and nothing waits for it. Does no I/O.
"""

from __future__ import annotations

from typing import Any

import msgspec

from weft.api.dashboard.selection import Page, Selection
from weft.api.dashboard.table import Layout, encode_row, list_heads

_encoder = msgspec.json.Encoder()
_MOST_KEPT = 16


class RowWindow:
    """Rows ``offset`` to ``offset + limit`` of a selection."""

    def __init__(self, selection: Selection, layout: Layout, offset: int, limit: int) -> None:
        self.selection, self._layout, self._place = selection, layout, (offset, limit)
        self._sent: Page = ()
        self._counts: tuple[int, dict[str, int]] | None = None
        self._version = -1

    def take(self) -> bytes:
        """The data of the next event; empty if nothing that is shown has changed. The first has all that is shown."""
        selection = self.selection
        if self._version == selection.version:
            return b""
        page = selection.page(*self._place)
        key = (self._layout, self._place, self._version)
        changes = selection.changes.get(key)  # other tabs with the same page need the same changes
        if changes is None:
            changes = self._encode(page)
            if len(selection.changes) >= _MOST_KEPT:
                selection.changes.clear()
            selection.changes[key] = changes
        self._version, self._sent = selection.version, page
        self._counts = (selection.total, dict(selection.phases))
        return changes

    def _encode(self, page: Page) -> bytes:
        counts = (self.selection.total, dict(self.selection.phases))
        if page == self._sent and counts == self._counts:
            return b""
        before, now = {row.uid: row for row in self._sent}, {row.uid: row for row in page}
        data: dict[str, Any] = {
            "rows": [msgspec.Raw(encode_row(self._layout, row)) for row in page if before.get(row.uid) is not row],
            "gone": [uid for uid in before if uid not in now],
            "total": counts[0],
            "phases": counts[1],
        }
        if list(before) != list(now) or self._counts is None:
            data["order"] = list(now)
        if self._counts is None:
            data["columns"] = list_heads(self._layout)
        return _encoder.encode(data)
