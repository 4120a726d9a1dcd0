"""What the parts of an update cost: the same updates without one of them, in turn with whole ones.

A part that is left out does nothing and refuses nothing. What is below a microsecond is noise.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.api_cpu import TURNS, Rig
from benchmarks.measurement import Figure, Measurement

ROUNDS = 150


def _nothing(*_given: object, **_named: object) -> None:
    return None


async def _nothing_later(*_given: object, **_named: object) -> None:
    return None


async def _empty(*_given: object, **_named: object) -> list[Any]:
    return []


PARTS: dict[str, list[tuple[str, str, Callable[..., Any]]]] = {
    "the audit record, its hash and its write": [("weft.api.app", "record", _nothing)],
    "references: the image, networks, volumes and groups that it names": [
        ("weft.api.admission.references", "plan_references", _empty)
    ],
    "claims: published ports, addresses": [("weft.api.admission.admit", "_claim", _nothing_later)],
    "the line in the server's log": [("weft.api.app", "_log_request", _nothing)],
    "the event": [("weft.api.context.ApiContext", "add_event", _nothing)],
    "the quota": [("weft.api.admission.admit", "charge", _nothing_later)],
    "the check whether the VM is leaving for another cluster": [
        ("weft.api.admission.admit", "refuse_departing", _nothing_later)
    ],
    "the priority of a lease": [("weft.api.admission.admit", "find_lease", _nothing)],
    "certificates, and one of a kind": [
        ("weft.api.admission.admit", "check_certificate", _nothing_later),
        ("weft.api.admission.references", "refuse_second", _nothing_later),
    ],
    "further rights": [("weft.api.admission.admit", "require_permissions", _empty)],
    "what can never change": [("weft.api.admission.admit", "refuse_impossible", _nothing)],
}


@contextlib.contextmanager
def leave_out(part: str) -> Iterator[None]:
    """Do without ``part`` (a key of PARTS; "": nothing is left out) inside."""
    before: list[tuple[Any, str, Any]] = []
    for where, name, instead in PARTS.get(part, []):
        module, _, owner = where.rpartition(".")
        of = getattr(importlib.import_module(module), owner) if owner[0].isupper() else importlib.import_module(where)
        before.append((of, name, getattr(of, name)))
        setattr(of, name, instead)
    try:
        yield
    finally:
        for of, name, was in before:
            setattr(of, name, was)


async def run(folder: Path) -> dict[str, list[float]]:
    """The CPU seconds of an update in each round: without each part, and of a whole one as ""."""
    rig = Rig()
    await rig.open(folder)
    taken: dict[str, list[float]] = {part: [] for part in ("", *PARTS)}
    for _ in range(ROUNDS):
        for part, costs in taken.items():
            with leave_out(part):
                costs.append(await rig.time(rig.update, TURNS))
    await rig.close()
    return taken


def measure() -> Measurement:
    with tempfile.TemporaryDirectory() as name:
        logging.disable()
        taken = uvloop.run(run(Path(name)))
    wholes = taken.pop("")
    saved = [
        (statistics.median(whole - cost for whole, cost in zip(wholes, costs, strict=True)) * 1e6, part)
        for part, costs in taken.items()
    ]
    return Measurement(
        "update_cpu",
        f"CPU time of an update in the API server's thread, and how much less it is without one part: medians over {ROUNDS} rounds "
        "of the difference between updates that follow each other.",
        [Figure("a whole update", f"{statistics.median(wholes) * 1e6:.1f} µs (least {min(wholes) * 1e6:.1f})")]
        + [Figure(part, f"{micros:.1f} µs") for micros, part in sorted(saved, reverse=True)],
    )
