"""``python -m benchmarks.soak``: the long proofs, one after the other."""

from __future__ import annotations

from benchmarks.measurement import write_section
from benchmarks.soak import measure

print(write_section(measure()))
