"""Each server's journal has the events of all of them, and an answer names the servers whose newest may be missing."""

from __future__ import annotations

import threading
from typing import Any

from tests.scenario.people.test_people import wait_until
from tests.scenario.two_servers_lab import TwoServers

from weft.client.server.endpoints import JOURNAL_HEADER
from weft.contracts.journal import Event
from weft.objects.identity import Ref


def add(lab: TwoServers, server: int, name: str, project: str = "default", reason: str = "Seen") -> None:
    ref = Ref(kind="vm", name=name, uid=f"u-{name}", project=project)
    lab.servers[server].journal.append(Event("Normal", reason, "seen", ref, "test"))
    lab.servers[server].journal.flush()


def list_seen(lab: TwoServers, server: int, **asked: Any) -> list[tuple[str, int]]:
    client = lab.of_each(lab.first.client)[server]
    return [(one["object"]["name"], one["count"]) for one in client.events(about="vm", **asked)]


def test_events_of_each_server_are_read_at_each_and_counted_once(lab: TwoServers) -> None:
    for number in range(3):
        add(lab, 0, f"a{number}")
        add(lab, 1, f"b{number}")
    wanted = {(f"{letter}{n}", 1) for letter in "ab" for n in range(3)}
    for server in (0, 1):
        wait_until(lambda server=server: set(list_seen(lab, server)) == wanted)  # type: ignore[misc]
    for _ in range(4):
        add(lab, 0, "a0")
    add(lab, 1, "a0")  # the same event, at another server
    for server in (0, 1):
        wait_until(
            lambda server=server: (
                sorted(list_seen(lab, server)) == sorted([*(wanted - {("a0", 1)}), ("a0", 1), ("a0", 5)])
            )  # type: ignore[misc]
        )
    own = lab.second.run(lab.second.api.others.ask("s1", "GET", "/v1/events?since=0")).json()["items"]
    assert {one["object"]["name"] for one in own if one["object"]["kind"] == "vm"} == {"a0", "a1", "a2"}  # no copies


def test_who_follows_at_one_server_goes_on_at_another(lab: TwoServers) -> None:
    for number in range(5):  # so that the second server's ids are others
        add(lab, 1, f"early-{number}")
    found: list[str] = []
    client = lab.first.connect()

    def follow() -> None:
        found.extend(one["object"]["name"] for one in client.events(about="vm", follow=True))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    wait_until(lambda: len(found) == 5)
    add(lab, 0, "before")
    wait_until(lambda: "before" in found)
    wait_until(lambda: ("before", 1) in list_seen(lab, 1))
    answer = lab.first.client.http.request("GET", "/v1/events?object=vm&limit=1")
    [newest] = answer.json()["items"]
    client.close()
    thread.join(10)
    add(lab, 1, "after")
    asked = f"/v1/events?object=vm&since={newest['id']}&at={newest['at']}&journal={answer.headers[JOURNAL_HEADER]}"
    items = lab.of_each(lab.first.client)[1].http.request("GET", asked).json()["items"]
    assert {"before", "after"} == {one["object"]["name"] for one in items if one["at"] >= newest["at"]}
    assert "early-0" not in {one["object"]["name"] for one in items}


def test_a_project_s_members_see_its_events_of_all_servers_and_none_of_an_earlier_one(lab: TwoServers) -> None:
    add(lab, 1, "of-others", "shop")
    wait_until(lambda: ("of-others", 1) in list_seen(lab, 0))
    lab.first.client.create({"kind": "project", "name": "shop", "spec": {}})
    add(lab, 1, "ours", "shop")
    viewer = lab.first.with_token(use="access", role="viewer", project="shop")
    for client in lab.of_each(viewer):
        wait_until(lambda client=client: [one["object"]["name"] for one in client.events(about="vm")] == ["ours"])  # type: ignore[misc]


def test_a_server_that_is_away_is_named_and_its_events_stay(lab: TwoServers) -> None:
    add(lab, 1, "b")
    wait_until(lambda: ("b", 1) in list_seen(lab, 0))
    away: list[list[str]] = []
    client = lab.first.connect()
    client.http.on_away = away.append
    lab.second.run(lab.second.server.close())
    wait_until(lambda: client.http.request("GET", "/v1/events").json()["away"] == ["s2"])
    assert away[-1] == ["s2"]
    assert ("b", 1) in list_seen(lab, 0)
    with client.http.stream("GET", "/v1/events?follow=1") as stream:
        assert stream.headers["weft-servers-away"] == "s2"
