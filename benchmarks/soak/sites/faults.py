"""What befalls two sites and their witness, drawn from a seed. Pure."""

from __future__ import annotations

import random
from typing import NamedTuple

LEFT, RIGHT = "home", "other"  # the site that the VMs run at when the round begins, and the other one
KINDS = (
    "cut off",  # home reaches neither the other site nor the witness
    "frozen",  # home's server and agents; its guests go on
    "all frozen",  # all of home, its guests too; people fail over what doesn't fail over automatically
    "killed",  # home's server, agents and one of the guard, again and again
    "line",  # between both sites, in one direction or both
    "witness",  # killed or frozen
    "one process",
    "hand-over",
    "take-back",
)
TAKES_OVER = ("cut off", "frozen", "all frozen", "killed")
BY_PEOPLE = ("hand-over", "take-back")
LONG_SECONDS, SHORT_SECONDS = (58.0, 72.0), (8.0, 40.0)
ONES = ("server", "controllers", "api", "gateway", "agents", "guard")
EXTRAS = (
    "controllers",
    "api",
    "gateway",
    "agents",
    "witness",
    "server",
)  # all but the last are begun again at once by something
WITH_SERVER = (
    "witness",
    "one process",
    "hand-over",
    "take-back",
)  # while both sites answer, so that make up can begin one


class Extra(NamedTuple):
    """``kill -9`` of one process, so many seconds after the fault began."""

    after: float
    what: str
    where: str  # LEFT or RIGHT


class Fault(NamedTuple):
    """``how``: drop or reset of a line, kill or freeze of a process. ``ways`` of ``line``: from which site to which."""

    kind: str
    seconds: float
    how: str
    what: str = ""
    where: str = LEFT
    ways: tuple[tuple[str, str], ...] = ()
    extras: tuple[Extra, ...] = ()

    def __str__(self) -> str:
        told = [f"{self.kind} ({', '.join(word for word in (self.what, self.where, self.how) if word)})"]
        told += [f"{source} → {target}" for source, target in self.ways]
        told += [f"{one.what} of {one.where} killed after {one.after:.0f} s" for one in self.extras]
        return f"{', '.join(told)}, {self.seconds:.0f} s"


def draw_fault(seed: int, number: int) -> Fault:
    """The fault of this round: each kind once in so many rounds."""
    block, place = divmod(number, len(KINDS))
    kind = random.Random(f"{seed}/{block}").sample(KINDS, len(KINDS))[place]
    dice = random.Random(f"{seed}/{block}/{kind}")
    seconds = dice.uniform(*(LONG_SECONDS if kind in TAKES_OVER else SHORT_SECONDS))
    how = dice.choice(("drop", "reset") if kind in ("cut off", "line") else ("kill", "freeze"))
    extras = tuple(
        Extra(round(dice.uniform(0.0, min(seconds, 55.0)), 1), *_draw_victim(dice, kind))
        for _ in range(dice.choice((0, 1, 2)))
    )
    match kind:
        case "frozen" | "all frozen":
            how = "freeze"
        case "killed":
            how = "kill"
        case "line":
            ways = dice.choice((((LEFT, RIGHT),), ((RIGHT, LEFT),), ((LEFT, RIGHT), (RIGHT, LEFT))))
            return Fault(kind, seconds, how, ways=ways, extras=extras)
        case "one process":
            return Fault(kind, seconds, how, dice.choice(ONES), dice.choice((LEFT, RIGHT)), extras=extras)
        case "hand-over" | "take-back":
            how = ""
    return Fault(kind, seconds, how, extras=extras)


def _draw_victim(dice: random.Random, kind: str) -> tuple[str, str]:
    """At a site that stands still, nothing would begin it again."""
    what = dice.choice(EXTRAS if kind in WITH_SERVER else EXTRAS[:-1])
    return what, RIGHT if kind in ("frozen", "all frozen", "killed") else dice.choice((LEFT, RIGHT))
