"""A proof of the soak: the placement engine through histories drawn anew each time, against paper and pencil.

A history that shows a wrong decision is printed as the steps that lead there; ``WEFT_SOAK_SEED`` draws the same ones again.
"""

from __future__ import annotations

import os
import random
import time
import traceback

from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.placement.machine import Placement

from benchmarks.measurement import Figure, Measurement

HISTORIES = int(os.environ.get("WEFT_SOAK_HISTORIES", "800"))
STEPS = 50
_MOST_TOLD = 4000  # characters


def measure() -> Measurement:
    """The figures say how many decisions there were, and whether one was wrong."""
    begun = int(os.environ.get("WEFT_SOAK_SEED") or random.randrange(10**6))
    decisions = 0

    class Counted(Placement):
        def _place(self, request: object) -> None:
            nonlocal decisions
            decisions += 1
            super()._place(request)  # type: ignore[arg-type]

    drawn = settings(
        max_examples=HISTORIES,
        stateful_step_count=STEPS,
        derandomize=False,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.generate],
    )
    wrong, began = "", time.monotonic()
    try:
        run_state_machine_as_test(seed(begun)(Counted), settings=drawn)  # type: ignore[no-untyped-call]
    except Exception as problem:  # whatever it is, it is told
        wrong = f"{type(problem).__name__}: {problem}"[:_MOST_TOLD]
        print(f"  seed {begun}: {''.join(traceback.format_exception(problem))[-_MOST_TOLD:]}", flush=True)
    figures = [
        Figure("decisions, each held against one made on paper and one made anew", str(decisions)),
        Figure("histories with a wrong one", str(int(bool(wrong))), goal="0", kept=not wrong),
    ]
    summary = f"Seed {begun}: {HISTORIES} histories of {STEPS} steps, {time.monotonic() - began:.0f} s." + (
        f" Wrong: {wrong.splitlines()[0]}" if wrong else ""
    )
    return Measurement("Placement, drawn at random", summary, figures)
