"""What the guests of two sites say of themselves, and what follows from it: whether two of one VM ran at once, and what a new one
lacks of what the one before had on its disk. Pure; it knows nothing of weft."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import msgspec

SLIPPED_BEATS, SLIPPED_SECONDS = 2, 0.15  # of a guest that goes on after its machine stood still, until it is ended


class Beat(NamedTuple):
    """A guest's number ``n``, which is on its disk. ``boot`` is drawn when the guest starts, ``began`` the number that it found on
    its disk then, ``wrong`` how many records before that were spoilt. ``at``: when it was heard, in seconds since 1970."""

    at: float
    vm: str
    boot: str
    n: int
    began: int
    wrong: int
    site: str


class Life(msgspec.Struct):
    """One start of a guest, at one site."""

    vm: str
    boot: str
    site: str
    began: int
    first_at: float
    last_at: float
    late: list[float] = []  # its beats after the next life began, or what is kept of them


class Passage(NamedTuple):
    """From one life of a VM to the next. ``lost``: numbers that the former had on its disk, and the next hasn't. ``kept_at``: when
    the newest number that is there was heard; ``last_at``: when the former was heard last before the next began."""

    vm: str
    former: Life
    next: Life
    lost: int
    kept_at: float
    last_at: float


class Chronicle:
    """All that was heard, by VM."""

    def __init__(self) -> None:
        self.lives: dict[str, list[Life]] = {}
        self.passages: list[Passage] = []
        self.problems: list[str] = []
        self._beats = 0
        self._heard: dict[str, dict[int, float]] = {}  # by VM, when each number of its newest lineage was heard

    def note(self, beat: Beat) -> None:
        lives, heard = self.lives.setdefault(beat.vm, []), self._heard.setdefault(beat.vm, {})
        known = next((life for life in reversed(lives) if life.boot == beat.boot), None)
        if known is None:
            known = self._begin(beat, lives, heard)
        if known.site != beat.site:
            self.problems.append(f"{beat.vm}: guest {beat.boot} was heard at {known.site} and at {beat.site}")
            known.site = beat.site
        self._beats += 1
        if known is lives[-1]:
            known.last_at = beat.at
            heard[beat.n] = beat.at
        else:
            known.late.append(beat.at)

    def _begin(self, beat: Beat, lives: list[Life], heard: dict[int, float]) -> Life:
        life = Life(beat.vm, beat.boot, beat.site, beat.began, beat.at, beat.at)
        if beat.wrong:
            self.problems.append(f"{beat.vm}: {beat.wrong} records were spoilt when it started at {beat.site}")
        if lives:
            lost = [n for n in heard if n > beat.began]
            kept = max((at for n, at in heard.items() if n <= beat.began), default=lives[0].first_at)
            self.passages.append(Passage(beat.vm, lives[-1], life, len(lost), kept, lives[-1].last_at))
            for n in lost:
                del heard[n]
        lives.append(life)
        return life

    def find_newest(self, vm: str) -> Life | None:
        return self.lives[vm][-1] if self.lives.get(vm) else None

    def list_doubles(self, since: float) -> list[tuple[Life, float]]:
        """Lives that were heard after the next one had begun, and not only as its machine went on; for how long. Of those heard
        since then."""
        found = []
        for lives in self.lives.values():
            for life, following in pairwise(lives):
                if life.late and life.late[-1] >= since and not slipped(life.late):
                    found.append((life, life.late[-1] - max(following.first_at, life.late[0])))
        return found

    def count_slipped(self, since: float) -> int:
        """Beats of lives that went on for a moment, of those heard since then."""
        lives = [life for lives in self.lives.values() for life in lives if life.late and life.late[-1] >= since]
        return sum(len(life.late) for life in lives if slipped(life.late))

    def take_beats(self) -> int:
        """How many were heard since this was asked before."""
        taken, self._beats = self._beats, 0
        return taken


def slipped(late: list[float]) -> bool:
    """Whether these beats are the few of a guest that stood still with its machine and is ended as it goes on: nobody counts
    them."""
    return len(late) <= SLIPPED_BEATS and (not late or late[-1] - late[0] <= SLIPPED_SECONDS)


class Seen(NamedTuple):
    """A guest's process in one look. ``runs``: it isn't stopped by a signal, nor a zombie."""

    site: str
    pid: int
    runs: bool


def find_doubles(before: dict[str, list[Seen]], now: dict[str, list[Seen]]) -> dict[str, list[Seen]]:
    """VMs of which two processes ran in both looks, one after the other; with the processes."""
    found = {}
    for vm, seen in now.items():
        running = {(one.site, one.pid) for one in before.get(vm, ()) if one.runs}
        both = [one for one in seen if one.runs and (one.site, one.pid) in running]
        if len(both) > 1:
            found[vm] = both
    return found


def judge_loss(passage: Passage, told_at: float, told_seconds: float, slack: float) -> str:
    """What is wrong with the words "what was written in the last ``told_seconds`` is lost", said at ``told_at``; "": nothing."""
    if not passage.lost:
        return ""
    really = told_at - passage.kept_at
    if really <= told_seconds + slack:
        return ""
    what = f"{passage.vm}: {passage.lost} numbers of the last {really:.1f} s are lost"
    return f"{what}, and {told_seconds:g} s were stated"
