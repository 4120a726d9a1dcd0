"""The scheduler's answers in words: where a workload would go, the least that would let it fit, how full the fabric is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weft.cli.output.table import Column, draw_table, make_columns
from weft.cli.output.terminal import Paint
from weft.cli.placement.decision import describe_shortfalls, describe_weights, draw_verdicts
from weft.kinds.fields.cells import dig
from weft.objects.quantity import format_bytes, format_duration

Object = Mapping[str, Any]
_REMEDIES = {
    "cordon": "     weft node uncordon {node}",
    "quarantine": "     weft node uncordon {node}",
    "maintenance": "     weft node maintenance {node} off",
    "gpu": "     weft node describe {node}",
    "taint": "     --tolerate allows it there",
}
_CLEARLY = 1.0  # points of score, below which two nodes are as good as each other


def render_recommendation(answered: Object, what: str, width: int | None, paint: Paint) -> str:
    """The sentence, every node's verdict, and what could be done."""
    status = answered["status"]
    verdicts = status.get("verdicts") or []
    scores = {v["node"]: v["score"] for v in verdicts if v.get("score") is not None}
    lines = [_migration_sentence(status, what) if dig(answered, "spec.migration") else _sentence(status, scores, what)]
    if status.get("message"):
        lines.append(status["message"])
    lines += [f"note: {note}" for note in status.get("notes") or ()]
    lines += [_describe_suggestion(one) for one in status.get("suggestions") or ()]
    lines += draw_verdicts(verdicts, status.get("refused_by") or {}, width, paint)
    for place, advice in enumerate(status.get("advice") or ()):
        does = advice.get("command") or _as_flags(advice.get("changes") or {})
        lines.append(("or: " if place else "least change: ") + advice["text"] + (f"     {does}" if does else ""))
    return "\n".join(lines)


def _describe_suggestion(one: Object) -> str:
    cost = f"{format_bytes(one['bytes'])} in about {format_duration(one['seconds'])}"
    return f"better on {one['node']} by {one['gain']:.2f} points: {'; '.join(one['reasons'])} ({cost})"


def _migration_sentence(status: Object, what: str) -> str:
    current, best = status["current"], status.get("best")
    if not best:
        return f"{what} can't leave {current} now: {status.get('reason') or 'refused'}"
    return f"{what} would migrate from {current} to {best} by {status['policy']}{describe_weights(status['verdicts'])}"


def _sentence(status: Object, scores: Mapping[str, float], what: str) -> str:
    policy = f"{status['policy']}{describe_weights(status.get('verdicts') or [])}"
    policy += " by usage" if status.get("basis") == "used" else ""
    best, current = status.get("best"), status.get("current")
    if not best:
        return f"{what} fits on no node now: {status.get('reason') or 'refused'} ({status['policy']})"
    if not current:
        return f"{what} would be placed on {best} by {policy}"
    if current == best:
        return f"{what} is on {current}, and would be placed there again, by {policy}"
    if current not in scores:
        return f"{what} is on {current}, which can't take it now; it would be placed on {best} by {policy}"
    gain = scores.get(best, 0.0) - scores[current]
    better = f"better by {gain:.1f} points" if gain >= _CLEARLY else "hardly better"
    return f"{what} is on {current}; by {policy} {best} would be {better}"


def explain_node(answered: Object, what: str, node: str) -> str:
    """Why ``what`` would not go to ``node``, as nodes are now."""
    status = answered["status"]
    verdict = next(v for v in status["verdicts"] if v["node"] == node)
    if verdict["outcome"] == "refused":
        remedy = _REMEDIES.get(str(verdict.get("filter")), "").format(node=node)
        why = str(describe_shortfalls(verdict) or verdict.get("reason") or verdict.get("filter"))
        return f"{node} can't take {what} now: {why}{remedy}"
    best = status["best"]
    if best == node:
        return f"{node} would be chosen for {what} now"
    score = next((v["score"] for v in status["verdicts"] if v["node"] == best), 0.0)
    return f"{node} could take {what} now, but {best} would be chosen: {score:.1f} against {verdict['score']:.1f}"


def render_capacity(report: Object, width: int | None, paint: Paint) -> str:
    """How full the fabric is, node by node, what waits, and how it was decided."""
    status = report["status"]
    lines = [
        f"{status['placed']} placed on {status['node_count']} nodes by strategy {status['strategy']}; "
        f"{status['usable']} of the nodes take more, and differ by ±{status['imbalance']:.1f} points:"
    ]
    totals = [
        [
            use["resource"],
            _amount(use, "allocated"),
            _amount(use, "capacity"),
            f"{100 * use['allocated'] / use['capacity']:.1f} %" if use["capacity"] else "–",
            f"{_amount(use, 'largest_free')} on {use['largest_free_node']}" if use["largest_free_node"] else "–",
            _amount(use, "stranded"),
            _render_used(use),
        ]
        for use in status["resources"]
    ]
    titles = ("RESOURCE", "ALLOCATED", "CAPACITY", "SHARE", "LARGEST FREE", "STRANDED", "USED")
    lines.append(draw_table([Column(title, right=title != "RESOURCE") for title in titles], totals, width, paint))
    nodes = status["nodes"]
    resources = list(nodes[0]["shares"]) if nodes else []
    columns = [*make_columns("NODE", "WORKLOADS>")]
    columns += [Column(name.upper(), right=True) for name in resources]
    columns += [Column(f"{name.upper()} USED", right=True) for name in resources] + [Column("NOTE", flexible=True)]
    rows = [
        [
            *(use["node"], str(use["workloads"]), *(f"{use['shares'][name]:.0f} %" for name in resources)),
            *(f"{use['used'][name]:.0f} %" if use.get("used") else "–" for name in resources),
            use["note"],
        ]
        for use in nodes
    ]
    lines += ["", draw_table(columns, rows, width, paint)]
    if status.get("measured", 0) < status["usable"]:
        lines.append(f"usage is measured on {status.get('measured', 0)} of the {status['usable']} nodes")
    if status["node_count"] > len(nodes):
        lines.append(f"showing the fullest and the emptiest of {status['node_count']} nodes")
    lines += _render_waiting(status["waiting"])
    quantiles = ", ".join(f"{name} {value:g} ms" for name, value in status["decision_ms"].items())
    policies = ", ".join(f"{count} by {name}" for name, count in status["policies"].items())
    lines += [
        "",
        f"{status['decisions']} {'decision' if status['decisions'] == 1 else 'decisions'}: {policies or 'none'}"
        + (f"; {quantiles}" if quantiles else ""),
    ]
    return "\n".join(lines)


def _render_waiting(waiting: Sequence[Object]) -> list[str]:
    lines = []
    for one in waiting:
        more = one["count"] - len(one["first"])
        names = ", ".join(one["first"]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"{one['count']} waiting: {one['reason']}: {names}     weft explain {one['first'][0]}")
    return ["", *lines] if lines else []


def _render_used(use: Object) -> str:
    if not use.get("there"):
        return "–"
    used = f"{use['used']:.2f}" if use["resource"] == "cpu" else _amount(use, "used")
    return f"{used} ({100 * use['used'] / use['there']:.1f} %)"


def _amount(use: Object, part: str) -> str:
    value = use[part]
    return format_bytes(value) if use["resource"] in ("memory", "disk") else f"{value:g}"


def _as_flags(spec: Mapping[str, Any]) -> str:
    def write(field: str, value: Any) -> str:
        return f"{value // 2**20}M" if field in ("memory", "disk") else f"{value:g}"

    return " ".join(f"--{field} {write(field, value)}" for field, value in spec.items())
