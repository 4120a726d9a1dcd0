"""The traffic between workloads, from their nodes, as a table, a plot or data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from weft.cli.command.target import Target
from weft.cli.network.flows import Answer, fetch_flows
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import Paint, clean
from weft.cli.session import Session
from weft.kinds.parts.nic import networks_of
from weft.kinds.registry import BY_NAME, WORKLOADS
from weft.objects.errors import WeftError
from weft.objects.quantity import format_bytes
from weft.protocol.traffic import Matrix, make_matrix

MATRIX_COLUMNS = make_columns("SOURCE!", "DESTINATION!", "BYTES>!", "PACKETS>")
AT_ONCE = 8
_SHADES = " ░▒▓█"
_WIDEST = 24  # characters of a row's name


def fetch_matrix(session: Session, since: float, network: str) -> Matrix:
    """Fetch the matrix of the project's workloads that have a NIC in ``network`` ("": any). A workload whose node doesn't answer is
    reported and left out. Raises WeftError."""
    targets: dict[str, list[Target]] = {}
    for kind in WORKLOADS:
        for item in session.client.list(kind).items:
            if has_nic(item, network):
                targets.setdefault(item["name"], []).append(Target(BY_NAME[kind], item["name"]))
    answers: dict[str, list[Answer]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        every = [target for found in targets.values() for target in found]
        for target, flows in zip(every, pool.map(_reading(session, since), every), strict=True):
            if flows is not None:
                answers.setdefault(target.name, []).extend(flows)
    return make_matrix(sorted(targets), answers, network)


def has_nic(item: Mapping[str, Any], network: str) -> bool:
    """Whether it is placed and in the network, or in any."""
    networks = networks_of(item["spec"].get("networks") or [])
    return bool(item["status"].get("node") and (network in networks if network else networks))


def _reading(session: Session, since: float) -> Callable[[Target], list[Answer] | None]:
    def read(target: Target) -> list[Answer] | None:
        try:
            flows: list[Answer] = fetch_flows(session, target, {"since": since})["flows"]
        except WeftError as problem:
            session.notify(f"{target.what}: {problem.message}")
            return None
        return flows

    return read


def draw_rows(matrix: Matrix) -> list[list[str]]:
    """A row for each pair with traffic."""
    return [[one.source, one.destination, format_bytes(one.bytes), str(one.packets)] for one in matrix.traffic]


def draw_plot(matrix: Matrix, paint: Paint) -> list[str]:
    """A heat map: a shade for each pair, darker for more bytes, each step about ten times as many."""
    found = {(one.source, one.destination): one.bytes for one in matrix.traffic}
    most = max(found.values(), default=1)
    width = min(_WIDEST, max(map(len, matrix.workloads), default=4))
    lines = [" " * (width + 3) + " ".join(f"{number:>2}" for number in range(1, len(matrix.workloads) + 1))]
    for number, row in enumerate(matrix.workloads, 1):
        cells = (_shade(found.get((row, column), 0), most) for column in matrix.workloads)
        row = clean(row)
        name = row if len(row) <= width else f"{row[: width - 1]}…"
        lines.append(f"{number:>2} {name:<{width}}" + paint.color("".join(f" {cell * 2}" for cell in cells), "green"))
    lines.append(f"rows send, columns receive; █ is {format_bytes(most)}, each lighter shade a tenth of that")
    return lines


def _shade(count: int, most: int) -> str:
    if not count:
        return _SHADES[0]
    return _SHADES[max(1, 4 - int(math.log10(most / count)))]
