"""The history of a deployment: which revision runs, whatever its last rollout was called."""

from __future__ import annotations

from weft.cli.deployment.description import describe_revisions


def test_the_history_marks_the_revision_that_runs_and_says_who_made_each() -> None:
    revisions = [
        {"number": 1, "template": {"image": "shop:1"}, "outcome": "Promoted", "created_at": 1000.25},
        {"number": 2, "template": {"image": "shop:2"}, "outcome": "RolledBack", "created_at": 1060.5, "author": "ann"},
    ]
    rows = describe_revisions({"name": "web", "status": {"revisions": revisions, "slots": [1, 1], "revision": 1}})
    assert [(row["revision"], row["outcome"], row["runs"], row["created_at"], row["author"]) for row in rows] == [
        (2, "RolledBack", False, 1060.5, "ann"),
        (1, "Promoted", True, 1000.25, ""),
    ]
