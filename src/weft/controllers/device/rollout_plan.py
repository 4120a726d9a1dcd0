"""How a setting goes to many devices in waves, and stops where too many fail. Pure.

All that it must remember is in ``RolloutProgress``, which is written in the commit that sets the devices' values: after a kill
it goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from weft.objects.errors import shorten

WAITING, SENT, CONFIRMED, FAILED = ".", "s", "c", "f"  # what ``RolloutProgress.states`` has for each member
MOST_MEMBERS = 5000
MOST_TOGETHER = 90  # devices that one commit sets: it has the progress, too, and at most 100 writes
MOST_MEMBER_BYTES = 150_000  # of all their names: the store takes an object of at most 256 kB
MOST_WORDS = 200
SETTLE_SECONDS = 10.0
MOST_REASONS = 100  # failures whose reason is kept; of later ones only that they failed
Phase = Literal["Progressing", "Stopped", "Done"]


class Waves(msgspec.Struct, frozen=True, kw_only=True):
    """Waves as people asked for them: one is ``percent`` of the members, one at least. ``resumed`` is how often people let it go on
    after a stop; each time as many failures are allowed again.
    """

    percent: int = 10
    max_failures: int = 5
    timeout_seconds: float = 60.0
    resumed: int = 0
    together: int = MOST_TOGETHER  # devices that may be set in one step


class Stand(msgspec.Struct, frozen=True):
    """Progress of a device: whether it reported the values, which one says that is heard; and why it never will, "" if it may."""

    reached: bool
    problem: str = ""
    phase: str = ""  # of the device, where that is why it can't have reported them


class RolloutProgress(msgspec.Struct, kw_only=True):
    """``states`` has a letter for each of ``members``; the first ``through`` of them are in waves that began."""

    members: list[str] = []
    states: str = ""
    through: int = 0
    wave_at: float = 0.0  # unix seconds: when the newest wave's values were set last
    failures: dict[str, str] = {}  # why, by name, of the first MOST_REASONS
    phase: Phase = "Progressing"


class RolloutStep(msgspec.Struct):
    """The progress from now on, the devices to set in the same commit, and after how long to look again."""

    progress: RolloutProgress
    to_set: list[str] = []
    later: float | None = None


def find_rollout_obstacle(names: Sequence[str]) -> str:
    """Why a rollout over these devices doesn't begin, and what to do; "" if it does."""
    if not names:
        return "it selects no device: it waits for an approved one with its model and labels, and takes those that are there then"
    if len(names) > MOST_MEMBERS:
        most = f"{MOST_MEMBERS} devices"
    elif sum(len(name) + 3 for name in names) > MOST_MEMBER_BYTES:  # as JSON
        most = f"devices with {MOST_MEMBER_BYTES // 1000} kB of names"
    else:
        return ""
    return (
        f"it selects {len(names)} devices, and one rollout takes at most {most}: nothing is set; delete it, and create one each "
        "for fewer devices, chosen by labels"
    )


def find_pause(youngest_at: float, now: float) -> float:
    """How long a rollout that waited for devices waits on, in seconds: those of one manifest come one after the other."""
    return max(youngest_at + SETTLE_SECONDS - now, 0.0)


def begin(names: Sequence[str]) -> RolloutProgress:
    """The progress of a rollout that has done nothing yet. The members are these from now on: a device that comes later isn't one
    of them."""
    return RolloutProgress(members=sorted(names), states=WAITING * len(names))


def plan_rollout(waves: Waves, was: RolloutProgress, stands: Mapping[str, Stand], now: float) -> RolloutStep:
    """``stands`` has the members that are there still."""
    states, failures, over = list(was.states), dict(was.failures), was.wave_at + waves.timeout_seconds - now
    for at, name in enumerate(was.members[: was.through]):
        if states[at] != SENT:
            continue
        stand = stands.get(name)
        if stand is not None and stand.reached:
            states[at] = CONFIRMED
        elif stand is None or stand.problem or over <= 0:
            states[at] = FAILED
            why = "it is gone" if stand is None else stand.problem or _describe_silence(waves, stand)
            if len(failures) < MOST_REASONS:
                failures[name] = shorten(why, MOST_WORDS)
    found = RolloutProgress(
        members=was.members, states="".join(states), through=was.through, wave_at=was.wave_at, failures=failures
    )
    if states.count(FAILED) > waves.max_failures * (waves.resumed + 1) + waves.resumed:
        found.phase = "Stopped"
        return RolloutStep(found, later=max(over, 0.05) if SENT in states else None)
    if WAITING in states[: was.through]:
        return _send(found, states, waves.together, now)
    if SENT in states:
        return RolloutStep(found, later=max(over, 0.05))
    if was.through == len(was.members):
        found.phase = "Done"
        return RolloutStep(found)
    size = max(len(was.members) * waves.percent // 100, 1)
    found.through = min(was.through + size, len(was.members))
    return _send(found, states, waves.together, now)


def _describe_silence(waves: Waves, stand: Stand) -> str:
    return f"no answer within {waves.timeout_seconds:g} s" + (f": it is {stand.phase}" if stand.phase else "")


def _send(progress: RolloutProgress, states: list[str], together: int, now: float) -> RolloutStep:
    """Set the next members of the wave that began, as many as one commit can."""
    ready = [at for at in range(progress.through) if states[at] == WAITING][:together]
    for at in ready:
        states[at] = SENT
    progress.states, progress.wave_at = "".join(states), now
    return RolloutStep(progress, [progress.members[at] for at in ready], later=0.05)
