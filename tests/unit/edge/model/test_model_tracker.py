"""What a gateway tells of its models: each has a row, and one that it doesn't run has the reason in it."""

from __future__ import annotations

from weft.contracts.clock import SystemClock
from weft.contracts.edge.model_runner import ModelFile
from weft.edge.model.engine import DecisionModel, DecisionOutcome
from weft.edge.model.tracker import MOST_MODELS, ModelTracker


async def test_a_model_beyond_the_bound_has_a_row_with_the_reason() -> None:
    tracker = ModelTracker(None, SystemClock(), lambda _: None, lambda _: "", {})
    file = ModelFile("a" * 64, 1)
    uids = [f"m{n}" for n in range(MOST_MODELS + 2)]
    models = {uid: DecisionModel(uid, "default", uid, file, ("t",), DecisionOutcome(set="fan")) for uid in uids}
    tracker.put({uid: (model, ["d0"]) for uid, model in models.items()})
    rows = {one.uid: one for one in tracker.list_ran(0.0)}
    assert sorted(rows) == sorted(uids)
    assert [uid for uid, one in rows.items() if f"runs {MOST_MODELS} models" in one.problem] == uids[-2:]
    tracker.put({})
    assert tracker.list_ran(0.0) == []
