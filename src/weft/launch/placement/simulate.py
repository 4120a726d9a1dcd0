"""``weft simulate placement``: what the scheduler would do with nodes and workloads from files. Needs no server, no root."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from weft.cli.stream.whole_file import refuse_existing
from weft.contracts.clock import SystemClock
from weft.kinds.fields.strategy import DEFAULT_STRATEGY, parse_strategy, read_plain_strategy
from weft.launch.insight import anomalies, forecast
from weft.launch.placement import leases, rebalance
from weft.launch.placement.arguments import Parser, complain
from weft.objects.errors import InvalidInput, WeftError
from weft.scheduler.policies import POLICIES, Policies
from weft.scheduler.simulate.input import read_input
from weft.scheduler.simulate.plot import draw_curves
from weft.scheduler.simulate.run import Plan, Simulation, SimulationOutcome

_MOST_UNTIL = 100
START_SECONDS = 15.0  # for the worker of an own policy


_FORMATS = "give a file in one of the formats of docs/reference/simulate.md; weft simulate COMMAND --help names them"


def main(argv: Sequence[str]) -> int:
    """Run it; the exit code."""
    try:
        options = _parse(argv)
        _run(options)
    except WeftError as problem:
        problem.hint = problem.hint or _FORMATS
        asked = any(word in ("-ojson", "--output=json", "-o=json") for word in argv)
        asked |= any(flag in ("-o", "--output") and word == "json" for flag, word in pairwise(argv))
        return complain(problem, "json" if asked else "table")
    except OSError as problem:
        print(f"error: {problem.filename or 'output'}: {problem.strerror or problem}", file=sys.stderr)
        print("give the path of a file that you may read, or for a picture write", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="weft simulate", description="Show what weft would do, on files: no server, no root.")
    commands = parser.add_subparsers(dest="what", title="what can be simulated", required=True)
    leases.add_command(commands)
    rebalance.add_command(commands)
    forecast.add_command(commands)
    anomalies.add_command(commands)
    command = commands.add_parser(
        "placement",
        help="place workloads from a file on nodes from a file",
        description="Place workloads from a file on nodes from a file, with the engine that a cluster uses.",
        epilog="Columns and protocol: docs/reference/simulate.md.",
    )
    command.add_argument("--nodes", type=Path, required=True, metavar="FILE", help="nodes, .csv or .csv.gz")
    command.add_argument("--workloads", type=Path, required=True, metavar="FILE", help="workloads, .csv or .csv.gz")
    command.add_argument(
        "--format", choices=["weft", "openb"], default="weft", help="format of the columns (default weft)"
    )
    command.add_argument(
        "--strategy",
        metavar="NAME",
        help="strategy of workloads that name none (default: fragmentation for openb, else the cluster's)",
    )
    command.add_argument(
        "--order", choices=["file", "shuffled"], help="order of the workloads (default file; shuffled with --until)"
    )
    command.add_argument("--seed", type=_read_seed, default=0, metavar="N", help="seed of random choices (default 0)")
    command.add_argument(
        "--until",
        type=_read_until,
        metavar="X",
        help="add workloads, on GPU nodes only, until they request X times all GPUs",
    )
    command.add_argument(
        "--repack", action="store_true", help="then repack the placed workloads onto as few nodes as a search finds"
    )
    command.add_argument(
        "--plot", type=_read_picture, metavar="FILE", help="draw allocation and fragmentation as an .svg file"
    )
    command.add_argument("--force", action="store_true", help="replace the picture if it exists already")
    command.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table", help="output format")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> None:
    if options.what != "placement":
        answer, table = _run_on_trace(options)
        print(_write(answer, table, options.output), flush=True)
        return
    if options.plot is not None:
        refuse_existing(options.plot, "--plot", force=options.force)
    strategy = _choose_strategy(options)
    found = read_input(options.nodes, options.workloads, options.format, strategy)
    for line in found.unread:
        print(line, file=sys.stderr)
    own = _begin_own({workload.request.strategy for workload in found.workloads})
    order = options.order or ("file" if options.until is None else "shuffled")
    simulation = Simulation(
        found.nodes,
        found.workloads,
        Plan(order, options.seed, options.until),
        SystemClock(),
        Policies(own and own.find),
    )
    outcome = simulation.run(_make_reporter("decisions"), curve=options.plot is not None)
    if own is not None:
        _end_own(own)
    if options.plot is not None:
        title = f"{options.workloads.name}, {strategy}, seed {options.seed}"
        gpus = any(facts.gpus for facts in found.nodes)
        options.plot.write_text(draw_curves(outcome.curve, title, gpus=gpus))
        print(f"{options.plot} drawn", file=sys.stderr)
    answer = describe(outcome, strategy, options.seed)
    before = outcome.nodes_used
    notes = [f"{before} of {len(found.nodes)} nodes used"]
    if options.repack:
        repacking = simulation.repack()
        answer["nodes_used"] = repacking.nodes_used
        least = "no fewer nodes suffice" if repacking.proven else f"fewer than {repacking.least} is impossible"
        notes.append(f"{repacking.nodes_used} nodes after repacking; {least}")
    print(_write(answer, write_table(answer, notes), options.output), flush=True)


def _run_on_trace(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.what == "forecast":
        return forecast.run(options, _make_reporter("samples"))
    if options.what == "rebalance":
        return rebalance.run(options)
    if options.what == "anomalies":
        return anomalies.run(options)
    return leases.run(options, _make_reporter("jobs"))


def _write(answer: dict[str, Any], table: str, output: str) -> str:
    if output == "json":
        return json.dumps(answer)
    if output == "yaml":
        text: str = importlib.import_module("weft.cli.manifest.yaml_text").write_yaml(answer)
        return text.rstrip("\n")
    return table


def _begin_own(strategies: Iterable[str]) -> Any:
    """The users' own policies among these, at work; None if there are none. Raises InvalidInput."""
    if not any(term.own for strategy in strategies for term in parse_strategy(strategy)):
        return None
    own = importlib.import_module("weft.scheduler.own_policies.registry").OwnPolicies(
        POLICIES[DEFAULT_STRATEGY], isolated=True
    )
    for strategy in strategies:
        own.prepare(strategy, START_SECONDS)
    for name, health in own.take_news().items():
        if not health.working:
            own.close()
            raise InvalidInput(f"{name}: {health.reason}: {health.message}", hint="weft policykit test shows details")
    return own


