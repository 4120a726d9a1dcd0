"""Find the rows of a kind that an actor sees, and how much of them: exactly what lists of the kind show. Pure.

Equal sights share their selections, so a sight is a value.
"""

from __future__ import annotations

import msgspec

from weft.api.auth.ownership import find_own
from weft.api.dashboard.row import Rendered, Row
from weft.kinds.parts.sharing import is_shared
from weft.kinds.registry import BY_NAME
from weft.trust.credentials import Actor


class Sight(msgspec.Struct, frozen=True):
    """``projects`` are those whose objects are seen, None: all, or a kind of the fabric. ``owner`` is set where objects are seen
    one by one, by who owns them."""

    kind: str
    projects: frozenset[str] | None = None
    narrowed: bool = False
    owner: Actor | None = None

    def pick(self, made: Rendered | None) -> Row | None:
        """The object as it is seen; None if it isn't."""
        if made is None:
            return None
        if self.owner is not None:
            own = find_own(self.owner, BY_NAME[self.kind], "list")
            if own is not None and not own(made.value):
                return None
        row = made.narrowed if self.narrowed else made.whole
        if self.projects is None or row.project in self.projects:
            return row
        if made.shared is not None and any(is_shared(made.shares, project) for project in self.projects):
            return made.shared
        return None
