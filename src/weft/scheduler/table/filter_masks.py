"""The nodes that filters accept for a request, kept while that holds: filters that read facts alone answer once for all requests
that ask the same of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from weft.contracts.policy import Filter, Flags, Request, Table
from weft.scheduler.table.rows import Rows
from weft.scheduler.table.snapshot import Snapshot

_KEPT = 1024


class Masks:
    """``steady`` filters read facts alone, ``dynamic`` ones more."""

    def __init__(self, snapshot: Snapshot, filters: Sequence[Filter]) -> None:
        self._snapshot = snapshot
        self._steady = [filter_ for filter_ in filters if filter_.reads == "facts"]
        self._dynamic = [filter_ for filter_ in filters if filter_.reads != "facts"]
        self._filters = filters
        self._epoch = -1
        self._all: Flags = np.ones(0, dtype=np.bool_)
        self._single: dict[tuple[str, Hashable], Flags] = {}
        self._joint: dict[tuple[Hashable, ...], Flags] = {}
        self._same: dict[bytes, Flags] = {}  # so that what is the same is one array

    def dynamic(self, request: Request) -> list[Filter]:
        """The filters that concern the request and read more than facts."""
        return [filter_ for filter_ in self._dynamic if filter_.asks(request) is not None]

    def steady(self, request: Request) -> Flags:
        """The nodes that the filters on facts accept. Read-only."""
        asks = tuple([filter_.asks(request) for filter_ in self._steady])
        self._forget()
        mask = self._joint.get(asks)
        if mask is None:
            mask = np.ones(len(self._snapshot), dtype=np.bool_)
            for filter_, asked in zip(self._steady, asks, strict=True):
                if asked is not None:
                    mask &= self._ask(filter_, asked, request)
            if len(self._joint) >= _KEPT:
                self._joint.clear()
                self._same.clear()
            self._joint[asks] = mask = self._same.setdefault(mask.tobytes(), mask)
        return mask

    def fits(self, request: Request, rows: Sequence[int] | None = None) -> Flags:
        """Flags of the nodes, or of these, that all filters accept now."""
        fits = self.steady(request).copy() if rows is None else self.steady(request)[rows]
        dynamic = self.dynamic(request)
        if rows is None or any(filter_.reads == "fabric" for filter_ in dynamic):
            table: Table = self._snapshot
        else:
            table = Rows(self._snapshot, rows)
        for filter_ in dynamic:
            found = filter_.fits(table, request)
            fits &= found if rows is None or table is not self._snapshot else found[rows]
        return fits

    def refusers(self, request: Request) -> list[tuple[Filter, Flags]]:
        """The filters that refuse any node to the request, and of each the nodes it is the first to refuse."""
        self._forget()
        left = np.ones(len(self._snapshot), dtype=np.bool_)
        refusers: list[tuple[Filter, Flags]] = []
        for filter_ in self._filters:
            asked = filter_.asks(request)
            if asked is not None:
                fits = self._ask(filter_, asked, request)
                if fits is self._all:
                    continue
                refused = np.greater(left, fits)
                if refused.any():
                    refusers.append((filter_, refused))
                    left &= fits
        return refusers

    def _ask(self, filter_: Filter, asked: Hashable, request: Request) -> Flags:
        if filter_.reads != "facts":
            return filter_.fits(self._snapshot, request)
        key = (filter_.name, asked)
        fits = self._single.get(key)
        if fits is None:
            if len(self._single) >= _KEPT:
                self._single.clear()
            # Copied: what a table shows of itself changes with it.
            fits = filter_.fits(self._snapshot, request).copy()
            fits = self._single[key] = self._all if fits.all() else fits
        return fits

    def _forget(self) -> None:
        if self._epoch != self._snapshot.facts_epoch:
            self._epoch = self._snapshot.facts_epoch
            self._single.clear()
            self._joint.clear()
            self._same.clear()
            self._all = np.ones(len(self._snapshot), dtype=np.bool_)
