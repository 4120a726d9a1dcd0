"""Times that programs read are RFC 3339, all of them and nothing else; what people write so is read as the same instant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect as mi

from weft.cli.output.timestamp import is_moment, render_moments
from weft.contracts.journal import Event
from weft.kinds.registry import KINDS
from weft.objects.envelope import Envelope
from weft.objects.errors import InvalidInput
from weft.objects.quantity import LAST_MOMENT, parse_moment
from weft.telemetry.journal import Record


def render(value: object) -> object:
    return msgspec.json.decode(render_moments(msgspec.json.encode(value)))


# Every field that is a number with a part behind the point, or a map of numbers, and is a time; a new one is put here or below.
MOMENTS = {
    *("created_at", "deleting_since", "since", "at", "first_at", "started_at", "ended_at", "stopped_at", "running_at"),
    "saved_at",
    *(
        "began_at",
        "begun_at",
        "asked_at",
        "passed_at",
        "returned_at",
        "handed_over_at",
        "troubled_at",
        "used_at",
        "expires_at",
        "last_run",
        "next_run",
    ),
    *("not_before", "not_after", "prepare_at", "deadline_at", "drain_not_before", "drain_not_after", "start", "end"),
    *(
        "through",
        "expected_start",
        "taken_at",
        "turn_at",
        "finished_at",
        "verified_at",
        "checked_at",
        "counted_at",
        "seen_at",
        "stuck_at",
        "rebooting_at",
        "received_at",
        "retry_at",
        "lost_at",
        "lost_since",
        "updated_at",
    ),
    *(
        "until",
        "autonomous_until",
        "time",
        "locked_until",
        "failing_since",
        "held_since",
        "schedule_since",
        "next_attempt_at",
        "lost_since",
    ),
    *("looked_at", "cycles_looked_at", "sampled_at", "fold_at", "gains_since", "begun_at"),
    *("progressed_at", "step_since", "scaled_at", "departed_at"),
    *("last_seen", "last_fired", "desired_until", "wave_at", "uncordoned_at"),
}
QUANTITIES = {
    *("aliases", "allocated", "allocated_cpu", "backoff", "bytes", "bytes_factor", "bytes_ratio", "capacity", "confidence"),
    *("coordinate", "cost", "cpu", "job_timeout", "decision_ms", "duration", "duration_factor", "duration_ratio", "free"),
    *("duration_seconds", "gpu_share", "gpus", "grace", "grace_seconds", "imbalance", "interval", "keep_alive", "largest_free"),
    *("loss_after",),
    *("latency_ms", "bandwidth_mbps", "for"),
    *("alarm", "boot_seconds", "dominant_share", "elsewhere_seconds", "entitled_share", "every", "keep", "progress"),
    *("transfer_seconds", "age_seconds", "rpo"),
    *("autonomy_seconds", "lag_seconds", "rpo_seconds", "clock_offset_seconds"),
    *("within", "verify_within", "score_after", "score_before", "least_gain", "gain", "drain"),
    *("health_check_timeout", "keep_old", "min_healthy", "monitor_duration", "success_threshold", "traffic_split", "canary_steps"),
    *("cpu_before", "cpu_after", "memory_before", "memory_after"),
    *("cooldown", "target", "age_seconds", "deadline", "rto_seconds", "late_seconds", "promised_cpu"),
    *("correlation", "cycle_seconds", "cycles_history_seconds", "fold", "full", "high", "history_seconds", "low"),
    *("probability", "requested", "stability"),
    *("loss", "max_age", "overcommit", "pause", "pause_ms", "pause_factor", "pause_more_seconds", "pause_seconds", "quality"),
    *("ratio", "round_trips", "score", "seconds", "shares", "start_period", "stranded", "task_timeout", "there", "timeout"),
    *("disk", "gpu", "memory", "used_cpu", "used_disk", "used_memory"),
    *("scale", "offset", "threshold", "deadline_ms", "p99_ms"),
    *("cooldown_seconds", "stale_seconds", "offline_seconds", "for_seconds", "poll_seconds", "expires_seconds", "deadband"),
    *("enum", "set", "desired", "reported", "minimum", "maximum"),
    *("suspended_seconds", "timeout_seconds", "took_ms", "used",
    "used_by_user", "value", "waiting_seconds", "wanted", "weight"),
}  # fmt: skip


def float_fields(info: mi.Type, name: str, above: tuple[type, ...] = ()) -> Iterator[str]:
    """The names of all fields below ``info`` that hold numbers with a part behind the point."""
    if isinstance(info, mi.Metadata):
        yield from float_fields(info.type, name, above)
    elif isinstance(info, mi.UnionType):
        for one in info.types:
            yield from float_fields(one, name, above)
    elif isinstance(info, (mi.ListType, mi.VarTupleType)):
        yield from float_fields(info.item_type, name, above)
    elif isinstance(info, mi.TupleType):
        for one in info.item_types:
            yield from float_fields(one, name, above)
    elif isinstance(info, mi.DictType):
        yield from float_fields(info.value_type, name, above)
    elif isinstance(info, mi.StructType) and info.cls not in above:
        for field in info.fields:
            yield from float_fields(field.type, field.encode_name, (*above, info.cls))
    elif isinstance(info, mi.FloatType):
        yield name


def test_every_number_of_every_kind_is_known_as_a_time_or_as_none() -> None:
    structs = [part for kind in KINDS for part in (kind.spec, kind.status, kind.report) if part is not None]
    found = {name for struct in (*structs, Envelope, Record, Event) for name in float_fields(mi.type_info(struct), "")}
    assert found <= MOMENTS | QUANTITIES, "is it a time? put it into one of the two sets"
    assert {name for name in found if is_moment(name)} == found & MOMENTS


def test_times_become_text_and_other_numbers_stay() -> None:
    told = {
        "created_at": 1795279033.7212,
        "conditions": [{"since": 1795279033.0, "message": 'at":1795279033,'}, {"since": 0.0}],
        "spec": {"memory": 17952790330, "not_before": 1795279033, "labels": {"since": "1795279033"}},
        "status": {
            "retry_at": {"3": 1795279033, "11": 1795279034},
            "started_at": None,
            "window": {"start": 1795279033.5},
        },
    }
    assert render(told) == {
        "created_at": "2026-11-21T16:37:13.721Z",
        "conditions": [{"since": "2026-11-21T16:37:13.000Z", "message": 'at":1795279033,'}, {"since": None}],
        "spec": {
            "memory": 17952790330,
            "not_before": "2026-11-21T16:37:13.000Z",
            "labels": {"since": "1795279033"},
        },
        "status": {
            "retry_at": {"3": "2026-11-21T16:37:13.000Z", "11": "2026-11-21T16:37:14.000Z"},
            "started_at": None,
            "window": {"start": "2026-11-21T16:37:13.500Z"},
        },
    }


def test_a_number_is_a_time_by_its_whole_name() -> None:
    for before, name in itertools.product(("", "_", "x", "re", "x_", "drain_"), sorted(MOMENTS | {"retry_at", "run"})):
        told = {before + name: 1795279033}
        assert (render(told) != told) == is_moment(before + name), before + name


@pytest.mark.parametrize(
    "name", ["since", "at", "locked_until", "looked_at", "cycles_looked_at", "sampled_at", "fold_at"]
)
def test_what_has_not_been_yet_is_null(name: str) -> None:
    assert render({name: 0.0, "probability": 0.0, "value": 1}) == {name: None, "probability": 0.0, "value": 1}


@given(st.text(), st.text())
def test_no_text_is_taken_for_a_time(key: str, value: str) -> None:
    told = {key: value, "message": f'"{key}":1795279033,"at":1795279033}}'}
    assert render(told) == told


@given(st.floats(1e9, 9e10))
def test_what_is_printed_is_read_as_the_same_instant(seconds: float) -> None:
    stored = parse_moment(seconds)
    printed = render({"not_before": stored})
    assert isinstance(printed, dict) and parse_moment(printed["not_before"]) == stored
    assert abs(stored - seconds) <= 0.0005 + 1e-5


def test_a_time_is_read_with_any_offset_and_never_without() -> None:
    assert parse_moment("2026-12-24T23:00:00+01:00") == parse_moment("2026-12-24T22:00:00Z") == 1798149600.0
    for wrong in ("2026-12-24T22:00:00", "soon", "-1", "nan", "inf", True, [], LAST_MOMENT + 1):
        with pytest.raises(InvalidInput) as refused:
            parse_moment(wrong, "spec.not_before")
        assert refused.value.field == "spec.not_before"
