"""Reads the history of workloads in few queries: one for those of a project and kind that are looked at together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from weft.contracts.history import Floats, History, Labels, Span
from weft.objects.errors import TooLarge

MOST_NAMES = 50  # in a query: its answer is read with about 10 MB


class Series(NamedTuple):
    """The owner of a series."""

    project: str
    kind: str
    name: str


CPU, INVOCATIONS = "cpu", "invocations"
# Over a window, of all nodes that it was on: of what is measured the greatest, of what is counted the sum. A counter that begins
# again on another node is a series of its own, so no step backwards counts.
_MEASURED = "max by (project, kind, name) (avg_over_time({__name__=~'NAMES',SELECTOR}[SECONDSs]))"
_COUNTED = "sum by (project, kind, name) (rate({__name__=~'NAMES',SELECTOR}[SECONDSs]))"
_QUERIES = {
    CPU: _MEASURED.replace("NAMES", "weft_guest_cpu_cores"),
    "memory": _MEASURED.replace("NAMES", "weft_guest_memory_bytes"),
    "disk": _COUNTED.replace("NAMES", "weft_guest_disk_(read|written)_bytes_total"),
    "network": _COUNTED.replace("NAMES", "weft_guest_network_(received|sent)_bytes_total"),
    INVOCATIONS: _COUNTED.replace("NAMES", "weft_function_invocations_total"),
}
RESOURCES = (CPU, "memory", "disk", "network")


def write_query(resource: str, project: str, step: float, kind: str = "", names: Sequence[str] = ()) -> str:
    """Query for some workloads of a kind, or for all of the project. Names have letters, digits and hyphens."""
    selector = f"project='{project}'"
    if names:
        selector += f",kind='{kind}',name=~'{'|'.join(names)}'"
    return _QUERIES[resource].replace("SELECTOR", selector).replace("SECONDS", f"{step:g}")


async def read_all(history: History, resource: str, wanted: Iterable[Series], span: Span) -> dict[Series, Floats]:
    """Samples of each series that has any, shape (span.count,), NaN where nothing was measured. Raises as ``History.read``."""
    found: dict[Series, Floats] = {}
    for (project, kind), names in _group(wanted):
        for begin in range(0, len(names), MOST_NAMES):
            some = names[begin : begin + MOST_NAMES]
            found |= await _read_some(history, resource, project, kind, some, span)
    return found


async def read_project(history: History, resource: str, project: str, span: Span) -> dict[Series, Floats]:
    """Samples of all workloads of a project. Raises as ``History.read``, TooLarge where they are too many."""
    return _name(await history.read(write_query(resource, project, span.step), span))


async def _read_some(
    history: History, resource: str, project: str, kind: str, names: Sequence[str], span: Span
) -> dict[Series, Floats]:
    try:
        found = _name(await history.read(write_query(resource, project, span.step, kind, names), span))
    except TooLarge:
        if len(names) == 1:
            raise
        half = len(names) // 2
        first = await _read_some(history, resource, project, kind, names[:half], span)
        return first | await _read_some(history, resource, project, kind, names[half:], span)
    known = {Series(project, kind, name) for name in names}
    return {of: values for of, values in found.items() if of in known}


def _name(answer: Mapping[Labels, Floats]) -> dict[Series, Floats]:
    return {Series(*(labels.get(name) for name in Series._fields)): row for labels, row in answer.items()}


def _group(wanted: Iterable[Series]) -> Iterator[tuple[tuple[str, str], list[str]]]:
    for key, some in itertools.groupby(sorted(wanted), key=lambda one: (one.project, one.kind)):
        yield key, [one.name for one in some]


def pick(found: Mapping[Series, Floats], of: Series, span: Span, since: float) -> Floats:
    """Its own row, NaN before ``since``: what had the name before says nothing of it."""
    row = found.get(of)
    if row is None:
        return np.full(span.count, np.nan)
    times = span.start + np.arange(span.count) * span.step
    return np.where(times >= since, row, np.nan)


def add_up(found: Mapping[Series, Floats], of: Iterable[tuple[Series, float]], span: Span) -> Floats:
    """The sum, of each since then; NaN where none of them has a sample."""
    total, known = np.zeros(span.count), np.zeros(span.count, bool)
    for one, since in of:
        row = pick(found, one, span, since)
        there = ~np.isnan(row)
        total, known = total + np.where(there, row, 0.0), known | there
    return np.where(known, total, np.nan)
