"""Commands: a setting on its way to a device, until the device reports it or its time is up. Pure.

A command is sent at once and repeated with growing pauses, under the same id; after ``until`` it is never sent again. The newest
command of a property replaces the one before, be it of people or of a rule.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.contracts.device import Value

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
_MOST_DOUBLINGS = 10
CommandOutcome = Literal["Pending", "Delivered", "Confirmed", "Expired", "Refused"]


class Command(msgspec.Struct):
    """A command. ``until``: Unix seconds by the server's clock; None: it doesn't expire. ``source``: the device's spec, or a rule's
    name. ``outcome`` Delivered: handed over at least once."""

    id: str
    name: str
    value: Value
    until: float | None = None
    source: str = "spec"
    outcome: CommandOutcome = "Pending"
    problem: str = ""
    tries: int = 0
    next_at: float = 0.0  # clock's elapsed seconds; begins anew with the process
    ended_at: float = 0.0  # Unix seconds

    @property
    def is_open(self) -> bool:
        return self.outcome in ("Pending", "Delivered")


class Sending(msgspec.Struct, frozen=True):
    """Hand over ``command`` now; the device must not get it later than ``seconds`` from now."""

    command: Command
    seconds: float


LONGEST_LIFE_SECONDS = 3600.0  # of one hand-over of a command that doesn't expire: it is repeated anyway


def plan_sendings(commands: dict[str, Command], now: float, elapsed: float) -> tuple[list[Sending], list[Command]]:
    """The commands (by property) to hand over, and those that expired just now (marked so). ``now``: the server's Unix seconds."""
    sendings, expired = [], []
    for command in commands.values():
        if not command.is_open:
            continue
        left = LONGEST_LIFE_SECONDS if command.until is None else command.until - now
        if left <= 0:
            command.outcome, command.ended_at = "Expired", now
            expired.append(command)
        elif elapsed >= command.next_at:
            sendings.append(Sending(command, min(left, LONGEST_LIFE_SECONDS)))
    return sendings, expired


def note_try(command: Command, elapsed: float, problem: str = "") -> None:
    """It was handed over, or couldn't be, for ``problem``."""
    command.tries += 1
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(command.tries - 1, _MOST_DOUBLINGS))
    command.next_at = elapsed + pause
    command.problem = problem
    if not problem:
        command.outcome = "Delivered"


def find_next(commands: dict[str, Command]) -> float | None:
    """When the next one is due, in the clock's elapsed seconds; None: no command is open."""
    return min((one.next_at for one in commands.values() if one.is_open), default=None)
