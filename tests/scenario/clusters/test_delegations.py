"""Workloads that one fabric delegates to another over their link, each with its API server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.link_lab import Side, two_sides

from weft.client.cluster.peer import PeerLink
from weft.contracts.clock import Clock, SystemClock
from weft.contracts.store import Delete
from weft.controllers.asking import run_asking
from weft.controllers.cluster import requests
from weft.controllers.delegation import controller, perform
from weft.controllers.delegation.controller import Delegations
from weft.controllers.delegation.plan import Act, Seen
from weft.informer.cache import Cache
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import make_view
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import merge_part
from weft.objects.errors import IllegalTransition, NotFound, Unavailable, WeftError
from weft.objects.identity import object_key

TERMS = {"grants": ["run"], "projects": {"default": "default"}}
URL = "file:///srv/tiny.tar"
VM = {"image": "tiny", "memory": "128M"}


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Side, Side]]:
    """East, which delegates to west."""
    monkeypatch.setattr(controller, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(requests, "SETTLED_SECONDS", 0.0)
    with two_sides(tmp_path) as (east, west):
        for side in (east, west):
            side.client.create({"kind": "image", "name": "tiny", "project": "default", "spec": {"url": URL}})
        task = asyncio.run_coroutine_threadsafe(delegate(east), east.loop)
        east.link("west", west, west.link_token("east", **TERMS), projects={"default": "default"})
        east.wait_for("west", lambda status: status["phase"] == "Linked")
        yield east, west
        task.cancel()


async def delegate(side: Side) -> None:
    cache = Cache(side.store, make_view(), side.clock)
    lease = LeaderLease(side.store, cache, side.journal, side.clock, "delegations", "lab", None)
    async with asyncio.TaskGroup() as group:
        group.create_task(cache.run())
        await lease.begin()
        group.create_task(lease.keep())
        keeper = Delegations(lease, side.settings.seal_keys.unseal)
        group.create_task(run_asking(keeper, lease))


def create(side: Side, name: str, template: dict[str, Any] = VM, **more: Any) -> dict[str, Any]:
    wish = {"cluster": "west", "workload": "vm", "template": template, **more}
    return side.client.create({"kind": "delegation", "name": name, "project": "default", "spec": wish})


def until(side: Side, name: str, so: Callable[[dict[str, Any]], bool], seconds: float = 60.0) -> dict[str, Any]:
    ends = time.monotonic() + seconds
    while not so(status := side.client.get("delegation", name, project="default").get("status", {})):
        assert time.monotonic() < ends, status
        time.sleep(0.02)
    return dict(status)


def until_gone(side: Side, kind: str, name: str) -> None:
    ends = time.monotonic() + 60.0
    while True:
        try:
            found = side.client.get(kind, name, project="default")
        except NotFound:
            return
        assert time.monotonic() < ends, found
        time.sleep(0.02)


def changed(side: Side, name: str) -> bool:
    return bool(side.client.get("vm", name, project="default")["spec"]["memory"] == 256 << 20)


def end(side: Side, name: str) -> None:
    """As west's own controllers would, once its VM is to be deleted."""
    key, ends = object_key("vm", "default", name), time.monotonic() + 60.0
    while (found := side.stored(key)) is not None and found.deleting_since is None:
        assert time.monotonic() < ends, found
        time.sleep(0.02)
    side.run(side.store.commit([Delete(key)]))


def report(side: Side, name: str, **status: Any) -> None:
    """As west's own controllers would write of its VM."""
    found = side.stored(object_key("vm", "default", name))
    assert found is not None
    side.put(msgspec.structs.replace(found, status=merge_part(found.status, WorkloadStatus(**status))))


def test_it_runs_there_as_it_is_written_here_and_goes_with_it(sides: tuple[Side, Side]) -> None:
    east, west = sides
    create(east, "web")
    assert until(east, "web", lambda status: status.get("uid", "") != "")["phase"] == "Starting"
    there = west.client.get("vm", "web", project="default")
    assert there["created_by"] == "cluster:east"
    report(west, "web", phase="Running", node="w1", address="10.0.0.7")
    status = until(east, "web", lambda status: status["phase"] == "Running")
    assert (status["node"], status["address"], status["uid"]) == ("w1", "10.0.0.7", there["uid"])
    east.client.patch("delegation", "web", {"spec": {"template": {"memory": "256M"}}}, project="default")
    until(east, "web", lambda status: status["ready"] is False and changed(west, "web"))
    east.client.patch("delegation", "web", {"labels": {"app": "shop"}}, project="default")
    until(east, "web", lambda _: west.client.get("vm", "web", project="default")["labels"] == {"app": "shop"})
    east.client.delete("delegation", "web", project="default")
    until(east, "web", lambda status: status["phase"] == "Deleting")
    end(west, "web")
    until_gone(east, "delegation", "web")


def test_a_site_that_vanishes_keeps_what_it_runs_and_gets_what_it_missed(sides: tuple[Side, Side]) -> None:
    east, west = sides
    create(east, "web")
    uid = until(east, "web", lambda status: status.get("uid", "") != "")["uid"]
    west.proxy.cut()
    status = until(east, "web", lambda status: status["phase"] == "Unknown")
    assert "what it runs goes on there" in status["message"]
    create(east, "later")
    assert "gets this once it answers" in until(east, "later", lambda status: status.get("reason"))["message"]
    create(east, "never")
    east.client.delete("delegation", "never", project="default")  # nothing of it was ever sent
    until_gone(east, "delegation", "never")
    east.client.delete("delegation", "web", project="default")
    time.sleep(0.5)
    assert east.client.get("delegation", "web", project="default")["deleting_since"]
    west.proxy.mend()
    until(east, "later", lambda status: status.get("uid", "") != "")
    end(west, "web")
    until_gone(east, "delegation", "web")
    with pytest.raises(NotFound):
        west.client.get("vm", "web", project="default")
    assert uid not in [one["uid"] for one in west.client.list("vm", project="default").items]
    assert [one["name"] for one in west.client.list("vm", project="default").items] == ["later"]


