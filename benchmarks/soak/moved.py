"""What was seen of so many moves, and what is told of it."""

from __future__ import annotations

import statistics

import msgspec

from benchmarks.measurement import Figure
from benchmarks.soak.callers import LATE_SECONDS, PATIENCE_SECONDS, Tally
from benchmarks.soak.traces import Growth, Holding

FILES_LEEWAY = 8  # connections that are kept for the next one
MEMORY_LEEWAY = 16 << 20
# The API server fills what it keeps of the newest of the store, once (decision 0022): 46 MiB in 90 moves of one guest, and no more.
FILLED = {"api": 56 << 20}
RIGHT = ("live", "slow", "meanwhile")  # nobody was killed, shut down or called back


class Progress(msgspec.Struct):
    """What was proven up to ``moves``. ``kinds`` are moves by what was done to them and how they ended; ``tallies`` the
    requests while they went on; ``broken`` is the first promise that didn't hold."""

    seed: int
    migrations: int = 0
    kinds: dict[str, int] = {}
    tallies: dict[str, Tally] = {}
    pauses_ms: list[int] = []
    failed: list[str] = []
    longest_clean: float = 0.0
    broken: str = ""

    def add(self, how: str, tally: Tally) -> None:
        self.tallies[how] = self.tallies.get(how, Tally()).plus(tally)

    def note(self, how: str, phase: str, pause_ms: int) -> None:
        what = f"{how} ({phase})"
        self.kinds[what] = self.kinds.get(what, 0) + 1
        if how in ("live", "slow") and phase == "Succeeded":
            self.pauses_ms.append(pause_ms)


def describe(
    progress: Progress, goal: int, growth: list[Growth], at_rest: tuple[dict[str, Holding], dict[str, Holding]]
) -> list[Figure]:
    whole = progress.migrations >= goal and not progress.broken
    figures = [
        Figure(
            "moves after which the guest ran once, where it should, whole, and nothing of it elsewhere",
            str(progress.migrations),
            goal=f"{goal}",
            kept=whole,
        ),
        Figure(
            "moves that failed though nobody was killed",
            str(len(progress.failed)) + "".join(f"; {told}" for told in progress.failed[:2]),
            goal="0",
            kept=not progress.failed,
        ),
        Figure("longest until nothing of it was left elsewhere", f"{progress.longest_clean:.1f} s"),
    ]
    if progress.pauses_ms:
        pauses = sorted(progress.pauses_ms)
        figures.append(Figure("pauses", f"{statistics.median(pauses):.0f} ms, longest {pauses[-1]} ms"))
    for how, tally in sorted(progress.tallies.items()):
        right = how in RIGHT
        figures.append(
            Figure(
                f"requests lost (none in {PATIENCE_SECONDS:.0f} s), connections reset: {how}",
                f"{tally.lost}, {tally.reset} of {tally.asked}; {tally.late} later than {LATE_SECONDS:.0f} s, "
                f"longest {tally.longest:.1f} s",
                goal="0, 0" if right else "–",
                kept=not (tally.lost or tally.reset) if right else None,
            )
        )
    for name, held in at_rest[0].items():
        if (last := at_rest[1].get(name)) is not None:
            figures.append(
                Figure(
                    f"open files of {name}, before the guests came and after they were gone",
                    f"{held.files}, {last.files}",
                    goal=f"≤ {held.files + FILES_LEEWAY}",
                    kept=last.files <= held.files + FILES_LEEWAY,
                )
            )
    return [*figures, *describe_memory(growth, "moves")]


def describe_memory(growth: list[Growth], looks: str) -> list[Figure]:
    """A row for each process; ``looks`` says what it was looked at after."""
    figures = []
    for grown in growth:
        most = grown.before_bytes + max(FILLED.get(grown.name, MEMORY_LEEWAY), grown.before_bytes // 10)
        figures.append(
            Figure(
                f"memory of {grown.name}, over {grown.looks} {looks}",
                f"{grown.before_bytes >> 20} → {grown.after_bytes >> 20} MiB",
                goal=f"≤ {most >> 20} MiB",
                kept=grown.after_bytes <= most,
            )
        )
    return figures
