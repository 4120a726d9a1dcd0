"""Own roles: what they allow, who may give them, what a change of one does, and that one in use stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm
from tests.scenario.people.test_api_audit import read, weft
from tests.scenario.people.test_people import PASSWORD, add_user, create, is_refused, log_in, wait_until

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.contracts.store import Put
from weft.objects.errors import Forbidden, InUse, InvalidInput, NotFound, WeftError

STARTER = {"vm": ["get", "list", "hold", "release"], "image": ["get", "list"]}
MEMBERS = {"rolebinding": ["*"], "token": ["*"], "role": ["*"], "user": ["*"], "group": ["*"], **STARTER}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("roles"))
    for name in ("lab", "other"):
        create(lab, "project", name)
        lab.client.apply([{**make_image(), "project": name}])
        lab.client.apply([{**make_vm("web", networks=[]), "project": name}])
    create(lab, "role", "starter", rules=STARTER)
    yield lab
    lab.close()


def refusal(work: Callable[[], object]) -> Forbidden:
    with pytest.raises(Forbidden) as refused:
        work()
    return refused.value


def test_an_own_role_allows_what_it_lists_and_nothing_else(lab: ApiLab) -> None:
    add_user(lab, "ann")
    create(lab, "rolebinding", "ann-lab", role="starter", project="lab", users=["ann"])
    ann = log_in(lab, "ann")
    program = lab.with_token(use="access", role="starter", project="lab")
    for client in (ann, program):
        assert [one["name"] for one in client.list("vm", project="lab").items] == ["web"]
        client.verb("vm", "web", "hold", project="lab")
        client.verb("vm", "web", "release", project="lab")
        for work, missing in (
            (lambda c=client: c.verb("vm", "web", "restart", project="lab"), "vm:restart"),
            (lambda c=client: c.delete("vm", "web", project="lab"), "vm:delete"),
            (lambda c=client: c.list("container", project="lab").items, "container:list"),
            (lambda c=client: c.list("vm", project="other").items, "vm:list"),
            (lambda c=client: c.apply([{**make_vm("new", networks=[]), "project": "lab"}]), "vm:update"),
        ):
            found = refusal(work)
            assert found.details["permission"] == missing and missing in (found.hint or "")
    me = ann.http.request("GET", "/v1/whoami").json()
    assert me["grants"] == [{"role": "starter", "project": "lab"}]


def test_a_name_that_is_built_in_or_that_nothing_has_is_refused(lab: ApiLab) -> None:
    with pytest.raises(InvalidInput, match="name: editor is a built-in role") as taken:
        create(lab, "role", "editor", rules=STARTER)
    assert (taken.value.field, taken.value.hint) == ("name", "choose another name")
    with pytest.raises(NotFound, match='role "starters" not found') as unknown:
        create(lab, "rolebinding", "x", role="starters", project="lab")
    assert (unknown.value.field, unknown.value.hint) == (
        "spec.role",
        "did you mean starter?; built in are viewer, operator, editor, admin, fabric-admin, auditor, invoker",
    )
    with pytest.raises(NotFound) as nearly:
        create(lab, "token", "x", use="access", role="vewer")
    assert (nearly.value.field, nearly.value.hint) == ("spec.role", "did you mean viewer?")
    with pytest.raises(InvalidInput, match="'strat' is not a verb of vm") as verb:
        create(lab, "role", "x", rules={"vm": ["strat"]})
    assert (verb.value.field, verb.value.hint) == ("spec.rules.vm", "did you mean start?")


def test_better_nodes_are_asked_for_by_those_who_may_migrate_the_workload(lab: ApiLab) -> None:
    asks = {"recommendation": ["create", "get"], "vm": ["get", "list"]}
    create(lab, "role", "asks", rules=asks)
    create(lab, "role", "migrates", rules={**asks, "vm": ["get", "list", "migrate"]})
    asking, migrating = (lab.with_token(use="access", role=role, project="lab") for role in ("asks", "migrates"))

    def ask(client: Client, name: str, **spec: object) -> object:
        asked = {"workload": "vm/web", **spec}
        return client.create({"kind": "recommendation", "name": name, "project": "lab", "spec": asked})

    ask(asking, "plain")
    found = refusal(lambda: ask(asking, "better", suggest=True))
    assert found.details["permission"] == "vm:migrate" and "ask for better nodes" in found.message
    ask(migrating, "better", suggest=True)


def test_a_role_in_use_stays(lab: ApiLab) -> None:
    create(lab, "role", "held", rules=STARTER)
    create(lab, "rolebinding", "of-held", role="held", project="lab")
    create(lab, "token", "with-held", use="access", role="held")
    with pytest.raises(InUse, match="rolebinding/of-held") as used:
        lab.client.delete("role", "held")
    assert set(used.value.details["by"]) == {"rolebinding/of-held", "token/with-held"}
    lab.client.delete("rolebinding", "of-held")
    with pytest.raises(InUse, match="token/with-held"):
        lab.client.delete("role", "held")
    lab.client.delete("token", "with-held")
    lab.client.delete("role", "held")


def test_a_role_is_deleted_or_bound_and_never_both(lab: ApiLab) -> None:
    for number in range(30):
        name = f"raced-{number}"
        create(lab, "role", name, rules=STARTER)
        clients, start = [lab.connect(), lab.connect()], threading.Barrier(2)

        def race(work: Callable[[], object], start: threading.Barrier = start) -> None:
            start.wait()
            is_refused(work, WeftError)

        manifest = {"kind": "rolebinding", "name": name, "spec": {"role": name, "project": "lab"}}
        works = (
            lambda c=clients[0], n=name: c.delete("role", n),
            lambda c=clients[1], m=manifest: c.create(m),
        )
        threads = [threading.Thread(target=race, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        roles = {one["name"] for one in lab.client.list("role").items}
        bound = {one["spec"]["role"] for one in lab.client.list("rolebinding").items}
        assert (name in roles) == (name in bound)


def test_a_changed_role_counts_at_once_and_ends_open_streams(lab: ApiLab) -> None:
    create(lab, "role", "changing", rules=STARTER)
    add_user(lab, "bob")
    create(lab, "rolebinding", "bob-lab", role="changing", project="lab", users=["bob"])
    bob, program = log_in(lab, "bob"), lab.with_token(use="access", role="changing", project="lab")
    cursor = bob.list("vm", project="lab").cursor
    ended: list[float] = []

    def follow(client: Any) -> None:
        if not is_refused(lambda: _read(client, f"/v1/projects/lab/vms?watch=1&cursor={cursor}"), WeftError):
            ended.append(time.monotonic())

    threads = [threading.Thread(target=follow, args=(client,), daemon=True) for client in (bob, program)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(lab.api.streams) >= 2)
    time.sleep(0.3)
    assert not ended
    changed = time.monotonic()
    lab.client.patch("role", "changing", {"spec": {"rules": {"vm": ["get"]}}})
    for thread in threads:
        thread.join(5)
    assert len(ended) == 2 and max(ended) - changed < 2.0
    for client in (bob, program):
        assert refusal(lambda c=client: c.list("vm", project="lab").items).details["permission"] == "vm:list"
        assert client.get("vm", "web", project="lab")["name"] == "web"
    lab.client.patch("role", "changing", {"spec": {"rules": {"vm": ["list"]}}})
    for client in (bob, program):
        assert client.list("vm", project="lab").items


def _read(client: Any, path: str) -> None:
    with client.http.stream("GET", path) as stream:
        list(stream.lines())


def test_nobody_gives_what_they_do_not_have(lab: ApiLab) -> None:
    create(lab, "role", "members", rules=MEMBERS)
    create(lab, "role", "deleter", rules={"vm": ["delete"]})
    create(lab, "group", "crew")
    create(lab, "rolebinding", "crew-lab", role="deleter", project="lab", groups=["crew"])
    for name in ("carl", "dora"):
        add_user(lab, name)
    create(lab, "rolebinding", "dora-lab", role="deleter", project="lab", users=["dora"])
    create(lab, "rolebinding", "carl-all", role="members", users=["carl"])
    carl = log_in(lab, "carl")
    carl.create({"kind": "rolebinding", "name": "x1", "spec": {"role": "starter", "users": ["carl"]}})
    carl.create({"kind": "token", "name": "x2", "spec": {"use": "access", "role": "starter", "project": "lab"}})
    carl.create({"kind": "role", "name": "x3", "spec": {"rules": {"vm": ["get"]}}})

    def make(kind: str, **spec: Any) -> Callable[[], object]:
        return lambda: carl.create({"kind": kind, "name": "x", "spec": spec})

    tries: list[tuple[Callable[[], object], str]] = [
        (make("rolebinding", role="deleter", project="lab", users=["carl"]), "vm:delete"),
        (make("rolebinding", role="viewer", project="lab", users=["carl"]), "accounting:get"),
        (make("rolebinding", role="fabric-admin", users=["carl"]), "accounting:get"),
        (make("token", use="access", role="deleter", project="lab"), "vm:delete"),
        (make("token", use="access", role="editor"), "accounting:get"),
        (make("token", use="join"), "node:create"),
        (make("token", use="server"), "accounting:get"),
        (make("role", rules={"vm": ["get", "exec"]}), "vm:exec"),
        (make("user", groups=["crew"]), "vm:delete"),
        (lambda: carl.patch("role", "members", {"spec": {"rules": {"node": ["cordon"]}}}), "node:cordon"),
        (lambda: carl.put({"kind": "role", "name": "x3", "spec": {"rules": {"vm": ["*"]}}}), "vm:cancel-lease"),
        (lambda: carl.apply([{"kind": "role", "name": "x3", "spec": {"rules": {"*": ["*"]}}}]), "accounting:get"),
        (lambda: carl.patch("rolebinding", "dora-lab", {"spec": {"users": ["dora", "carl"]}}), "vm:delete"),
        (lambda: carl.patch("rolebinding", "x1", {"spec": {"role": "deleter"}}), "vm:delete"),
        (lambda: carl.patch("user", "carl", {"spec": {"groups": ["crew"]}}), "vm:delete"),
        (lambda: carl.patch("user", "dora", {"spec": {"identity": "https://id#1"}}), "vm:delete"),
        (
            lambda: raise_problem(carl.http.request("POST", "/v1/users/dora:passwd", {"password": PASSWORD})),
            "vm:delete",
        ),
    ]
    for work, missing in tries:
        found = refusal(work)
        assert f"carl has no {missing} in" in found.message and found.hint
        assert found.details.get("permission", missing) == missing  # of many objects, each problem has its own
    together = [
        {"kind": "role", "name": "wide", "spec": {"rules": {"vm": ["delete"]}}},
        {"kind": "rolebinding", "name": "wide", "spec": {"role": "wide", "users": ["carl"]}},
    ]
    with pytest.raises(WeftError, match="carl has no vm:delete"):
        carl.apply(together)
    with pytest.raises(NotFound):
        lab.client.get("role", "wide")
    carl.patch("rolebinding", "dora-lab", {"spec": {"users": []}})  # taking away gives nothing
    raise_problem(carl.http.request("POST", "/v1/users/dora:passwd", {"password": PASSWORD}))
    carl.patch("role", "deleter", {"spec": {"rules": {"vm": ["get"]}}})


def test_what_is_done_with_roles_is_in_the_audit_log(tmp_path: Path) -> None:
    lab = ApiLab(tmp_path)  # of its own: many refusals of one place are one record
    create(lab, "role", "logged", rules={"vm": ["get"]})
    lab.client.patch("role", "logged", {"spec": {"rules": {"vm": ["get", "list"]}}})
    made, changed = read(lab)[-2:]
    assert (made.verb, made.outcome, [one.name for one in made.objects]) == ("create", "allowed", ["logged"])
    assert changed.verb == "change" and "spec.rules" in str(changed.objects[0])
    program = lab.with_token(use="access", role="logged", project="default")
    refusal(lambda: program.create({"kind": "rolebinding", "name": "x", "spec": {"role": "viewer", "users": []}}))
    wait_until(lambda: read(lab)[-1].outcome == "refused")
    record = read(lab)[-1]
    assert (record.actor.role, record.outcome, record.reason) == ("logged", "refused", "forbidden")
    lab.close()


def test_an_administrator_of_a_project_binds_own_roles_up_to_the_own_rights(lab: ApiLab) -> None:
    create(lab, "role", "reader", rules={"*": ["get", "list"]})
    create(lab, "role", "limits", rules={"quota": ["update"]})
    add_user(lab, "gina")
    add_user(lab, "hugo")
    create(lab, "rolebinding", "gina-lab", role="admin", project="lab", users=["gina"])
    gina, hugo = log_in(lab, "gina"), log_in(lab, "hugo")
    # That the role has user:get, too, says nothing in a project.
    gina.create({"kind": "rolebinding", "name": "h", "spec": {"role": "reader", "project": "lab", "users": ["hugo"]}})
    assert hugo.list("vm", project="lab").items and is_refused(lambda: hugo.list("user").items)
    for kind, spec in (
        ("rolebinding", {"role": "limits", "project": "lab", "users": ["gina"]}),
        ("rolebinding", {"role": "reader", "project": "other", "users": ["gina"]}),
        ("rolebinding", {"role": "reader", "users": ["gina"]}),
        ("role", {"rules": {"vm": ["get"]}}),
    ):
        refusal(lambda k=kind, s=spec: gina.create({"kind": k, "name": "x", "spec": s}))


def test_a_wider_role_of_the_moment_is_not_given(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The role is widened between the check of a binding and its commit."""
    create(lab, "role", "growing", rules={"vm": ["get"]})
    create(lab, "role", "binder", rules={"rolebinding": ["get", "update"], "vm": ["get"]})
    add_user(lab, "ivy")
    create(lab, "rolebinding", "grown", role="growing", project="lab")
    ivy = lab.with_token(use="access", role="binder")
    before, widened = lab.store.commit, []

    async def commit(writes: Any, *rest: Any, **more: Any) -> Any:
        if not widened and any(b'"grown"' in getattr(write, "value", b"") for write in writes):
            widened.append(True)
            entry = await lab.store.get("/role/-/growing")
            assert entry is not None
            await before([Put(entry.key, entry.value.replace(b'["get"]', b'["delete"]'))])
        return await before(writes, *rest, **more)

    monkeypatch.setattr(lab.store, "commit", commit)
    found = refusal(lambda: ivy.patch("rolebinding", "grown", {"spec": {"users": ["ivy"]}}))
    assert widened and found.details["permission"] == "vm:delete"


