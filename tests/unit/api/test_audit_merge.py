"""Pages of several servers' audit logs: whatever their size, together they are all records, each once, by time."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.api.audit.merge import Part, merge_newest, merge_parts, read_place, show_place
from weft.objects.errors import InvalidInput
from weft.trust.audit_chain import AuditActor, AuditRecord

LOGS = st.dictionaries(st.sampled_from(("s1", "s2", "s3")), st.lists(st.integers(0, 9999), max_size=12), min_size=1)


def make_log(times: list[int]) -> list[msgspec.Raw]:
    records = [
        AuditRecord(
            sequence=number + 1, at=f"2026-01-01T00:00:00.{at:06}Z", actor=AuditActor(kind="nobody"), outcome="allowed"
        )
        for number, at in enumerate(sorted(times))
    ]
    return [msgspec.Raw(msgspec.json.encode(one)) for one in records]


def read_part(log: list[msgspec.Raw], after: int, limit: int) -> Part:
    """As a server answers."""
    items = log[after : after + limit]
    return Part(items, after + limit if after + limit < len(log) else None)


@settings(max_examples=examples(300), deadline=None)
@given(LOGS, st.integers(1, 5))
def test_all_records_come_once_and_by_time(times: dict[str, list[int]], limit: int) -> None:
    logs = {name: make_log(one) for name, one in times.items()}
    found, place, rounds = list[msgspec.Raw](), "s1:0", 0
    while place:
        after = read_place(place, "s1")
        parts = {name: read_part(log, after.get(name, 0), limit) for name, log in logs.items()}
        merged = merge_parts(parts, after, limit)
        assert len(merged.items) <= limit
        found += merged.items
        place, rounds = show_place(merged.reached) if merged.more else "", rounds + 1
        assert rounds < 100
    seen = [msgspec.json.decode(bytes(raw))["at"] for raw in found]
    assert seen == sorted(seen)
    assert sorted(map(bytes, found)) == sorted(bytes(raw) for log in logs.values() for raw in log)
    newest = merge_newest(list(logs.values()), limit)
    assert [msgspec.json.decode(bytes(raw))["at"] for raw in newest] == seen[-limit:]


def test_a_server_that_looked_in_vain_for_long_holds_up_the_others_until_it_has_looked_on() -> None:
    log = make_log([5])
    merged = merge_parts({"s1": Part(log), "s2": Part([], 50_000)}, {}, 10)
    assert (merged.items, merged.reached, merged.more) == ([], {"s1": 0, "s2": 50_000}, True)


def test_a_place_is_a_number_for_each_server() -> None:
    assert read_place("0", "s1") == {"s1": 0}
    assert read_place(show_place({"s2": 7, "s1": 12}), "s1") == {"s1": 12, "s2": 7}
    for wrong in ("", "s1", "s1:", "s1:-1", "S1:3", "s1:1,", "s1:1;s2:2", "9" * 17, "s1:" + "9" * 17):
        with pytest.raises(InvalidInput, match="is not a place in the audit log"):
            read_place(wrong, "s1")
