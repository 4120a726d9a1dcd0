"""The report of a run of a recovery plan. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.kinds.fields.cells import dig
from weft.kinds.fields.recovery.run import PASSED, REHEARSE, find_result
from weft.kinds.record import Object
from weft.objects.quantity import format_age

_MODES = {REHEARSE: "rehearsal"}


def make_report(obj: Object, asked: Object) -> dict[str, Any] | None:
    """The result of the run that ``asked`` began, as programs read it; None while it goes on."""
    result = find_result(obj)
    if result is None or result["generation"] != asked["actions"]["run_generation"]:
        return None
    kept = {key: value for key, value in result.items() if key != "generation"}
    return {"plan": obj["name"], **kept, "mode": _MODES.get(result["mode"], result["mode"])}


def render_report(report: dict[str, Any]) -> str:
    points = {vm["vm"]: vm for vm in report["vms"]}
    rows = [["GROUP", "VM", "POINT", "AGE", "CHECK", "PASSED AFTER"]]
    for check in report["checks"]:
        vm = points[check["vm"]]
        rows.append(
            [
                str(vm["group"]),
                check["vm"],
                str(vm["point"] or "–"),
                _duration(vm["age_seconds"]),
                f"{check['type']} {check['target']}".rstrip(),
                _duration(check["seconds"]) if check["passed"] else f"not: {check['message'] or 'not checked yet'}",
            ]
        )
    passed = sum(bool(check["passed"]) for check in report["checks"])
    figures = f"RPO {_duration(report['rpo_seconds'])}   RTO {_duration(report['rto_seconds'])}"
    ends = "" if report["phase"] == PASSED else f"   {report['phase']}"
    table = f"{_align(rows)}\n" if len(rows) > 1 else ""
    return f"{table}{figures}   checks {passed}/{len(report['checks'])} passed{ends}"


def leave_out_runs(plan: Object) -> dict[str, Any]:
    """The plan without what ``describe_runs`` shows, and without what programs go by."""
    left_out = ("run", "rehearsal", "failover", "asked_at", "asked_generation", "ended_generation")
    status = {key: value for key, value in (plan.get("status") or {}).items() if key not in left_out}
    spec = {key: value for key, value in plan["spec"].items() if not key.startswith("run_") and key != "force"}
    return {**plan, "spec": spec, "status": status}


def describe_runs(plan: Object, now: float) -> str:
    """The last rehearsal and the last failover; "" if there was none."""
    told = []
    for name in ("rehearsal", "failover"):
        result = dig(plan, f"status.{name}")
        if result:
            age = format_age(now - result["ended_at"])
            why = f": {result['message']}" if result["message"] else ""
            told.append(f"Last {name}: {result['phase']} {age} ago{why}\n{render_report(result)}")
    return "\n\n".join(told)


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.1f} s"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
