"""People log in as themselves: users, groups, role bindings, passwords, and what ends when rights end."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.api.auth.tokens import find_logins
from weft.api.bootstrap import bootstrap
from weft.api.state.login_limits import USER_TRIES
from weft.cli.app import run
from weft.cli.session import Session
from weft.cli.verbs.login import ask_login, save_login
from weft.client import Client
from weft.client.answer import ClientAnswer, raise_problem
from weft.client.context import Context, read_context, write_context
from weft.client.http import Http
from weft.contracts.clock import SystemClock
from weft.objects.envelope import encode_envelope
from weft.objects.errors import (
    AlreadyExists,
    Forbidden,
    InUse,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    Throttled,
    UnknownField,
    WeftError,
)

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("people"))
    for name in ("lab", "other"):
        lab.client.create({"kind": "project", "name": name, "spec": {}})
        lab.client.apply([{**make_image(), "project": name}])
    yield lab
    lab.close()


def create(lab: ApiLab, kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return lab.client.create({"kind": kind, "name": name, "spec": spec})


def add_user(lab: ApiLab, name: str, password: str = PASSWORD, **spec: Any) -> None:
    create(lab, "user", name, **spec)
    raise_problem(lab.client.http.request("POST", f"/v1/users/{name}:passwd", {"password": password}))


def post_login(lab: ApiLab, user: str, password: str = PASSWORD, **more: Any) -> ClientAnswer:
    http = Http(Context(server=lab.context.server, ca=lab.context.ca))
    try:
        return http.request("POST", "/v1/login", {"user": user, "password": password, **more})
    finally:
        http.close()


def log_in(lab: ApiLab, user: str, password: str = PASSWORD, **more: Any) -> Client:
    answer = post_login(lab, user, password, **more)
    raise_problem(answer)
    return lab.connect(msgspec.structs.replace(lab.context, token=answer.json()["secret"]))


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_refused(work: Callable[[], object], error: type[WeftError] = Forbidden) -> bool:
    try:
        work()
    except error:
        return True
    return False


def test_a_user_has_the_rights_of_all_bindings_together(lab: ApiLab) -> None:
    create(lab, "group", "staff")
    add_user(lab, "ann", groups=["staff"])
    ann = log_in(lab, "ann")
    with pytest.raises(Forbidden, match="ann has no role: ann can't see vms"):
        ann.list("vm", project="lab")
    create(lab, "rolebinding", "ann-lab", role="editor", project="lab", users=["ann"])
    create(lab, "rolebinding", "staff-other", role="viewer", project="other", groups=["staff"])
    ann.apply([{**make_vm("mine", networks=[]), "project": "lab"}])
    assert ann.list("vm", project="other").items == []
    with pytest.raises(
        Forbidden, match="ann has only role viewer in other: ann can't create or change a VM in other"
    ) as refused:
        ann.apply([{**make_vm("theirs", networks=[]), "project": "other"}])
    assert refused.value.hint and "weft whoami" in refused.value.hint
    with pytest.raises(Forbidden, match="ann can't list the backups in a backup repository"):
        ann.verb("backuprepository", "safe", "contents", {})
    lab.client.apply([make_image(), make_vm("theirs", networks=[])])
    assert [one["name"] for one in ann.list("vm", all_projects=True).items] == ["mine"]
    with pytest.raises(Forbidden, match="can't create a report") as fabric_wide:
        ann.create({"kind": "report", "name": "r", "spec": {"subject": "capacity"}})
    assert "it takes report:create (role operator) in all projects" in fabric_wide.value.hint
    me = ann.http.request("GET", "/v1/whoami").json()
    assert (me["user"], me["grants"]) == (
        "ann",
        [{"role": "editor", "project": "lab"}, {"role": "viewer", "project": "other"}],
    )


def test_events_are_those_of_all_projects_that_a_user_may_read(lab: ApiLab) -> None:
    create(lab, "project", "third")
    lab.client.apply([{**make_image(), "project": "third"}])
    add_user(lab, "eve")
    create(lab, "rolebinding", "eve-lab", role="viewer", project="lab", users=["eve"])
    create(lab, "rolebinding", "eve-other", role="viewer", project="other", users=["eve"])
    for project in ("lab", "other", "third"):
        lab.client.apply([{**make_vm("told", networks=[]), "project": project}])
    eve = log_in(lab, "eve")

    def read() -> set[str]:
        items = eve.http.request("GET", "/v1/events?limit=1000").json()["items"]
        return {one["object"]["project"] for one in items if one["object"]["name"] == "told"}

    wait_until(lambda: read() == {"lab", "other"})


@pytest.mark.parametrize("end", ["binding", "group", "disabled", "deleted", "token", "password"])
def test_what_takes_rights_away_counts_at_once_and_ends_open_streams(lab: ApiLab, end: str) -> None:
    user, group, binding = f"u-{end}", f"g-{end}", f"b-{end}"
    create(lab, "group", group)
    add_user(lab, user, groups=[group])
    create(lab, "rolebinding", binding, role="viewer", project="lab", groups=[group])
    client = log_in(lab, user)
    key = client.create(
        {"kind": "token", "name": f"t-{end}", "spec": {"use": "access", "role": "viewer", "project": "lab"}}
    )
    own = lab.connect(msgspec.structs.replace(lab.context, token=key["secret"]))
    cursor = client.list("vm", project="lab").cursor
    ended: list[float] = []

    def follow(path: str) -> None:
        try:
            with client.http.stream("GET", path) as stream:
                list(stream.lines())
        except WeftError:
            pass
        ended.append(time.monotonic())

    paths = (f"/v1/projects/lab/vms?watch=1&cursor={cursor}", "/v1/events?follow=1")
    threads = [threading.Thread(target=follow, args=(path,), daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(lab.api.streams) >= 1)
    time.sleep(0.3)
    assert not ended
    token = client.http.request("GET", "/v1/whoami").json()["token"]
    acts: dict[str, Callable[[], object]] = {
        "binding": lambda: lab.client.delete("rolebinding", binding),
        "group": lambda: lab.client.patch("user", user, {"spec": {"groups": []}}),
        "disabled": lambda: lab.client.patch("user", user, {"spec": {"disabled": True}}),
        "deleted": lambda: lab.client.delete("user", user),
        "token": lambda: lab.client.delete("token", token),
        "password": lambda: lab.client.http.request("POST", f"/v1/users/{user}:passwd", {"password": PASSWORD}),
    }
    acts[end]()
    for thread in threads:
        thread.join(5)  # far below the eight seconds after which a stream asks without a reason
    assert len(ended) == 2
    wait_until(lambda: is_refused(lambda: client.list("vm", project="lab"), WeftError), 2)
    if end not in ("token", "password"):
        wait_until(lambda: is_refused(lambda: own.list("vm", project="lab"), WeftError), 2)
    else:
        assert own.list("vm", project="lab").items is not None


def test_a_stream_that_begins_while_its_token_is_revoked_ends_too(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.api.watch.objects._FIRST_SECONDS", 0.6)
    token = lab.client.create(
        {"kind": "token", "name": "brief", "spec": {"use": "access", "role": "viewer", "project": "lab"}}
    )
    client = lab.connect(msgspec.structs.replace(lab.context, token=token["secret"]))
    cursor = client.list("vm", project="lab").cursor
    ended: list[str] = []

    def follow() -> None:
        try:
            list(client.watch("vm", cursor, project="lab"))
        except NotAuthenticated as problem:
            ended.append(problem.message)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    time.sleep(0.2)  # it has been let in, and its answer hasn't begun
    lab.client.delete("token", "brief")
    thread.join(5)  # far below the eight seconds after which a stream asks without a reason
    assert ended == ["the token is not valid any more"]


def test_a_failed_login_tells_nothing(lab: ApiLab) -> None:
    add_user(lab, "bob")
    create(lab, "user", "without")
    add_user(lab, "off", disabled=True)
    answers = [
        post_login(lab, name, password)
        for name, password in (("bob", "wrong word"), ("nobody", PASSWORD), ("without", PASSWORD), ("off", PASSWORD))
    ]
    answers.append(post_login(lab, "../bob", PASSWORD))
    told = {(answer.status, answer.json()["message"], answer.json()["reason"]) for answer in answers}
    assert told == {(401, "user or password is wrong", "wrongPassword")}
    assert post_login(lab, "bob").status == 201


def test_who_guesses_waits(lab: ApiLab) -> None:
    add_user(lab, "target")
    add_user(lab, "bystander")
    answered = [post_login(lab, "target", "wrong word").status for _ in range(USER_TRIES)]
    while answered[-1] == 401:  # a slow machine gets tries back meanwhile
        answered.append(post_login(lab, "target", "wrong word").status)
    assert len(answered) > USER_TRIES and answered[-1] == 429
    with pytest.raises(Throttled, match="too many logins failed") as refused:
        log_in(lab, "target")
    assert refused.value.retry_after_seconds
    assert post_login(lab, "bystander").status == 201  # others aren't held up


def test_a_password_is_in_no_object_and_no_event(lab: ApiLab) -> None:
    add_user(lab, "quiet", "a very secret word")
    user = lab.client.get("user", "quiet")
    assert "argon2" not in str(user) and "secret word" not in str(user)
    stored = lab.stored("/user/-/quiet")
    assert stored is not None and b"argon2" not in encode_envelope(stored) and b"password" not in bytes(stored.spec)
    with pytest.raises(UnknownField, match=r"spec\.password"):
        create(lab, "user", "pat", password="x")
    with pytest.raises(WeftError, match="password"):
        lab.client.patch("user", "quiet", {"spec": {"password": "x"}})
    lab.client.put({"kind": "user", "name": "quiet", "spec": {"full_name": "Q"}})  # leaves it as it is
    assert post_login(lab, "quiet", "a very secret word").status == 201
    with pytest.raises(InvalidInput, match="fewer than 8 characters"):
        raise_problem(lab.client.http.request("POST", "/v1/users/quiet:passwd", {"password": "short"}))


def test_users_change_their_own_password_and_nobody_else_s(lab: ApiLab) -> None:
    add_user(lab, "carl")
    add_user(lab, "dora")
    carl, elsewhere = log_in(lab, "carl"), log_in(lab, "carl")
    path = "/v1/users/carl:passwd"
    wrong = carl.http.request("POST", path, {"password": "another word", "old": "not this"})
    assert (wrong.status, wrong.json()["reason"]) == (401, "wrongPassword")
    raise_problem(carl.http.request("POST", path, {"password": "another word", "old": PASSWORD}))
    assert carl.http.request("GET", "/v1/whoami").status == 200
    wait_until(lambda: elsewhere.http.request("GET", "/v1/whoami").status == 401)
    assert carl.http.request("POST", "/v1/users/dora:passwd", {"password": "another word"}).status == 403
    assert post_login(lab, "carl").status == 401 and post_login(lab, "carl", "another word").status == 201


def test_a_user_s_own_token_allows_no_more_than_the_user_may(lab: ApiLab) -> None:
    add_user(lab, "fred")
    create(lab, "rolebinding", "fred-lab", role="editor", project="lab", users=["fred"])
    fred = log_in(lab, "fred")
    made = fred.create(
        {"kind": "token", "name": "fred-ci", "spec": {"use": "access", "role": "viewer", "project": "lab"}}
    )
    assert (made["owner"]["name"], made["spec"]["subject"]) == ("fred", "fred")
    ci = lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))
    assert ci.list("vm", project="lab") is not None
    for refused in (
        lambda: ci.apply([{**make_vm("no", networks=[]), "project": "lab"}]),
        lambda: fred.create(
            {"kind": "token", "name": "x", "spec": {"use": "access", "role": "admin", "project": "lab"}}
        ),
        lambda: fred.create({"kind": "token", "name": "x", "spec": {"use": "access", "role": "viewer"}}),
        lambda: fred.create({"kind": "token", "name": "x", "spec": {"use": "join"}}),
        lambda: fred.create({"kind": "token", "name": "x", "spec": {"use": "server"}}),
        lambda: ci.create(
            {"kind": "token", "name": "x", "spec": {"use": "access", "role": "editor", "project": "lab"}}
        ),
        lambda: ci.create({"kind": "token", "name": "x", "spec": {"use": "access", "role": ""}}),
        lambda: fred.list("rolebinding"),
        lambda: fred.list("user"),
    ):
        with pytest.raises(Forbidden):
            refused()
    names = {one["name"] for one in fred.list("token").items}
    assert "fred-ci" in names and all(one["owner"]["name"] == "fred" for one in fred.list("token").items)
    with pytest.raises(NotFound):
        fred.get("token", lab.client.http.request("GET", "/v1/whoami").json()["token"])
    lab.client.create({"kind": "token", "name": "foreign", "spec": {"use": "access"}})
    with pytest.raises(NotFound):
        fred.delete("token", "foreign")
    fred.delete("token", "fred-ci")
    wait_until(lambda: is_refused(lambda: ci.list("vm", project="lab"), NotAuthenticated), 2)


def make_own(lab: ApiLab, client: Client, name: str, **spec: Any) -> tuple[dict[str, Any], Client]:
    made = client.create({"kind": "token", "name": name, "spec": {"use": "access", **spec}})
    return made["spec"], lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))


def test_a_limited_token_ends_itself_and_no_other_token_of_its_user(lab: ApiLab) -> None:
    add_user(lab, "lena")
    create(lab, "rolebinding", "lena-lab", role="editor", project="lab", users=["lena"])
    lena = log_in(lab, "lena")
    _, weak = make_own(lab, lena, "lena-weak", role="viewer", project="lab")
    make_own(lab, lena, "lena-other", role="")
    for name in ("lena-other", lena.http.request("GET", "/v1/whoami").json()["token"]):
        with pytest.raises(Forbidden) as caught:
            weak.delete("token", name)
        assert caught.value.details["permission"] == "token:delete"
    with pytest.raises(NotFound):
        weak.delete("token", "none")
    weak.delete("token", "lena-weak")
    lena.delete("token", "lena-other")


def test_a_user_s_own_tokens_end_a_while_after_the_last_login(lab: ApiLab) -> None:
    add_user(lab, "mara")
    mara, most = log_in(lab, "mara"), lab.settings.user_token_seconds
    first, again = make_own(lab, mara, "mara-1", role="")
    assert abs(first["expires_at"] - time.time() - most) < 60
    for late in (time.time() + most + 600, "2999-01-01T00:00:00Z"):
        with pytest.raises(InvalidInput) as caught:
            make_own(lab, mara, "mara-late", role="", expires_at=late)
        assert caught.value.field == "spec.expires_at"
    soon = round(time.time()) + 600.0
    second, third = make_own(lab, again, "mara-2", role="", expires_at=soon)
    assert second["expires_at"] == soon and make_own(lab, third, "mara-3", role="")[0]["expires_at"] == soon
    with pytest.raises(InvalidInput):  # a chain of tokens has no later end than its first
        make_own(lab, again, "mara-4", role="", expires_at=first["expires_at"] + 1)


def test_a_new_password_says_which_tokens_are_left_or_ends_them_all(lab: ApiLab) -> None:
    add_user(lab, "nele")
    nele = log_in(lab, "nele")
    _, own = make_own(lab, nele, "nele-ci", role="")
    path, given = "/v1/users/nele:passwd", {"password": "another word", "old": PASSWORD}
    assert nele.http.request("POST", path, given).json() == {"user": "nele", "tokens": ["nele-ci"]}
    for number in range(120):  # more than one commit
        make_own(lab, own, f"nele-{number}", role="") if number < 90 else log_in(lab, "nele", "another word")
    given = {"password": PASSWORD, "old": "another word", "end_tokens": True}
    assert nele.http.request("POST", path, given).json() == {"user": "nele", "tokens": []}
    wait_until(lambda: own.http.request("GET", "/v1/whoami").status == 401)
    assert nele.http.request("GET", "/v1/whoami").status == 200


def test_a_role_binding_says_who_its_users_are_at_the_provider(lab: ApiLab) -> None:
    add_user(lab, "olga")
    create(lab, "user", "pia", identity="https://login.example#17")
    spec = {"role": "viewer", "project": "lab", "users": ["olga", "pia"]}
    made = lab.client.create({"kind": "rolebinding", "name": "of-both", "spec": spec})
    assert made["identities"] == {"olga": "", "pia": "https://login.example#17"}
    alone = {"kind": "rolebinding", "name": "of-one", "spec": {**spec, "users": ["olga"]}}
    assert lab.client.create(alone)["identities"] == {}  # this server has no provider


def test_a_token_for_a_project_that_does_not_exist_is_refused(lab: ApiLab) -> None:
    def make(client: Client, project: str) -> None:
        client.create({"kind": "token", "spec": {"use": "access", "role": "viewer", "project": project}})

    create(lab, "project", "physics")
    create(lab, "project", "chemistry")
    with pytest.raises(NotFound, match='project "physic" not found') as refused:
        make(lab.client, "physic")
    assert refused.value.hint == "did you mean physics?"
    make(lab.client, "physics")
    add_user(lab, "ines")
    create(lab, "rolebinding", "ines-physics", role="editor", project="physics", users=["ines"])
    ines = log_in(lab, "ines")
    make(ines, "physics")
    for project in ("chemistry", "chemistr"):  # she doesn't learn which of them exists
        with pytest.raises(Forbidden, match=f"ines has no role in project {project}:") as hidden:
            make(ines, project)
        assert "chemistry?" not in str(hidden.value.hint)


def test_administrators_of_a_project_give_rights_in_it_and_nowhere_else(lab: ApiLab) -> None:
    add_user(lab, "gina")
    add_user(lab, "hugo")
    create(lab, "rolebinding", "gina-lab", role="admin", project="lab", users=["gina"])
    gina, hugo = log_in(lab, "gina"), log_in(lab, "hugo")
    gina.create(
        {"kind": "rolebinding", "name": "hugo-lab", "spec": {"role": "viewer", "project": "lab", "users": ["hugo"]}}
    )
    assert hugo.list("vm", project="lab") is not None
    gina.create({"kind": "token", "name": "lab-ci", "spec": {"use": "access", "role": "editor", "project": "lab"}})
    assert {one["spec"]["project"] for one in gina.list("rolebinding").items} == {"lab"}
    create(lab, "rolebinding", "of-other", role="viewer", project="other", users=["hugo"])
    with pytest.raises(AlreadyExists) as taken:
        gina.create(
            {"kind": "rolebinding", "name": "of-other", "spec": {"role": "viewer", "project": "lab", "users": ["hugo"]}}
        )
    assert "created" not in str(taken.value) and "delete" not in str(taken.value.hint), "it is another project's"
    more = {"role": "viewer", "project": "other", "users": ["gina"]}
    for refused in (
        lambda: gina.create({"kind": "rolebinding", "name": "x", "spec": more}),
        lambda: gina.create({"kind": "rolebinding", "name": "x", "spec": {"role": "viewer", "users": ["gina"]}}),
        lambda: gina.create(
            {"kind": "token", "name": "x", "spec": {"use": "access", "role": "viewer", "project": "other"}}
        ),
        lambda: gina.put(
            {"kind": "rolebinding", "name": "gina-lab", "spec": {"role": "fabric-admin", "users": ["gina"]}}
        ),
        lambda: gina.patch("rolebinding", "gina-lab", {"spec": {"project": None}}),
        lambda: gina.apply([{"kind": "rolebinding", "name": "gina-lab", "spec": more}]),
    ):
        with pytest.raises(Forbidden):
            refused()
    with pytest.raises(NotFound):
        gina.delete("rolebinding", "of-other")
    gina.delete("rolebinding", "hugo-lab")
    wait_until(lambda: is_refused(lambda: hugo.list("vm", project="lab")), 2)


def test_a_user_is_deleted_and_what_the_user_made_stays(lab: ApiLab) -> None:
    add_user(lab, "iris")
    create(lab, "rolebinding", "iris-lab", role="editor", project="lab", users=["iris"])
    iris = log_in(lab, "iris")
    iris.apply([{**make_vm("left", networks=[]), "project": "lab"}])
    lab.client.delete("user", "iris")
    assert lab.client.get("vm", "left", project="lab")["deleting_since"] is None
    wait_until(lambda: is_refused(lambda: iris.list("vm", project="lab"), NotAuthenticated), 2)
    assert post_login(lab, "iris").status == 401
    with pytest.raises(InUse, match=r'user "iris" can\'t be created: rolebinding/iris-lab names a deleted one'):
        create(lab, "user", "iris")  # another person would get the roles
    lab.client.patch("rolebinding", "iris-lab", {"spec": {"users": []}})
    add_user(lab, "iris")
    with pytest.raises(NotAuthenticated):
        iris.list("vm", project="lab")  # the tokens were another person's


def test_a_group_with_users_and_a_project_with_bindings_stay(lab: ApiLab) -> None:
    create(lab, "group", "team")
    create(lab, "user", "jo", groups=["team"])
    with pytest.raises(InUse, match='group "team" is in use by user/jo'):
        lab.client.delete("group", "team")
    with pytest.raises(NotFound, match="gone"):
        create(lab, "user", "kim", groups=["gone"])
    create(lab, "project", "short")
    create(lab, "rolebinding", "short-all", role="viewer", project="short", groups=["team"])
    with pytest.raises(InUse, match='project "short" is in use by rolebinding/short-all') as used:
        lab.client.delete("project", "short")
    assert "weft describe rolebinding/short-all;" in str(used.value.hint), "it is in no project"


def test_logins_of_a_user_are_bounded_and_expired_ones_go(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.api.auth.login.MOST_LOGINS", 3)
    add_user(lab, "lea")
    first = log_in(lab, "lea")
    for _ in range(4):
        log_in(lab, "lea")
    user = lab.stored("/user/-/lea")
    assert user is not None
    wait_until(lambda: len(find_logins(lab.api, user)) == 3)
    wait_until(lambda: first.http.request("GET", "/v1/whoami").status == 401)
    with pytest.raises(InvalidInput, match="between a minute and 30 days"):
        log_in(lab, "lea", expires_seconds=10**9)


def test_a_login_to_a_project_s_own_cluster_stays_in_its_folder(
    lab: ApiLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_user(lab, "nora")
    home, clone = tmp_path / "home", tmp_path / "clone"
    (clone / "deep").mkdir(parents=True)
    write_context(clone / ".weft" / "context.json", lab.context)
    for name in ("WEFT_CONTEXT", "WEFT_SERVER", "WEFT_TOKEN", "WEFT_PROJECT", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(clone / "deep")
    kept = clone / ".weft" / "contexts" / "nora.json"
    for _ in range(2):  # the second time in the context of the first
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(PASSWORD.encode())))
        assert run(["login", "--user", "nora", "--password-stdin"], SystemClock) == 0
        said = capsys.readouterr()
        assert said.out == f"context  {kept}\n" and f"export WEFT_CONTEXT={kept}" in said.err
        assert not home.exists(), "commands elsewhere would go to it"
        assert read_context(clone / ".weft" / "context.json") == lab.context
        monkeypatch.setenv("WEFT_CONTEXT", str(kept))
        assert run(["whoami"], SystemClock) == 0 and "user/nora" in capsys.readouterr().err
    monkeypatch.delenv("WEFT_CONTEXT")
    assert run(["--context", "nora", "whoami"], SystemClock) == 0 and "user/nora" in capsys.readouterr().err
    assert run(["context", "list"], SystemClock) == 0 and "nora" in capsys.readouterr().out
    assert run(["context", "use", "nora"], SystemClock) == 0
    assert not home.exists(), "it is used in the clone, and nowhere else"
    assert run(["whoami"], SystemClock) == 0 and "user/nora" in capsys.readouterr().err


def test_neither_a_login_nor_a_server_that_starts_replaces_the_context_of_another_server(
    lab: ApiLab, tmp_path: Path
) -> None:
    add_user(lab, "kim")
    session = Session(SystemClock, {"HOME": str(tmp_path)})
    session.context_file = str(lab.context_path)
    server = Context(server=lab.context.server, ca=lab.context.ca)
    write_context(kept := tmp_path / ".config" / "weft" / "contexts" / "kim.json", Context(server="https://other"))
    made = ask_login(server, {"user": "kim", "password": PASSWORD}, None)
    with pytest.raises(AlreadyExists, match="of another server, https://other"):
        save_login(session, server, made, None)
    assert is_refused(lambda: lab.client.get("token", made.token), NotFound), "nobody could use that login"
    with pytest.raises(AlreadyExists, match="of another server, https://other"):
        lab.run(bootstrap(lab.api, kept, lab.context.server))
    assert read_context(kept) == Context(server="https://other")
    kept.write_text("my notes")
    for act in (
        lambda: lab.run(bootstrap(lab.api, kept, lab.context.server)),
        lambda: save_login(session, server, ask_login(server, {"user": "kim", "password": PASSWORD}, None), None),
    ):
        with pytest.raises(AlreadyExists, match=r"kim\.json exists, and is not a context") as caught:
            act()
        assert caught.value.hint and kept.read_text() == "my notes"


def test_a_server_that_starts_without_its_context_file_leaves_that_one_valid(lab: ApiLab, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path in (first, second, first):
        lab.run(bootstrap(lab.api, path, lab.context.server))
    tokens = [read_context(path).token for path in (first, second)]
    for token in tokens:
        assert lab.connect(msgspec.structs.replace(lab.context, token=token)).list("token").items
    first.unlink()  # it is lost: its token is good no more
    lab.run(bootstrap(lab.api, first, lab.context.server))
    with pytest.raises(NotAuthenticated):
        lab.connect(msgspec.structs.replace(lab.context, token=tokens[0])).list("token")


def test_who_has_a_role_in_one_project_works_there_and_sees_no_other(
    lab: ApiLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_user(lab, "mila")
    create(lab, "rolebinding", "mila-lab", role="editor", project="lab", users=["mila"])
    write_context(tmp_path / "home" / ".config" / "weft" / "context.json", lab.context)
    for name in ("WEFT_CONTEXT", "WEFT_SERVER", "WEFT_TOKEN", "WEFT_PROJECT", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(PASSWORD.encode())))
    assert run(["login", "--user", "mila", "--password-stdin"], SystemClock) == 0
    assert "project lab" in capsys.readouterr().err
    assert run(["vm", "list"], SystemClock) == 0
    lab.client.apply([{"kind": "network", "name": "default", "project": "lab", "spec": {"cidr": "10.9.0.0/24"}}])
    lab.client.apply([{**make_vm("waits"), "project": "lab"}])
    for command in (["operation", "list"], ["-p", "lab", "operation", "watch", "--timeout", "0.1s"]):
        capsys.readouterr()
        assert run(command, SystemClock) == 0 and "vm/waits@1" in capsys.readouterr().out, command
    viewer = {"role": "viewer", "project": "lab", "users": ["mila"]}
    lab.client.apply([{"kind": "rolebinding", "name": "mila-lab", "spec": viewer}])
    assert run(["queue", "-o", "name"], SystemClock) == 0
    out, err = capsys.readouterr()
    assert (
        "vm/waits" in out.split() and "without the scheduler's order" in err and "can't create a recommendation" in err
    )
    assert run(["project", "list", "-o", "name"], SystemClock) == 0
    assert capsys.readouterr().out == "project/lab\n"
    mila = log_in(lab, "mila")
    assert is_refused(lambda: mila.get("project", "other"))
    assert [one["name"] for one in mila.list("project", fields="name=other").items] == []


def test_a_page_and_its_continuation_name_nothing_that_the_reader_may_not_see(lab: ApiLab) -> None:
    add_user(lab, "reader")
    for number in range(6):
        create(lab, "project", f"paged{number}")
    for number in (1, 3, 4):
        create(lab, "rolebinding", f"reader-{number}", role="viewer", project=f"paged{number}", users=["reader"])
    reader = log_in(lab, "reader")
    for limit in (4, 3, 2, 1):
        found, follow = list[str](), ""
        while True:
            page = reader.http.request("GET", f"/v1/projects?limit={limit}&continue={quote(follow)}").json()
            names = [one["name"] for one in page["items"]]
            found += names
            if page["continue"] is None:
                break
            follow = page["continue"]
            assert len(names) == limit and follow.endswith(f"/{names[-1]}")
        assert found == ["paged1", "paged3", "paged4"]
    with pytest.raises(InvalidInput) as wrong:
        raise_problem(reader.http.request("GET", f"/v1/tokens?limit=1&continue={quote(follow)}"))
    assert wrong.value.field == "continue"


def test_a_token_of_another_cluster_is_refused(lab: ApiLab, tmp_path: Path) -> None:
    other = ApiLab(tmp_path)
    try:
        stranger = lab.connect(msgspec.structs.replace(lab.context, token=other.context.token))
        with pytest.raises(NotAuthenticated, match="the token is not valid"):
            stranger.list("vm", project="lab")
    finally:
        other.close()
