"""What is said of an object in another project than the session's, where one of the same name may be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weft.cli.command.exit_codes import UNPLACEABLE
from weft.cli.command.target import Target
from weft.cli.stream import logs
from weft.cli.wait import finish
from weft.cli.wait.finish import Done, plan_wait
from weft.cli.wait.watch import Result
from weft.kinds.registry import BY_NAME
from weft.objects.errors import NotFound, Unplaceable

VERDICTS = {
    "default": {"node": "n1", "outcome": "refused", "reason": "node n3 was requested"},
    "trial": {"node": "n1", "outcome": "refused", "reason": "cpu 2 wanted, 0 free"},
}


class Server:
    """Each project has a VM ``web``, and a decision about it."""

    project, http = "default", None

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.generation = 1  # of the spec that was decided on

    def get(self, kind: str, name: str, *, project: str | None = None) -> dict[str, Any]:
        self.asked.append((f"{kind}/{name}", project))
        verdict = VERDICTS[project or self.project]
        return {"kind": kind, "name": name, "spec": {"generation": self.generation, "verdicts": [verdict]}}

    def verb(self, kind: str, name: str, verb: str, given: Any, *, project: str | None = None) -> dict[str, Any]:
        self.asked.append((f"{kind}/{name} {verb}", project))
        raise NotFound("no log")


def make_session(server: Server) -> Any:
    return SimpleNamespace(
        client=server,
        clock=SimpleNamespace(elapsed=lambda: 0.0),
        detach=False,
        is_data=False,
        output="table",
        color=False,
        debug=False,
        notify=lambda line: None,
        in_project="",
    )


def made(kind: str, project: str, **status: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": "web",
        "uid": "u",
        "project": project,
        "generation": 1,
        "spec": {},
        "status": {"observed_generation": 1, **status},
    }


@pytest.mark.parametrize(("project", "why"), [("trial", "cpu 2 wanted, 0 free"), ("default", "node n3 was requested")])
def test_why_nothing_takes_a_vm_is_read_from_the_decision_in_its_own_project(
    project: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    obj, target, server = made("vm", project, phase="Pending"), Target(BY_NAME["vm"], "web"), Server()
    wait = plan_wait(obj, target, "create")
    assert wait is not None

    def follow(_: Any, waits: Any, progress: Any) -> list[Result]:
        progress.show(target, made("vm", project, phase="Starting", node="n1"))
        return [Result(waits[0], obj, Unplaceable("no node", reason="insufficientResources"))]

    monkeypatch.setattr(finish, "follow", follow)
    assert finish.finish(make_session(server), [Done(target, obj, "create")], [wait]) == UNPLACEABLE
    where = " -p trial" if project == "trial" else ""
    said = capsys.readouterr().err
    assert why in said and said.endswith(
        f"weft wait vm/web{where} | weft explain vm/web{where} | weft delete vm/web{where}\n"
    )
    assert server.asked == [("decision/vm.web", project)] * 2  # of the node that it got first, and of the refusal


@pytest.mark.parametrize(
    ("placed", "generation", "said"),
    [
        ("True", 1, "vm/web is not changed for now: not enough capacity on n1"),
        ("False", 9, "fits on no node"),
        ("False", 1, "cpu 2 wanted, 0 free"),
    ],
)
def test_only_a_decision_on_this_very_spec_explains_why_a_vm_has_no_place_and_one_that_has_it_is_not_said_to_have_none(
    placed: str, generation: int, said: str
) -> None:
    server, target = Server(), Target(BY_NAME["vm"], "web")
    server.generation = generation
    condition = {"type": "Placed", "status": placed, "reason": "insufficientResources", "message": "needs 9 cores"}
    obj = {**made("vm", "trial", phase="Running"), "conditions": [condition]}
    error = Unplaceable("vm/web is not changed for now: not enough capacity on n1", reason="insufficientResources")
    wait = plan_wait(obj, target, "create")
    assert wait is not None
    told = finish.explain(make_session(server), Result(wait, obj, error), error).message
    assert said in told
    assert ("cpu 2 wanted" in told) == ((placed, generation) == ("False", 1))
    assert ("fits on no node" in told) == (placed == "False")


def test_the_last_output_beside_a_failure_is_of_the_one_in_its_own_project() -> None:
    server = Server()
    logs.show_last_lines(make_session(server), Target(BY_NAME["container"], "web"), "trial")
    assert server.asked == [("container/web logs", "trial")]