def test_a_role_is_written_by_flags_or_from_a_file_and_named_like_a_built_in_one(lab: ApiLab, tmp_path: Path) -> None:
    said = weft(lab, "role", "create", "typed", "--rule", "vm=get,list", "--rule", "image=get", "--rule", "vm=start")
    assert said.out == "role/typed  created\n"
    assert lab.client.get("role", "typed")["spec"]["rules"] == {"vm": ["get", "list", "start"], "image": ["get"]}
    file = tmp_path / "role.yaml"
    file.write_text('kind: role\nname: typed\nspec: {rules: {vm: [list, get, start], image: [get], "*": [list]}}\n')
    assert "role/typed" in weft(lab, "apply", str(file)).out
    assert lab.client.get("role", "typed")["spec"]["rules"]["*"] == ["list"]
    assert weft(lab, "role", "set", "typed", "--rule", "vm=get").code == 0
    assert lab.client.get("role", "typed")["spec"]["rules"]["vm"] == ["get"]
    assert "vm: get" in weft(lab, "role", "list").out and "  vm: get\n" in weft(lab, "role", "describe", "typed").out
    for words in (
        ("rolebinding", "create", "by-typed", "--role", "typed", "-p", "lab"),
        ("token", "create", "of-typed", "--role", "typed", "-p", "lab"),
    ):
        assert weft(lab, *words).code == 0
    assert (
        'role "typed" is in use by token/of-typed, rolebinding/by-typed'
        in weft(lab, "role", "delete", "typed", "--yes").err
    )
    for wrong, hint in (
        (("--rule", "vm"), "write KIND=VERB"),
        (("--rule", "vm="), "--rule vm has no verbs"),
        ((), "give --rule"),
        (("--rule", "vm=fly"), "'fly' is not a verb of vm"),
    ):
        said = weft(lab, "role", "create", "wrong", *wrong)
        assert said.code != 0 and hint in said.err
    add_user(lab, "kim")
    create(lab, "rolebinding", "kim-lab", role="starter", project="lab", users=["kim"])
    said = weft(lab, "whoami", client=log_in(lab, "kim"))
    assert said.out.split() == ["ROLE", "PROJECT", "starter", "lab"]
