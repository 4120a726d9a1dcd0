"""Quotas at the real API servers over a real store: whatever comes at once, a project never gets more than it was granted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm, run_together

from weft.client import Client
from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete
from weft.kinds.image import ImageStatus
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import merge_part
from weft.objects.errors import AlreadyExists, Forbidden, InvalidInput, WeftError
from weft.store.sqlite.store import SqliteStore

GIB = 1 << 30


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    folder = tmp_path_factory.mktemp("quotas")
    lab = ApiLab(folder, SqliteStore(folder / "store.db", SystemClock()))
    yield lab
    lab.close()


def grant(lab: ApiLab, project: str, **limits: Any) -> Client:
    """An editor's client in a new project with this quota and the image tiny."""
    lab.client.create({"kind": "project", "name": project, "spec": {}})
    lab.client.apply([{**make_image(), "project": project}])
    if limits:
        lab.client.create({"kind": "quota", "name": "project", "project": project, "spec": limits})
    ann = lab.with_token(use="access", role="editor", project=project)
    ann.project = project
    return ann


def again(lab: ApiLab, client: Client) -> Client:
    """Another connection of the same person."""
    other = lab.connect(client.context)
    other.project = client.project
    return other


def remove(lab: ApiLab, client: Client, kind: str, name: str) -> None:
    """Delete an object, and let go of it as its controllers do."""
    client.delete(kind, name)
    lab.run(lab.store.commit([Delete(f"/{kind}/{client.project}/{name}")]))


def change_status(lab: ApiLab, client: Client, kind: str, name: str, status: Any) -> None:
    envelope = lab.stored(f"/{kind}/{client.project}/{name}")
    assert envelope is not None
    envelope.status = merge_part(envelope.status, status)
    lab.put(envelope)


def refuse(attempt: Callable[[], object]) -> Forbidden:
    with pytest.raises(Forbidden) as caught:
        attempt()
    assert caught.value.token == "quotaExceeded"
    caught.value.details.pop("request_id", None)
    return caught.value


def vm(name: str, **spec: Any) -> dict[str, Any]:
    return make_vm(name, **{"networks": [], "cpu": 1, **spec})


