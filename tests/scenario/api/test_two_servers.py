"""Two API servers over one store: each rule of admission holds whichever of them is asked, in turn or at once, and while what one
of them has seen of the store is old."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import JoinedNode, make_image, make_vm, run_together
from tests.scenario.dashboard_lab import Browser
from tests.scenario.people.test_people import PASSWORD, add_user, log_in, post_login, wait_until
from tests.scenario.two_servers_lab import TwoServers

from weft.client import Client
from weft.client.answer import raise_problem
from weft.contracts.store import Delete
from weft.objects.errors import WeftError

MOST = 20


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoServers]:
    both = TwoServers(tmp_path_factory.mktemp("servers"))
    for server in both.servers:
        server.api.settings = dataclasses.replace(server.settings, most_objects=MOST)
    both.first.client.create(make_image())
    yield both
    both.close()


def editor(both: TwoServers, project: str, **quota: Any) -> Client:
    """Somebody in a new project with this quota, at the first server."""
    both.first.client.create({"kind": "project", "name": project, "spec": {}})
    both.first.client.apply([{**make_image(), "project": project}])
    if quota:
        both.first.client.create({"kind": "quota", "name": "project", "project": project, "spec": quota})
    ann = both.first.with_token(use="access", role="editor", project=project)
    ann.project = project
    return ann


def vm(name: str, **spec: Any) -> dict[str, Any]:
    return make_vm(name, **{"networks": [], "cpu": 1, "memory": "128M", **spec})


def outcome(attempt: Any) -> str:
    """made, or why not."""
    try:
        attempt()
    except WeftError as error:
        return error.token
    return "made"


def at_second(both: TwoServers, node: JoinedNode) -> JoinedNode:
    context = msgspec.structs.replace(node.context, server=both.second.context.server)
    return JoinedNode(node.name, node.uid, both.second.connect(context), node.key, context)


def test_a_gateway_of_devices_may_list_at_one_server_and_watch_at_the_other(both: TwoServers) -> None:
    client, node = both.first.client, both.first.join("behind")
    client.create({"kind": "project", "name": "farm", "spec": {}})
    client.patch("node", "behind", {"spec": {"devices_project": "farm"}})
    for name in ("pump", "unused"):
        spec = {"properties": {"speed": {"type": "number"}}}
        client.create({"kind": "devicemodel", "name": name, "project": "farm", "spec": spec})
    client.create({"kind": "device", "name": "p1", "project": "farm", "spec": {"node": "behind", "model": "pump"}})
    there = at_second(both, node)
    with contextlib.ExitStack() as stack:
        lines = {}
        for kind in ("device", "devicemodel"):
            cursor = node.client.list(kind, all_projects=True).cursor
            path = f"/v1/{kind}s?watch=1&cursor={cursor}"
            lines[kind] = stack.enter_context(there.client.http.stream("GET", path)).lines()
        client.patch("device", "p1", {"spec": {"model": "unused"}}, project="farm")
        assert any(b'"model":"unused"' in line for line in itertools.islice(lines["device"], 1))
        assert [one["name"] for one in node.client.list("devicemodel", all_projects=True).items] == ["unused"]
        client.patch("devicemodel", "unused", {"spec": {"title": "new"}}, project="farm")
        found = next(line for line in lines["devicemodel"] if b'"kind":"devicemodel"' in line)
        assert b'"name":"unused"' in found


def reasons(results: list[Any]) -> list[str]:
    return sorted(one.token if isinstance(one, WeftError) else "made" for one in results)


@pytest.mark.parametrize("late", [False, True], ids=["in turn", "late"])
def test_a_quota_is_one_for_both_servers(both: TwoServers, late: bool) -> None:
    ann = editor(both, f"quota-{'late' if late else 'turn'}", cpu=3)
    turn = both.in_turn(ann)
    with both.lagging() if late else contextlib.nullcontext():
        assert [outcome(lambda n=n: turn.create(vm(f"v{n}"))) for n in range(6)] == ["made"] * 3 + ["quotaExceeded"] * 3
        turn.put(vm("v1", cpu=0.5))
        assert outcome(lambda: turn.put(vm("v2", cpu=2))) == "quotaExceeded"
        assert outcome(lambda: turn.create(vm("more", cpu=0.5))) == "made"


def test_a_quota_holds_for_requests_that_come_to_both_servers_at_once(both: TwoServers) -> None:
    ann = editor(both, "quota-race", cpu=3)
    here, there = both.of_each(ann)
    makes = [lambda n=n, at=at: at.create(vm(f"v{n}")) for n, at in enumerate([here, there] * 4)]
    assert reasons(run_together(*makes)) == ["made"] * 3 + ["quotaExceeded"] * 5


def test_a_quota_counts_at_the_other_server_as_soon_as_it_is_acknowledged(both: TwoServers) -> None:
    project = "quota-new"
    _, there = both.of_each(editor(both, project))
    there.create(vm("before"))
    with both.lagging():
        both.first.client.create({"kind": "quota", "name": "project", "project": project, "spec": {"cpu": 2}})
        assert [outcome(lambda n=n: there.create(vm(f"v{n}"))) for n in range(2)] == ["made", "quotaExceeded"]
        assert there.batch("vm", [vm("b0"), vm("b1")])[0]["error"]["reason"] == "quotaExceeded"
        assert outcome(lambda: there.put(vm("before", cpu=2))) == "quotaExceeded"


@pytest.mark.parametrize(
    ("reason", "claim"),
    [
        ("alreadyExists", {}),
        ("addressInUse", {"networks": ["blue:10.20.0.9"]}),
        ("portInUse", {"networks": ["blue"], "publish": ["28080:80"]}),
    ],
)
def test_a_name_an_address_and_a_port_are_given_once(both: TwoServers, reason: str, claim: dict[str, Any]) -> None:
    project = f"claims-{reason.lower()}"
    here, there = both.of_each(editor(both, project))
    here.create({"kind": "network", "name": "blue", "spec": {"cidr": "10.20.0.0/24"}})
    same = reason == "alreadyExists"
    wanted = [vm("v0" if same else f"v{n}", **claim) for n in range(6)]
    raced = run_together(
        *(lambda one=one, at=at: at.create(one) for one, at in zip(wanted, [here, there] * 3, strict=True))
    )
    assert reasons(raced) == sorted(["made", *[reason] * 5])
    with both.lagging():
        assert outcome(lambda: there.create(wanted[0] if same else vm("again", **claim))) == reason


def test_limits_on_objects_hold_when_requests_alternate(both: TwoServers) -> None:
    ann = editor(both, "full")
    turn = both.in_turn(ann)
    constraint = {"kind": "constraint", "spec": {"expression": "node.cpu > 1"}}
    made = [outcome(lambda n=n: turn.create({**constraint, "name": f"c{n}"})) for n in range(2 * MOST)]
    assert made == ["made"] * MOST + ["tooManyObjects"] * MOST


def test_a_login_at_one_server_is_one_at_the_other_until_it_ends(both: TwoServers) -> None:
    add_user(both.first, "mila")
    here = log_in(both.first, "mila")
    _, there = both.of_each(here)
    with both.lagging():
        other = log_in(both.first, "mila")
        _, other_there = both.of_each(other)
        assert other_there.http.request("GET", "/v1/whoami").json()["user"] == "mila"
        new = "another correct horse"
        raise_problem(there.http.request("POST", "/v1/users/mila:passwd", {"password": new, "old": PASSWORD}))
        assert outcome(lambda: other.list("project")) == "notAuthenticated", "a login that the second server didn't see"
        assert post_login(both.first, "mila").status == 401
        assert post_login(both.second, "mila", new).status == 201
    wait_until(lambda: outcome(lambda: other_there.list("project")) == "notAuthenticated")


def test_a_user_who_was_just_made_at_one_server_is_let_in_by_the_other(both: TwoServers) -> None:
    with both.lagging():
        add_user(both.first, "new")
        client = log_in(both.second, "new")
        assert client.http.request("GET", "/v1/whoami").json()["user"] == "new"


def test_what_one_server_ended_counts_no_more_there_before_its_watch_brings_it(both: TwoServers) -> None:
    add_user(both.second, "gone")
    client = log_in(both.second, "gone")
    both.second.client.create({"kind": "rolebinding", "name": "gone", "spec": {"role": "viewer", "users": ["gone"]}})
    client.list("node")
    with both.lagging():
        both.second.client.delete("rolebinding", "gone")
        assert outcome(lambda: client.list("node")) == "forbidden"
        [login] = [
            one["name"]
            for one in both.second.client.list("token").items
            if one["owner"] and one["owner"]["name"] == "gone"
        ]
        both.second.client.delete("token", login)
        assert outcome(lambda: client.list("node")) == "notAuthenticated"


def test_a_session_of_a_browser_is_one_for_both_servers(both: TwoServers) -> None:
    add_user(both.first, "rita")
    browser = Browser(both.first)
    assert browser.send("POST", "/v1/session", {"user": "rita", "password": PASSWORD}).status == 201
    other = Browser(both.second)
    other.cookie, other.page_key = browser.cookie, browser.page_key
    assert other.get("/v1/whoami")["user"] == "rita"
    assert other.send("DELETE", "/v1/session").status == 204
    wait_until(lambda: browser.send("GET", "/v1/whoami").status == 401)


def test_what_ended_at_one_server_gives_nothing_that_lasts_at_another_that_has_not_seen_it(both: TwoServers) -> None:
    made = both.first.client.create({"kind": "token", "name": "thief", "spec": {"use": "access", "role": "admin"}})
    thief = both.second.connect(msgspec.structs.replace(both.second.context, token=made["secret"]))
    add_user(both.first, "leaver")
    leaver = log_in(both.second, "leaver")
    wait_until(lambda: {"/token/-/thief", "/user/-/leaver"} <= _seen_by_second(both))
    heirs = [("token", {"use": "access", "role": "admin"}), ("rolebinding", {"role": "admin", "users": ["x"]})]
    own = {"kind": "token", "name": "heir", "spec": {"use": "access", "role": ""}}
    with both.lagging():
        both.first.client.delete("token", "thief")
        both.first.client.patch("user", "leaver", {"spec": {"disabled": True}})
        for kind, spec in heirs:
            assert outcome(lambda k=kind, s=spec: thief.create({"kind": k, "name": "heir", "spec": s})) == (
                "notAuthenticated"
            )
        assert outcome(lambda: leaver.create(own)) == "notAuthenticated"


def _seen_by_second(both: TwoServers) -> set[str]:
    return {*both.second.api.tokens.found, *both.second.api.accounts._users.found}


def test_a_join_token_enrols_one_node_at_either_server(both: TwoServers) -> None:
    secret = both.first.client.create({"kind": "token", "name": "j1", "spec": {"use": "join"}})["secret"]
    joins = [lambda at=at, n=n: at.join_with(secret, f"race{n}") for n, at in enumerate(both.servers * 3)]
    assert reasons(run_together(*joins)) == ["made", *["notAuthenticated"] * 5]


def test_a_repeated_request_is_done_once_whichever_server_gets_it(both: TwoServers) -> None:
    here, there = both.of_each(editor(both, "repeats"))
    wanted = {"kind": "volume", "name": "data", "spec": {"size": "1G"}}
    ask = [lambda at=at: at.create(wanted, idempotency_key="once") for at in (here, there) * 3]
    with both.lagging():
        assert len({one["uid"] for one in run_together(*ask)}) == 1
        uid = here.get("volume", "data")["uid"]
        here.delete("volume", "data")
        both.first.run(both.store.commit([Delete("/volume/repeats/data")]))
        assert outcome(lambda: there.create(wanted, idempotency_key="once")) == "invalidInput", (
            f"{uid} was made and deleted"
        )


def test_of_two_changes_to_one_revision_one_is_made(both: TwoServers) -> None:
    here, there = both.of_each(editor(both, "changes"))
    made = here.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    sizes = [{**made, "spec": {"size": f"{n + 2}G"}} for n in range(4)]
    raced = run_together(
        *(lambda at=at, one=one: at.put(one) for at, one in zip((here, there) * 2, sizes, strict=True))
    )
    assert reasons(raced) == ["made", *["staleRevision"] * 3]


def test_a_late_report_takes_no_newer_ones_place_whichever_server_it_comes_to(both: TwoServers) -> None:
    node = both.first.join("n1")
    here, there = node, at_second(both, node)
    assert here.report(node={"cpu": 4}, version="a.1")["version"] == "a.1"
    assert there.report(version="a.1")["version"] == "a.1", "nothing is sent again because another server answers"
    assert there.report(node={"cpu": 5}, version="a.2")["version"] == "a.2"
    assert here.report(node={"cpu": 4}, version="a.1")["version"] == "a.2"
    assert both.first.client.get("node", "n1")["report"]["cpu"] == 5


def test_a_list_and_a_watch_go_on_at_the_other_server(both: TwoServers) -> None:
    here, there = both.of_each(editor(both, "pages"))
    for n in range(4):
        here.create({"kind": "volume", "name": f"v{n}", "spec": {"size": "1G"}})
    path = "/v1/projects/pages/volumes?limit=2"
    page = here.http.request("GET", path).json()
    with both.lagging():
        here.create({"kind": "volume", "name": "v0a", "spec": {"size": "1G"}})
        rest = there.http.request("GET", f"{path}&continue={page['continue']}").json()
    assert [one["name"] for one in (*page["items"], *rest["items"])] == ["v0", "v1", "v2", "v3"]
    event = next(there.watch("volume", page["cursor"]))
    assert event.object["name"] == "v0a"
    there.delete("volume", "v0a")
    following = next(here.watch("volume", event.cursor))
    assert (following.type, following.object["name"]) in (("delete", "v0a"), ("put", "v0a"))
