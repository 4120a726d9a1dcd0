"""``weft simulate leases``: when leases from a log would have run on a cluster. Needs no server, no root."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.objects.errors import InvalidInput
from weft.scheduler.lease.backfill import MODELS
from weft.scheduler.simulate.haizea import read_site
from weft.scheduler.simulate.lease_plan import measure, simulate
from weft.scheduler.simulate.lease_queue import replay
from weft.scheduler.simulate.swf import read_swf

_MOST_NODES = 1_000_000


def add_command(commands: Any) -> None:
    """The words of the command, for ``weft simulate``."""
    command = commands.add_parser(
        "leases",
        help="replay a log of jobs as leases on a cluster",
        description="Replay a log of jobs as best-effort leases, with the queue of a cluster.",
        epilog="Formats, models and the answer: docs/reference/simulate.md.",
    )
    command.add_argument("--trace", type=Path, required=True, metavar="FILE", help="the log, also as .gz")
    command.add_argument("--format", choices=["swf", "haizea"], default="swf", help="format of the log (default swf)")
    command.add_argument(
        "--nodes", type=_read_nodes, metavar="N", help="number of nodes, each one processor of an swf log"
    )
    command.add_argument("--model", choices=list(MODELS), default="weft", help="order of the queue (default weft)")
    command.add_argument(
        "--suspension", choices=["all", "none"], default="all", help="which leases may be suspended (default all)"
    )
    command.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table", help="output format")


def run(options: argparse.Namespace, report: Callable[[int], None]) -> tuple[dict[str, Any], str]:
    """The answer for programs, and for people. Raises NotFound, InvalidInput."""
    if options.format == "haizea":
        return _run_site(options)
    if options.nodes is None:
        raise InvalidInput("--nodes is missing: an swf log doesn't hold the nodes", field="--nodes", hint="--nodes 100")
    jobs = read_swf(options.trace)
    if not jobs:
        raise InvalidInput(
            f"{options.trace}: no job of the log ran", hint="a job needs a run time and processors above 0"
        )
    outcome = replay(jobs, options.nodes, options.model, report)
    leases = [
        {"id": job.id, "state": "DONE", "start": outcome.starts[job.id], "end": outcome.starts[job.id] + job.run}
        for job in jobs
    ]
    answer = _describe(outcome.average_bounded_slowdown, outcome.utilisation, leases)
    return answer, _write_table(answer, options.model, [("longest wait", f"{outcome.longest_wait / 3600:.1f} h")])


def _run_site(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.model != "weft":
        raise InvalidInput(
            f"--model {options.model} knows no reservations and deadlines", field="--model", hint="--model weft"
        )
    site = read_site(options.trace)
    runs = simulate(site.leases, site.capacity, site.real_seconds, suspends=options.suspension == "all")
    leases = [{"id": run.lease.id, "state": run.state, "start": run.start, "end": run.end} for run in runs]
    slowdown, utilisation = measure(runs, site.capacity)
    answer = _describe(slowdown, utilisation, leases)
    rejected = ", ".join(run.lease.id for run in runs if run.state == "REJECTED")
    return answer, _write_table(answer, "weft", [("rejected", rejected)] if rejected else [])


def _describe(slowdown: float, utilisation: float, leases: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer as programs read it: docs/reference/simulate.md."""
    return {
        "average_bounded_slowdown": round(slowdown, 4),
        "utilisation_percent": round(100 * utilisation, 3),
        "leases": leases,
    }


def _write_table(answer: dict[str, Any], model: str, more: list[tuple[str, str]]) -> str:
    rows = [
        ("leases", f"{len(answer['leases']):,}, by {model}"),
        ("average bounded slowdown", f"{answer['average_bounded_slowdown']:.2f}"),
        *more,
        ("utilisation", f"{answer['utilisation_percent']:.1f} %"),
    ]
    return "\n".join(f"{name:24}  {value}" for name, value in rows)


def _read_nodes(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or not 0 < int(text) <= _MOST_NODES:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to {_MOST_NODES:,}")
    return int(text)
