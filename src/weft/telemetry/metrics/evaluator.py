"""The evaluator of alert rules: a vmalert beside the database for metrics. Writes its rules, and reads what it found.

Its states are read, not received: an answer is whole, so nothing is lost that was under way while either end was away."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.objects.errors import TimedOut, Unavailable
from weft.telemetry.metrics.database import Asker, Database

FOLDER = "metrics/alerts"  # in the server's state folder
_FILE, _RULES = f"{FOLDER}/evaluator.json", f"{FOLDER}/rules.json"
NO_RULES = b'{"groups":[]}'
_SECONDS, _MOST_BYTES = 5.0, 128 << 20
_MOST_ERROR = 300
_BODY = re.compile(r"Response body (\{.*\})", re.DOTALL)
_QUERY_ERROR = re.compile(r"for \(time=[^)]*\): (.*)", re.DOTALL)


class FoundSeries(msgspec.Struct, frozen=True):
    """A series for which a rule's condition holds. ``begun`` is since when, in seconds since 1970."""

    labels: dict[str, str]
    value: float
    firing: bool
    begun: float


class Evaluated(msgspec.Struct, frozen=True):
    """A rule's newest evaluation. ``error``: why its expression has no result; then ``found`` means nothing. ``at`` is when it was,
    in whole seconds since 1970."""

    expr: str
    for_: float
    error: str = ""
    found: list[FoundSeries] = []
    at: float = math.inf


class _Alert(msgspec.Struct):
    state: str
    value: str
    labels: dict[str, str] = {}
    active_at: str = msgspec.field(name="activeAt", default="")


class _Rule(msgspec.Struct):
    name: str
    query: str = ""
    duration: float = 0.0
    last_error: str = msgspec.field(name="lastError", default="")
    last_evaluation: str = msgspec.field(name="lastEvaluation", default="")
    alerts: list[_Alert] | None = None


class _Group(msgspec.Struct):
    rules: list[_Rule] | None = None


class _Groups(msgspec.Struct):
    groups: list[_Group] | None = None


class _Answer(msgspec.Struct):
    data: _Groups


class Evaluator:
    """Evaluator of the server whose state folder is ``state``."""

    def __init__(self, state: Path, clock: Clock, interval: float) -> None:
        self.interval = interval  # seconds between two evaluations
        self._state = state
        self._asker = Asker(clock, 1)

    def write_rules(self, document: bytes) -> None:
        """Evaluate these from now on, within a few seconds. Raises OSError; it keeps the former ones then."""
        write_durably(self._state / _RULES, document)

    async def read(self) -> dict[str, Evaluated]:
        """Each rule that was evaluated, by its name. Raises Unavailable, TooLarge."""
        evaluator = find_evaluator(self._state)
        try:
            reply = await self._asker.ask(evaluator, "/api/v1/rules", b"", {}, seconds=_SECONDS, most_bytes=_MOST_BYTES)
        except (Unavailable, TimedOut) as problem:
            raise Unavailable("the evaluator of alert rules doesn't answer", hint="see the server's log") from problem
        try:
            groups = msgspec.json.decode(reply.body, type=_Answer).data.groups or []
        except msgspec.DecodeError:
            raise Unavailable("the evaluator of alert rules gave no answer", hint="try again") from None
        rules = [rule for group in groups for rule in group.rules or []]
        return {rule.name: _read(rule) for rule in rules if not rule.last_evaluation.startswith("0001-")}

    def close(self) -> None:
        self._asker.close()


def save_evaluator(state: Path, evaluator: Database) -> None:
    """Write where it will listen, and rules for its first start. Raises OSError."""
    write_durably(state / _FILE, msgspec.json.encode(evaluator), 0o600)
    if not (state / _RULES).exists():
        write_durably(state / _RULES, NO_RULES)


def find_evaluator(state: Path) -> Database:
    """Raises Unavailable while it hasn't started."""
    try:
        return msgspec.json.decode((state / _FILE).read_bytes(), type=Database)
    except (OSError, msgspec.DecodeError):
        raise Unavailable("the evaluator of alert rules hasn't started", hint="try again") from None


def find_rules(state: Path) -> Path:
    """The file with its rules."""
    return (state / _RULES).absolute()


def _read(rule: _Rule) -> Evaluated:
    error = _read_error(rule.last_error) if rule.last_error else ""
    found = [] if error else [_read_alert(alert) for alert in rule.alerts or [] if alert.state != "inactive"]
    return Evaluated(rule.query, rule.duration, error, found, _read_time(rule.last_evaluation))


def _read_alert(alert: _Alert) -> FoundSeries:
    labels = {name: value for name, value in alert.labels.items() if name not in ("alertname", "alertgroup")}
    return FoundSeries(labels, _read_value(alert.value), alert.state == "firing", _read_time(alert.active_at))


def _read_time(text: str) -> float:
    """Whole seconds since 1970; the evaluator writes the local time of its machine."""
    try:
        return float(math.floor(datetime.datetime.fromisoformat(text).timestamp()))
    except ValueError:
        return math.inf


def _read_value(text: str) -> float:
    """A number that JSON can hold."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return 0.0 if math.isnan(value) else max(-1e300, min(1e300, value))


def _read_error(text: str) -> str:
    """Error of the database about the expression, without what changes from one evaluation to the next."""
    body = _BODY.search(text)
    if body is None:
        if "duplicate" in text or "identical labels" in text:
            return "the expression gives two series with the same labels: name the labels that differ with by (…)"
        return "the database for metrics doesn't answer"
    try:
        said = str(msgspec.json.decode(body[1])["error"])
    except (msgspec.DecodeError, TypeError, KeyError):
        said = ""
    of_query = _QUERY_ERROR.search(said)
    plain = "".join(char if char.isprintable() else " " for char in (of_query[1] if of_query else said))
    return plain[:_MOST_ERROR] or "the database for metrics refuses the expression"
