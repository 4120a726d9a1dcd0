"""What a newer weft wrote is carried along by one that doesn't know it."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from weft.objects.envelope import decode_envelope, encode_envelope, merge_part


class Nic(msgspec.Struct):
    uid: str
    mtu: int = 1450


class Deep(msgspec.Struct):
    nic: Nic | None = None
    nics: list[Nic] = []
    by_name: dict[str, Nic] = {}
    labels: dict[str, str] = {}


class Spec(msgspec.Struct):
    wish: str = "run"
    deep: Deep = msgspec.field(default_factory=Deep)


def merge(old: Any, new: Any) -> Any:
    return msgspec.json.decode(merge_part(msgspec.Raw(msgspec.json.encode(old)), new))


def test_unknown_fields_stay_at_any_depth_while_known_ones_change() -> None:
    old = {
        "wish": "run",
        "x": 1,
        "deep": {
            "y": 2,
            "nic": {"uid": "a", "mtu": 9000, "z": 3},
            "nics": [{"uid": "b", "mtu": 1, "z": 4}, {"uid": "c", "mtu": 1, "z": 5}],
            "by_name": {"d": {"uid": "d", "mtu": 1, "z": 6}, "e": {"uid": "e", "mtu": 1, "z": 7}},
            "labels": {"gone": "1", "kept": "1"},
        },
    }
    read = msgspec.convert(old, Spec)
    read.wish = "stop"
    read.deep.nics = [read.deep.nics[1], Nic("new")]
    del read.deep.by_name["d"], read.deep.labels["gone"]
    assert merge(old, read) == {
        "wish": "stop",
        "x": 1,
        "deep": {
            "y": 2,
            "nic": {"uid": "a", "mtu": 9000, "z": 3},
            "nics": [{"uid": "c", "mtu": 1, "z": 5}, {"uid": "new", "mtu": 1450}],
            "by_name": {"e": {"uid": "e", "mtu": 1, "z": 7}},
            "labels": {"kept": "1"},
        },
    }


plain = st.recursive(
    st.integers() | st.text(max_size=3), lambda s: st.dictionaries(st.text(max_size=3), s), max_leaves=4
)


@given(unknown=st.dictionaries(st.text(min_size=1, max_size=4), plain, max_size=3))
def test_an_envelopes_unknown_fields_survive_a_rewrite(unknown: dict[str, Any]) -> None:
    known = {"kind": "vm", "name": "web", "uid": "u", "schema": 1, "spec": {"a": 1}}
    whole = {**{f"new_{name}": value for name, value in unknown.items()}, **known}
    envelope = decode_envelope(msgspec.json.encode(whole), 7)
    envelope.labels = {"a": "b"}
    again = msgspec.json.decode(encode_envelope(envelope))
    assert {name: again[name] for name in whole} == whole
    assert (again["labels"], again["revision"]) == ({"a": "b"}, 7)
    assert "unknown" not in again
