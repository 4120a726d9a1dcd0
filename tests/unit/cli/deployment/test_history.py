"""The history of a deployment: which revision runs, whatever its last rollout was called."""

from __future__ import annotations

import msgspec

from weft.cli.deployment.description import describe_revisions, leave_out_revisions, show_revisions
from weft.cli.output.description import describe_object
from weft.cli.output.terminal import Paint
from weft.kinds.container import ContainerSpec
from weft.kinds.deployment import DEPLOYMENT, DeploymentSpec
from weft.kinds.fields.deployment.status import DeploymentStatus, Revision


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


def test_a_description_has_what_is_set_and_a_line_for_each_revision_with_what_changed() -> None:
    old = msgspec.to_builtins(ContainerSpec(image="shop:1"))
    new = {**old, "image": "shop:2", "mounts": ["data:/srv"]}
    status = DeploymentStatus(
        phase="RolledBack",
        revision=2,
        revisions=[
            Revision(number=1, template=old, outcome="Promoted"),
            Revision(number=2, template=new, author="ann"),
        ],
    )
    spec = DeploymentSpec(template=new, labels={"my_app": "shop"})
    spec.strategy.rollback_on_failure = True
    web = {"name": "web", "uid": "u", "spec": msgspec.to_builtins(spec), "status": msgspec.to_builtins(status)}
    text = describe_object(leave_out_revisions(web), DEPLOYMENT, lambda _: "1s", None, Paint(False))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[lines.index("spec") + 1 :] == [
        "workload container",
        "template cpu: 1",
        "memory: 256 MiB",
        "image: shop:2",
        "mounts: data:/srv",
        "labels my_app shop",
        "replicas 1",
        "strategy type rolling, rollback on failure yes",
    ]
    assert not any("shop:1" in line for line in lines)
    table = [line.split() for line in show_revisions(web, None, Paint(False)).splitlines()]
    assert table[0] == ["REVISION", "OUTCOME", "CREATED", "AUTHOR", "IMAGE", "CHANGES"]
    assert table[1][-4:] == ["ann", "shop:2", "image,", "mounts"] and table[2][:2] == ["1", "Promoted"]
