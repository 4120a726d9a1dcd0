from __future__ import annotations

import re
from uuid import RFC_4122, UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.objects.envelope import (
    Condition,
    Envelope,
    decode_envelope,
    encode_envelope,
    merge_part,
    set_condition,
    show_revision,
)
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_labels, check_name, new_uid, short_id
from weft.objects.selector import Fields, parse_selector


class Known(msgspec.Struct):
    a: int = 1


def test_an_older_process_keeps_a_newer_field_of_spec() -> None:
    stored = encode_envelope(Envelope(kind="vm", name="x", uid="u", spec=msgspec.Raw(b'{"a":1,"from_the_future":[1]}')))
    envelope = decode_envelope(stored, revision=7)
    envelope.status = merge_part(envelope.status, {"phase": "Running"})
    again = msgspec.json.decode(encode_envelope(envelope))
    assert again["spec"]["from_the_future"] == [1]
    assert again["revision"] == 7


def test_merging_a_part_keeps_the_fields_it_does_not_know() -> None:
    merged = msgspec.json.decode(merge_part(msgspec.Raw(b'{"a":1,"b":2}'), Known(a=5)))
    assert merged == {"a": 5, "b": 2}


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    envelope = Envelope(kind="vm", name="x", uid="u")
    assert set_condition(envelope, Condition("Placed", "False", "a", since=1.0))
    assert set_condition(envelope, Condition("Placed", "False", "b", since=2.0))
    assert envelope.conditions[0].since == 1.0
    assert not set_condition(envelope, Condition("Placed", "False", "b", since=3.0))
    assert set_condition(envelope, Condition("Placed", "True", since=4.0))
    assert envelope.conditions[0].since == 4.0


def test_an_object_without_a_creator_is_stored_without_the_field_and_reads_as_nobody_s() -> None:
    stored = encode_envelope(Envelope(kind="vm", name="x", uid="u"))
    assert b"created_by" not in stored and decode_envelope(stored).creator == ""
    made = decode_envelope(encode_envelope(Envelope(kind="vm", name="x", uid="u", created_by="ann")))
    assert made.creator == "ann"


@pytest.mark.parametrize("name", ["web", "web-1", "a", "1a", "a" * 63])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "Web", "-a", "a-", "a_b", "a.b", "a" * 64, "a/b", "ü", None, 3, "a\n", "../x"])
def test_bad_names_are_refused(name: object) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


def test_labels_are_checked() -> None:
    check_labels({"tier": "db", "weft.io/part-of": "shop", "empty": ""})
    for bad in ({"a b": "c"}, {"a": "b c"}, {"": "x"}, {"a": "-"}):
        with pytest.raises(InvalidInput):
            check_labels(bad)


@given(st.uuids())
def test_short_ids_fit_a_link_name(uid: object) -> None:
    assert re.fullmatch("[a-z2-7]{10}", short_id(str(uid)))


def test_short_ids_are_stable_and_differ() -> None:
    uids = [new_uid() for _ in range(2000)]
    assert len({short_id(u) for u in uids}) == 2000
    assert short_id(uids[0]) == short_id(uids[0])


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("tier=db", True),
        ("tier==db", True),
        ("tier!=db", False),
        ("tier in (db,web)", True),
        ("tier not_in (db)", False),
        ("env", False),
        ("!env", True),
        ("tier=db,!env", True),
        ("tier=db,env", False),
        ("", True),
    ],
)
def test_selectors(selector: str, matches: bool) -> None:
    assert parse_selector(selector)({"tier": "db"}) is matches


@pytest.mark.parametrize("selector", ["=a", "a=b=c", "a in b", "a,,b", "(", "a in (b"])
def test_a_selector_that_can_not_be_read_is_refused(selector: str) -> None:
    with pytest.raises(InvalidInput):
        parse_selector(selector)


def test_field_selectors_find_short_and_long_paths() -> None:
    fields = Fields({"name": "web", "status": {"phase": "Running", "ready": True}, "spec": {"image": "tiny"}})
    for text in ("status.phase=Running", "phase=Running", "image=tiny", "name=web", "ready=true"):
        assert parse_selector(text)(fields), text
    assert not parse_selector("phase=Stopped")(fields)


def test_a_uid_is_a_random_uuid_and_never_the_same() -> None:
    uids = [new_uid() for _ in range(1000)]
    assert all(str(UUID(uid)) == uid and UUID(uid).version == 4 for uid in uids)
    assert {UUID(uid).variant for uid in uids} == {RFC_4122} and len(set(uids)) == 1000


@pytest.mark.parametrize("labels", [{}, {"revision": "7"}, {"a": 'x"revision":7'}])
def test_a_stored_object_is_shown_with_the_store_s_revision_and_nothing_else_is_changed(labels: dict[str, str]) -> None:
    stored = Envelope(kind="vm", name="web", uid="u", labels=labels, revision=3, spec=msgspec.Raw(b'{"revision":1}'))
    value = encode_envelope(stored)
    shown = show_revision(value, 12)
    assert shown == encode_envelope(decode_envelope(value, 12))
    assert decode_envelope(shown) == msgspec.structs.replace(stored, revision=12)
