"""What a run of the sites' soak has proven, and the figures that say so."""

from __future__ import annotations

from collections import Counter

import msgspec

from benchmarks.measurement import Figure, Measurement, spread

MOST_HEAL = 240.0


class Progress(msgspec.Struct):
    """What was proven up to ``rounds``."""

    seed: int
    rounds: int = 0
    kinds: dict[str, int] = {}  # rounds, by what befell the sites
    killed: dict[str, int] = {}
    seconds: float = 0.0  # that the rounds took
    looks: int = 0  # at all guests' processes
    beats: int = 0  # that guests said
    lives: int = 0  # starts of guests
    slipped: int = 0  # beats of guests that stood still with their site and were ended as it went on
    taken: int = 0  # VMs that the other site took over
    promoted: int = 0  # VMs that people promoted without a word from the site that they ran at
    handed: int = 0  # VMs that were handed over
    back: int = 0  # VMs that were handed over and taken back
    again: int = 0  # guests that began again where they were
    lost_at_fault: list[float] = []  # seconds, of VMs that were taken over or promoted
    stated_over: list[float] = []  # by how much the stated loss was more than the real one
    both: list[float] = []  # seconds that a VM promoted by people ran beside its former one, after that came back
    heals: list[float] = []
    broken: str = ""


def describe(done: Progress, rounds: int, rpo: float, since: int) -> Measurement:
    kinds = ", ".join(f"{number} × {what}" for what, number in sorted(done.kinds.items()))
    killed = ", ".join(f"{number} {what}" for what, number in sorted(Counter(done.killed).items())) or "none"
    summary = (
        f"Seed {done.seed}: two clusters and a witness as processes of this machine, three VMs that count, an RPO of {rpo:g} s; "
        f"two are taken over automatically, one is promoted by a plan. Rounds: {kinds}. Besides, kill -9 of: {killed}. "
        f"{done.seconds:.0f} s"
        + (f", {since} rounds in a run before it" if since else "")
        + (f". Broken: {done.broken}" if done.broken else ".")
    )
    lost, over, heals = done.lost_at_fault, done.stated_over, done.heals
    figures = [
        Figure(
            "rounds after which all VMs ran once and were protected again",
            str(done.rounds),
            goal=str(rounds),
            kept=done.rounds >= rounds and not done.broken,
        ),
        Figure(
            "two guests of one VM at once, of those taken over or handed over",
            "0" if not done.broken else "see above",
            f"{done.looks:,} looks at processes, {done.beats:,} numbers heard",
            goal="0",
            kept=not done.broken,
        ),
        Figure("numbers heard of a guest that stood still with its site, as it went on", str(done.slipped)),
        Figure(
            "VMs taken over",
            str(done.taken),
            f"{done.promoted} promoted by people, {done.again} begun again where they were",
        ),
        Figure(
            "VMs handed over", str(done.handed), f"{done.back} taken back", goal="nothing lost", kept=not done.broken
        ),
    ]
    if lost:
        figures.append(
            Figure(
                "lost at the fault of what a guest had on its disk",
                spread(lost, "s", 1, 1),
                goal=f"≤ {rpo:g} s",
                kept=max(lost) <= rpo,
            )
        )
    if over:
        what = "the stated loss exceeds the real one by"
        figures.append(Figure(what, spread(over, "s", 1, 1), goal="≥ 0", kept=not done.broken))
    if done.both:
        figures.append(
            Figure(
                "a VM promoted by people ran beside its former one, once that was back", spread(done.both, "s", 1, 1)
            )
        )
    if heals:
        figures.append(
            Figure(
                "until all VMs ran and were protected, after the end of the fault",
                spread(heals, "s", 1, 1),
                goal=f"≤ {MOST_HEAL:g} s",
                kept=max(heals) <= MOST_HEAL,
            )
        )
    return Measurement("Failovers under kills", summary, figures)
