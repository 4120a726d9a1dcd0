"""Requests that come twice, the second one late: what came between stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.contracts.store import Delete
from weft.objects.errors import NotFound, StaleRevision

VMS = "/v1/projects/default/vms"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    yield lab
    lab.close()


def send(lab: ApiLab, method: str, path: str, body: Any = None, key: str = "k") -> tuple[int, dict[str, Any]]:
    answer = lab.client.http.request(method, path, body, headers={"Idempotency-Key": key})
    return answer.status, answer.json()


def project(name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "project", "name": name, "spec": {"description": "first"}, **more}


def test_a_late_repeated_delete_spares_what_has_the_name_now(lab: ApiLab) -> None:
    lab.client.create(project("blue"))
    assert send(lab, "DELETE", "/v1/projects/blue")[0] == 200
    again = lab.client.create(project("blue"))
    status, answer = send(lab, "DELETE", "/v1/projects/blue")
    assert (status, answer["name"], answer["uid"]) == (200, "blue", "")
    assert lab.client.get("project", "blue")["uid"] == again["uid"]
    assert send(lab, "DELETE", "/v1/projects/blue", key="another")[0] == 200
    with pytest.raises(NotFound):
        lab.client.get("project", "blue")


@pytest.mark.parametrize("kind", ["vm", "image"])
def test_a_late_repeated_delete_of_what_finalizers_held_spares_its_successor(lab: ApiLab, kind: str) -> None:
    made = make_vm("x") if kind == "vm" else make_image("x")
    lab.client.create(made)
    path = lab.client.path(kind, "x")
    held = lab.stored(f"/{kind}/default/x")
    assert held is not None
    held.finalizers = ["test"]
    lab.put(held)
    assert send(lab, "DELETE", path)[0] == 202
    assert send(lab, "DELETE", path)[0] == 202  # repeated soon: it goes still
    held = lab.stored(f"/{kind}/default/x")
    assert held is not None
    held.finalizers = []
    lab.put(held)
    lab.client.delete(kind, "x")
    again = lab.client.create(made)
    assert send(lab, "DELETE", path)[0] == 200
    assert lab.client.get(kind, "x")["uid"] == again["uid"] and lab.client.get(kind, "x")["deleting_since"] is None


def test_a_delete_means_the_one_with_its_uid(lab: ApiLab) -> None:
    old = lab.client.create(project("blue"))
    lab.client.delete("project", "blue")
    new = lab.client.create(project("blue"))
    with pytest.raises(StaleRevision, match="is another object now") as caught:
        lab.client.delete("project", "blue", uid=old["uid"])
    assert caught.value.field == "uid" and caught.value.details["uid"] == new["uid"]
    lab.client.delete("project", "blue", uid=new["uid"])


def test_a_late_repeated_put_or_patch_undoes_nothing(lab: ApiLab) -> None:
    assert send(lab, "PUT", "/v1/projects/blue", project("blue"))[0] == 201
    change = {"spec": {"description": "second"}, "generation": 1}
    assert send(lab, "PATCH", "/v1/projects/blue", change)[1]["generation"] == 2
    status, answer = send(lab, "PATCH", "/v1/projects/blue", change)  # stale now, by its own doing
    assert (status, answer["generation"]) == (200, 2)
    assert send(lab, "PUT", "/v1/projects/blue", project("blue"))[1]["spec"]["description"] == "second"
    lab.client.delete("project", "blue")
    assert send(lab, "PUT", "/v1/projects/blue", project("blue"))[0] == 400  # it was made, and is gone
    with pytest.raises(NotFound):
        lab.client.get("project", "blue")


def test_a_late_repeated_create_of_what_was_deleted_says_so_though_it_would_be_refused_by_now(lab: ApiLab) -> None:
    lab.client.create({"kind": "quota", "name": "project", "spec": {"disk": "1G"}})
    volume = {"kind": "volume", "name": "data", "spec": {"size": "1G"}}
    assert send(lab, "POST", "/v1/projects/default/volumes", volume)[0] == 201
    lab.run(lab.store.commit([Delete("/volume/default/data")]))
    lab.client.create({**volume, "name": "another"})
    status, answer = send(lab, "POST", "/v1/projects/default/volumes", volume)
    assert (status, answer["field"]) == (400, "Idempotency-Key")
    assert "was used before" in answer["detail"], "it is no question of quotas: the volume was made"


def test_a_late_repeated_apply_undoes_nothing(lab: ApiLab) -> None:
    objects = {"objects": [project("blue"), project("red"), make_vm("web")]}
    status, first = send(lab, "POST", "/v1/apply", objects)
    assert status == 200 and [r["action"] for r in first["results"]] == ["created"] * 3
    lab.client.delete("project", "red")
    lab.client.patch("project", "blue", {"spec": {"description": "mine"}})
    status, again = send(lab, "POST", "/v1/apply", objects)
    assert status == 200 and [r.get("action") for r in again["results"]] == ["unchanged", None, "unchanged"]
    assert lab.client.get("project", "blue")["spec"]["description"] == "mine"
    with pytest.raises(NotFound):
        lab.client.get("project", "red")
    assert send(lab, "POST", "/v1/apply", objects, key="another")[1]["results"][1]["action"] == "created"


def test_an_apply_means_the_object_it_was_read_from(lab: ApiLab) -> None:
    read = lab.client.create(project("blue"))
    assert lab.client.apply([read])[0]["action"] == "unchanged"
    lab.client.patch("project", "blue", {"spec": {"description": "mine"}})
    with pytest.raises(StaleRevision, match="was changed meanwhile"):
        lab.client.apply([read])
    lab.client.delete("project", "blue")
    with pytest.raises(StaleRevision, match="does not exist"):
        lab.client.apply([read])
    del read["generation"]
    lab.client.apply([read])  # made anew, with a uid of its own
    with pytest.raises(StaleRevision, match="is another object now"):
        lab.client.apply([read])
    with pytest.raises(StaleRevision, match="is another object now"):
        lab.client.patch("project", "blue", {"uid": read["uid"], "labels": {"a": "b"}})
