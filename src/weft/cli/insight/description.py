"""A profile in words: the class, cycles with their peaks, what is expected, what goes together, what was unusual. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from weft.cli.metrics.plot import format_value
from weft.cli.output.terminal import clean
from weft.objects.quantity import format_age

Status = Mapping[str, Any]
NOT_LOOKED_SECONDS = 2 * 3600.0  # after which a profile is out of date
_DAY = 86_400.0
_MOST_UNUSUAL = 5
_MARGIN = 10
_HORIZONS = {"5m": "in 5 min", "1h": "in 1 h", "24h": "in 24 h"}
_RESOURCES = {"cpu": "CPU", "invocations": "invocations per second"}
_CHANNELS = {
    "jump": "jumped to",
    "level": "was",
    "hour": "was unusual for an hour, then",
    "spread": "swung, then",
    "pattern": "took an unusual course to",
}
_MEANINGS = {
    "idle": "hardly does anything",
    "steady": "does about the same all the time",
    "cyclic": "comes and goes in cycles",
    "bursty": "is quiet, with short bursts",
    "batch": "works in long stretches, and rests between",
    "growing": "uses more and more",
    "irregular": "wanders without a pattern",
}


def describe_profile(what: str, status: Status, now: float) -> Iterator[str]:
    """The lines. Times by the local clock."""
    unit, signature = status["unit"], status["signature"]
    yield clean(f"{what}: {_write_class(signature)}{_write_stability(status['stability'])}")
    full = f" of {status['full']:g}" if status["full"] else ""
    past = format_age(status["history_seconds"])
    age = now - status["looked_at"]
    yield f"{_RESOURCES.get(status['resource'], status['resource'])}{full}, {past} of history, looked at {_ago(age)}"
    if age > NOT_LOOKED_SECONDS:
        yield "That is long ago: the history of metrics doesn't answer, or no controllers run (weft doctor)"
    yield ""
    yield from _section("cycles", [_write_pattern(one, unit) for one in status["patterns"]], "none found")
    yield from _section("expected", [_write_expected(name, one, unit) for name, one in status["prediction"].items()])
    yield from _section("goes with", [", ".join(map(_write_correlation, status["correlations"]))], "nothing found")
    recent = [_write_anomaly(one, unit) for one in status["anomalies"][:_MOST_UNUSUAL]]
    more = len(status["anomalies"]) - len(recent)
    yield from _section("unusual", [*recent, *([f"and {more} more"] if more else [])], "nothing")
    yield from _section("missing", [f"{field}: {why}" for field, why in status["missing"].items()])


def _section(title: str, lines: Sequence[str], empty: str = "") -> Iterator[str]:
    shown = [line for line in lines if line] or ([empty] if empty else [])
    for number, line in enumerate(shown):
        yield clean(f"{'' if number else title:{_MARGIN}}{line}")


def _write_class(signature: Mapping[str, Any]) -> str:
    name = str(signature["class"])
    if name == "unknown" or not signature["probability"]:
        return "of no known class"
    meaning = _MEANINGS.get(name)
    return f"{name} ({signature['probability']:.0%} sure){f': it {meaning}' if meaning else ''}"


def _write_stability(stability: float | None) -> str:
    if stability is None:
        return ""
    word = "what comes is known" if stability >= 0.75 else "hard to foresee" if stability < 0.4 else "fairly steady"
    return f"; stability {stability:.2f}, {word}"


def _write_pattern(pattern: Mapping[str, Any], unit: str) -> str:
    parts = [f"{pattern['type']} (confidence {pattern['confidence']:.2f})"]
    for title, places in (("peak", pattern["peaks"]), ("lowest", pattern["troughs"])):
        spans = " and ".join(_write_span(one, pattern["cycle_seconds"], unit) for one in places[:2])
        parts += [f"{title} {spans}"] if spans else []
    return ", ".join(parts)


def _write_span(place: Mapping[str, Any], cycle: float, unit: str) -> str:
    is_daily = abs(cycle / _DAY - 1) < 0.03
    begin, end = (_moment(place[name], short=is_daily) for name in ("start", "end"))
    return f"from {begin} to {end} ({format_value(place['value'], unit)})"


def _write_expected(name: str, one: Mapping[str, Any], unit: str) -> str:
    value, low, high = (format_value(one[part], unit) for part in ("value", "low", "high"))
    return f"{_HORIZONS.get(name, name):8} {value:>6}  (80 %: {low} to {high}; {one['method']})"


def _write_correlation(one: Mapping[str, Any]) -> str:
    name = one["workload"] or f"its own {one['other']}"
    own = "" if one["resource"] in ("cpu", "invocations") else f"{one['resource']} with "
    return f"{own}{name} ({one['correlation']:+.2f})"


def _write_anomaly(one: Mapping[str, Any], unit: str) -> str:
    value, low, high = (format_value(one[part], unit) for part in ("value", "low", "high"))
    return f"{_moment(one['at'])}  {_CHANNELS.get(one['channel'], one['channel'])} {value}, usually {low} to {high}"


def _moment(at: float, short: bool = False) -> str:
    here = datetime.fromtimestamp(at).astimezone()
    return f"{here:%H:%M}" if short else f"{here:%a} {here.day} {here:%b %H:%M}"


def _ago(seconds: float) -> str:
    return "just now" if seconds < 60 else f"{format_age(seconds)} ago"
