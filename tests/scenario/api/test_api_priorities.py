"""Priority classes and projects' ceilings at the real API: nobody gets a priority above the project's, however it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from tests.scenario.api.test_api_quotas import grant, vm
from tests.scenario.api_lab import ApiLab

from weft.client import Client
from weft.client.answer import raise_problem
from weft.contracts.clock import SystemClock
from weft.objects.errors import Forbidden, InvalidInput, NotFound, WeftError
from weft.objects.quantity import format_moment
from weft.store.sqlite.store import SqliteStore


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    folder = tmp_path_factory.mktemp("priorities")
    lab = ApiLab(folder, SqliteStore(folder / "store.db", SystemClock()))
    for name, value in (("urgent", 100), ("low", -10)):
        lab.client.create({"kind": "priorityclass", "name": name, "spec": {"value": value}})
    yield lab
    lab.close()


def lease(**fields: Any) -> dict[str, Any]:
    return {"lease": fields}


def box(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "container",
        "name": name,
        "spec": {"image": "registry.example/tiny", "networks": [], **lease(**fields)},
    }


def job(name: str, **fields: Any) -> dict[str, Any]:
    task = {"image": "registry.example/tiny", "networks": [], "command": ["true"], **lease(duration="1h", **fields)}
    return {"kind": "job", "name": name, "spec": {"task": task}}


def change(client: Client, name: str, **fields: Any) -> dict[str, Any]:
    """A merge patch of a VM's lease; the lease then."""
    path = f"/v1/projects/{client.project}/vms/{name}"
    answer = client.http.request("PATCH", path, {"spec": lease(**fields)})
    raise_problem(answer)
    return dict(answer.json()["spec"]["lease"])


def test_a_lease_is_not_extended_past_its_deadline_by_a_verb_or_by_a_change(lab: ApiLab) -> None:
    deadline = format_moment(SystemClock().now() + 7200.0)
    lab.client.create(box("due", deadline_at=deadline, duration="1h"))
    too_long = r"with 1h30m more it would end 30m.* after spec\.lease\.deadline_at"
    with pytest.raises(InvalidInput, match=too_long):
        lab.client.verb("container", "due", "extend-lease", {"by": "90m"})
    with pytest.raises(InvalidInput, match=too_long):
        lab.client.patch("container", "due", {"spec": lease(duration="150m")})
    assert lab.client.verb("container", "due", "extend-lease", {"by": "30m"})["spec"]["lease"]["duration"] == 5400.0


CLASS = {"kind": "priorityclass", "name": "mine", "spec": {"value": 1}}


def limit(lab: ApiLab, project: str, ceiling: int | None) -> None:
    spec = {"priority_ceiling": ceiling}
    answer = lab.client.http.request("PATCH", f"/v1/projects/{project}", {"spec": spec})
    assert answer.status == 200, answer.json()


def test_a_class_becomes_its_number_and_later_changes_of_it_change_nothing(lab: ApiLab) -> None:
    ann = grant(lab, "numbers")
    lab.client.create({"kind": "priorityclass", "name": "fleeting", "spec": {"value": 7}})
    made = ann.create(vm("web", **lease(priority_class="fleeting")))
    assert (made["spec"]["lease"]["priority"], made["spec"]["lease"]["priority_class"]) == (7, "fleeting")
    task = ann.create(job("nightly", priority_class="fleeting"))["spec"]["task"]["lease"]
    assert (task["priority"], task["priority_class"]) == (7, "fleeting")
    container = ann.create(box("box", priority_class="low"))
    assert container["spec"]["lease"]["priority"] == -10
    lab.client.http.request("PATCH", "/v1/priorityclasses/fleeting", {"spec": {"value": 9}})
    ann.apply([vm("web", **lease(priority_class="fleeting"))])  # the manifest that it was made from
    assert ann.get("vm", "web")["spec"]["lease"]["priority"] == 7
    assert ann.get("vm", "web")["generation"] == made["generation"]
    assert ann.create(vm("next", **lease(priority_class="fleeting")))["spec"]["lease"]["priority"] == 9
    lab.client.delete("priorityclass", "fleeting")
    assert change(ann, "web", duration="1h")["priority"] == 7
    assert change(ann, "web", priority_class=None)["priority"] == 7
    with pytest.raises(NotFound) as caught:
        ann.create(vm("late", **lease(priority_class="fleeting")))
    assert caught.value.field == "spec.lease.priority_class"
    with pytest.raises(NotFound, match='"urgen" not found') as caught:
        ann.create(job("late", priority_class="urgen"))
    assert (caught.value.field, caught.value.hint) == ("spec.task.lease.priority_class", "did you mean urgent?")


