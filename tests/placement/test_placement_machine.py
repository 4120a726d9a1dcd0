"""The engine never gives anything away twice, explains what it did, and answers the same; wrong engines are found out."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.placement.machine import MUTATIONS, Mutation, Placement

FIXED = settings(max_examples=40, stateful_step_count=30)
UNTIL_FOUND = settings(max_examples=1_000, stateful_step_count=60, phases=[Phase.generate], report_multiple_bugs=False)


def test_under_any_interleaving_decisions_are_right_explained_and_repeatable() -> None:
    run_state_machine_as_test(Placement, settings=FIXED)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_wrong_engine_is_found_out(mutation: Mutation) -> None:
    with mutation(), pytest.raises((AssertionError, LookupError)):
        run_state_machine_as_test(Placement, settings=UNTIL_FOUND)
