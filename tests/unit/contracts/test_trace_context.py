"""Contexts of traces: what counts as one, whoever sends it, and how an object's write hands it on."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.contracts.clock import SystemClock
from weft.contracts.trace.context import (
    MARK_SECONDS,
    Context,
    Marks,
    end_mark,
    hand_over,
    make_mark,
    mark,
    marks,
    pass_on,
    read_ended,
    read_mark,
    read_traceparent,
    write_traceparent,
    write_xray,
)
from weft.contracts.trace.span import Active, Phases, Span, Tracer, active, span
from weft.objects.envelope import Envelope

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NOW = 1_790_000_000.0


def make_envelope(trace: str = "") -> Envelope:
    envelope = Envelope(kind="vm", name="web", uid="u1", project="default")
    if trace:
        envelope.trace = trace
    return envelope


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True), ("fe", False)]
)
def test_only_the_first_flag_says_that_a_caller_samples(flags: str, sampled: bool) -> None:
    assert read_traceparent(f"00-{TRACE}-{SPAN}-{flags}") == Context(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-zz",
        f"00-{'g' * 32}-{SPAN}-01",
        f"00-{'٣' * 32}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01" + "x" * 1000,
        "'; drop table spans; --" * 3,
        f"00-{TRACE}-{SPAN}-01\n00-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_malformed_counts_as_no_context(text: str) -> None:
    assert read_traceparent(text) is None


def test_a_later_version_may_have_more_behind() -> None:
    assert read_traceparent(f"01-{TRACE}-{SPAN}-01-what-comes-in-ten-years") == Context(TRACE, SPAN)


@given(st.text(max_size=80))
def test_no_text_makes_reading_fail(text: str) -> None:
    found = read_traceparent(text)
    assert found is None or read_traceparent(write_traceparent(found)) == found
    assert read_mark(text, NOW) is None


def test_what_is_written_is_read_again_and_lambda_s_form_has_the_same_ids() -> None:
    for sampled in (True, False):
        context = Context(TRACE, SPAN, sampled)
        assert read_traceparent(write_traceparent(context)) == context
    assert write_xray(Context(TRACE, SPAN)) == f"Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent={SPAN};Sampled=1"


def test_a_mark_counts_for_an_hour_and_none_from_the_future_does() -> None:
    text = make_mark(Context(TRACE, SPAN), NOW)
    assert read_mark(text, NOW + MARK_SECONDS) == Context(TRACE, SPAN)
    assert read_mark(text, NOW + MARK_SECONDS + 1) is None
    assert read_mark(text, NOW - 3600) is None
    for forged in (msgspec.UNSET, "", "x", f"{TRACE}-{SPAN}", f"{TRACE}-{SPAN}-{'f' * 40}", text + "-1"):
        assert read_mark(forged, NOW) is None


def test_a_request_marks_no_more_objects_than_it_may() -> None:
    token = marks.set(Marks("a mark", 2))
    try:
        found = [make_envelope() for _ in range(3)]
        for envelope in (*found, found[0]):
            mark(envelope)
    finally:
        marks.reset(token)
    assert [envelope.trace for envelope in found] == ["a mark", "a mark", msgspec.UNSET]
    untouched = make_envelope("former")
    mark(untouched)
    assert untouched.trace == "former"


def test_a_later_write_s_mark_isn_t_replaced_by_an_earlier_one_s() -> None:
    early, late = (make_mark(Context(TRACE, SPAN), at) for at in (NOW, NOW + 5))
    allocation = make_envelope()
    pass_on(make_envelope(), allocation)
    assert allocation.trace is msgspec.UNSET
    pass_on(make_envelope(late), allocation)
    pass_on(make_envelope(early), allocation)
    assert allocation.trace == late


def test_what_is_done_names_its_trace_and_hands_it_on_to_nothing() -> None:
    workload, allocation = make_envelope(make_mark(Context(TRACE, SPAN), NOW)), make_envelope()
    end_mark(workload)
    assert isinstance(workload.trace, str) and workload.trace.startswith(f"{TRACE}-")
    assert read_ended(workload.trace) == Context(TRACE, SPAN) and read_mark(workload.trace, NOW) is None
    pass_on(workload, allocation)
    assert allocation.trace is msgspec.UNSET
    allocation = make_envelope(make_mark(Context(TRACE, SPAN), NOW))
    assert read_ended(allocation.trace) is None
    hand_over(make_envelope(), allocation)  # a migration that nobody asked for
    assert allocation.trace is msgspec.UNSET


def test_an_object_without_a_mark_is_stored_as_it_always_was() -> None:
    assert b"trace" not in msgspec.json.encode(make_envelope())


def test_spans_nest_and_carry_the_error_that_passes_through_them() -> None:
    taken: list[Span] = []
    tracer = Tracer("node/n1", SystemClock(), taken.append)
    with span("nobody asked"):
        pass
    assert not taken
    token = active.set(Active(tracer, Context(TRACE, SPAN), "vm/default/web"))
    try:
        with pytest.raises(ValueError, match="no space"), span("outer", image="tiny"), span("inner"):
            raise ValueError("no space\nleft")
        phases = Phases()
        for name in ("migrating", "handedOver", ""):
            phases.enter(name)
    finally:
        active.reset(token)
    inner, outer, *others = taken
    assert (inner.parent, outer.parent) == (outer.id, SPAN)
    assert (inner.error, outer.error, outer.attributes) == ("no space", "no space", {"image": "tiny"})
    assert [(one.name, one.parent) for one in others] == [("migrating", SPAN), ("handedOver", SPAN)]
    assert all(one.about == "vm/default/web" and one.end >= one.begin > 0 for one in taken)
