"""Limits on how many objects there are, and on writes a second, at the real API: what fills the store is refused, and says why."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm
from tests.scenario.people.test_people import add_user, log_in, wait_until

from weft.api.object import read
from weft.api.state.request_rates import WriteRates
from weft.client import Client
from weft.client.answer import raise_problem
from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete
from weft.objects.errors import AlreadyExists, Forbidden, InvalidInput, Throttled, WeftError
from weft.store.sqlite.store import SqliteStore

MOST = 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    folder = tmp_path_factory.mktemp("limits")
    lab = ApiLab(folder, SqliteStore(folder / "store.db", SystemClock()))
    lab.api.settings = dataclasses.replace(lab.settings, most_objects=MOST)
    yield lab
    lab.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients don't wait."""
    monkeypatch.setattr("weft.client.http.MOST_THROTTLED_SECONDS", 0.0)


def editor(lab: ApiLab, project: str, role: str = "editor") -> Client:
    if lab.stored(f"/project/-/{project}") is None:
        lab.client.create({"kind": "project", "name": project, "spec": {}})
    client = lab.with_token(use="access", role=role, project=project)
    client.project = project
    return client


def constraint(name: str, **labels: str) -> dict[str, Any]:
    return {"kind": "constraint", "name": name, "labels": labels, "spec": {"expression": "node.cpu > 1"}}


def batch(client: Client, objects: list[dict[str, Any]], kind: str = "constraints") -> list[str]:
    """The outcome of each."""
    answer = client.http.request("POST", f"/v1/projects/{client.project}/{kind}:batch", {"objects": objects})
    raise_problem(answer)
    return [one["error"]["reason"] if "error" in one else "made" for one in answer.json()["results"]]


def test_a_project_has_so_many_objects_of_a_kind_and_no_more(lab: ApiLab) -> None:
    ann, bea = editor(lab, "full"), editor(lab, "empty")
    assert batch(ann, [constraint(f"c{n}") for n in range(MOST + 5)]) == ["made"] * MOST + ["tooManyObjects"] * 5
    one_more = lambda: ann.create(constraint("more"))  # noqa: E731
    for refuse in (one_more, lambda: ann.put(constraint("more")), lambda: ann.apply([constraint("more")])):
        with pytest.raises(Forbidden) as caught:
            refuse()
        assert caught.value.token == "tooManyObjects"
    assert f"project full has {MOST} constraints" in str(caught.value) and "--most-objects" in str(caught.value.hint)
    with pytest.raises(AlreadyExists):
        ann.create(constraint("c1"))
    ann.put(constraint("c1", tier="gold"))  # a change adds none
    ann.create({"kind": "volume", "name": "other-kind", "spec": {"size": "1G"}})
    bea.create(constraint("c1"))
    ann.delete("constraint", "c1")
    one_more()
    with pytest.raises(Forbidden):
        ann.create(constraint("again"))


def test_what_controllers_removed_is_counted_no_more_before_anything_is_refused(lab: ApiLab) -> None:
    ann = editor(lab, "shrinks")
    batch(ann, [constraint(f"c{n}") for n in range(MOST)])
    lab.run(lab.store.commit([Delete("/constraint/shrinks/c0")]))
    ann.create(constraint("more"))


def test_what_controllers_made_counts_within_a_minute(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = editor(lab, "grows")
    ann.create(constraint("first"))
    first = lab.stored("/constraint/grows/first")
    assert first is not None
    lab.put(*(msgspec.structs.replace(first, name=f"more{n}", uid=f"u{n}", revision=0) for n in range(MOST)))
    monkeypatch.setattr("weft.api.state.object_counts.KEPT_SECONDS", 0.0)
    with pytest.raises(Forbidden):
        ann.create(constraint("one"))


def test_failed_and_dry_runs_leave_nothing_counted(lab: ApiLab) -> None:
    ann = editor(lab, "tries")
    ann.create(constraint("c0"))
    for n in range(2 * MOST):
        ann.create(constraint(f"d{n}"), dry_run=True)
        with pytest.raises(WeftError):
            ann.create({**constraint("bad"), "spec": {"expression": "none.of(these"}})
    assert lab.api.objects.find("/constraint/tries/", lab.clock.elapsed(), MOST) == 1


def test_many_requests_together_make_no_more_than_one_after_the_other(lab: ApiLab) -> None:
    ann = editor(lab, "race")
    clients = [editor(lab, "race") for _ in range(8)]
    ann.create(constraint("first"))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: batch(clients[n], [constraint(f"c{n}-{each}") for each in range(10)]), range(8)))
    assert sum(one.count("made") for one in made) == MOST - 1
    assert len(ann.list("constraint").items) == MOST


