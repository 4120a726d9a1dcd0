"""How groups, spreads and data hints are written, and what is said of those that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.kinds.fields.affinity import HOST, GroupTerm, SpreadTerm, read_datum, read_group, read_spread
from weft.kinds.vm import VmSpec, check_vm
from weft.objects.errors import InvalidInput
from weft.objects.schema import read_strict


def vm(**fields: object) -> VmSpec:
    spec = read_strict({"image": "tiny", **fields}, VmSpec)
    check_vm(spec)
    return spec


def test_a_group_is_a_must_unless_it_says_preferred() -> None:
    assert read_group("webapp", "f") == GroupTerm("webapp", True)
    assert read_group("webapp:required", "f") == GroupTerm("webapp", True)
    assert read_group("webapp:preferred", "f") == GroupTerm("webapp", False)


def test_a_spread_has_a_key_a_skew_and_may_be_a_preference() -> None:
    assert read_spread("zone", "f") == SpreadTerm("zone", 1, True)
    assert read_spread("rack:2", "f") == SpreadTerm("rack", 2, True)
    assert read_spread("zone:preferred", "f") == SpreadTerm("zone", 1, False)
    assert read_spread("example.com/row:3:preferred", "f") == SpreadTerm("example.com/row", 3, False)
    assert read_spread("node", "f").key == HOST


def test_admission_keeps_one_spelling() -> None:
    spec = vm(anti_affinity_groups=["web:required", "db:preferred"], spread=["zone:1:required", "node:2"])
    assert spec.anti_affinity_groups == ["web", "db:preferred"]
    assert spec.spread == ["zone", "host:2"]


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"affinity_groups": ["Web App"]}, "spec.affinity_groups[0]", "NAME:preferred"),
        ({"anti_affinity_groups": ["web:prefered"]}, "spec.anti_affinity_groups[0]", "did you mean web:preferred?"),
        ({"anti_affinity_groups": ["web:"]}, "spec.anti_affinity_groups[0]", "NAME:preferred"),
        ({"affinity_groups": ["web", "web:preferred"]}, "spec.affinity_groups[1]", "once"),
        ({"affinity_groups": ["web"], "anti_affinity_groups": ["web"]}, "spec.anti_affinity_groups[0]", "in one of"),
        ({"anti_affinity_groups": ["web"], "spread": ["zone:0"]}, "spec.spread[0]", "KEY:SKEW"),
        ({"anti_affinity_groups": ["web"], "spread": ["zone:1:2"]}, "spec.spread[0]", "KEY:SKEW"),
        ({"anti_affinity_groups": ["web"], "spread": ["zone:soft"]}, "spec.spread[0]", "KEY:SKEW"),
        ({"anti_affinity_groups": ["web"], "spread": ["zone", "zone:2"]}, "spec.spread[1]", "once"),
        ({"spread": ["zone"]}, "spec.spread", "--anti-affinity-group"),
        ({"data_hints": ["raw data"]}, "spec.data_hints[0]", "ceph-pool:raw-data"),
        ({"affinity_groups": [f"g{n}" for n in range(17)]}, "spec.affinity_groups", ""),
    ],
)
def test_what_makes_no_sense_is_refused_by_field_and_with_a_way_out(
    fields: dict[str, object], field: str, said: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        vm(**fields)
    assert refused.value.field == field
    assert said in (refused.value.hint or "")


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_as_input(text: str) -> None:
    for read in (read_group, read_spread, read_datum):
        try:
            wish = read(text, "f")
        except InvalidInput:
            continue
        assert read(str(wish), "f") == wish
