"""Silence: until a given time, nobody is notified of a rule's alerts, or of those with some labels. They are still shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object, Reference
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_time
from weft.objects.schema import field

MOST_LABELS = 8
LABEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")  # as of series
MOST_SECONDS = 366 * 86400.0


class SilenceSpec(msgspec.Struct, kw_only=True):
    rule: Annotated[str, field("Alert rule; unset: all rules of the project", name=True)] = ""
    labels: Annotated[dict[str, str], field("Labels of the alerts; they have all of them")] = {}
    until: Annotated[float, field("When it ends", quantity="moment")]
    comment: Annotated[str, field("Why, for people", max_length=200)] = ""


class SilenceStatus(msgspec.Struct, kw_only=True):
    pass


def check_silence(spec: SilenceSpec) -> None:
    """Raises InvalidInput."""
    if not spec.rule and not spec.labels:
        raise InvalidInput(
            "the silence names no rule and no labels", field="spec.rule", hint="name a rule, labels, or both"
        )
    if len(spec.labels) > MOST_LABELS or any(len(value) > 200 for value in spec.labels.values()):
        raise InvalidInput(
            f"spec.labels: {len(spec.labels)} labels, or a long value",
            field="spec.labels",
            hint=f"give at most {MOST_LABELS}, with values of at most 200 characters",
        )
    for name in spec.labels:
        if not LABEL_NAME.fullmatch(name):
            raise InvalidInput(
                f"spec.labels: {name[:60]!r} is not the name of a label", field="spec.labels", hint="write node=n2"
            )


def check_until(spec: SilenceSpec, now: float) -> None:
    """Raises InvalidInput."""
    if not now < spec.until <= now + MOST_SECONDS:
        raise InvalidInput(
            f"spec.until: {format_time(spec.until)} is not within a year from now",
            field="spec.until",
            hint="give a time in the future, or --for 2h",
        )


def is_silenced(spec: SilenceSpec, rule: str, labels: Mapping[str, str], now: float) -> bool:
    """Whether nobody is notified of this alert now."""
    return (
        now < spec.until
        and spec.rule in ("", rule)
        and all(labels.get(name) == value for name, value in spec.labels.items())
    )


def _what(obj: Object) -> str:
    labels = [f"{name}={value}" for name, value in sorted((dig(obj, "spec.labels") or {}).items())]
    return " ".join([str(dig(obj, "spec.rule", "")) or "all rules", *labels])


SILENCE = Kind(
    name="silence",
    plural="silences",
    title="silence",
    summary="Until a given time, nobody is notified of some alerts",
    spec=SilenceSpec,
    status=SilenceStatus,
    references=(Reference("alertrule", "spec.rule", lambda spec: [spec.rule] if spec.rule else [], blocks=False),),
    access=Access(readers="project"),
    admission=Admission(check=check_silence, check_times=check_until),
    display=Display(
        topic="Metrics, logs and alerts",
        columns=(
            NAME,
            Column("OF", _what, flexible=True),
            Column("UNTIL", lambda obj: format_time(dig(obj, "spec.until", 0.0))),
            Column("BY", text("created_by")),
            Column("COMMENT", text("spec.comment", ""), flexible=True),
            AGE,
        ),
    ),
)
