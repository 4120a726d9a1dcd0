"""The gateway's questions to placement: where an invocation goes. Answered immediately, from what is known."""

from __future__ import annotations

from typing import Protocol

import msgspec

from weft.kinds.parts.function_code import FunctionCode

# Kinds that it reads, beside functions.
KINDS = ("node", "allocation", "constraint", "volume", "image", "project", "placementpolicy", "device")


class PlacementQuery(msgspec.Struct, frozen=True):
    """One version of a function that needs a node."""

    project: str
    code: FunctionCode
    data: tuple[
        tuple[str, int], ...
    ] = ()  # what an instance reads, by name (recipe:<digest>, image:<sha256>), and its bytes
    caller: str = ""  # uid of the node it should be near; "" if unknown


class Ranking(msgspec.Struct, frozen=True):
    nodes: tuple[str, ...] = ()  # uids of those that may run it, best first
    reason: str = ""  # of no nodes: insufficientResources, noAvailableAgents or why the spec can't be read
    message: str = ""  # what is missing
    nearest: str = ""  # where it nearly fits


class FunctionPlacement(Protocol):
    epoch: int  # changes whenever a ranking may have changed

    def rank(self, wanted: PlacementQuery) -> Ranking: ...

    def use(self, node: str, cpu: float) -> None:
        """Record how many cores instances on that node use now. It counts in the score and refuses nobody, since only the node
        knows what it can give this instant."""

    def hold(self, node: str, data: frozenset[str]) -> None:
        """Record which data of functions that node has."""
