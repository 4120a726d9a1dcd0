"""A Migration's plan, progress and result, in units for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.cli.output.table import draw_table, make_columns
from weft.cli.output.terminal import Paint, clean
from weft.kinds.fields.cells import dig
from weft.kinds.migration import describe_window
from weft.objects.quantity import format_bytes

Object = Mapping[str, Any]
SHOWN = (
    "window",
    "forecast",
    "reservation_lost",
    "plan",
    "progress",
    "samples",
    "actual",
    "error",
)  # of the status, shown here
_COLUMNS = make_columns("", "PLANNED>", "ACTUAL>", "OFF BY>")


PROGRESS_COLUMNS = make_columns("NAME", "WORKLOAD!", "NODES", "PHASE", "DONE>!", "SPEED>", "WRITES>", "LEFT>", "NOTE~")


def describe_progress(migration: Object) -> dict[str, Any]:
    """How far a migration is, for programs: ``share`` is from 0 to 1, None while nothing was copied."""
    progress = dig(migration, "status.progress")
    description = {
        "name": migration["name"],
        "project": migration.get("project"),
        "workload": dig(migration, "spec.workload", ""),
    }
    description |= {part: dig(migration, f"status.{part}", "") for part in ("phase", "source", "target")}
    return {
        **description,
        "share": _share(progress),
        "progress": progress,
        "started_at": dig(migration, "status.started_at"),
    }


def _share(progress: Object | None) -> float | None:
    total = (progress or {}).get("total_bytes", 0)
    return round(1 - min(1.0, (progress or {}).get("remaining_bytes", 0) / total), 3) if total else None


def draw_progress(migration: Object) -> list[str]:
    """A row of PROGRESS_COLUMNS."""
    description = describe_progress(migration)
    progress, share = description["progress"] or {}, description["share"]
    return [
        description["name"],
        str(description["workload"]),
        f"{description['source'] or '–'} → {description['target'] or '?'}",
        str(description["phase"] or "Pending"),
        f"{share:.0%}" if share is not None else "–",
        _rate(progress["bytes_per_second"]) if progress else "–",
        _rate(progress["dirty_bytes_per_second"]) if progress else "–",
        format_bytes(progress["remaining_bytes"]) if progress else "–",
        str(dig(migration, "status.message", "")),
    ]


def format_pause(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def describe_forecast(forecast: Object) -> str:
    """Describe the forecast: ``about 4.0 s, downtime about 21 ms, 214 MiB on the wire (confidence 0.67, from 2 migrations of it
    between n1 and n2)``; or that nothing is known, and why."""
    parts = []
    if forecast.get("duration_seconds") is not None:
        parts.append(f"about {forecast['duration_seconds']:.1f} s")
    if forecast.get("pause_ms"):
        parts.append(f"downtime about {format_pause(forecast['pause_ms'])}")
    if forecast.get("bytes") is not None:
        parts.append(f"{format_bytes(forecast['bytes'])} on the wire")
    if not parts:
        return f"unknown: {forecast['basis']}"
    sure = f"confidence {forecast['confidence']:g}, from " if forecast.get("confidence") else ""
    way = f"{forecast['mode']} as last time, " if forecast.get("mode") else ""
    return f"{way}{', '.join(parts)} ({sure}{forecast['basis']})"


def describe_migration(migration: Object, paint: Paint) -> str:
    """Sections of what is known so far; empty while nothing is."""
    sections = {"when": _list_window(migration), "plan": _list_plan(migration), "progress": _list_progress(migration)}
    parts = []
    for title, lines in sections.items():
        if lines:
            width = max(map(len, lines)) + 2
            shown = [f"  {clean(f'{word:<{width}}{text}')}" for word, text in lines.items()]
            parts.append("\n".join([paint.color(title, "bold"), *shown]))
    if dig(migration, "status.plan.duration_seconds") or dig(migration, "status.actual"):
        parts.append(_compare(migration, paint))
    return "\n\n".join(parts)


def _list_window(migration: Object) -> dict[str, str]:
    """List the window of a planned migration, until it has begun."""
    window, forecast = dig(migration, "status.window"), dig(migration, "status.forecast")
    if not window or dig(migration, "status.phase") not in ("Planned", "Proposed"):
        return {}
    target, stays = dig(migration, "status.target", ""), dig(migration, "spec.mode") == "storage"
    known = {
        "begins": describe_window(window),
        "capacity": ""
        if stays
        else f"reserved on {target}"
        if target
        else f"none: {dig(migration, 'status.message', '')}",
        "chosen again": dig(migration, "status.reservation_lost", ""),
        "quality": f"{window.get('quality', 0.0):g}: {window.get('reason', '')}",
        "expected": describe_forecast(forecast) if forecast else "",
    }
    return {word: text for word, text in known.items() if text}


def _list_plan(migration: Object) -> dict[str, str]:
    plan = dig(migration, "status.plan") or {}
    if not plan.get("mode"):
        return {}
    corrected = {name: plan.get(f"{name}_factor", 1.0) for name in ("duration", "pause", "bytes")}
    known = {
        "mode": plan["mode"],
        "reason": plan.get("reason", ""),
        "dirty rate": _rate(plan.get("dirty_bytes_per_second", 0)),
        "link": _rate(plan.get("path_bytes_per_second", 0)),
        "streams": f"{plan['streams']}, {format_bytes(plan.get('chunk_bytes', 0))} at a time" if plan.get("streams") else "",
        "compressed to": f"{100 / plan['ratio']:.0f} %" if plan.get("ratio", 0) > 1 else "",
        "confidence": f"{plan['confidence']:.0%}" if plan.get("confidence") else "",
        "corrected by past migrations": ", ".join(f"{name} ×{by:g}" for name, by in corrected.items() if by != 1.0),
    }  # fmt: skip
    return {word: text for word, text in known.items() if text}


def _list_progress(migration: Object) -> dict[str, str]:
    progress = dig(migration, "status.progress")
    if not progress or dig(migration, "status.actual"):
        return {}
    known = {
        "sent": f"{format_bytes(progress.get('sent_bytes', 0))} on the wire",
        "left": f"{format_bytes(progress.get('remaining_bytes', 0))} of {format_bytes(progress.get('total_bytes', 0))}",
        "rate": _rate(progress.get("bytes_per_second", 0)),
        "dirty rate": _rate(progress.get("dirty_bytes_per_second", 0)),
        "passes": str(progress.get("passes", 0)),
    }
    return {word: text for word, text in known.items() if text}


def _compare(migration: Object, paint: Paint) -> str:
    """The plan beside the result, and the difference as a share of the result."""
    plan, actual, error = (dig(migration, f"status.{part}") or {} for part in ("plan", "actual", "error"))
    planned = {
        "duration": _seconds(plan.get("duration_seconds")),
        "downtime": format_pause(plan["pause_seconds"] * 1000) if plan.get("pause_seconds") else "–",
        "bytes on the wire": format_bytes(plan["bytes"]) if plan.get("bytes") else "–",
        "passes": str(plan.get("passes") or "–"),
    }
    came = {
        "duration": _seconds(actual.get("duration_seconds")),
        "downtime": format_pause(actual["pause_ms"]) if actual.get("pause_ms") else "–",
        "bytes on the wire": format_bytes(actual["bytes"]) if actual.get("bytes") else "–",
        "passes": str(actual.get("passes") or "–"),
    }
    off = {"duration": "duration", "downtime": "pause", "bytes on the wire": "bytes"}
    rows = [
        [f"  {what}", planned[what], came[what], f"{error[off[what]]:.0f} % of it" if what in off and error else ""]
        for what in planned
    ]
    return draw_table(_COLUMNS if error else _COLUMNS[:3], rows, None, paint)


def _rate(bytes_per_second: float) -> str:
    return f"{format_bytes(bytes_per_second)}/s" if bytes_per_second else ""


def _seconds(seconds: float | None) -> str:
    return f"{seconds:.1f} s" if seconds else "–"
