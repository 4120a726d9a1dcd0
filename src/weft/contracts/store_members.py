"""Members of a store that servers of the fabric keep together. A learner receives all that is written, and has no vote until it is
promoted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class StoreMember(NamedTuple):
    id: int
    name: str  # of its server; "" of one that was never started
    address: str  # HOST:PORT, where the other members reach it
    is_learner: bool


class StoreMembers(Protocol):
    """Each method raises StoreUnavailable when no majority of the members answers, and may be called again after that."""

    async def list(self) -> Sequence[StoreMember]:
        """List the members, in no order."""
        ...

    async def add(self, address: str) -> Sequence[StoreMember]:
        """Add a learner at HOST:PORT; all members with it. Raises IllegalTransition while there is another one."""
        ...

    async def promote(self, member_id: int) -> bool:
        """Give the learner a vote; False while it doesn't have all that was written yet."""
        ...

    async def remove(self, member_id: int) -> None:
        """Remove a member, if it is there. Raises IllegalTransition if too few of the others are there."""
        ...