def _end_own(own: Any) -> None:
    for name, health in own.take_news().items():
        print(f"{name} was skipped: {health.reason}: {health.message}; {DEFAULT_STRATEGY} decided", file=sys.stderr)
    own.close()


def _choose_strategy(options: argparse.Namespace) -> str:
    if options.strategy is not None:
        return read_plain_strategy(options.strategy, "--strategy")
    if options.format == "openb":
        return "fragmentation"
    return read_plain_strategy(os.environ.get("SCHEDULING_STRATEGY") or DEFAULT_STRATEGY, "SCHEDULING_STRATEGY")


def describe(outcome: SimulationOutcome, strategy: str, seed: int) -> dict[str, Any]:
    """The answer as programs read it: docs/reference/simulate.md."""
    return {
        "checkpoints": [
            {
                "arrived_percent": round(state.arrived_percent),
                "allocation_percent": state.allocation_percent,
                "fragmented_gpu_percent": state.fragmented_gpu_percent,
            }
            for state in outcome.checkpoints
        ],
        "placed": outcome.placed,
        "rejected": outcome.rejected,
        "placements_per_second": round(len(outcome.decision_seconds) / max(outcome.loop_seconds, 1e-9), 1),
        "decision_ms": {
            name: _find_quantile(outcome.decision_seconds, part) for name, part in (("p50", 0.5), ("p99", 0.99))
        },
        "nodes_used": outcome.nodes_used,
        "strategy": strategy,
        "seed": seed,
    }


def write_table(answer: dict[str, Any], notes: list[str]) -> str:
    """The answer as people read it."""
    lines = []
    if answer["checkpoints"]:
        lines.append(f"{'ARRIVED':>7}  {'GPU':>6}  {'CPU':>6}  {'MEMORY':>6}  FRAGMENTED GPU")
        for state in answer["checkpoints"]:
            given = state["allocation_percent"]
            cells = "  ".join(f"{given[name]:4.1f} %" for name in ("gpu", "cpu", "memory"))
            lines.append(f"{state['arrived_percent']:5.0f} %  {cells}  {state['fragmented_gpu_percent']:12.1f} %")
        lines.append("")
    refused = sum(answer["rejected"].values())
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(answer["rejected"].items()))
    lines.append(f"{answer['placed']} placed, {refused} refused{f' ({why})' if why else ''}, by {answer['strategy']}")
    lines += notes
    speed, times = answer["placements_per_second"], answer["decision_ms"]
    lines.append(f"{speed:,.0f} decisions/s; one takes {times['p50']:.3f} ms, of 100 the slowest {times['p99']:.3f} ms")
    return "\n".join(lines)


def _find_quantile(seconds: list[float], part: float) -> float:
    """Find the quantile in milliseconds; 0 of none."""
    if not seconds:
        return 0.0
    return round(1000.0 * sorted(seconds)[min(len(seconds) - 1, math.ceil(part * len(seconds)) - 1)], 4)


def _read_until(text: str) -> Fraction:
    try:
        value = Fraction(text[:-1].strip()) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= _MOST_UNTIL:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0, at most {_MOST_UNTIL}, like 1.3")
    return value


def _read_picture(text: str) -> Path:
    if not text.lower().endswith(".svg"):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not an .svg file; only .svg can be drawn")
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: no such folder: {Path(text).parent}")
    return Path(text)


def _read_seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number of 0 or more")
    return int(text)


def _make_reporter(what: str) -> Any:
    """Reports on standard error how far it is: in place on a terminal, else a line now and then."""
    terminal = sys.stderr.isatty()
    reported = 0

    def report(count: int, arrived: float = 0.0) -> None:
        nonlocal reported
        words = f"{count} {what if count != 1 else what[:-1]}" + (f", {arrived:.0f} % arrived" if arrived else "")
        if terminal:
            print(f"\r{words}", end="", file=sys.stderr, flush=True)
        elif count >= 2 * reported:
            reported = count
            print(words, file=sys.stderr, flush=True)

    return report
