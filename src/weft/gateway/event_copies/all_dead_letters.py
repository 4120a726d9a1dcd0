"""Dead letters of all servers' gateways as one list: each lies at the gateway where its event failed for good."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.gateway.event_copies.other_gateways import LETTERS, OtherGateways
from weft.gateway.function_events.dead_letters import NEWEST, LetterPlace
from weft.gateway.function_events.delivery import Deliveries
from weft.gateway.function_events.queue import Event

MOST_LISTED = 100
MOST_BYTES = 4 << 20  # of payloads in a gateway's part of a list

LetterVerb = Literal["list", "find", "redrive", "purge"]


class LetterQuestion(msgspec.Struct, frozen=True):
    """Question about dead letters; a list goes on after the place ``after``, and ``id`` is that of the letter to find."""

    verb: LetterVerb
    project: str
    name: str
    after: LetterPlace = NEWEST
    id: str = ""


class LetterAnswer(msgspec.Struct, frozen=True):
    """``more``: letters were left out at the end; ``count``: of those that were redriven or purged; ``dead_at``: of the letter
    that was asked for."""

    letters: list[Event] = []
    more: bool = False
    count: int = 0
    dead_at: float | None = None


class MergedLetters(msgspec.Struct, frozen=True):
    """``away``: the servers whose part is missing."""

    letters: list[Event]
    count: int
    away: list[str]


class AllDeadLetters:
    """``others`` is None at a gateway that is alone for good."""

    def __init__(self, own: Deliveries, others: OtherGateways | None) -> None:
        self._own, self._others = own, others

    async def find(self, project: str, name: str, after: str = "") -> MergedLetters:
        """A function's dead letters, newest first, those after the one with the id ``after``. Raises Unavailable."""
        place = NEWEST
        if after:
            found, _ = await self._ask_all(LetterQuestion("find", project, name, id=after))
            place = max(((one.dead_at, after) for one in found if one.dead_at is not None), default=(0.0, ""))
        found, away = await self._ask_all(LetterQuestion("list", project, name, place))
        # Where a part was cut off, older ones of other parts come with the next list.
        end = max((place_of(one.letters[-1]) for one in found if one.more), default=(0.0, ""))
        letters = sorted((letter for one in found for letter in one.letters), key=place_of, reverse=True)
        return MergedLetters([letter for letter in letters if place_of(letter) >= end], 0, away)

    async def act(self, verb: Literal["redrive", "purge"], project: str, name: str) -> MergedLetters:
        """Run all of a function's dead letters again, or delete them. Raises Unavailable."""
        found, away = await self._ask_all(LetterQuestion(verb, project, name))
        return MergedLetters([], sum(one.count for one in found), away)

    async def answer(self, asked: LetterQuestion) -> LetterAnswer:
        """The part of this gateway. Raises Unavailable."""
        match asked.verb:
            case "list":
                letters = await self._own.dead(asked.project, asked.name, MOST_LISTED, asked.after)
                return _cut(letters)
            case "find":
                return LetterAnswer(dead_at=await self._own.find_dead(asked.id))
            case "redrive":
                return LetterAnswer(count=await self._own.redrive(asked.project, asked.name))
            case "purge":
                return LetterAnswer(count=await self._own.purge(asked.project, asked.name))

    async def _ask_all(self, asked: LetterQuestion) -> tuple[list[LetterAnswer], list[str]]:
        """The answers of all, and the names of the servers that gave none."""
        own = await self.answer(asked)
        if self._others is None:
            return [own], []
        found, away = await self._others.ask_live(LETTERS, lambda _: asked, LetterAnswer)
        return [own, *found.values()], away


def place_of(letter: Event) -> LetterPlace:
    return letter.dead_at or 0.0, letter.id


def _cut(letters: list[Event]) -> LetterAnswer:
    free = MOST_BYTES
    for number, letter in enumerate(letters):
        free -= len(letter.payload)
        if free < 0 and number:
            return LetterAnswer(letters[:number], more=True)
    return LetterAnswer(letters, more=len(letters) == MOST_LISTED)