def test_a_class_and_another_number_are_refused_together(lab: ApiLab) -> None:
    ann = grant(lab, "both")
    assert ann.create(vm("a", **lease(priority_class="urgent", priority=100)))["spec"]["lease"]["priority"] == 100
    with pytest.raises(InvalidInput) as caught:
        ann.create(vm("b", **lease(priority_class="urgent", priority=50)))
    assert caught.value.field == "spec.lease.priority"
    assert caught.value.message == "spec.lease.priority: 50 is given, but priorityclass/urgent is 100"
    assert "set spec.lease.priority_class to null" in (caught.value.hint or "")
    with pytest.raises(InvalidInput):
        change(ann, "a", priority=50)
    assert change(ann, "a", priority=50, priority_class=None)["priority"] == 50
    assert change(ann, "a", priority_class="low")["priority"] == -10
    for wrong in ("Urgent!", 5, "x" * 300):
        with pytest.raises(WeftError) as refused:
            ann.create(vm("c", **lease(priority_class=wrong)))
        assert refused.value.field == "spec.lease.priority_class"


@pytest.mark.parametrize(
    ("fields", "asked"),
    [({"priority": 51}, "51"), ({"priority_class": "urgent"}, "100 (priorityclass/urgent)")],
)
def test_what_is_above_the_ceiling_is_refused_with_what_was_asked_what_is_allowed_and_a_remedy(
    lab: ApiLab, fields: dict[str, Any], asked: str
) -> None:
    project = f"capped-{asked[:2]}"
    ann = grant(lab, project)
    limit(lab, project, 50)
    ann.create(vm("fine", **lease(priority=50)))
    attempts = {
        "spec.lease.priority": [
            partial(ann.create, vm("web", **lease(**fields))),
            partial(change, ann, "fine", **fields),
            partial(ann.create, box("box", **fields)),
            partial(ann.apply, [vm("web", **lease(**fields))]),
        ],
        "spec.task.lease.priority": [partial(ann.create, job("work", **fields))],
    }
    for field, tries in attempts.items():
        for attempt in tries:
            with pytest.raises(Forbidden) as caught:
                attempt()
            error = caught.value
            assert error.token == "priorityCeiling"
            assert f"{field}: {asked} is above 50, the ceiling of project {project}" in error.message
    with pytest.raises(Forbidden) as caught:
        ann.create(vm("web", **lease(**fields)))
    assert (caught.value.field, caught.value.details["limit"]) == ("spec.lease.priority", 50)
    assert caught.value.hint and caught.value.hint.startswith("give 50 or less")
    assert [one["name"] for one in ann.list("vm").items] == ["fine"]
    assert not ann.list("job").items and not ann.list("container").items


def test_a_lowered_ceiling_leaves_what_was_accepted_and_lets_nobody_up(lab: ApiLab) -> None:
    ann = grant(lab, "lowered")
    ann.create(vm("web", **lease(priority=80)))
    limit(lab, "lowered", 10)
    assert change(ann, "web", duration="2h")["priority"] == 80
    assert change(ann, "web", priority=60)["priority"] == 60
    with pytest.raises(Forbidden):
        change(ann, "web", priority=80)
    limit(lab, "lowered", None)
    assert change(ann, "web", priority=1000)["priority"] == 1000


def test_only_administrators_of_the_fabric_write_classes_and_ceilings(lab: ApiLab) -> None:
    grant(lab, "own")
    limit(lab, "own", 5)
    for role in ("editor", "admin"):
        someone = lab.with_token(use="access", role=role, project="own")
        someone.project = "own"
        attempts = (
            partial(someone.http.request, "PATCH", "/v1/projects/own", {"spec": {"priority_ceiling": 900}}),
            partial(someone.http.request, "POST", "/v1/priorityclasses", CLASS),
            partial(someone.http.request, "PATCH", "/v1/priorityclasses/low", {"spec": {"value": 900}}),
            partial(someone.http.request, "DELETE", "/v1/priorityclasses/low"),
        )
        assert [attempt().status for attempt in attempts] == [403] * 4
        assert someone.get("priorityclass", "low")["spec"]["value"] == -10  # but all may see what there is
    assert lab.client.get("project", "own")["spec"]["priority_ceiling"] == 5


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        ("priorityclass", {}, "spec.value"),
        ("priorityclass", {"value": 1001}, "spec.value"),
        ("priorityclass", {"value": -1001}, "spec.value"),
        ("priorityclass", {"value": "high"}, "spec.value"),
        ("priorityclass", {"value": 1.5}, "spec.value"),
        ("priorityclass", {"value": 1, "description": "x" * 201}, "spec.description"),
        ("priorityclass", {"value": 1, "preempts": True}, "spec.preempts"),
        ("project", {"priority_ceiling": -1}, "spec.priority_ceiling"),
        ("project", {"priority_ceiling": 1001}, "spec.priority_ceiling"),
        ("project", {"priority_ceiling": "all"}, "spec.priority_ceiling"),
    ],
)
def test_strange_values_name_their_field(lab: ApiLab, kind: str, spec: dict[str, Any], field: str) -> None:
    with pytest.raises(WeftError) as caught:
        lab.client.create({"kind": kind, "name": "strange", "spec": spec})
    assert caught.value.field == field