def test_what_was_deleted_there_comes_back_only_when_people_say_so(sides: tuple[Side, Side]) -> None:
    east, west = sides
    create(east, "web")
    first = until(east, "web", lambda status: status.get("uid", "") != "")["uid"]
    with pytest.raises(IllegalTransition, match="still has it"):
        east.client.verb("delegation", "web", "resend", project="default")
    west.client.delete("vm", "web", project="default")
    end(west, "web")
    status = until(east, "web", lambda status: status["phase"] == "Gone")
    assert "weft delegation resend web" in status["message"]
    east.client.verb("delegation", "web", "resend", project="default")
    assert until(east, "web", lambda status: status["phase"] != "Gone")["uid"] != first


def test_what_others_have_there_is_neither_taken_nor_deleted(sides: tuple[Side, Side]) -> None:
    east, west = sides
    ours = west.client.create({"kind": "vm", "name": "web", "project": "default", "spec": VM})
    create(east, "web")
    status = until(east, "web", lambda status: status.get("reason"))
    assert (status["phase"], status["reason"]) == ("Failed", "nameTaken")
    east.client.delete("delegation", "web", project="default")
    until_gone(east, "delegation", "web")
    assert west.client.get("vm", "web", project="default")["uid"] == ours["uid"]


def test_refusals_are_said_in_the_site_s_words_and_end_with_their_cause(sides: tuple[Side, Side]) -> None:
    east, west = sides
    create(east, "web", {**VM, "networks": ["nowhere"]})
    status = until(east, "web", lambda status: status.get("reason"))
    assert status["reason"] in ("refused", "nameTaken") and status["phase"] == "Failed"
    assert "nowhere" in status["message"]
    west.client.create({"kind": "network", "name": "nowhere", "project": "default", "spec": {"cidr": "10.9.0.0/24"}})
    until(east, "web", lambda status: status.get("uid", "") != "" and status["reason"] != "refused")
    west.client.patch("cluster", "east", {"spec": {"grants": []}})
    status = until(east, "web", lambda status: status["reason"] == "notGranted")
    assert status["phase"] == "Unknown"
    west.client.patch("cluster", "east", {"spec": {"grants": ["run"]}})
    until(east, "web", lambda status: status["reason"] != "notGranted")


def test_an_abandoned_one_is_left_there(sides: tuple[Side, Side]) -> None:
    east, west = sides
    create(east, "web")
    uid = until(east, "web", lambda status: status.get("uid", "") != "")["uid"]
    east.client.verb("delegation", "web", "abandon", project="default")
    until(east, "web", lambda status: status["reason"] == "abandoned")
    east.client.delete("delegation", "web", project="default")
    until_gone(east, "delegation", "web")
    assert west.client.get("vm", "web", project="default")["uid"] == uid


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"cluster": "nowhere"}, "spec.cluster"),
        ({"workload": "function"}, "spec.workload"),
        ({"template": {}}, "spec.template"),
        ({"template": {**VM, "memmory": "1G"}}, "spec.template.memmory"),
        ({"template": {**VM, "memory": "1X"}}, "spec.template.memory"),
        ({"template": {**VM, "user_data": "x" * 70000}}, "spec.template"),
        ({"resends": 3}, "resends"),
    ],
)
def test_what_is_wrong_is_refused_with_its_field(sides: tuple[Side, Side], spec: dict[str, Any], field: str) -> None:
    with pytest.raises(WeftError) as refused:
        create(sides[0], "wrong", **spec)
    assert field in f"{refused.value.field} {refused.value.message}"


def test_what_began_in_a_project_stays_there_though_the_link_has_another_one(sides: tuple[Side, Side]) -> None:
    east, west = sides
    create(east, "web")
    uid = until(east, "web", lambda status: status.get("uid", "") != "")["uid"]
    east.client.patch("cluster", "west", {"spec": {"projects": {"default": "other"}}})
    east.client.delete("delegation", "web", project="default")
    until(east, "web", lambda status: status["phase"] == "Deleting")
    assert west.client.get("vm", "web", project="default")["uid"] == uid
    end(west, "web")
    until_gone(east, "delegation", "web")


def test_a_request_without_an_answer_may_still_arrive_after_the_deletion(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = sides
    late: list[tuple[PeerLink, list[Act]]] = []

    def hold_back(link: PeerLink, acts: Sequence[Act], clock: Clock) -> list[Seen | WeftError]:
        late.append((link, [act for act in acts if act.what == "put"]))
        return [Unavailable("no answer in time")] * len(acts)

    real = perform.perform_acts
    monkeypatch.setattr(controller, "perform_acts", hold_back)
    monkeypatch.setattr(requests, "SETTLED_SECONDS", 3600.0)
    create(east, "web")
    ends = time.monotonic() + 60.0
    while not late:
        assert time.monotonic() < ends
        time.sleep(0.02)
    east.client.delete("delegation", "web", project="default")
    time.sleep(1.0)  # several turns, in which nothing is there
    assert east.client.get("delegation", "web", project="default")["deleting_since"]
    monkeypatch.setattr(controller, "perform_acts", real)
    real(*late[0], SystemClock())  # it arrives
    end(west, "web")
    monkeypatch.setattr(requests, "SETTLED_SECONDS", 0.0)
    until_gone(east, "delegation", "web")
