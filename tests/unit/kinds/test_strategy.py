"""Strategies have one spelling, however people write them, and what is wrong with one is said at its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.kinds.fields.strategy import (
    OWN,
    SERVERLESS_STRATEGY,
    STRATEGIES,
    Term,
    parse_strategy,
    read_spread_argument,
    read_strategy,
    write_strategy,
)
from weft.objects.errors import InvalidStrategy


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("least-loaded", "least_loaded"),
        (" Best_Fit ", "best_fit"),
        ("bestFit", "best_fit"),
        ("best-fit,data-locality", "best_fit,data_locality"),
        ("best-fit + data_locality", "best_fit,data_locality"),
        ("best-fit:0.7,data-locality:0.3", "best_fit:0.7,data_locality:0.3"),
        ("cost:2,random:2", "cost,random"),
        ("cost:5", "cost"),
        ("topology-spread=rack", "topology_spread=rack"),
        ("topology-spread=rack/1", "topology_spread=rack"),
        ("topology-spread=example.com/row/3:0.5,cost", "topology_spread=example.com/row/3:0.5,cost:1"),
        ("@gold", "@gold"),
        ("file:/etc/weft/mine.py", "file:/etc/weft/mine.py"),
        ("file:/etc/weft/mine.py:0.25,entry:acme:0.75", "file:/etc/weft/mine.py:0.25,entry:acme:0.75"),
    ],
)
def test_a_strategy_has_one_spelling(written: str, meant: str) -> None:
    assert read_strategy(written) == meant
    assert read_strategy(meant) == meant


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "is not a placement strategy"),
        ("best-fti", "did you mean best_fit?"),
        ("best-fit,", "is not a placement strategy"),
        ("best-fit,best_fit", "named twice"),
        ("best-fit:0", "give a number above 0"),
        ("best-fit:-1", "give a number above 0"),
        ("best-fit:nan", "give a number above 0"),
        ("best-fit:inf", "give a number above 0"),
        ("best-fit:1e999", "give a number above 0"),
        ("best-fit:much", "is not a weight"),
        ("cost=cheap", "takes no argument"),
        ("topology-spread=", "not a topology to spread over"),
        ("topology-spread=rack/0", "not a topology to spread over"),
        ("@gold,cost", "placement policy"),
        ("cost,@gold", "stands alone"),
        ("@gold,cost", "nothing else"),
        ("@", "is not a valid name of a placement policy"),
        ("@../x", "is not a valid name of a placement policy"),
        ("file:mine.py", "full path"),
        ("file:/etc/passwd", "ending in .py"),
        ("file:/etc/../x.py", "full path"),
        ("file:/a b.py", "full path"),
        ("entry:", "group weft.policies"),
        (",".join(STRATEGIES) + ",best-fit", "too many"),
    ],
)
def test_what_is_no_strategy_is_refused_with_what_to_write(written: str, says: str) -> None:
    with pytest.raises(InvalidStrategy) as caught:
        read_strategy(written, "--strategy")
    assert says in f"{caught.value.message} {caught.value.hint}" and "--strategy" in caught.value.message


@given(st.text(alphabet="abest_-fi:=,+@/.0129 \n\0é", max_size=60))
def test_whatever_is_written_is_read_or_refused(written: str) -> None:
    try:
        meant = read_strategy(written)
    except InvalidStrategy:
        return
    assert read_strategy(meant) == meant


@given(
    st.lists(
        st.builds(Term, st.sampled_from([*STRATEGIES, "file:/x/y.py"]), st.floats(0.001, 1000.0).map(lambda w: round(w, 6))),
        min_size=1,
        max_size=5,
        unique_by=lambda term: term.name,
    )
)  # fmt: skip
def test_what_is_written_is_read_back(terms: list[Term]) -> None:
    again = parse_strategy(write_strategy(tuple(terms)))
    assert [term.name for term in again] == [term.name for term in terms]
    whole, there = sum(term.weight for term in terms), sum(term.weight for term in again)
    for one, other in zip(terms, again, strict=True):
        assert one.weight / whole == pytest.approx(other.weight / there)
        assert one.own == one.name.startswith(tuple(f"{scheme}:" for scheme in OWN))


def test_the_serverless_weights_are_as_promised() -> None:
    assert [(term.name, term.weight) for term in parse_strategy(SERVERLESS_STRATEGY)] == [
        ("least_loaded", 0.3),
        ("data_locality", 0.3),
        ("network_proximity", 0.2),
        ("hardware_match", 0.2),
    ]
    assert read_strategy(SERVERLESS_STRATEGY) == SERVERLESS_STRATEGY


def test_what_to_spread_over_has_a_key_and_a_skew() -> None:
    assert read_spread_argument("") == ("", 1)
    assert read_spread_argument("rack") == ("rack", 1)
    assert read_spread_argument("example.com/row/3") == ("example.com/row", 3)
