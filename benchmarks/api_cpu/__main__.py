"""``python -m benchmarks.api_cpu``: prints the section, and measures the weft that Python finds, be it of another commit."""

from __future__ import annotations

from benchmarks.api_cpu import measure
from benchmarks.measurement import describe_section

print(describe_section(measure()))
