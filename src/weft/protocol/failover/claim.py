"""Agree which site is primary for a group of guests: the claims of two sites and of the witness, and the answers to them. All that
comes from another is bounded by the types here."""

from __future__ import annotations

from typing import Annotated

import msgspec

Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")]
MOST_GENERATION = 1 << 40
Id = Annotated[str, msgspec.Meta(pattern=r"\A[-a-z0-9]{1,64}\Z")]


class Generation(msgspec.Struct, frozen=True):
    """Generation of who writes. Two that people forced at both sites have the same number, and never the same id."""

    number: Annotated[int, msgspec.Meta(ge=1, le=MOST_GENERATION)]
    id: Id


class Claim(msgspec.Struct, frozen=True):
    """The site ``holder`` is primary in this generation."""

    generation: Generation
    holder: Name

    def is_newer_than(self, other: Claim) -> bool:
        return self.generation.number > other.generation.number


class Promised(msgspec.Struct, frozen=True, tag="promised"):
    """Nobody else takes over for as long as was agreed."""

    claim: Claim


class Granted(msgspec.Struct, frozen=True, tag="granted"):
    """The site that asked is primary from now on, and has the witness's promise."""

    claim: Claim


class Newer(msgspec.Struct, frozen=True, tag="newer"):
    """There is a newer generation than the one that was named."""

    claim: Claim


class Conflict(msgspec.Struct, frozen=True, tag="conflict"):
    """There is another generation of the same number: people decide which of both counts."""

    claim: Claim


class ClaimRefused(msgspec.Struct, frozen=True, tag="refused"):
    """Not now. ``reason``: promised, asking, unconfirmed."""

    reason: str
    seconds: float = 0.0  # after which it may be another answer


ClaimAnswer = Promised | Granted | Newer | Conflict | ClaimRefused
