"""The audit log's chain: whatever is done to a record, the check finds it, and where."""

from __future__ import annotations

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from weft.trust.audit_chain import AuditActor, AuditRecord, AuditVerdict, ChainCheck, read_record, seal_record

COUNT = 6


def make_chain(count: int = COUNT, first: int = 1, chain: str = "c") -> list[bytes]:
    lines, before = [], "" if first == 1 else "f" * 64
    for number in range(first, first + count):
        actor = AuditActor(kind="person", name="änn", role="editor")
        line, before = seal_record(
            AuditRecord(sequence=number, chain=chain, actor=actor, outcome="allowed", previous=before, verb="create")
        )
        lines.append(line)
    return lines


def check(lines: list[bytes]) -> AuditVerdict:
    following = ChainCheck()
    for line in lines:
        following.take(line)
    return following.verdict


def broken_at(lines: list[bytes]) -> int:
    broken = check(lines).broken
    return 0 if broken is None else broken.sequence


def test_a_whole_chain_is_whole_and_says_where_it_begins_and_ends() -> None:
    lines = make_chain()
    verdict = check(lines)
    assert (verdict.records, verdict.first, verdict.last, verdict.broken) == (6, 1, 6, None)
    assert verdict.hash == read_record(lines[-1]).hash
    later = check(make_chain(first=40))
    assert (later.first, later.last, later.broken) == (40, 45, None)


def test_anybody_can_work_out_a_hash_from_the_line() -> None:
    line = make_chain()[3]
    without = re.sub(rb',"hash":"[0-9a-f]{64}"}$', b"}", line)
    assert hashlib.sha256(without).hexdigest() == read_record(line).hash


@given(st.integers(0, COUNT - 1), st.data())
def test_a_record_in_which_any_byte_is_another_is_found(at: int, data: st.DataObject) -> None:
    lines = make_chain()
    place = data.draw(st.integers(0, len(lines[at]) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != lines[at][place]))
    lines[at] = lines[at][:place] + bytes([other]) + lines[at][place + 1 :]
    assert broken_at(lines) == at + 1


@given(st.integers(0, COUNT - 1), st.data())
def test_a_record_that_is_changed_and_hashed_again_breaks_the_chain_behind_it(at: int, data: st.DataObject) -> None:
    lines = make_chain()
    record = read_record(lines[at])
    record.hash, record.verb = "", data.draw(st.text(max_size=5).filter(lambda verb: verb != "create"))
    lines[at], _ = seal_record(record)
    assert broken_at(lines) == (at + 2 if at + 1 < COUNT else 0)  # the newest needs its hash noted elsewhere


@given(st.integers(0, COUNT - 2))
def test_a_record_that_was_removed_is_named(at: int) -> None:
    lines = make_chain()
    del lines[at]
    if at == 0:
        assert check(lines).first == 2  # as if it were no longer kept: the verdict says where the chain begins
    else:
        assert broken_at(lines) == at + 1


@given(st.permutations(range(COUNT)).filter(lambda order: list(order) != list(range(COUNT))))
def test_records_in_another_order_are_found(order: list[int]) -> None:
    lines = make_chain()
    assert broken_at([lines[n] for n in order]) > 0


@given(st.integers(1, COUNT), st.integers(0, COUNT - 1), st.sampled_from(["c", "other"]))
def test_an_inserted_record_is_found(place: int, like: int, chain: str) -> None:
    lines = make_chain()
    lines.insert(place, make_chain(chain=chain)[like])
    if lines[place] == lines[place - 1] or place == COUNT or like != place:
        assert broken_at(lines) == place + 1


def test_what_is_no_record_at_all_is_found() -> None:
    for strange in (b"", b"{}", b"null", b'{"sequence":3}', b"\xff" * 400, make_chain()[2] + b" "):
        lines = make_chain()
        lines[2] = strange
        assert broken_at(lines) == 3
    assert broken_at([b"nonsense"]) == 1


def test_a_chain_can_t_begin_with_a_first_record_that_follows_another() -> None:
    record = AuditRecord(sequence=1, chain="c", actor=AuditActor(kind="server"), outcome="allowed", previous="e" * 64)
    assert broken_at([seal_record(record)[0]]) == 1
