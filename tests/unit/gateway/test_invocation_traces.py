"""The trace of an invocation, from the gateway over the node to the code: which are traced, and who is whose parent."""

from __future__ import annotations

import pytest

from weft.agent.function.runtime_api import Given, encode_given
from weft.agent.trace.invocations import ServedTraces
from weft.contracts.clock import SystemClock
from weft.contracts.trace.context import Context, read_traceparent, write_traceparent
from weft.contracts.trace.span import Span, Tracer
from weft.gateway.function.invocation.traces import InvocationTraces
from weft.protocol.invocations import InvocationAnswer, InvocationRefused, Invoke

CALLER = Context("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
ARN = "arn:weft:lambda:weft:shop:function:pay:live"


def make_call(traceparent: str) -> Invoke:
    return Invoke("i1", "digest", b"{}", 3.0, ARN, traceparent=traceparent)


def invoke(
    traceparent: str, sample: float = 0.0, answer: InvocationAnswer | InvocationRefused | None = None
) -> tuple[dict[str, Span], str]:
    """The spans by name, and the traceparent that the code gets."""
    taken: list[Span] = []
    clock = SystemClock()
    trace = InvocationTraces(Tracer("gateway", clock, taken.append), sample).begin(traceparent, "function/shop/pay")
    if trace is None:
        return {}, ""
    trace.note_sent("n1")
    served = ServedTraces(Tracer("node/n1", clock, taken.append))
    given = served.begin(make_call(trace.carried)).traceparent
    served.end(answer or InvocationAnswer("i1", b"{}", seconds=0.001))
    served.end(InvocationAnswer("unknown", b""))
    trace.end("", "warm")
    return {span.name: span for span in taken}, given


def test_a_caller_s_trace_goes_on_through_gateway_and_node_to_the_code() -> None:
    spans, given = invoke(write_traceparent(CALLER))
    chain = [spans[name] for name in ("invoke", "dispatch to n1", "serve", "run")]
    assert [span.parent for span in chain] == [CALLER.span, *(span.id for span in chain[:-1])]
    assert {span.trace for span in chain} == {CALLER.trace}
    assert {span.about for span in chain} == {"function/shop/pay"}
    assert read_traceparent(given) == Context(CALLER.trace, spans["run"].id)
    assert all(span.end >= span.begin for span in chain)


def test_a_cold_start_and_a_refusal_are_told_apart() -> None:
    cold, _ = invoke(
        write_traceparent(CALLER),
        answer=InvocationAnswer("i1", b"{}", start="cold", init_seconds=0.0001, seconds=0.0001),
    )
    assert cold["start instance (cold)"].parent == cold["serve"].id
    refused, _ = invoke(
        write_traceparent(CALLER), answer=InvocationRefused("i1", "closing", "the agent is shutting down")
    )
    assert refused["serve"].error == "the agent is shutting down" and "run" not in refused


@pytest.mark.parametrize("header", ["", "00-x", write_traceparent(CALLER._replace(sampled=False))])
def test_others_are_traced_by_chance_only(header: str) -> None:
    assert invoke(header) == ({}, "")
    spans, _ = invoke(header, sample=1.0)
    known = read_traceparent(header)
    assert spans["invoke"].parent == (known.span if known else "")
    assert (spans["invoke"].trace == CALLER.trace) == (known is not None)


def test_the_code_gets_lambda_s_header_and_w3c_s_with_its_own_parent() -> None:
    context = Context(CALLER.trace, "1" * 16)
    head = encode_given(Given("i1", b"{}", 1.0, ARN, "", write_traceparent(context))).decode()
    assert f"Lambda-Runtime-Trace-Id: Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent={'1' * 16};Sampled=1\r\n" in head
    assert f"\r\nTraceparent: 00-{CALLER.trace}-{'1' * 16}-01\r\n" in head
    for forged in ("", "x\r\nSet-Cookie: y", "00-" + "0" * 32 + "-" + "1" * 16 + "-01"):
        plain = encode_given(Given("i1", b"{}", 1.0, ARN, "", forged)).decode()
        assert "Sampled=0" in plain and "Traceparent" not in plain and "Set-Cookie" not in plain


def test_a_gateway_s_forged_context_is_not_recorded_by_the_node() -> None:
    taken: list[Span] = []
    served = ServedTraces(Tracer("node/n1", SystemClock(), taken.append))
    call = make_call(write_traceparent(CALLER._replace(sampled=False)))
    assert served.begin(call) is call
    served.end(InvocationAnswer("i1", b"{}"))
    assert not taken
