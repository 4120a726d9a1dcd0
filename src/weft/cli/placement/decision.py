"""A scheduling decision in words: the line while placing, why this node, why no node. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weft.cli.output.table import Column, draw_table, make_columns
from weft.cli.output.terminal import Paint
from weft.kinds.fields.cells import dig
from weft.objects.errors import Unplaceable
from weft.objects.quantity import format_amount, format_bytes

Object = Mapping[str, Any]
_BYTES = ("memory", "disk")
_WIDEST_TERM = 24


def describe_choice(decision: Object | None, node: str) -> str:
    """``placed on n2 (least_loaded: score 97.1; runner-up n1)``"""
    chosen = next((v for v in _verdicts(decision) if v["outcome"] == "chosen"), None)
    if chosen is None or chosen["node"] != node:
        return f"placed on {node}"
    parts = [dig(decision or {}, "spec.policy", "")]
    if chosen.get("score") is not None:
        parts[0] += f": score {chosen['score']:.1f}"
    second = _runner_up(decision)
    if second:
        parts.append(f"runner-up {second['node']}")
    return f"placed on {node} ({'; '.join(parts)})"


def read_notes(decision: Object | None) -> list[str]:
    """Parts of the spec that deserve attention, and preferences that were dropped."""
    return list(dig(decision or {}, "spec.notes", None) or [])


def explain_refusal(error: Unplaceable, decision: Object | None, what: str, where: str = "") -> Unplaceable:
    """``error`` with what each node lacks, the nearest fit, and what to type next, which ends with ``where``: `` -p trial``."""
    decision = decision or {}
    verdicts = [v for v in _verdicts(decision) if v["outcome"] == "refused"]
    width = max((len(v["node"]) for v in verdicts), default=0)
    lines = [
        f"  {verdict['node']:<{width}}  {describe_shortfalls(verdict) or verdict.get('reason') or 'refused'}"
        for verdict in verdicts[:12]
    ]
    if len(verdicts) > 12:
        lines.append(f"  and {len(verdicts) - 12} more nodes")
    if not verdicts:
        message = dig(decision, "spec.message", "")
        lines += [f"  {message}"] if message else []
        refused = dig(decision, "spec.refused_by", {})
        lines += [f"  {count} nodes refused by {name}" for name, count in refused.items()]
    first, message = f"{what} fits on no node: {error.token}", dig(decision, "spec.message", "")
    if dig(decision, "spec.gang", ""):
        first = f"{error.token}: {message}"
        lines = lines if f"{what} has no node" in message else []  # the other message says what is missing
    lines += [f"note: {note}" for note in read_notes(decision)]
    nearest = dig(decision, "spec.nearest", "")
    nearest_node = dig(decision, "spec.nearest_node", "")
    hints = [f"nearest: {nearest}"] if nearest else []
    ways = " | ".join(f"weft {verb} {what}{where}" for verb in ("wait", "explain", "delete"))
    hints.append(error.hint or f"It stays Pending and starts when capacity appears.  {ways}")
    refusal = Unplaceable("\n".join([first, *lines]), reason=error.token)
    refusal.hint = "\n".join(hints)
    refusal.details = {
        "nodes": dig(decision, "spec.nodes", 0),
        "verdicts": verdicts,
        "nearest": nearest,
        "nearest_node": nearest_node,
    }
    return refusal


def explain_decision(decision: Object, what: str, when: str, width: int | None, paint: Paint) -> str:
    """A whole decision: the sentence, and every node's verdict."""
    spec = decision["spec"]
    verdicts = spec.get("verdicts") or []
    named = f"{spec['named']}: " if spec.get("named") else ""
    policy = f"{'policy' if named else 'strategy'} {named}{spec['policy']}{describe_weights(verdicts)}"
    policy += " by usage" if spec.get("basis") == "used" else ""
    chosen = next((v["node"] for v in verdicts if v["outcome"] == "chosen"), None)
    nodes = f"{spec['nodes']} node{'s' * (spec['nodes'] != 1)}"
    if chosen:
        first = f"{what} was placed on {chosen} at {when} by {policy}, {spec['took_ms']:.1f} ms, {nodes}"
    else:
        first = f"{what} fits on no node: {spec.get('error') or 'refused'} (at {when}, {policy}, {nodes})"
    lines = [first]
    if spec.get("message"):
        lines.append(spec["message"])
    lines += [f"note: {note}" for note in read_notes(decision)]
    lines += draw_verdicts(verdicts, spec.get("refused_by") or {}, width, paint)
    if not chosen and spec.get("nearest"):
        lines.append(f"nearest: {spec['nearest']}")
    return "\n".join(lines)