def test_a_refusal_names_what_is_used_requested_and_allowed(lab: ApiLab) -> None:
    ann = grant(lab, "told", cpu=2, memory="1G")
    ann.create(vm("web", cpu=1.5, memory="512M"))
    error = refuse(lambda: ann.create(vm("db", cpu=1, memory="768M")))
    assert error.message == (
        "project told: cpu: 1.5 of 2 cores used, 1 more requested; memory: 512 MiB of 1.0 GiB used, 768 MiB more requested"
    )
    assert (error.field, error.hint) == ("spec.cpu", "weft quota show -p told")
    assert error.details == {
        "used": {"cpu": 1.5, "memory": GIB // 2},
        "requested": {"cpu": 1, "memory": 768 << 20},
        "limit": {"cpu": 2, "memory": GIB},
    }
    answer = ann.http.request("POST", "/v1/projects/told/vms", vm("db"))
    assert (answer.status, answer.json()["reason"], answer.json()["family"]) == (403, "quotaExceeded", "forbidden")
    ann.create(vm("db", cpu=0.5, memory="512M"))


def test_a_quota_counts_from_its_commit_on_before_any_watch_brings_it(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = grant(lab, "prompt")
    monkeypatch.setattr(lab.api.rates._limits, "_put", lambda *_: None)  # the watch brings nothing
    lab.client.create({"kind": "quota", "name": "project", "project": "prompt", "spec": {"cpu": 1}})
    refuse(lambda: ann.create(vm("web", cpu=2)))
    lab.client.apply([{"kind": "quota", "name": "project", "project": "prompt", "spec": {"cpu": 2}}])
    ann.create(vm("web", cpu=2))


def test_of_racing_requests_only_those_pass_that_fit_together(lab: ApiLab) -> None:
    ann = grant(lab, "race", cpu=1)
    clients = [again(lab, ann) for _ in range(3)]
    for number in range(30):
        names = [f"r{number}-{place}" for place in range(3)]
        results = run_together(
            *(partial(client.create, vm(name, cpu=0.5)) for client, name in zip(clients, names, strict=True))
        )
        made = [one["name"] for one in results if not isinstance(one, WeftError)]
        assert len(made) == 2, results
        assert [one.token for one in results if isinstance(one, WeftError)] == ["quotaExceeded"]
        for name in made:
            remove(lab, ann, "vm", name)


def test_what_grows_races_with_what_is_new_of_any_kind_and_in_any_way(lab: ApiLab) -> None:
    ann = grant(lab, "mixed", disk="10G", cpu=2)
    clients = [again(lab, ann) for _ in range(4)]
    ann.create(vm("base", disk="1G"))
    for number in range(15):
        volume = {"kind": "volume", "name": f"v{number}", "spec": {"size": "5G"}}
        results = run_together(
            partial(clients[0].create, volume),
            partial(clients[1].patch, "vm", "base", {"spec": {"disk": f"{6 + number}G"}}),
            partial(clients[2].apply, [vm(f"a{number}", disk="5G", cpu=0.1)]),
            partial(clients[3].batch, "vm", [vm(f"b{number}", disk="5G", cpu=0.1)]),
        )
        passed = [
            one
            for one in results
            if not isinstance(one, WeftError) and "error" not in (one[0] if isinstance(one, list) else one)
        ]
        assert len(passed) == 1, results
        stored = ann.list("vm").items + ann.list("volume").items
        assert sum(one["spec"].get("disk", 0) + one["spec"].get("size", 0) for one in stored) <= 10 * GIB
        for one in stored:
            remove(lab, ann, one["kind"], one["name"])
        ann.create(vm("base", disk="1G"))


def test_many_at_once_are_all_served_and_none_is_made_too_much(lab: ApiLab) -> None:
    ann = grant(lab, "crowd", instances=20)
    results = run_together(*(partial(again(lab, ann).create, vm(f"c{n}")) for n in range(30)))
    assert sorted({one.token for one in results if isinstance(one, WeftError)}) == ["quotaExceeded"]
    assert len(ann.list("vm").items) == 20


def test_a_batch_makes_as_many_as_fit_and_says_of_each_other_why_not(lab: ApiLab) -> None:
    ann = grant(lab, "batch", instances=120)
    results = ann.batch("vm", [vm(f"b{n}") for n in range(130)])
    assert ["object" in one for one in results] == [True] * 120 + [False] * 10
    assert {(one["error"]["reason"], one["error"]["status"]) for one in results[120:]} == {("quotaExceeded", 403)}
    assert len(ann.list("vm").items) == 120


def test_names_that_are_taken_cost_a_batch_no_amounts(lab: ApiLab) -> None:
    ann = grant(lab, "taken", instances=4)
    ann.create(vm("b1"))
    results = ann.batch("vm", [vm(f"b{n}") for n in range(4)])
    assert [one["error"]["reason"] if "error" in one else "" for one in results] == ["", "alreadyExists", "", ""]
    refuse(lambda: ann.create(vm("b4")))


def test_what_could_not_be_stored_is_not_counted(lab: ApiLab) -> None:
    ann = grant(lab, "failed", cpu=2)
    ann.create(vm("web", cpu=1))
    for _ in range(3):
        with pytest.raises(AlreadyExists):
            ann.create(vm("web", cpu=1))
        ann.create(vm("dry", cpu=1), dry_run=True)
    ann.patch("vm", "web", {"spec": {"cpu": 2}})
    ann.patch("vm", "web", {"spec": {"cpu": 0.5}})
    ann.create(vm("db", cpu=1.5))
    refuse(lambda: ann.patch("vm", "db", {"spec": {"cpu": 1.75}}))


def test_two_requests_for_two_projects_in_turn_wait_for_each_other_at_most_once(lab: ApiLab) -> None:
    """Each has the turn of one project, and goes without that of the other."""
    for project in ("left", "right"):
        grant(lab, project, instances=200)
    clients = [lab.connect() for _ in range(4)]
    results = run_together(
        *(
            partial(
                client.apply,
                [{**vm(f"x{place}-{n}"), "project": project} for n, project in enumerate(order * 3)],
            )
            for place, (client, order) in enumerate(
                zip(clients, [["left", "right"], ["right", "left"]] * 2, strict=True)
            )
        )
    )
    assert not [one for one in results if isinstance(one, WeftError)]


def test_a_repeated_batch_of_a_full_project_answers_as_the_first(lab: ApiLab) -> None:
    ann = grant(lab, "repeat", instances=3)
    body = {"objects": [vm(f"b{n}") for n in range(3)]}
    headers = {"Idempotency-Key": "same"}
    first, second = (
        ann.http.request("POST", "/v1/projects/repeat/vms:batch", body, headers=headers).json() for _ in range(2)
    )
    assert [one["object"]["uid"] for one in first["results"]] == [one["object"]["uid"] for one in second["results"]]


def test_what_is_applied_fits_as_a_whole_or_nothing_is(lab: ApiLab) -> None:
    ann = grant(lab, "whole", cpu=2)
    error = refuse(lambda: ann.apply([vm("one"), vm("two"), vm("three")]))
    assert error.message.endswith("cpu: 2 of 2 cores used, 1 more requested: nothing was changed")
    assert ann.list("vm").items == []
    refuse(lambda: ann.apply([vm("one", cpu=3), vm("two", cpu=3)]))
    ann.apply([vm("one"), vm("two")])
    ann.apply([vm("one", cpu=0.5), vm("two", cpu=1.5)])
    with pytest.raises(InvalidInput):  # two reasons
        ann.apply([vm("one", cpu=3), vm("two", image="none")])


def test_more_than_one_commit_of_one_request_counts_as_one(lab: ApiLab) -> None:
    ann = grant(lab, "large", instances=250)
    before = lab.revision()
    ann.apply([vm(f"l{n}") for n in range(250)])
    assert lab.revision() - before == 3
    refuse(lambda: ann.create(vm("more")))


def test_a_quota_that_comes_with_what_it_limits_counts_for_that(lab: ApiLab) -> None:
    grant(lab, "both")
    quota = {"kind": "quota", "name": "project", "spec": {"cpu": 2}}
    objects = [{**one, "project": "both"} for one in (vm("one"), vm("two"), vm("three"), quota)]
    refuse(lambda: lab.client.apply(objects))
    lab.client.apply([objects[0], objects[1], objects[3]])
    many = [{**vm(f"m{n}", cpu=0.01), "project": "both"} for n in range(150)]
    lab.client.apply([{**quota, "project": "both", "spec": {"cpu": 3.5}}, *many])
    refuse(lambda: lab.client.create({**vm("four", cpu=0.01), "project": "both"}))


def test_a_change_counts_by_its_difference(lab: ApiLab) -> None:
    ann = grant(lab, "change", cpu=2)
    ann.create(vm("web", cpu=1.5))
    ann.patch("vm", "web", {"spec": {"cpu": 2}})
    error = refuse(lambda: ann.patch("vm", "web", {"spec": {"cpu": 2.5}}))
    assert error.details == {"used": {"cpu": 2}, "requested": {"cpu": 0.5}, "limit": {"cpu": 2}}
    ann.patch("vm", "web", {"spec": {"cpu": 0.5}})
    ann.create(vm("db", cpu=1.5))
    ann.patch("vm", "web", {"labels": {"a": "b"}})
    ann.verb("vm", "web", "hold")
    refuse(lambda: ann.create(vm("third", cpu=0.1)))  # what is held or stopped keeps what it has


def test_a_quota_below_the_usage_refuses_growth_and_nothing_else(lab: ApiLab) -> None:
    ann = grant(lab, "lowered", cpu=4, memory="4G")
    ann.create(vm("web", cpu=2))
    ann.create(vm("db", cpu=2))
    lab.client.patch("quota", "project", {"spec": {"cpu": 1}}, project="lowered")
    assert {one["spec"]["cpu"] for one in ann.list("vm").items} == {2}
    ann.patch("vm", "web", {"spec": {"cpu": 1, "memory": "1G"}})
    assert refuse(lambda: ann.patch("vm", "web", {"spec": {"cpu": 1.5}})).details["used"] == {"cpu": 3}
    ann.verb("vm", "db", "hold")
    refuse(lambda: ann.create(vm("more", cpu=0.5)))
    lab.client.patch("quota", "project", {"spec": {"cpu": None}}, project="lowered")
    ann.create(vm("more", cpu=8))


def test_what_is_deleted_counts_until_it_is_gone(lab: ApiLab) -> None:
    ann = grant(lab, "gone", instances=1)
    ann.create(vm("web"))
    ann.delete("vm", "web")  # its node may still run it
    refuse(lambda: ann.create(vm("db")))
    lab.run(lab.store.commit([Delete("/vm/gone/web")]))
    ann.create(vm("db"))


def test_a_container_that_has_run_once_counts_no_more(lab: ApiLab) -> None:
    ann = grant(lab, "once", instances=1)
    image = "registry.example.org/work:1"
    ann.create({"kind": "container", "name": "work", "spec": {"image": image, "once": True, "networks": []}})
    refuse(lambda: ann.create(vm("web")))
    change_status(lab, ann, "container", "work", WorkloadStatus(phase="Stopped", ended=True, exit_code=0))
    ann.create(vm("web"))


def test_disks_ports_gpus_and_ready_instances_count(lab: ApiLab) -> None:
    ann = grant(lab, "rest", disk="10G", gpus=1, published_ports=1, instances=6)
    change_status(lab, ann, "image", "tiny", ImageStatus(phase="Available", virtual_size=4 * GIB))
    ann.create(vm("web", disk="0", gpu_share=0.5))  # the image's own size
    assert refuse(lambda: ann.create(vm("db", disk="5G", gpus=1))).details["requested"] == {"gpus": 1}
    ann.create(vm("db", disk="5G", gpu_share=0.5))
    error = refuse(lambda: ann.create({"kind": "volume", "name": "data", "spec": {"size": "2G"}}))
    assert (error.field, error.details["used"]) == ("spec.size", {"disk": 9 * GIB})
    refuse(lambda: ann.create(vm("more", disk="4G")))
    ann.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    refuse(lambda: ann.patch("volume", "data", {"spec": {"size": "1025M"}}))
    lab.client.create({"kind": "network", "name": "net", "project": "rest", "spec": {"cidr": "10.77.0.0/24"}})
    ann.patch("vm", "web", {"spec": {"networks": ["net"], "publish": ["28080:80"]}})
    error = refuse(lambda: ann.patch("vm", "db", {"spec": {"networks": ["net"], "publish": ["28081:80"]}}))
    assert (error.field, error.details["limit"]) == ("spec.publish", {"published_ports": 1})
    assert lab.stored("/publishedport/-/tcp-28081") is None


def test_instances_that_a_function_keeps_ready_count(lab: ApiLab) -> None:
    ann = grant(lab, "ready", instances=3, memory="1G")
    spec = {"image": "registry.example.org/work:1", "memory": "256M"}
    ann.create({"kind": "function", "name": "auto", "spec": spec})
    ann.create({"kind": "function", "name": "warm", "spec": {**spec, "ready": 3}})
    error = refuse(lambda: ann.patch("function", "warm", {"spec": {"ready": 4}}))
    assert error.details["used"] == {"instances": 3}
    refuse(lambda: ann.patch("function", "warm", {"spec": {"memory": "512M"}}))
    ann.patch("function", "warm", {"spec": {"ready": 1}})
    ann.create(vm("web"))


def test_a_quota_is_granted_by_the_fabric_s_administrators_alone(lab: ApiLab) -> None:
    grant(lab, "mine", cpu=1)
    head = lab.with_token(use="access", role="admin", project="mine")
    head.project = "mine"
    assert head.get("quota", "project")["spec"]["cpu"] == 1
    quota = {"kind": "quota", "name": "project", "project": "mine", "spec": {"cpu": 9}}
    for attempt in (
        lambda: head.patch("quota", "project", {"spec": {"cpu": 9}}),
        lambda: head.apply([quota]),
        lambda: head.delete("quota", "project"),
    ):
        with pytest.raises(Forbidden) as caught:
            attempt()
        assert caught.value.token == "forbidden"
    with pytest.raises(InvalidInput, match="always called project"):
        lab.client.create({**quota, "name": "second"})
    with pytest.raises(AlreadyExists):
        lab.client.create(quota)
    lab.client.delete("quota", "project", project="mine")
    head.create(vm("web", cpu=9))


@pytest.mark.parametrize(
    "limits",
    [
        {"cpu": -1},
        {"cpu": "many"},
        {"memory": "-1G"},
        {"gpus": -0.5},
        {"instances": 1.5},
        {"instances": 10**30},
        {"published_ports": "x" * 10_000},
        {"cores": 2},
        {"soft": {"soft": {}}},
        {"soft": 2},
    ],
)
def test_nonsense_is_refused_with_its_field(lab: ApiLab, limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        lab.client.create({"kind": "quota", "name": "project", "project": "default", "spec": limits})
    assert (caught.value.field or "").startswith("spec.")
    assert len(caught.value.message) < 300
