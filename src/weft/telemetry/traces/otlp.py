"""Spans as OTLP has them in JSON (opentelemetry-proto 1.x: ``resourceSpans`` → ``scopeSpans`` → ``spans``): ids in hex digits,
times as decimal texts of unix nanoseconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weft.contracts.trace.span import Span, Value

SCOPE = "weft"
ERROR = 2


def to_otlp(spans: Iterable[Span]) -> dict[str, Any]:
    """One resource for each process. A span that isn't over has ``endTimeUnixNano`` "0"."""
    by_process: dict[str, list[dict[str, Any]]] = {}
    for one in spans:
        by_process.setdefault(one.process, []).append(_show(one))
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [_attribute("service.name", f"weft/{process}")]},
                "scopeSpans": [{"scope": {"name": SCOPE}, "spans": shown}],
            }
            for process, shown in by_process.items()
        ]
    }


def _show(one: Span) -> dict[str, Any]:
    attributes = {**({"weft.object": one.about} if one.about else {}), **one.attributes}
    shown: dict[str, Any] = {
        "traceId": one.trace,
        "spanId": one.id,
        "parentSpanId": one.parent,
        "name": one.name,
        "kind": one.kind,
        "startTimeUnixNano": str(one.begin),
        "endTimeUnixNano": str(one.end),
        "attributes": [_attribute(key, value) for key, value in attributes.items()],
        "status": {"code": ERROR, "message": one.error} if one.error else {},
    }
    if not one.parent:
        del shown["parentSpanId"]
    return shown


def _attribute(key: str, value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"doubleValue" if isinstance(value, float) else "stringValue": value}}
