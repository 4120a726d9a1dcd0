"""Which alert rules a fabric gets at a start: each default rule once, however old the fabric is, and none that people deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab

from weft.api.bootstrap import bootstrap
from weft.contracts.store import Delete, Put
from weft.kinds.fields.alert.defaults import FIRST_RULES, PROJECT, list_default_rules
from weft.objects.envelope import decode_envelope, encode_envelope

GIVEN, HOME = "/defaultrules/-/given", f"/project/-/{PROJECT}"
ALL = set(list_default_rules())
NEWER = ALL - set(FIRST_RULES)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def key(name: str) -> str:
    return f"/alertrule/{PROJECT}/{name}"


def names(lab: ApiLab) -> set[str]:
    return {name for name in ALL if lab.stored(key(name)) is not None}


def start(lab: ApiLab) -> None:
    lab.run(bootstrap(lab.api, lab.folder / "context.json", lab.context.server))


def delete(lab: ApiLab, *keys: str) -> None:
    lab.run(lab.store.commit([Delete(one) for one in keys]))


def test_a_new_fabric_has_all_and_those_that_people_delete_stay_away(lab: ApiLab) -> None:
    assert names(lab) == ALL and NEWER
    delete(lab, key("clock-off"))
    start(lab)
    assert names(lab) == ALL - {"clock-off"}
    delete(lab, HOME, *(key(name) for name in ALL))
    start(lab)
    assert names(lab) == set() and lab.stored(HOME) is None


def test_a_fabric_of_an_older_release_gets_the_newer_ones_once(lab: ApiLab) -> None:
    delete(lab, GIVEN, key("clock-off"), *(key(name) for name in NEWER))
    start(lab)
    assert names(lab) == ALL - {"clock-off"}, "what had been deleted before is not made again"
    delete(lab, *(key(name) for name in NEWER))
    start(lab)
    assert not names(lab) & NEWER


def test_a_fabric_from_before_there_were_rules_gets_them_once(lab: ApiLab) -> None:
    delete(lab, GIVEN, HOME, *(key(name) for name in ALL))
    start(lab)
    assert names(lab) == ALL and lab.stored(HOME) is not None


def test_a_project_of_people_that_has_the_name_gets_none(lab: ApiLab) -> None:
    delete(lab, GIVEN, *(key(name) for name in ALL))
    home = lab.stored(HOME)
    assert home is not None
    home.spec = msgspec.Raw(b'{"description": "our fabrics: linen, denim"}')
    lab.run(lab.store.commit([Put(HOME, encode_envelope(home))]))
    start(lab)
    assert names(lab) == set()


@pytest.mark.parametrize("name", sorted(NEWER))
def test_a_rule_that_people_made_under_the_name_of_a_newer_one_stays_theirs(lab: ApiLab, name: str) -> None:
    entry = lab.run(lab.store.get(key(name)))
    assert entry is not None
    own = decode_envelope(entry.value)
    own.spec = msgspec.Raw(b'{"expr": "vector(1)", "fabric": true}')
    lab.run(lab.store.commit([Put(key(name), encode_envelope(own)), Delete(GIVEN)]))
    start(lab)
    found = lab.stored(key(name))
    assert found is not None and b"vector" in bytes(found.spec)
