"""Every decision is the best there is under its own score: each is held against all nodes by an independent reference."""

from __future__ import annotations

import pytest
from benchmarks.optimality.check import check_decisions


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_node_is_better_than_the_one_that_is_chosen(seed: int) -> None:
    check = check_decisions(nodes=40, decisions=400, seed=seed)
    assert check.wrong == []
    assert check.decided > 200 and check.refused > 20
