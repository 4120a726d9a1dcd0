"""Who made an object: the API server records it once, clients can't change it, and what weft makes for the object inherits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm
from tests.scenario.controllers.test_conversions import ConvertingLab, begin
from tests.scenario.controllers.test_drain import drain
from tests.scenario.controllers.test_jobs import add_nodes
from tests.scenario.migration_lab import MovingLab
from tests.scenario.people.test_people import add_user, create, log_in

from weft.objects.errors import UnknownField


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("creators"))
    lab.client.create({"kind": "project", "name": "lab", "spec": {}})
    lab.client.apply([{**make_image(), "project": "lab"}])
    add_user(lab, "ann")
    create(lab, "rolebinding", "ann-lab", role="editor", project="lab", users=["ann"])
    yield lab
    lab.close()


def vm(name: str, **more: Any) -> dict[str, Any]:
    return {**make_vm(name, networks=[]), "project": "lab", **more}


def admin_of(lab: ApiLab) -> str:
    return f"token:{lab.client.http.request('GET', '/v1/whoami').json()['token']}"


def test_an_object_says_who_made_it_however_it_was_made(lab: ApiLab) -> None:
    ann = log_in(lab, "ann")
    ann.project = "lab"
    ann.create(vm("created"))
    ann.apply([vm("applied")])
    ann.batch("vm", [vm(f"batch-{n}") for n in range(2)])
    ann.http.request("PUT", "/v1/projects/lab/vms/put", vm("put"))
    assert {one["name"]: one["created_by"] for one in ann.list("vm").items} == dict.fromkeys(
        ["created", "applied", "batch-0", "batch-1", "put"], "ann"
    )
    made = ann.create(
        {"kind": "token", "name": "ann-ci", "spec": {"use": "access", "role": "editor", "project": "lab"}}
    )
    ci = lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))
    ci.project = "lab"
    assert ci.create(vm("by-own-token"))["created_by"] == "ann", "a user's tokens are the user"


def test_a_token_without_a_user_is_named_as_no_user_can_be(lab: ApiLab) -> None:
    made = lab.client.create(
        {"kind": "token", "name": "ann-s", "spec": {"use": "access", "role": "editor", "subject": "ann"}}
    )
    assert made["created_by"] == admin_of(lab)
    program = lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))
    assert program.create(vm("made"))["created_by"] == "token:ann-s"
    found = lab.client.list("vm", project="lab", fields="created_by=token:ann-s").items
    assert [one["name"] for one in found] == ["made"]
    assert "created_by" not in lab.client.get("network", "default"), "weft itself made it"


def test_no_client_sets_or_changes_who_made_an_object(lab: ApiLab) -> None:
    lab.client.create(vm("claimed", created_by="ann"))
    read = lab.client.get("vm", "claimed", project="lab")
    assert read["created_by"] == admin_of(lab)
    ann = log_in(lab, "ann")
    ann.project = "lab"
    [same] = ann.apply([read])
    assert same["action"] == "unchanged"
    ann.apply([{**read, "created_by": "ann", "labels": {"a": "b"}}])
    ann.patch("vm", "claimed", {"spec": {"cpu": 2}})
    ann.verb("vm", "claimed", "hold")
    with pytest.raises(UnknownField):
        ann.patch("vm", "claimed", {"created_by": "ann"})
    assert ann.get("vm", "claimed")["created_by"] == admin_of(lab)


def test_what_an_object_claims_has_its_creator(lab: ApiLab) -> None:
    lab.client.create({"kind": "network", "name": "net", "project": "lab", "spec": {"cidr": "10.78.0.0/24"}})
    spec = {**make_vm("web")["spec"], "networks": ["net"], "publish": ["28180:80"]}
    log_in(lab, "ann").create({"kind": "vm", "name": "web", "project": "lab", "spec": spec})
    port = lab.stored("/publishedport/-/tcp-28180")
    assert port is not None and port.creator == "ann"


async def creators(lab: Any, kind: str) -> list[str]:
    return [one.creator for one in await lab.every(kind)]


async def test_tasks_allocations_and_decisions_have_the_creator_of_the_job(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        for node in await add_nodes(lab):
            node.program = lambda spec: None
        lab.creator = "ann"
        await lab.put_job("work", array="0-1", parallelism=2)

        async def runs() -> bool:
            return (await lab.job("work")).running == 2

        await lab.until(runs)
        for kind in ("container", "allocation", "endpoint", "decision"):
            found = await creators(lab, kind)
            assert found and set(found) == {"ann"}, kind


async def test_a_converted_workload_has_the_creator_of_the_former(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        lab.creator = "ann"
        await begin(lab)
        await lab.put_oci_image()
        lab.creator = "bea"
        await lab.convert("container/web", "vm")
        await lab.until_conversion("AwaitingConfirmation")
        assert await creators(lab, "vm") == ["ann"]


async def test_the_migrations_of_a_drain_have_the_creators_of_their_workloads(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1")
        lab.creator = "ann"
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.add_node("n2")
        await drain(lab, "n1")

        async def migrates() -> bool:
            return bool(await creators(lab, "migration"))

        await lab.until(migrates)
        assert await creators(lab, "migration") == ["ann"]


def test_a_revision_says_who_asked_for_its_template_and_nobody_can_say_it_is_another(lab: ApiLab) -> None:
    ann, admin = log_in(lab, "ann"), admin_of(lab)
    ann.project = lab.client.project = "lab"
    spec: dict[str, Any] = {"workload": "vm", "template": make_vm("web", networks=[])["spec"]}
    web = {"kind": "deployment", "name": "web", "spec": spec}
    assert ann.create({**web, "marks": {"author": "bea"}})["marks"]["author"] == "ann"
    assert lab.client.verb("deployment", "web", "scale", {"replicas": 2})["marks"]["author"] == "ann"
    updated = lab.client.verb("deployment", "web", "update", {"template": {"memory": "256M"}})
    assert updated["marks"]["author"] == admin
    assert ann.apply([{**web, "spec": {**spec, "replicas": 2, "template": updated["spec"]["template"]}}])
    assert ann.get("deployment", "web")["marks"]["author"] == admin, "ann changed nothing of the template"
    assert ann.patch("deployment", "web", {"spec": {"labels": {"tier": "web"}}})["marks"]["author"] == "ann"
