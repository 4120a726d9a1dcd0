"""Where an invocation goes: what the gateway asks of placement, and what it tells it. Answered at once, from what is known."""

from __future__ import annotations

from typing import Protocol

import msgspec

from weft.kinds.parts.function_code import FunctionCode

# What is read for it, beside functions.
KINDS = ("node", "allocation", "constraint", "volume", "image", "project", "placementpolicy")


class PlacementQuery(msgspec.Struct, frozen=True):
    """One version of a function that is to run. ``data`` is what an instance of it reads, by name (``recipe:<digest>``,
    ``image:<sha256>``) with its bytes; ``caller`` the uid of the node it should be near, "" if that isn't known."""

    project: str
    code: FunctionCode
    data: tuple[tuple[str, int], ...] = ()
    caller: str = ""


class Ranking(msgspec.Struct, frozen=True):
    """Nodes by uid that may run it, best first. With none ``reason`` is insufficientResources, noAvailableAgents or why the wish
    can't be read; ``message`` names what lacked, and ``nearest`` where it nearly fits."""

    nodes: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""
    nearest: str = ""


class FunctionPlacement(Protocol):
    """``epoch`` moves whenever a ranking may have changed."""

    epoch: int

    def rank(self, wanted: PlacementQuery) -> Ranking: ...

    def use(self, node: str, cpu: float) -> None:
        """How many cores instances on that node take now: it counts in the score and refuses nobody, since the node alone knows
        what it can give this instant."""

    def hold(self, node: str, data: frozenset[str]) -> None:
        """What of functions' data lies on that node."""
