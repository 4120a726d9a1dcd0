"""One object in full for a person: name, status, report, spec, actions, marks, conditions. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from weft.cli.output.local_time import localize, render_time
from weft.cli.output.table import Column, draw_table
from weft.cli.output.terminal import Paint, clean
from weft.cli.output.timestamp import is_moment
from weft.kinds.record import Kind
from weft.kinds.vm import MOST_DISK_BYTES
from weft.objects.quantity import format_amount, format_bytes, format_duration
from weft.objects.schema import describe_fields

Object = Mapping[str, Any]
_SIZES = ("size", "memory", "disk", "virtual_size", "total", "free")
_PRIVATE = ("user_data",)  # may hold passwords: -o json shows it
_TIMES = ("at", "since", "started_at", "used_at", "expires_at", "ended_at", "handed_over_at", "taken_at")

# Values that mean something other than an amount.
_WORDS: dict[tuple[str, float], str] = {
    ("spec.disk", 0): "the image's size",
    ("spec.gpus", 0): "",
    ("spec.gpu_memory", 0): "",
    ("spec.memory", 0): "chosen by weft",  # of a conversion
    ("spec.migration_bandwidth", 0): "no limit",
    ("spec.autonomy_seconds", 0): "none",
    ("status.resize_limits.disk", MOST_DISK_BYTES): "the whole pool",
}


def describe_object(obj: Object, kind: Kind, age_of: Callable[[float], str], width: int | None, paint: Paint) -> str:
    """The description, a section for each part of the object."""
    parts = {part: getattr(kind, part) for part in ("spec", "actions", "marks")}
    types = {doc.path: doc.type for part, type_ in parts.items() if type_ for doc in describe_fields(type_, part)}
    head = {"name": obj["name"], "kind": kind.title}
    if obj.get("project"):
        head["project"] = obj["project"]
    if obj.get("labels"):
        head["labels"] = ", ".join(f"{key}={value}" for key, value in obj["labels"].items())
    head["created"] = f"{age_of(obj.get('created_at', 0.0))} ago"
    if obj.get("created_by"):
        head["created by"] = clean(obj["created_by"])
    if obj.get("deleting_since"):
        head["deleting"] = f"for {age_of(obj['deleting_since'])}"
    head |= {"uid": obj["uid"], "generation": str(obj.get("generation", 1))}
    sections = [_pairs(head, paint)]
    for part in ("status", "report", *parts):
        given = {**(obj.get(part) or {}), **(_find_serving(obj) if part == "status" else {})}
        shown = {key: _show(f"{part}.{key}", value, types, age_of) for key, value in given.items()}
        if part == "actions":  # counters of what nobody has done yet
            shown = {key: text for key, text in shown.items() if text != "0"}
        shown = {key: text for key, text in shown.items() if text}
        if shown:
            sections.append(f"{paint.color(part, 'bold')}\n{_pairs(shown, paint, '  ')}")
    if obj.get("conditions"):
        columns = [Column(title) for title in ("CONDITION", "STATUS", "SINCE", "REASON")]
        columns.append(Column("MESSAGE", flexible=True))
        rows = [
            [c["type"], c["status"], age_of(c.get("since", 0.0)), c.get("reason") or "–", c.get("message", "")]
            for c in obj["conditions"]
        ]
        sections.append(draw_table(columns, rows, width, paint))
    return "\n\n".join(sections)


def _find_serving(obj: Object) -> dict[str, Any]:
    """Find, of what a function serves, only what differs from its spec."""
    serving = (obj.get("status") or {}).get("serving")
    if not isinstance(serving, dict):
        return {}
    return {"serving": {key: value for key, value in serving.items() if value != obj["spec"].get(key)}}


def name_images(digests: Sequence[str], images: Iterable[Object]) -> list[str]:
    """The names of the images with these digests, and how many others there are."""
    named = {image["status"]["sha256"]: image["name"] for image in images if (image.get("status") or {}).get("sha256")}
    names = sorted({named[digest] for digest in digests if digest in named})
    others = sum(digest not in named for digest in digests)
    return [*names, *([f"{others} unnamed"] if others else [])]


def _pairs(values: Mapping[str, str], paint: Paint, indent: str = "") -> str:
    width = max(len(key) for key in values) + 2
    lines = []
    for key, value in values.items():
        first, *rest = [localize(clean(line)) for line in value.splitlines()] or [""]
        lines.append(f"{indent}{key.replace('_', ' '):<{width}}{paint.phase(first)}")
        lines += [f"{indent}{'':<{width}}{line}" for line in rest]
    return "\n".join(lines)


def _show(path: str, value: Any, types: Mapping[str, str], age_of: Callable[[float], str]) -> str:
    name = path.rpartition(".")[2]
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if name in _PRIVATE:
        return f"{len(str(value))} characters, not shown here"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if (path, value) in _WORDS:
            return _WORDS[path, value]
        if name in _TIMES:
            return f"{age_of(float(value))} ago" if value else ""
        if is_moment(name):
            return render_time(float(value)) if value else ""
        if types.get(path, "").endswith("duration"):
            return format_duration(value)
        if path.startswith("spec.resources."):
            return format_amount(value)
        if path.startswith("status.store."):
            return format_bytes(value)
        if path.startswith("spec.overcommit."):
            return f"{value:g}"
        if name.endswith("_per_second"):
            return f"{format_bytes(value)}/s" if value else "no limit"
        if name.endswith("_ms"):
            return f"{value:g} ms"
        if types.get(path) == "size" or name in _SIZES or name.endswith(("_memory", "_disk")):
            return format_bytes(value)
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, dict):
        shown = {key: _show(f"{path}.{key}", inner, types, age_of) for key, inner in value.items()}
        if types.get(path) == "fields":  # a map's keys stay as people wrote them
            shown = {key.replace("_", " "): text for key, text in shown.items()}
        if any(isinstance(inner, list) for inner in value.values()):
            return "\n".join(f"{key}: {text}" for key, text in shown.items() if text)
        return ", ".join(f"{key} {text or '–'}" for key, text in shown.items())
    if isinstance(value, list):
        if all(isinstance(item, dict) for item in value):
            return _tabulate([{k: _show(f"{path}[].{k}", v, types, age_of) for k, v in item.items()} for item in value])
        return ", ".join(_show(f"{path}[]", item, types, age_of) for item in value)
    return str(value)


def _tabulate(items: Sequence[Mapping[str, str]]) -> str:
    """Several alike, each on its line, below what their values are."""
    keys = list(dict.fromkeys(key for item in items for key, text in item.items() if text))
    rows = [["  ".join(item.get(key, "").splitlines()) or "–" for key in keys] for item in items]
    columns = [Column(key.replace("_", " ").upper()) for key in keys]
    return draw_table(columns, rows, header=len(keys) > 1) if keys else ""