def test_jobs_and_quotas_bound_workloads_and_administrators_the_fabric_s_kinds(lab: ApiLab) -> None:
    ann = editor(lab, "work")
    ann.create(make_image())
    vms = [make_vm(f"v{n}", networks=[]) for n in range(MOST + 1)]
    assert batch(ann, vms, "vms") == ["made"] * (MOST + 1)
    for n in range(MOST + 1):
        lab.client.create({"kind": "group", "name": f"g{n}", "spec": {}})


def test_a_user_has_a_hundred_tokens_of_their_own_also_without_any_role(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.api.admission.limits._find_most", lambda *_: 3)
    add_user(lab, "rita")
    rita = log_in(lab, "rita")

    def make(name: str, **more: Any) -> Any:
        return rita.create({"kind": "token", "name": name, "spec": {"use": "access", "role": ""}, **more})

    for n in range(3):
        make(f"rita-{n}")
    with pytest.raises(Forbidden) as caught:
        make("rita-more")
    assert caught.value.token == "tooManyObjects" and "user rita has 3 tokens" in str(caught.value)
    with pytest.raises(InvalidInput, match="weft/login"):  # as a login it wouldn't count, and could live on
        make("rita-more", labels={"weft/login": "user"})
    log_in(lab, "rita")
    rita.delete("token", "rita-0")
    make("rita-more")


def test_an_administrator_of_a_project_fills_no_place_of_others_with_tokens(lab: ApiLab) -> None:
    boss, other = editor(lab, "boss", "admin"), editor(lab, "else", "admin")
    spec = {"use": "access", "role": "viewer", "project": "boss"}
    made = 0
    with pytest.raises(Forbidden, match="project boss has"):
        for made in range(MOST + 1):
            boss.create({"kind": "token", "name": f"boss-{made}", "spec": spec})
    assert made == MOST - 1  # its own is one
    other.create({"kind": "token", "name": "else-1", "spec": {**spec, "project": "else"}})


def test_who_writes_too_fast_waits_and_others_go_on(lab: ApiLab, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.api.state.request_rates.LEAST_BURST", 5)
    monkeypatch.setattr("weft.api.state.request_rates.BURST_SECONDS", 5)
    monkeypatch.setattr(lab.api, "writes", WriteRates(1))
    ann, bea = editor(lab, "fast"), editor(lab, "slow")
    assert batch(ann, [constraint(f"c{n}") for n in range(4)]) == ["made"] * 4
    answer = ann.http.request(
        "POST", "/v1/projects/fast/constraints:batch", {"objects": [constraint(f"d{n}") for n in range(4)]}
    )
    assert (answer.status, answer.json()["reason"]) == (429, "tooManyWrites") and answer.headers["retry-after"] in "23"
    assert "writes too fast" in answer.json()["detail"] and "--writes-per-second" in answer.json()["hint"]
    with pytest.raises(Throttled):
        for n in range(4):
            ann.patch("constraint", "c0", {"labels": {"n": str(n)}})
    with pytest.raises(Throttled):
        ann.apply([constraint(f"e{n}") for n in range(4)])
    assert len(ann.list("constraint").items) == 4
    bea.create(constraint("c0"))
    for n in range(20):  # who could raise the limit, and nodes
        lab.client.create({"kind": "group", "name": f"quick{n}", "spec": {}})
    node = lab.join("n1")
    for n in range(20):
        node.report(node={"cpu": n + 1.0})


def test_all_tokens_of_a_user_write_from_one_bucket(lab: ApiLab, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.api.state.request_rates.LEAST_BURST", 5)
    monkeypatch.setattr("weft.api.state.request_rates.BURST_SECONDS", 5)
    add_user(lab, "sara")
    monkeypatch.setattr(lab.api, "writes", WriteRates(1))
    sara = log_in(lab, "sara")
    made = sara.create({"kind": "token", "name": "sara-1", "spec": {"use": "access", "role": ""}})
    again = lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))
    with pytest.raises(Throttled):
        for n in range(6):
            again.create({"kind": "token", "name": f"sara-n{n}", "spec": {"use": "access", "role": ""}})
    with pytest.raises(Throttled):
        for _ in range(2):
            sara.delete("token", "none-such")


def test_what_was_made_before_a_restart_counts(tmp_path: Path) -> None:
    lab = ApiLab(tmp_path, SqliteStore(tmp_path / "store.db", SystemClock()))
    lab.api.settings = dataclasses.replace(lab.settings, most_objects=2)
    ann = editor(lab, "again")
    batch(ann, [constraint("c0"), constraint("c1")])
    lab.restart()
    lab.api.settings = dataclasses.replace(lab.settings, most_objects=2)
    with pytest.raises(Forbidden, match="has 2 constraints"):
        ann.create(constraint("c2"))
    lab.close()


def send_raw(lab: ApiLab, token: str, path: str) -> ssl.SSLSocket:
    """A connection that has sent a request and reads no answer."""
    host, _, port = lab.context.server.removeprefix("https://").rpartition(":")
    tls = ssl.create_default_context(cadata=lab.context.ca)
    tls.check_hostname = False
    sock = tls.wrap_socket(socket.create_connection((host, int(port))))
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return sock


def test_lists_of_one_person_wait_for_each_other_and_keep_nobody_else_waiting(
    lab: ApiLab, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The making of lists stands still, as when they are long: the others of that person wait, up to a bound."""
    monkeypatch.setattr("weft.api.state.list_turns.MOST_WAITING", 3)
    ann, bea = editor(lab, "long"), editor(lab, "short")
    begun, go_on, real = [], asyncio.Event(), read._list

    async def list_slowly(context: Any, call: Any, target: Any, *more: Any) -> Any:
        if target.project == "long":
            begun.append(1)
            await go_on.wait()
        return await real(context, call, target, *more)

    monkeypatch.setattr(read, "_list", list_slowly)
    path = "/v1/projects/long/vms"
    socks = [send_raw(lab, ann.context.token, path) for _ in range(5)]
    wait_until(lambda: sum(turns.users for turns in lab.api.lists._people.values()) == 5)
    assert len(begun) == 2
    refused = ann.http.request("GET", path)
    assert (refused.status, refused.json()["reason"], refused.headers["retry-after"]) == (429, "tooManyLists", "1")
    assert bea.list("vm").items == []
    lab.loop.call_soon_threadsafe(go_on.set)
    for sock in socks:
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        sock.close()
    wait_until(lambda: not lab.api.lists._people)


def test_what_one_person_does_not_read_is_bounded_and_is_free_when_the_person_leaves(
    lab: ApiLab, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.api.state.list_turns.MOST_BYTES", 20_000_000)
    ann, bea = editor(lab, "much"), editor(lab, "little")
    for name in ("much", "little"):
        lab.client.apply([{**make_image(), "project": name}])
    for _ in range(3):
        batch(ann, [make_vm(f"v{n}-{_}", networks=[], user_data="#!" + "x" * 60_000) for n in range(50)], "vms")
    path, socks, least = "/v1/projects/much/vms", [], 8_000_000
    name = f"token:{ann.http.request('GET', '/v1/whoami').json()['token']}"
    for _ in range(3):
        socks.append(send_raw(lab, ann.context.token, path))
        wait_until(lambda: (turns := lab.api.lists._people.get(name)) is not None and turns.bytes > least * len(socks))
    refused = ann.http.request("GET", path)
    assert refused.status == 429 and "of lists under way" in refused.json()["detail"]
    assert bea.list("vm").items == [] and bea.list("image").items
    for sock in socks:
        sock.close()
    wait_until(lambda: not lab.api.lists._people)
    assert len(ann.list("vm").items) == 150
    wait_until(lambda: not lab.api.lists._people)
