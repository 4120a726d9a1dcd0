"""What holds for every test: drawn examples are the same each time, and no example is timed."""

from __future__ import annotations

from hypothesis import settings

# A suite that draws anew each time fails on the day nobody changed anything; new draws belong to the long runs.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
