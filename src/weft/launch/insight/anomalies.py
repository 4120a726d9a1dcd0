"""``weft simulate anomalies``: which samples of a file weft would have called unusual. Needs no server, no root."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from weft.insight.anomalies import LEARNING_SAMPLES, THRESHOLD, Detector
from weft.launch.insight.trace import read_timed_values

_MOST_SHOWN = 20


def add_command(commands: Any) -> None:
    """The words of the command, for ``weft simulate``."""
    command = commands.add_parser(
        "anomalies",
        help="judge a series from a file, sample by sample",
        description="Judge each sample of a series by those before it: how unusual it was.",
        epilog="Columns, method and the answer: docs/reference/simulate.md.",
    )
    command.add_argument(
        "--trace", type=Path, required=True, metavar="FILE", help="columns timestamp, value; also as .gz"
    )
    command.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table", help="output format")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The answer for programs, and for people. Raises NotFound, InvalidInput."""
    times, values = read_timed_values(options.trace)
    detector = Detector()
    found = [detector.put(value) for value in values]
    answer = {
        "scores": [[when, round(one.score, 4)] for when, one in zip(times, found, strict=True)],
        "threshold": THRESHOLD,
    }
    alarms = [(when, value, one) for when, value, one in zip(times, values, found, strict=True) if one.is_alarm]
    lines = [f"{'TIME':20}  {'VALUE':>12}  {'SCORE':>6}  {'CHANNEL':7}  USUAL"] if alarms else []
    for when, value, one in alarms[:_MOST_SHOWN]:
        low, high = one.usual
        lines.append(f"{_plain(when):20}  {value:12.5g}  {one.score:6.1f}  {one.channel:7}  {low:.5g} to {high:.5g}")
    if len(alarms) > _MOST_SHOWN:
        lines.append(f"and {len(alarms) - _MOST_SHOWN} more")
    lines.append(f"{len(alarms)} of {len(values):,} samples are unusual: a score of {THRESHOLD:g} or more")
    known = sum(not math.isnan(value) for value in values)
    if known <= LEARNING_SAMPLES:
        lines.append(
            f"No sample was judged: the file has {known:,} values, and the first {LEARNING_SAMPLES} only teach"
        )
    return answer, "\n".join(lines)


def _plain(when: str) -> str:
    """The first characters of a timestamp, which can be any text; none of them controls the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in when[:20])
