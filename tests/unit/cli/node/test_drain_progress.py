"""What `weft node drain` makes of a node's condition."""

from __future__ import annotations

from weft.cli.verbs.node import _drained


def test_a_condition_from_before_the_drain_is_passed_over() -> None:
    condition = {"type": "Drained", "status": "False", "message": "drain with --force", "generation": 2}
    node = {"generation": 3, "conditions": [condition]}
    assert _drained(node) is None
    condition["generation"] = 3
    assert _drained(node) == condition
    assert _drained(None) is None and _drained({"generation": 3}) is None
