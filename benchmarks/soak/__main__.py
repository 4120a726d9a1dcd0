"""``python -m benchmarks.soak``: the long proofs, one after the other."""

from __future__ import annotations

from benchmarks import soak
from benchmarks.measurement import write_section
from benchmarks.soak import placement, simulation, storm

for proof in (simulation, placement, storm, soak):
    print(write_section(proof.measure()), flush=True)
