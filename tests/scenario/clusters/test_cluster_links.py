"""Two fabrics are linked with each other, over a line that is cut: who may do what, for how long, and what each shows of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.scenario.api.test_api_requests import every_route
from tests.scenario.link_lab import Side, two_sides

from weft.api.cluster import link_names
from weft.client import Client
from weft.client.answer import raise_problem
from weft.client.cluster.peer import ask_hello
from weft.contracts.store import Delete
from weft.kinds.container import CONTAINER, ContainerSpec
from weft.kinds.fields.cluster.link import GRANTS
from weft.kinds.job import JOB, JobSpec, TaskSpec
from weft.kinds.vm import VM, VmSpec
from weft.objects.errors import (
    AlreadyExists,
    Forbidden,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    Unavailable,
    WeftError,
)
from weft.objects.identity import SERVER_NAME
from weft.protocol.link import PROJECT_HEADER


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    with two_sides(tmp_path) as both:
        yield both


def as_peer(asker: Side, name: str, asked: Side, own_project: str = "default") -> Client:
    """What anyone can do at ``asked`` with the token that ``asker`` has for it, who says that it is for ``own_project`` of its own;
    "": and says of none."""
    context = msgspec.structs.replace(asked.context, token=asker.bearer(name), server_name=SERVER_NAME)
    client = asked.connect(context)
    if own_project:
        client.http.on_request = lambda request: request.headers.update({PROJECT_HEADER: own_project})
    return client


def test_one_token_links_both_ways_and_works_once(sides: tuple[Side, Side]) -> None:
    east, west = sides
    token = west.link_token("east")
    made = east.link("west", west, token)
    assert made["status"]["phase"] == "Linked" and made["spec"]["url"] == west.proxy.url
    assert made["spec"]["values"] == {} and token not in str(made)
    there = west.cluster("east")
    assert there["spec"]["url"] == east.proxy.url and there["status"]["peer_uid"] == there["marks"]["peer_uid"]
    assert ask_hello(east.peer("west")).uid == made["marks"]["peer_uid"]
    assert ask_hello(west.peer("east")).uid == there["marks"]["peer_uid"]
    with pytest.raises(InvalidInput, match="used already"):
        east.link("west", west, token)
    for side, name in ((east, "west"), (west, "east")):
        side.wait_for(name, lambda status: status["clock_offset_seconds"] is not None)
    # Linked again, it may do what it might before, unless another word is given.
    may = {"grants": ["migrate", "replicate"], "projects": {"default": "default"}}
    for side, name in ((east, "west"), (west, "east")):
        side.client.patch("cluster", name, {"spec": may})
    east.link("west", west, west.link_token("east"))
    assert all(
        side.cluster(name)["spec"][key] == may[key] for side, name in ((east, "west"), (west, "east")) for key in may
    )
    with pytest.raises(InvalidInput, match="projects is empty"):
        east.link("west", west, west.link_token("east"), projects={})
    token = west.link_token("east", grants=["run"], projects={"default": "default"})
    with pytest.raises(NotFound, match='project "defualt" not found'):
        east.link("west", west, token, projects={"defualt": "default"})
    east.link("west", west, token, grants=[])  # the other side has not used it
    assert east.cluster("west")["spec"]["grants"] == [] and west.cluster("east")["spec"]["grants"] == ["run"]


def test_a_cluster_without_grants_may_only_say_hello(sides: tuple[Side, Side]) -> None:
    east, west = sides
    east.link("west", west, west.link_token("east"))
    peer = as_peer(east, "west", west)
    for kind in ("vm", "secret", "token", "node", "cluster", "project", "user"):
        with pytest.raises(Forbidden, match="cluster:east"):
            peer.list(kind)
    with pytest.raises(Forbidden):
        peer.create({"kind": "vm", "name": "web", "spec": {"image": "tiny"}})
    with pytest.raises(Forbidden):
        peer.create({"kind": "token", "spec": {"use": "access", "role": "viewer"}})


def test_who_has_a_link_s_token_gets_nothing_but_what_the_api_says_of_itself(sides: tuple[Side, Side]) -> None:
    """As a thief would: each operation of the API, with a token that has no grants."""
    east, west = sides
    east.link("west", west, west.link_token("east"))
    peer, answered = as_peer(east, "west", west), []
    for method, path in every_route():
        if path.endswith("/stream"):
            continue  # the dashboard's, which has no end
        answer = peer.http.request(method, path, None if method == "GET" else {}, headers={"Idempotency-Key": path})
        if answer.status < 400:
            answered.append((method, path, answer.body))
    # Its own name and rights, what every client may know of the API, and where streams connect.
    own = ("/v1/whoami", "/v1/link", "/v1/gateway")
    api = ("/", "/v1/healthz", "/v1/kinds", "/v1/openapi.json")
    assert {path: method for method, path, _ in answered} == dict.fromkeys((*own, *api), "GET")


def test_a_linked_cluster_with_every_grant_is_shown_no_dashboard_and_traces_no_connection(
    sides: tuple[Side, Side],
) -> None:
    east, west = sides
    terms = {"grants": ["replicate", "run", "migrate"], "projects": {"default": "default"}}
    east.link("west", west, west.link_token("east", **terms), **terms)
    peer = as_peer(east, "west", west)
    for path in ("search?q=a", "table?kinds=vm&project=default", "summary", "stream?show={}"):
        answer = peer.http.request("GET", f"/v1/dashboard/{path}")
        assert answer.status == 403 and "cluster:east may not use the dashboard" in answer.body.decode(), path
    answer = peer.http.request("GET", "/v1/projects/default/networktrace?from=vm/a&to=vm/b")
    assert answer.status == 403 and "cluster:east may not trace connections" in answer.body.decode()


def test_a_deleted_link_ends_the_others_rights_at_once(sides: tuple[Side, Side]) -> None:
    east, west = sides
    east.link("west", west, west.link_token("east"))
    stolen = east.peer("west")
    assert ask_hello(stolen).uid
    west.client.delete("cluster", "east")
    gone = time.monotonic()
    while True:
        try:
            ask_hello(stolen)
        except NotAuthenticated as refusal:
            assert refusal.token == "linkRefused"
            break
        assert time.monotonic() < gone + 1.0
    status = east.wait_for("west", lambda status: status["phase"] == "Refused")
    assert "doesn't accept this cluster's token" in status["message"]
    # The same command with a new token mends both halves.
    east.link("west", west, west.link_token("east"))
    east.wait_for("west", lambda status: status["phase"] == "Linked")
    assert ask_hello(west.peer("east")).uid


def test_no_secret_of_a_link_is_in_answers_logs_or_the_store(
    sides: tuple[Side, Side], caplog: pytest.LogCaptureFixture
) -> None:
    east, west = sides
    token = west.link_token("east")
    east.link("west", west, token)
    with pytest.raises(InvalidInput):
        east.link("west", west, token)
    secrets = {text.split("_")[2][:64] for text in (token, east.bearer("west"), west.bearer("east"))}
    assert len(secrets) == 3
    for side, name in ((east, "west"), (west, "east")):
        ask_hello(side.peer(name))
        shown = [str(side.client.list(kind).items) for kind in ("cluster", "token")]
        shown += [str(list(side.client.events(limit=1000))), caplog.text]
        stored = side.run(side.store.list("/"))
        shown += [entry.value.decode() for entry in stored.entries]
        shown += [
            path.read_bytes().decode(errors="replace") for path in (side.folder / "audit").rglob("*") if path.is_file()
        ]
        assert not [secret for secret in secrets for text in shown if secret in text]


def test_grants_are_for_the_link_s_projects_and_taken_at_once(sides: tuple[Side, Side]) -> None:
    east, west = sides
    west.client.create({"kind": "project", "name": "lab", "spec": {}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRANTS, "replicate", {"network": ["get", "create", "update"], "vm": ["get", "create", "start"]})
        east.link("west", west, west.link_token("east", grants=["replicate"], projects={"lab": "default"}))
        peer = as_peer(east, "west", west)
        made = peer.create({"kind": "network", "name": "a", "project": "lab", "spec": {"cidr": "10.9.0.0/24"}})
        assert made["created_by"] == "cluster:east"
        for refused in ({"name": "b", "project": "default"}, {"name": "c", "project": "fabric"}):
            with pytest.raises(Forbidden):
                peer.create({"kind": "network", "spec": {"cidr": "10.8.0.0/24"}, **refused})
        with pytest.raises(Forbidden):
            peer.delete("network", "a", project="lab")
        assert peer.get("network", "a", project="lab")["uid"] == made["uid"]
        peer.patch("network", "a", {"labels": {"x": "y"}}, project="lab")
        # What others made is not there for it, whatever it may do to its own.
        west.client.create({"kind": "network", "name": "ours", "project": "lab", "spec": {"cidr": "10.7.0.0/24"}})
        west.put(VM.make("ours", VmSpec(image="tiny"), 1.0, project="lab", creator="cluster:other"))
        for ask in (
            lambda: peer.get("network", "ours", project="lab"),
            lambda: peer.patch("network", "ours", {"labels": {"x": "y"}}, project="lab"),
            lambda: peer.put({"kind": "network", "name": "ours", "project": "lab", "spec": {"cidr": "10.7.0.0/24"}}),
            lambda: peer.verb("vm", "ours", "start", project="lab"),
        ):
            with pytest.raises(NotFound):
                ask()
        west.client.patch("cluster", "east", {"spec": {"grants": []}})
        with pytest.raises(Forbidden):
            peer.get("network", "a", project="lab")
    with pytest.raises(InvalidInput, match="projects is empty"):
        west.client.patch("cluster", "east", {"spec": {"grants": ["replicate"], "projects": {"lab": None}}})
    with pytest.raises(InvalidInput, match="can never change"):
        west.client.patch("cluster", "east", {"spec": {"ca": "x"}})
    with pytest.raises(InvalidInput, match="only a link sets it"):
        west.client.patch("cluster", "east", {"spec": {"sealed": {"token": None}}})


def test_a_cluster_has_rights_only_for_the_project_of_its_own_that_the_link_here_leads_to(
    sides: tuple[Side, Side],
) -> None:
    """What it says is compared with this side's own map: an older cluster, which says nothing, and one whose map is another, or
    which took the word of its people for it, reach nobody here."""
    east, west = sides
    for name in ("lab", "till"):
        west.client.create({"kind": "project", "name": name, "spec": {}})
    terms = {"grants": ["replicate", "run", "migrate"], "projects": {"lab": "default", "till": "shop"}}
    east.link("west", west, west.link_token("east", **terms))
    west.put(VM.make("own", VmSpec(image="tiny"), 1.0, project="lab", creator="cluster:east"))
    replica = {"of": "vm/web", "origin": "o", "disks": {"root": 1}}

    def list_answers(own_project: str, project: str) -> list[int]:
        peer = as_peer(east, "west", west, own_project).http
        asked = [
            peer.request("GET", f"/v1/projects/{project}/vms/own"),
            peer.request("GET", f"/v1/projects/{project}/vms"),
            peer.request(
                "POST", f"/v1/projects/{project}/replicas", {"kind": "replica", "name": "web", "spec": replica}
            ),
            peer.request("POST", f"/v1/projects/{project}/arrivals", {"kind": "arrival", "name": "web", "spec": {}}),
            peer.request("PATCH", f"/v1/projects/{project}/vms/own", {"labels": {"a": "b"}}),
            peer.request("DELETE", f"/v1/projects/{project}/vms/own"),
        ]
        return [answer.status for answer in asked]

    for own_project in ("", "shop", "lab", "atk", "default, shop"):
        assert list_answers(own_project, "lab") == [403] * 6, own_project
    assert list_answers("default", "till") == [403] * 6
    with pytest.raises(Forbidden, match="doesn't say which of its own projects it asks for") as told:
        as_peer(east, "west", west, "").get("vm", "own", project="lab")
    assert "update that cluster" in str(told.value.hint)
    with pytest.raises(Forbidden, match="for its project atk"):
        as_peer(east, "west", west, "atk").get("vm", "own", project="lab")
    answered = list_answers("default", "lab")
    assert 403 not in answered and answered[2] == 201, answered


def test_a_cluster_that_runs_workloads_deletes_only_what_it_made(sides: tuple[Side, Side]) -> None:
    """Neither at once nor by a mark, not by force, not as a repeat; and the answer has nothing of the spec."""
    east, west = sides
    east.link("west", west, west.link_token("east", grants=["run"], projects={"default": "default"}))
    peer = as_peer(east, "west", west)
    one = {"project": "default", "creator": "token:admin"}
    vm = VM.make("web", VmSpec(image="tiny", user_data="#secret"), 1.0, **one)  # type: ignore[arg-type]
    marked = VM.make("going", VmSpec(image="tiny", user_data="#secret"), 1.0, **one)  # type: ignore[arg-type]
    marked.finalizers, marked.deleting_since = ["vms"], 2.0
    container = CONTAINER.make("app", ContainerSpec(image="busybox"), 1.0, **one)  # type: ignore[arg-type]
    job = JOB.make("sum", JobSpec(task=TaskSpec(image="busybox")), 1.0, **one)  # type: ignore[arg-type]
    west.put(vm, marked, container, job)
    west.put(JOB.make("own", JobSpec(task=TaskSpec(image="busybox")), 1.0, project="default", creator="cluster:east"))
    done = peer.http.request("DELETE", "/v1/projects/default/jobs/own", headers={"Idempotency-Key": "done"})
    assert done.status in (200, 202)
    for envelope in (vm, marked, container, job):
        path = f"/v1/projects/default/{envelope.kind}s/{envelope.name}"
        absent = peer.http.request("DELETE", f"/v1/projects/default/{envelope.kind}s/none")
        for query, key in (("", "1"), ("?force=true", "2"), (f"?uid={envelope.uid}", "3"), ("", "done")):
            refused = peer.http.request("DELETE", path + query, headers={"Idempotency-Key": key})
            assert refused.status == absent.status == 404 and b"secret" not in refused.body, (path, query, refused.body)
        stored = west.stored(envelope.key)
        assert stored is not None and stored.deleting_since == envelope.deleting_since


def test_what_a_cluster_made_is_not_the_next_one_s_that_gets_its_name(sides: tuple[Side, Side], tmp_path: Path) -> None:
    east, west = sides
    terms = {"grants": ["run"], "projects": {"default": "default"}}
    east.link("west", west, west.link_token("east", **terms))
    west.put(VM.make("web", VmSpec(image="tiny"), 1.0, project="default", creator="cluster:east"))
    own = as_peer(east, "west", west).get("vm", "web")["uid"]
    west.client.delete("cluster", "east")
    west.restart()  # what is known of the name is in the store
    with contextlib.closing(Side(tmp_path / "third")) as third:
        token = west.link_token("east", **terms)
        for _ in range(2):  # the token isn't used up
            with pytest.raises(
                AlreadyExists, match="another cluster's, and a VM that it made is still here"
            ) as refused:
                third.link("west", west, token)
        assert "use another name" in (refused.value.hint or "") and "web" not in str(refused.value)
        with pytest.raises(AlreadyExists, match="still here"):  # nor where this side gives the name
            west.link("east", third, third.link_token("west"), **terms)
        assert third.client.list("cluster").items == [] == west.client.list("cluster").items
        # The same cluster gets its own again, under its name.
        east.link("west", west, west.link_token("east", **terms))
        peer = as_peer(east, "west", west)
        assert peer.get("vm", "web")["uid"] == own
        # Once nothing of it is left, the name is free.
        web = west.stored("/vm/default/web")
        assert web is not None
        west.run(west.store.commit([Delete(web.key)]))
        west.client.delete("cluster", "east")
        third.link("west", west, token)
        with pytest.raises(NotFound):
            as_peer(third, "west", west).get("vm", "web")


def test_a_name_is_refused_where_nothing_says_whose_it_was(sides: tuple[Side, Side]) -> None:
    """As after a link that an older release deleted, and where the object is the last of many."""
    east, west = sides
    west.put(*(VM.make(f"a{number}", VmSpec(image="tiny"), 1.0, project="default") for number in range(40)))
    west.put(VM.make("z", VmSpec(image="tiny"), 1.0, project="default", creator="cluster:east"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_names, "_PAGE", 20)
        with pytest.raises(AlreadyExists, match="still here"):
            east.link("west", west, west.link_token("east"))
    east.link("west", west, west.link_token("far-east"))


def test_who_may_not_give_rights_gives_none_to_a_cluster(sides: tuple[Side, Side]) -> None:
    east, west = sides
    east.link("west", west, west.link_token("east"))
    west.client.create({"kind": "role", "name": "linker", "spec": {"rules": {"cluster": ["*"], "token": ["create"]}}})
    linker = west.with_token(use="access", role="linker")
    linker.patch("cluster", "east", {"spec": {"projects": {}}})
    with pytest.raises(NotFound, match='project "defualt" not found'):
        west.client.patch("cluster", "east", {"spec": {"projects": {"defualt": "default"}}})
    with pytest.raises(Forbidden, match="let another cluster do more"):
        linker.patch("cluster", "east", {"spec": {"grants": ["replicate"], "projects": {"default": "default"}}})
    link = {"name": "x", "grants": ["replicate"], "projects": {"default": "default"}}
    with pytest.raises(Forbidden):
        linker.create({"kind": "token", "spec": {"use": "link", "link": link}})
    with pytest.raises(Forbidden):  # they would widen the grants that it has
        linker.create({"kind": "token", "spec": {"use": "link", "link": {"name": "east", "projects": {"lab": "lab"}}}})
    linker.create({"kind": "token", "spec": {"use": "link", "link": {"name": "x"}}})
    editor = west.with_token(use="access", role="editor")
    for spec in ({"use": "link", "link": {"name": "x"}}, {"use": "cluster", "role": ""}):
        with pytest.raises(WeftError):
            editor.create({"kind": "token", "spec": spec})
    with pytest.raises(InvalidInput, match="only a link makes"):
        west.client.create({"kind": "token", "spec": {"use": "cluster"}})


def test_who_has_roles_in_projects_only_sees_of_a_link_that_it_is_there_and_how_it_is(sides: tuple[Side, Side]) -> None:
    """Its projects are the names of other people's, and its address and grants are the administrators' matter."""
    east, west = sides
    west.client.create({"kind": "project", "name": "shopfloor", "spec": {}})
    east.link("west", west, west.link_token("east", grants=["replicate"], projects={"shopfloor": "default"}))
    west.wait_for("east", lambda status: status["phase"] == "Linked")
    whole = west.cluster("east")
    viewer = west.with_token(use="access", role="viewer", project="default")
    asked = viewer.http.request("GET", "/v1/clusters?watch=1&timeout=1").body
    for one in (viewer.get("cluster", "east"), *viewer.list("cluster").items):
        assert (one["name"], one["status"]["phase"]) == ("east", "Linked")
        assert not one["spec"].keys() & {"url", "ca", "grants", "projects", "sealed"} and not one["marks"].keys()
        assert not one["status"].keys() & {"peer_uid", "message"}
        assert whole["spec"]["url"] not in str(one) and "shopfloor" not in str(one)
    assert b"shopfloor" not in asked and whole["spec"]["url"].encode() not in asked
    assert not viewer.list("cluster", fields=f"spec.url={whole['spec']['url']}").items, "nor by a selector"


def test_a_link_token_is_for_projects_that_exist(sides: tuple[Side, Side]) -> None:
    west = sides[1]
    west.client.create({"kind": "project", "name": "lab", "spec": {}})
    with pytest.raises(NotFound, match="lap"):
        west.link_token("east", grants=["replicate"], projects={"default": "default", "lap": "lab"})
    assert west.link_token(
        "east", grants=["replicate"], projects={"lab": "far"}
    )  # what is there, only the other side knows


def test_a_link_token_does_nothing_else_and_ends(sides: tuple[Side, Side]) -> None:
    east, west = sides
    token = west.link_token("east").partition(".")[0]
    holder = west.connect(msgspec.structs.replace(west.context, token=token))
    with pytest.raises(Forbidden, match="a link token"):
        holder.list("vm")
    for method, path in (("POST", "/v1/join"), ("GET", "/v1/link"), ("GET", "/v1/gateway")):
        assert holder.http.request(method, path, {}).status == 403, path
    made = west.client.create(
        {"kind": "token", "spec": {"use": "link", "link": {"name": "east"}, "expires_at": west.clock.now() + 0.5}}
    )
    time.sleep(0.6)
    with pytest.raises(InvalidInput, match="has expired"):
        east.link("west", west, made["secret"])


def test_a_slow_line_is_no_matter_and_one_way_is_named(sides: tuple[Side, Side]) -> None:
    east, west = sides
    west.proxy.delay_seconds = 0.15
    east.proxy.cut()
    east.link("west", west, west.link_token("east"))
    east.wait_for("west", lambda status: status["phase"] == "Linked" and status["reason"] == "oneWay")
    east.proxy.mend()
    east.wait_for("west", lambda status: status["phase"] == "Linked" and not status["reason"])


def test_a_line_that_is_cut_and_mended_is_seen_on_either_side(sides: tuple[Side, Side]) -> None:
    east, west = sides
    east.link("west", west, west.link_token("east"))
    west.proxy.cut()
    with pytest.raises(Unavailable):
        ask_hello(east.peer("west"))
    status = east.wait_for("west", lambda status: status["phase"] == "Unreachable")
    assert status["message"].startswith("west doesn't answer") and status["seen_at"]
    west.wait_for("east", lambda status: status["phase"] == "Linked")  # the other way still works
    west.proxy.mend()
    east.wait_for("west", lambda status: status["phase"] == "Linked")


def test_a_name_has_one_cluster_and_a_cluster_one_name(sides: tuple[Side, Side]) -> None:
    east, west = sides
    east.link("west", west, west.link_token("east"))
    with pytest.raises(AlreadyExists, match="linked already, as west"):
        east.link("also-west", west, west.link_token("east"))
    with pytest.raises(AlreadyExists, match="linked already, as east"):
        east.link("west", west, west.link_token("other"))
    assert ask_hello(east.peer("west")).uid  # neither try has ended the link that there is
    with pytest.raises(InvalidInput, match="itself"):
        east.link("me", east, east.link_token("me"))
    with pytest.raises(InvalidInput, match="not created"):
        east.client.create({"kind": "cluster", "name": "x", "spec": {"url": "https://10.0.0.1", "ca": "x"}})


def test_the_secret_is_sent_to_nobody_with_another_ca(sides: tuple[Side, Side]) -> None:
    east, west = sides
    token = west.link_token("east")
    with pytest.raises(InvalidInput, match="another CA"):
        body = {"url": east.proxy.url, "token": token, "own_url": east.proxy.url}
        raise_problem(east.client.http.request("POST", "/v1/clusters/west:link", body))
    east.link("west", west, token)  # so it is unused


def test_a_restored_store_may_do_nothing_until_it_is_trusted_again(sides: tuple[Side, Side]) -> None:
    east, west = sides
    east.link("west", west, west.link_token("east"))
    answer = east.ask

    def restored(link):  # type: ignore[no-untyped-def]
        return msgspec.structs.replace(answer(link), epoch="another")

    east.ask = restored
    status = east.wait_for("west", lambda status: status["phase"] == "Suspect")
    assert status["reason"] == "restored" and "weft cluster trust west" in status["message"]
    west.wait_for("east", lambda status: status["reason"] == "suspectedThere")
    east.client.verb("cluster", "west", "trust")
    east.wait_for("west", lambda status: status["phase"] == "Linked" and status["epoch"] == "another")
    with pytest.raises(WeftError, match="nothing to trust"):
        east.client.verb("cluster", "west", "trust")
