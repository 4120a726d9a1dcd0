"""A file that lies on one server of a fabric is served by each of them, and an upload lies on two before it is acknowledged."""

from __future__ import annotations

import hashlib
import re

import pytest
from tests.scenario.api.test_other_servers import CONTENT, SHA256
from tests.scenario.api_lab import ApiLab, run_together, take_port
from tests.scenario.gateway.test_function_code import make_zip
from tests.scenario.two_servers_lab import TwoServers

from weft.client import Client
from weft.client.answer import raise_problem
from weft.client.function_code import has_code, upload_code
from weft.client.server.files import FOLDER, choose_homes
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.objects.errors import NotFound, Unavailable


def read(client: Client, sha256: str = SHA256, **headers: str) -> tuple[int, bytes]:
    answer = client.http.request("GET", f"/v1/blobs/{sha256}", headers=headers)
    raise_problem(answer)
    assert FOLDER not in answer.headers
    return answer.status, answer.body


def list_files(server: ApiLab) -> set[str]:
    return {path.name for path in server.settings.blobs.rglob("*") if path.is_file()}


def test_a_server_gets_a_file_from_the_one_that_has_it_once_for_all_who_ask(lab: TwoServers) -> None:
    (lab.first.settings.blobs / SHA256).write_bytes(CONTENT)
    second = lab.of_each(lab.first.client)[1]
    before = lab.first.api.requests.by_code["GET", 200]
    assert run_together(*[lambda: read(second)] * 6) == [(200, CONTENT)] * 6
    assert lab.first.api.requests.by_code["GET", 200] == before + 1
    kept = lab.second.settings.blobs / SHA256
    assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (CONTENT, 0o600)
    (lab.first.settings.blobs / SHA256).unlink()
    assert read(second, Range="bytes=-3") == (206, CONTENT[-3:])
    assert read(lab.first.client) == (200, CONTENT)  # and back
    with pytest.raises(NotFound, match="is not on the server"):
        read(second, "0" * 64)


def test_a_file_that_isn_t_what_its_digest_says_is_neither_kept_nor_served(lab: TwoServers) -> None:
    (lab.first.settings.blobs / SHA256).write_bytes(CONTENT + b"!")
    with pytest.raises(Unavailable, match="has another digest"):
        read(lab.of_each(lab.first.client)[1])
    assert list_files(lab.second) == set()


def test_a_file_that_a_server_which_is_away_may_have_is_not_said_to_be_gone(lab: TwoServers) -> None:
    lab.announce(s3="")
    with pytest.raises(Unavailable, match="it may be on s3, which can't be reached") as refused:
        read(lab.first.client)
    assert refused.value.token == "serverAway"


def test_an_upload_lies_on_two_servers_and_counts_at_each(lab: TwoServers) -> None:
    clients, (sha256, data) = lab.of_each(lab.first.client), make_zip()
    upload_code(clients[0], sha256, data)
    project = clients[0].get("project", "default")
    for server in lab.servers:
        assert list_files(server) == {sha256, f"{sha256}.{project['uid']}"}
        assert (server.settings.blobs / CODE_FOLDER / sha256).read_bytes() == data
    recorded = clients[1].http.request("GET", "/v1/audit?kind=function").json()["items"]
    assert sorted((one["actor"]["kind"], one["outcome"]) for one in recorded) == [
        ("person", "allowed"),
        ("server", "allowed"),
    ]
    for server in lab.servers:  # a server that was away meanwhile
        for path in (server.settings.blobs / CODE_FOLDER).iterdir():
            path.unlink()
        other = clients[1 - lab.servers.index(server)]
        upload_code(other, sha256, data)
        for path in (server.settings.blobs / CODE_FOLDER).iterdir():
            path.unlink()
        client = clients[lab.servers.index(server)]
        client.create({"kind": "project", "name": f"of-{server.name}", "spec": {}})
        assert not has_code(client, sha256, project=f"of-{server.name}")  # a digest alone gives nothing
        assert has_code(client, sha256)
        function = {"kind": "function", "name": f"f-{server.name}", "spec": {"code": sha256, "handler": "app.handler"}}
        client.create(function)
        assert read(client, sha256) == (200, data)


def test_an_upload_that_no_other_server_takes_is_refused_until_that_one_is_known_to_be_away(lab: TwoServers) -> None:
    sha256, data = make_zip()
    silent = take_port()
    lab.announce(s2=f"https://127.0.0.1:{silent.getsockname()[1]}")
    silent.close()
    with pytest.raises(Unavailable, match="no other takes it: server s2 is away") as refused:
        upload_code(lab.first.client, sha256, data)
    assert (refused.value.token, has_code(lab.first.client, sha256)) == ("oneCopy", False)
    lab.announce(s2="")
    upload_code(lab.first.client, sha256, data)
    assert has_code(lab.first.client, sha256)


def test_homes_are_two_the_same_for_all_who_ask_and_few_change_with_the_servers() -> None:
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(300)]
    before = {one: choose_homes(one, ["s1", "s2", "s3"]) for one in digests}
    assert all(len(set(homes)) == 2 for homes in before.values())
    assert before == {one: choose_homes(one, ["s3", "s1", "s2"]) for one in digests}
    counts = [sum(name in homes for homes in before.values()) for name in ("s1", "s2", "s3")]
    assert min(counts) > 150 and re.fullmatch("[0-9a-f]{64}", digests[0])
    without = {one: choose_homes(one, ["s1", "s2"]) for one in digests}
    assert all(set(homes) - {"s3"} <= set(without[one]) for one, homes in before.items())
    assert choose_homes(digests[0], ["s1"]) == ["s1"]
