"""``weft simulate rebalance``: which guests of a cluster from a file to migrate for an even load. Needs no server, no root."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from weft.contracts.clock import SystemClock
from weft.scheduler.rebalance.model import Budget
from weft.scheduler.rebalance.plan import rebalance
from weft.scheduler.simulate.cluster_file import read_cluster

_MOST_STEPS = 100_000
_MOST_SHOWN = 20


def add_command(commands: Any) -> None:
    """The words of the command, for ``weft simulate``."""
    command = commands.add_parser(
        "rebalance",
        help="migrate guests of a cluster from a file, so that its load is even",
        description="Find the migrations of guests that make the load of a cluster even, best first.",
        epilog="Formats, objectives and the answer: docs/reference/simulate.md.",
    )
    command.add_argument("--cluster", type=Path, required=True, metavar="FILE", help="the cluster, also as .gz")
    command.add_argument(
        "--format",
        choices=["ganeti", "json"],
        default="ganeti",
        help="ganeti: the text format of htools, by hbal's score; json: by weft's own (default ganeti)",
    )
    command.add_argument("--moves", type=_read_steps, default=20, metavar="N", help="most migrations (default 20)")
    command.add_argument(
        "--seconds",
        type=_read_seconds,
        default=1.0,
        metavar="S",
        help="time to exchange migrations for better ones (default 1)",
    )
    command.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table", help="output format")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The answer for programs, and for people. Raises NotFound, InvalidInput."""
    found, clock = read_cluster(options.cluster, options.format), SystemClock()
    end = clock.elapsed() + options.seconds
    outcome = rebalance(found.problem, Budget(steps=options.moves), lambda: clock.elapsed() < end)
    steps = [
        {
            "workload": found.guests[step.guest],
            "from": found.nodes[step.source],
            "to": found.nodes[step.target],
            "bytes": int(found.problem.size[step.guest]),
            "score": round(step.score, 8),
        }
        for step in outcome.steps
    ]
    answer = {"score_before": outcome.score_before, "score_after": outcome.score_after, "moves": steps}
    lines = [f"{'WORKLOAD':20}  {'FROM':12}  {'TO':12}  SCORE"] if steps else []
    lines += [
        f"{_plain(m['workload'], 20):20}  {_plain(m['from'], 12):12}  {_plain(m['to'], 12):12}  {m['score']:.5f}"
        for m in steps[:_MOST_SHOWN]
    ]
    if len(steps) > _MOST_SHOWN:
        lines.append(f"and {len(steps) - _MOST_SHOWN} more")
    count = f"{len(steps):,} migration{'' if len(steps) == 1 else 's'}"
    lines.append(f"{count}: score {outcome.score_before:.5f} → {outcome.score_after:.5f} (lower is better)")
    return answer, "\n".join(lines)


def _plain(text: object, width: int) -> str:
    """Names from a file can be any text; none of them controls the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text)[:width])


def _read_steps(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) > _MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of migrations from 0 to {_MOST_STEPS:,}")
    return int(text)


def _read_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 3600.0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of seconds from 0 to 3600")
    return value
