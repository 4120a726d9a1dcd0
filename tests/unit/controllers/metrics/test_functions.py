"""What gateways count of functions becomes counters with whose they are; and what is over is said to be over."""

from __future__ import annotations

import msgspec

from weft.contracts.store import MAX_DIGEST_BYTES, Lease
from weft.controllers.metrics.endings import LOOK_BACK_MS, MOST, Endings
from weft.controllers.metrics.functions import list_functions
from weft.informer.view import View, make_view
from weft.objects.envelope import Envelope, encode_envelope
from weft.protocol.function_counts import LEASE_SECONDS, FunctionCounts, read_counts, write_counts
from weft.telemetry.metrics.sample import Sample

NOW = 1_795_471_245.0
AT = int(NOW * 1000)


def make_fabric() -> View:
    view = make_view()
    made = Envelope(kind="function", name="orders", uid="f1", project="shop")
    assert view.put(made.key, encode_envelope(made), 1) is not None
    return view


def lease(gateway: str, age: float, **counts: FunctionCounts) -> Lease:
    return Lease(f"gateway/{gateway}", gateway, 1, LEASE_SECONDS - age, write_counts(counts))


def test_each_gateway_counts_for_itself_and_for_functions_that_there_are() -> None:
    leases = [
        lease("a", 2.0, f1=FunctionCounts(7, 1, 2, 0.5), gone=FunctionCounts(9)),
        lease("b", 0.0, f1=FunctionCounts(3)),
        Lease("gateway/c", "c", 1, LEASE_SECONDS, b"of another version"),
    ]
    found = {(one.name, dict(one.labels)["gateway"]): one for one in list_functions(make_fabric(), leases, {}, NOW)}
    assert len(found) == 8
    first = found["weft_function_invocations_total", "a"]
    assert (first.at, first.value) == (AT - 2000, 7.0)
    assert first.labels == (("project", "shop"), ("kind", "function"), ("name", "orders"), ("gateway", "a"))
    told = {name: found[f"weft_function_{name}_total", "a"].value for name in ("errors", "throttles", "seconds")}
    assert told == {"errors": 1.0, "throttles": 2.0, "seconds": 0.5}
    assert found["weft_function_invocations_total", "b"].value == 3.0


def test_a_moment_of_a_gateway_is_sent_once() -> None:
    view, sent = make_fabric(), dict[str, int]()
    assert list(list_functions(view, [lease("a", 1.0, f1=FunctionCounts(1))], sent, NOW))
    assert not list(list_functions(view, [lease("a", 11.0, f1=FunctionCounts(1))], sent, NOW + 10))
    assert list(list_functions(view, [lease("a", 4.0, f1=FunctionCounts(1))], sent, NOW + 10))
    list(list_functions(view, [], sent, NOW + 60))
    assert sent == {}


def test_of_very_many_functions_those_count_that_are_invoked_most() -> None:
    many = {f"{number:032x}": FunctionCounts(number, 2**40, 2**40, 1e9) for number in range(2000)}
    written = write_counts(many)
    assert len(written) < MAX_DIGEST_BYTES
    kept = read_counts(written)
    assert len(kept) == 800 and min(one.invocations for one in kept.values()) == 1200
    assert read_counts(msgspec.msgpack.encode([1])) == {}


def failed(name: str, at: int) -> Sample:
    return Sample("weft_guest_disk_failed", (("name", name),), at, 1.0)


def test_what_is_over_is_zero_for_as_long_as_a_rule_looks_back_and_then_nothing() -> None:
    endings = Endings()
    assert list(endings.list_samples([failed("web", AT), Sample("weft_node_up", (), AT, 1.0)], AT)) == []
    for later in (10_000, LOOK_BACK_MS):
        assert list(endings.list_samples([], AT + later)) == [failed("web", AT + later)._replace(value=0.0)]
    assert list(endings.list_samples([], AT + LOOK_BACK_MS + 1)) == []
    assert list(endings.list_samples([], AT + 10_000)) == []


def test_what_begins_again_is_not_over() -> None:
    endings = Endings()
    list(endings.list_samples([failed("web", AT), failed("db", AT)], AT))
    assert [one.labels for one in endings.list_samples([failed("web", AT + 1)], AT + 1)] == [(("name", "db"),)]


def test_a_clock_that_goes_back_and_very_many_series_are_forgotten() -> None:
    endings = Endings()
    list(endings.list_samples([failed("web", AT)], AT))
    assert list(endings.list_samples([], AT - 1000)) == []
    list(endings.list_samples([failed(f"vm{number}", AT) for number in range(MOST + 5)], AT))
    assert len(list(endings.list_samples([], AT))) == MOST
