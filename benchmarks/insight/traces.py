"""Series of real VMs: PlanetLab's days and Bitbrains' month, in per cent, a sample every five minutes."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np

from weft.contracts.history import Floats

_SAMPLE_MS = 300_000


def read_planetlab(data: Path) -> list[Floats] | None:
    """An array for each day, a row for each VM; None without the data."""
    days = []
    for path in sorted((data / "planetlab").glob("*.csv.gz")):
        with gzip.open(path, "rt") as file:
            days.append(np.array([[float(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]))
    return days or None


def read_bitbrains(data: Path) -> list[Floats] | None:
    """One array, NaN after a VM's end; None without the data."""
    folder = data / "bitbrains"
    if not (folder / "fragments.csv.gz").exists():
        return None
    with gzip.open(folder / "tasks.csv.gz", "rt") as file:
        full = {row["id"]: float(row["cpu_capacity"]) for row in csv.DictReader(file)}
    found: dict[str, list[float]] = {}
    with gzip.open(folder / "fragments.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            samples = int(row["duration"]) // _SAMPLE_MS
            found.setdefault(row["id"], []).extend([100 * float(row["cpu_usage"]) / full[row["id"]]] * samples)
    values = np.full((len(found), max(map(len, found.values()))), np.nan)
    for one, series in zip(values, found.values(), strict=True):
        one[: len(series)] = series
    return [values]
