"""What `weft explain` says of a workload that isn't to be had where the scheduler placed it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weft.cli.command.target import Target
from weft.cli.output.terminal import Paint
from weft.cli.verbs import describe, explain
from weft.kinds.registry import BY_NAME
from weft.objects.errors import Forbidden, IllegalTransition, NotFound

DECISION = {
    "kind": "decision",
    "spec": {"at": 1.0, "took_ms": 0.3, "nodes": 3, "policy": "least_loaded", "verdicts": []},
}
DECISION["spec"]["verdicts"] = [{"node": "n3", "outcome": "chosen"}]  # type: ignore[index]
SILENT = {"phase": "Autonomous", "lost_at": 1_795_571_023.0, "since": 1.0}
AUTONOMOUS = "node n3 sends no heartbeat; it is autonomous: the workload goes on there"


def make_session(
    vm: dict[str, Any], node: dict[str, Any] | Exception, decision: Any = DECISION, data: bool = False
) -> Any:
    def get(kind: str, name: str, **_: Any) -> Any:
        found = {"vm": vm, "node": node, "decision": decision}[kind]
        if found is None:
            raise NotFound(f"no {kind}", details={"kind": kind})
        if isinstance(found, Exception):
            raise found
        return found

    return SimpleNamespace(
        client=SimpleNamespace(get=get), is_data=data, paint=Paint(False), given_project="", project="", output=""
    )


def make_vm(spec: dict[str, Any] | None = None, marks: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {"kind": "vm", "name": "web", "uid": "u", "spec": spec or {}, "marks": marks or {}, "status": status}


def run(session: Any, why_not: str | None = None, what_if: tuple[str, ...] = ()) -> int:
    return explain._explain(session, BY_NAME["vm"], ("web",), why_not, what_if)


@pytest.mark.parametrize("decision", [DECISION, None])
def test_of_a_vm_that_migrated_to_another_cluster_it_says_where_it_is(
    decision: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    departed = make_vm(marks={"departed": "west/lab/web"}, phase="Stopped", reason="departed")
    assert run(make_session(departed, {}, decision)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "vm/web migrated to cluster west, where it is lab/web: nothing of it is left here",
        "use it there; weft vm delete frees its name here",
    ]


def test_what_is_asked_of_a_departed_vm_besides_is_refused_with_where_it_is() -> None:
    departed = make_vm(marks={"departed": "west/lab/web"}, phase="Stopped", reason="departed")
    with pytest.raises(IllegalTransition, match="migrated to cluster west"):
        run(make_session(departed, {}), why_not="n1")
    with pytest.raises(IllegalTransition, match="migrated to cluster west"):
        run(make_session(departed, {}), what_if=("cpu=2",))
    with pytest.raises(IllegalTransition, match="migrated to cluster west"):
        run(make_session(departed, {}, None, data=True))
    with pytest.raises(IllegalTransition, match="migrated to cluster west"):
        explain._recommend(make_session(departed, {}), BY_NAME["vm"], ("web",))


def test_of_a_vm_on_a_silent_node_it_says_since_when_and_what_that_means(capsys: pytest.CaptureFixture[str]) -> None:
    vm = make_vm(phase="Unknown", reason="nodeAutonomous", message=AUTONOMOUS, node="n3")
    assert run(make_session(vm, {"status": SILENT})) == 0
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first == f"vm/web is Unknown: {AUTONOMOUS}"
    assert second.startswith("node n3 has sent no heartbeat since 2026-11-2")
    assert second.endswith("; no change reaches vm/web before it does: weft describe node/n3")
    assert third.startswith("vm/web was placed on n3")


@pytest.mark.parametrize("node", [Forbidden("you can't see nodes"), {"status": {"phase": "Ready", "since": 5.0}}])
def test_since_when_a_node_is_silent_is_left_out_if_that_is_not_known(
    node: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    vm = make_vm(phase="Unknown", reason="nodeLost", message="node n3 has left the fabric", node="n3")
    assert run(make_session(vm, node)) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "vm/web is Unknown: node n3 has left the fabric" and second.startswith("vm/web was placed on n3")


def test_of_a_vm_that_runs_it_says_only_why_it_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_session(make_vm(phase="Running", node="n3"), {})) == 0
    assert capsys.readouterr().out.startswith("vm/web was placed on n3")


def test_of_a_migration_that_was_refused_it_says_why_and_not_that_something_is_still_decided(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = {
        "kind": "migration",
        "name": "mv",
        "uid": "m",
        "status": {"phase": "Failed", "message": "west: no network"},
    }
    session = make_session(make_vm(), {}, None)
    explain._explain_undecided(session, Target(BY_NAME["migration"], "mv"), failed)
    assert capsys.readouterr().out == "migration/mv is Failed: west: no network\n"


def test_of_a_silent_node_it_says_for_each_guest_what_becomes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"web": "it restarts elsewhere at 14:03:20 if the node isn't heard of before", "db": "it waits for the node"}

    def list_guests(kind: str, **_: Any) -> Any:
        found = [make_vm(reason="nodeLost", message=f"node n3 sends no heartbeat; {text}") for text in said.values()]
        named = [{**one, "name": name} for one, name in zip(found, said, strict=True)]
        return SimpleNamespace(items=named if kind == "vm" else [])

    session: Any = SimpleNamespace(client=SimpleNamespace(list=list_guests), paint=Paint(False))
    lines = describe._describe_guests(session, {"name": "n3"}).splitlines()
    assert lines[0] == "VMs  web, db".replace("VMs", BY_NAME["vm"].plural)
    assert [line.split(None, 1) for line in lines[3:]] == [[f"vm/{name}", text] for name, text in said.items()]
