"""``weft simulate leases``: when leases from a log would have run on a cluster. Needs no server, no root."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.objects.errors import InvalidInput
from weft.scheduler.lease.backfill import MODELS
from weft.scheduler.simulate.lease_queue import Replay, replay
from weft.scheduler.simulate.swf import Job, read_swf

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
    command.add_argument("--format", choices=["swf"], default="swf", help="format of the log (default swf)")
    command.add_argument(
        "--nodes", type=_read_nodes, required=True, metavar="N", help="number of nodes, each one processor of the log"
    )
    command.add_argument("--model", choices=list(MODELS), default="weft", help="order of the queue (default weft)")
    command.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table", help="output format")


def run(options: argparse.Namespace, report: Callable[[int], None]) -> tuple[dict[str, Any], str]:
    """The answer for programs, and for people. Raises NotFound, InvalidInput."""
    jobs = read_swf(options.trace)
    if not jobs:
        raise InvalidInput(
            f"{options.trace}: no job of the log ran", hint="a job needs a run time and processors above 0"
        )
    outcome = replay(jobs, options.nodes, options.model, report)
    return describe(jobs, outcome), _write_table(jobs, outcome, options.model)


def describe(jobs: list[Job], outcome: Replay) -> dict[str, Any]:
    """The answer as programs read it: docs/reference/simulate.md."""
    return {
        "average_bounded_slowdown": round(outcome.average_bounded_slowdown, 4),
        "utilisation_percent": round(100 * outcome.utilisation, 3),
        "leases": [
            {"id": job.id, "state": "DONE", "start": outcome.starts[job.id], "end": outcome.starts[job.id] + job.run}
            for job in jobs
        ],
    }


def _write_table(jobs: list[Job], outcome: Replay, model: str) -> str:
    return "\n".join(
        (
            f"leases                    {len(jobs):,}, by {model}",
            f"average bounded slowdown  {outcome.average_bounded_slowdown:.2f}",
            f"longest wait              {outcome.longest_wait / 3600:.1f} h",
            f"utilisation               {100 * outcome.utilisation:.1f} %",
        )
    )


def _read_nodes(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or not 0 < int(text) <= _MOST_NODES:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to {_MOST_NODES:,}")
    return int(text)
