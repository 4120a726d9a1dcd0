"""Every operation of the API, tried by every role, in its own project and in another one: a real API server answers as the page in
docs/reference says."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.api.permissions import render
from weft.client import Client
from weft.objects.errors import Forbidden, WeftError
from weft.objects.roles import EVERYWHERE, RIGHTS

PAGE = Path(__file__).parents[3] / "docs/reference/permissions.md"
ROW = re.compile(r"\| ([A-Z]+) `(\S+)` \| (\S+) \| (\w+) \|")
OWN: dict[str, dict[str, list[str]]] = {  # own roles; test_each_role adds two that share all permissions among them
    "starter": {"vm": ["get", "list", "start", "stop"], "image": ["get", "list"], "*": ["get"]},
    "apart": {"token": ["list"], "user": ["get"], "quota": ["update"], "vm": ["update", "create"]},
    "whole": {"*": ["*"]},
    "even": {},
    "odd": {},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = open_lab(tmp_path_factory.mktemp("api"))
    yield lab
    lab.close()


def open_lab(folder: Path) -> ApiLab:
    """An API with the projects ``lab`` and ``other``."""
    lab = ApiLab(folder)
    for name in ("lab", "other"):
        lab.client.create({"kind": "project", "name": name, "spec": {}})
        lab.client.apply([{**make_image(), "project": name}])
    return lab


def test_the_page_is_what_the_kinds_say() -> None:
    assert PAGE.read_text() == render(), "python -m weft.api.permissions > docs/reference/permissions.md"


def read_permissions() -> dict[str, set[str]]:
    """The permissions of each built-in and own role, as the page has them."""
    page = PAGE.read_text().split("## Operations")[0]
    table = page.split("| kind | verbs |")[1]
    by_right: dict[str, set[str]] = {}
    OWN["even"], OWN["odd"] = {}, {}
    for kind, cell in re.findall(r"^\| (\w+) \| (.*) \|$", table, re.MULTILINE):
        for right, verbs in re.findall(r"(\w+): ([^;]+)", cell):
            by_right.setdefault(right, set()).update(f"{kind}:{verb}" for verb in re.findall(r"[\w-]+", verbs))
    known = sorted(set().union(*by_right.values()))
    for number, permission in enumerate(known):
        kind, _, verb = permission.partition(":")
        OWN["odd" if number % 2 else "even"].setdefault(kind, []).append(verb)
    found = {role: set().union(*(by_right[right] for right in rights)) for role, rights in read_rights().items()}
    for role, rules in OWN.items():
        pairs = [permission.partition(":")[::2] for permission in known]
        found[role] = {
            f"{kind}:{verb}" for kind, verb in pairs if {verb, "*"} & {*rules.get(kind, ()), *rules.get("*", ())}
        }
    return found


def read_rights() -> dict[str, set[str]]:
    """The rights of each built-in role, as the page has them."""
    lines = [line for line in PAGE.read_text().split("## Own roles")[0].splitlines() if line.startswith("| ")]
    titles = [cell.strip() for cell in lines[0].strip("|").split("|")][1:]
    found = {}
    for line in lines[1:]:
        role, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[role] = {title for title, cell in zip(titles, cells, strict=True) if cell == "yes"}
    return found


def expects(permissions: set[str], limited: bool, own: bool, method: str, permission: str, where: str) -> bool:
    if permission == "–":
        return where == "anyone"
    taken = {permission.replace("KIND", "vm")}  # as the test applies one
    if method == "PUT" or where == "each":  # what it writes isn't there yet
        taken |= {one.replace(":update", ":create") for one in taken}
    if where in ("project", "each"):
        return taken <= permissions and (own or not limited)
    if where == "own":
        return taken <= permissions and own
    return taken <= permissions and not limited


TOKENS = [
    (role, limited)
    for role in [*(role for role in RIGHTS if role != "invoker"), *OWN]
    for limited in (True, False)
    if not (limited and role in EVERYWHERE)  # these hold in all projects
]


@pytest.mark.parametrize(("role", "limited"), TOKENS)
def test_each_role_gets_what_the_page_says(lab: ApiLab, role: str, limited: bool) -> None:
    tried, wrong = try_operations(lab, role, limited)
    assert tried > 150
    assert not wrong


def try_operations(lab: ApiLab, role: str, limited: bool) -> tuple[int, list[str]]:
    """How many operations a token with ``role`` was tried on, and those that were answered otherwise than the page says."""
    held = read_permissions()["fabric-admin" if role == "admin" and not limited else role]
    if role in OWN:
        lab.client.apply([{"kind": "role", "name": role, "spec": {"rules": OWN[role]}}])
    spec: dict[str, Any] = {"use": "access", "role": role, **({"project": "lab"} if limited else {})}
    client = lab.with_token(**spec)
    tried = list(list_operations(held, limited))
    wrong = [
        f"{method} {path} in {project} should be {'allowed' if may else 'refused'}"
        for method, path, project, may in tried
        if is_refused(client, method, path, project) == may
    ]
    return len(tried), wrong


def list_operations(held: set[str], limited: bool) -> Iterator[tuple[str, str, str, bool]]:
    """Each operation of the page in each project, and whether a role that has the permissions ``held`` may."""
    for method, path, permission, where in ROW.findall(PAGE.read_text()):
        for project in ("lab", "other"):
            if "{project}" not in path and project == "other" and where != "each":
                continue
            if path in ("/v1/join", "/v1/healthz") or (method, path) in (
                ("POST", "/v1/link"),
                ("POST", "/v1/servers:join"),
            ):
                continue  # for nobody with such a token, and for everybody
            if path == "/v1/session":
                continue  # for pages of the server's own origin
            yield method, path, project, expects(held, limited, project == "lab", method, permission, where)


def is_refused(client: Client, method: str, path: str, project: str) -> bool:
    full = path.replace("{project}", project).replace("{sha256}", "0" * 64)
    full = full.replace("{name}", project if (method, path) == ("GET", "/v1/projects/{name}") else "nothing")
    body: Any = None if method == "GET" else {}
    if path == "/v1/apply":
        full, body = "/v1/apply?dry_run=1", {"objects": [{**make_vm("x", networks=[]), "project": project}]}
    answer = client.http.request(method, full, body)
    if answer.status != 403:
        return False
    problem = answer.json()
    return problem.get("code", problem.get("reason")) == "forbidden" and "managed by weft itself" not in str(problem)


def test_a_project_s_editor_sees_and_changes_its_own_project_and_no_other(lab: ApiLab) -> None:
    ann = lab.with_token(use="access", role="editor", project="lab", subject="ann")
    lab.client.apply(
        [{**make_vm("secret", networks=[]), "project": "other"}, {**make_vm("web", networks=[]), "project": "lab"}]
    )
    assert [one["name"] for one in ann.list("vm", project="lab").items] == ["web"]
    listed = ann.list("vm", all_projects=True)
    assert [one["name"] for one in listed.items] == ["web"]
    page = ann.http.request("GET", "/v1/vms?limit=1").json()
    assert ([one["name"] for one in page["items"]], page["continue"]) == (["web"], None)
    watched = ann.watch("vm", listed.cursor, all_projects=True)
    for project in ("other", "lab"):
        lab.client.apply([{**make_vm("late", networks=[]), "project": project}])
    assert next(one for one in watched if one.type == "put").object["project"] == "lab"
    for refused in (
        lambda: ann.list("vm", project="other").items,
        lambda: ann.get("vm", "secret", project="other"),
        lambda: ann.get("vm", "no-such", project="other"),
        lambda: ann.list("token").items,
        lambda: ann.apply(
            [{**make_vm("new", networks=[]), "project": "lab"}, {**make_vm("new", networks=[]), "project": "other"}]
        ),
    ):
        with pytest.raises(Forbidden):
            refused()
    with pytest.raises(WeftError, match="not found"):
        ann.get("vm", "new", project="lab")


def test_events_of_another_project_are_not_seen(lab: ApiLab) -> None:
    lab.client.apply(
        [{**make_vm("hidden", networks=[]), "project": "other"}, {**make_vm("shown", networks=[]), "project": "lab"}]
    )
    ann = lab.with_token(use="access", role="viewer", project="lab")
    for _ in range(50):
        items = ann.http.request("GET", "/v1/events?limit=1000").json()["items"]
        if any(one["object"]["name"] == "shown" for one in items):
            break
        time.sleep(0.1)
    assert {one["object"]["project"] for one in items} == {"lab"}
    assert ann.http.request("GET", "/v1/events?object=vm/other/hidden").json()["items"] == []


def test_a_project_opens_the_server_s_services_to_its_networks_and_only_the_fabric_other_services_of_hosts(
    lab: ApiLab,
) -> None:
    ann = lab.with_token(use="access", role="editor", project="lab", subject="ann")
    network = {"kind": "network", "name": "blue", "project": "lab", "spec": {"cidr": "172.30.0.0/24"}}

    def opening(*open: str) -> dict[str, Any]:
        return {**network, "spec": {**network["spec"], "open": list(open)}}

    for refused in (
        lambda: ann.create(opening("tcp:22")),
        lambda: ann.apply([opening("api", "any to 10.0.0.1/32")]),
        lambda: ann.http.request("POST", "/v1/projects/lab/networks:batch", {"objects": [opening("icmp")]}) and None,
    ):
        try:
            refused()
        except WeftError as problem:
            assert "of hosts to a network" in problem.message
        with pytest.raises(WeftError, match="not found"):
            lab.client.get("network", "blue", project="lab")
    assert ann.create(opening("api", "functions"))["spec"]["open"] == ["api", "functions"]
    with pytest.raises(Forbidden, match="open 'tcp:22' of hosts to a network"):
        ann.patch("network", "blue", {"spec": {"open": ["tcp:22"]}}, project="lab")
    lab.client.patch("network", "blue", {"spec": {"open": ["tcp:22", "functions"]}}, project="lab")
    ann.patch("network", "blue", {"spec": {"open": ["api", "tcp:22"], "nat": False}}, project="lab")  # as it was given
    assert ann.patch("network", "blue", {"spec": {"open": []}}, project="lab")["spec"]["open"] == []
    with pytest.raises(Forbidden):
        ann.put(opening("tcp:22"))


def test_a_service_whose_readiness_runs_a_command_takes_the_permission_to_exec(lab: ApiLab) -> None:
    rules = {"service": ["create", "get", "update"], "vm": ["exec"]}
    lab.client.create({"kind": "network", "name": "front", "project": "lab", "spec": {"cidr": "172.30.9.0/24"}})
    lab.client.apply([{"kind": "role", "name": "linker", "spec": {"rules": rules}}])
    ann = lab.with_token(use="access", role="linker", project="lab")
    spec: dict[str, Any] = {"selector": {"app": "web"}, "ports": ["80"], "network": "front"}
    asking = {"readiness": {"type": "command", "command": ["id"]}}
    service = {"kind": "service", "name": "shop", "project": "lab", "spec": spec}
    ann.create(service)
    for refused in (
        lambda: ann.create({**service, "name": "other", "spec": {**spec, **asking}}),
        lambda: ann.patch("service", "shop", {"spec": asking}, project="lab"),
    ):
        with pytest.raises(Forbidden, match="run a command in the workloads of a service") as caught:
            refused()
        assert "container:exec" in (caught.value.hint or "")
    lab.client.patch("service", "shop", {"spec": asking}, project="lab")
    ann.patch("service", "shop", {"spec": {"drain": "5s"}}, project="lab")  # what runs is as it was given
    with pytest.raises(Forbidden):
        ann.patch("service", "shop", {"spec": {"selector": {"app": "bank"}}}, project="lab")
    with pytest.raises(WeftError) as taken:  # a port of the server's own
        lab.client.patch("service", "shop", {"spec": {"publish": ["9:80"]}}, project="lab")
    assert taken.value.token == "portReserved" and "--force-publish" not in (taken.value.hint or "")


def test_a_refusal_says_what_was_asked_for_in_words(lab: ApiLab) -> None:
    stranger = lab.with_token(use="access", role="editor", project="lab")
    with pytest.raises(Forbidden, match="it can't read the logs of a VM in other") as refused:
        stranger.verb("vm", "web", "logs", {}, project="other")
    assert "vm:logs (role viewer)" in (refused.value.hint or "")