def describe_weights(verdicts: Sequence[Object]) -> str:
    """`` (0.4 cpu, 0.4 memory, 0.2 disk)``: what the scores of these verdicts are made of; empty for none."""
    weights = {term["name"]: term["weight"] for verdict in verdicts for term in verdict.get("terms") or ()}
    weighed = ", ".join(f"{weight:.3g} {name}" for name, weight in weights.items())
    return f" ({weighed})" if weighed else ""


def draw_verdicts(
    verdicts: Sequence[Object], refused_by: Mapping[str, int], width: int | None, paint: Paint
) -> list[str]:
    """Every node's verdict as a table, and how many more were refused than it shows."""
    ranked = sorted(verdicts, key=_rank)
    terms = list(dict.fromkeys(term["name"] for verdict in ranked for term in verdict.get("terms") or ()))
    columns = [*make_columns("NODE", "VERDICT", "SCORE>")]
    columns += [Column(_heading(name)) for name in terms]
    columns.append(Column("WHY", flexible=True))
    fitting = [v for v in ranked if v["outcome"] == "fits"]
    second = fitting[0] if fitting and len(ranked) > len(fitting) and ranked[0]["outcome"] == "chosen" else None
    lines = [draw_table(columns, [_row(verdict, terms, second) for verdict in ranked], width, paint)] if ranked else []
    refusal = sum(verdict["outcome"] == "refused" for verdict in ranked)
    if sum(refused_by.values()) > refusal:
        lines.append("refused in all: " + ", ".join(f"{count} by {name}" for name, count in refused_by.items()))
    return lines


def explain_absence(decision: Object, what: str, node: str, when: str) -> str:
    """Why ``what`` is not on ``node``: the scheduler's verdict on that node ``when`` it decided."""
    verdict = next((v for v in _verdicts(decision) if v["node"] == node), None)
    if verdict is None:
        refused = dig(decision, "spec.refused_by", {})
        by = ", ".join(f"{count} nodes by {name}" for name, count in refused.items())
        return f"{node} is not among the nodes with a kept verdict; refused in all: {by or 'none'}"
    if verdict["outcome"] == "refused":
        why = describe_shortfalls(verdict) or str(verdict.get("reason") or verdict.get("filter") or "refused")
        return f"{node} couldn't take {what} at {when}: {why}"
    chosen = next((v for v in _verdicts(decision) if v["outcome"] == "chosen"), None)
    if chosen is None or chosen is verdict:
        return f"{node} was chosen for {what} at {when}"
    best, its = (each.get("score") or 0.0 for each in (chosen, verdict))
    if its > best and dig(decision, "spec.gang", ""):
        why = f"so that all of gang {dig(decision, 'spec.gang')} fit: "
    else:
        why = ""
    scores = f"{chosen['node']} scored {best:.1f}, {node} {its:.1f}"
    if best == its:
        scores = f"both scored {best:.1f}, and the first of equals is chosen"
    policy = dig(decision, "spec.policy")
    return f"{node} could have taken {what} at {when}, but {chosen['node']} was chosen by {policy}: {why}{scores}"


def _row(verdict: Object, terms: Sequence[str], second: Object | None) -> list[str]:
    values = {term["name"]: f"{term['weight']:.3g}·{term['value']:.0f}" for term in verdict.get("terms") or ()}
    score = "–" if verdict.get("score") is None else f"{verdict['score']:.1f}"
    why = describe_shortfalls(verdict) or str(verdict.get("reason") or "")
    if not why and second is verdict:
        why = "runner-up"
    if verdict.get("filter") and verdict["filter"] not in why and not verdict.get("reason"):
        why = f"{verdict['filter']}: {why}".rstrip(": ")
    return [verdict["node"], verdict["outcome"], score, *(values.get(name, "") for name in terms), why]


def _heading(name: str) -> str:
    """A term's column; a preference keeps its letters, which matter."""
    if name.replace("_", "").isalnum():
        return name.upper()
    return name if len(name) <= _WIDEST_TERM else name[: _WIDEST_TERM - 1] + "…"


def describe_shortfalls(verdict: Object) -> str:
    return "     ".join(
        f"{short['resource']} {_amount(short['resource'], short['wanted'])} wanted, "
        f"{_amount(short['resource'], short['free'])} free"
        for short in verdict.get("shortfalls") or ()
    )


def _amount(resource: str, value: float) -> str:
    return format_bytes(value) if resource in _BYTES else format_amount(value)


def _verdicts(decision: Object | None) -> list[Object]:
    return list(dig(decision or {}, "spec.verdicts", []))


def _runner_up(decision: Object | None) -> Object | None:
    fitting = [v for v in _verdicts(decision) if v["outcome"] == "fits"]
    return max(fitting, key=lambda v: v.get("score") or 0.0, default=None)


def _rank(verdict: Object) -> tuple[int, float]:
    return ("chosen", "fits", "refused").index(verdict["outcome"]), -(verdict.get("score") or 0.0)
