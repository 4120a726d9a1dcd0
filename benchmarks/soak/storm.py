"""A proof of the soak: every operation of the API asked ``REQUESTS`` times from its own description, right and wrong.

Every soak draws fresh ones; ``WEFT_SOAK_SEED`` draws the same again. An operation that answered wrongly is printed with its
seed; ``Storm.ask(operation, seed, most)`` replays it.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

from tests.scenario.api_lab import ApiLab
from tests.scenario.schema_storm import Storm, operations

from benchmarks.measurement import Figure, Measurement

REQUESTS = int(os.environ.get("WEFT_SOAK_REQUESTS", "100"))


def measure() -> Measurement:
    """Ask all operations; the figures say how many requests there were, and which were answered wrongly."""
    first_seed = int(os.environ.get("WEFT_SOAK_SEED") or random.randrange(10**6))
    print(f"storm: from seed {first_seed}; the same again: WEFT_SOAK_SEED={first_seed}", flush=True)
    wrong: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weft-storm-") as folder:
        lab = ApiLab(Path(folder))
        storm = Storm(lab)
        try:
            asked = operations()
            for number, operation in enumerate(asked):
                try:
                    storm.ask(operation, first_seed + number, REQUESTS)
                except Exception as problem:  # whatever it is, it is told, and the others are asked too
                    first = storm.problems[0] if storm.problems else problem
                    storm.problems.clear()
                    wrong.append(f"{operation.label} (seed {first_seed + number}): {first}")
                    print(f"  {wrong[-1]}", flush=True)
        finally:
            storm.close()
            lab.close()
    spent = time.monotonic() - began
    figures = [
        Figure("requests made from the API's description", str(storm.asked)),
        Figure("operations that answered wrongly", f"{len(wrong)} of {len(asked)}", goal="0", kept=not wrong),
    ]
    summary = f"Seeds from {first_seed}, {spent:.0f} s; what fits the description and what doesn't, as an admin, a node, a joiner."
    return Measurement("API storm", summary + (f" Wrong: {'; '.join(wrong)}" if wrong else ""), figures)
