"""The servers of a fabric ask each other with certificates of the fabric's CA, and none waits for one that is away."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import take_port
from tests.scenario.people.test_people import wait_until
from tests.scenario.two_servers_lab import TwoServers

from weft.client import Client
from weft.client.context import Context
from weft.contracts.store import Delete
from weft.kinds.server import SERVER
from weft.objects.errors import Forbidden, WeftError
from weft.objects.identity import SERVER_NAME, object_key
from weft.protocol.server.presence import LEASE_PREFIX, Presence, encode_presence, name_holder

CONTENT = b"an image" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def as_server(lab: TwoServers) -> Client:
    """The second server as a client of the first."""
    authority, api = lab.second.authority, lab.second.api
    assert api.own is not None
    own = str(authority.renew_own(api.own))
    return lab.first.connect(Context(server=lab.first.url, ca=authority.ca, certificate=own, server_name=SERVER_NAME))


def test_a_server_gets_files_of_another_and_may_do_nothing_else_there(lab: TwoServers) -> None:
    (lab.first.settings.blobs / SHA256).write_bytes(CONTENT)
    others = lab.second.api.others
    asked = lab.second.run(others.ask_all("GET", f"/v1/blobs/{SHA256}"))
    assert (list(asked.found), asked.away) == (["s1"], [])
    assert asked.found["s1"].body == CONTENT
    with others.stream("s1", f"/v1/blobs/{SHA256}", {"Range": "bytes=1-3"}) as stream:
        assert (stream.status, stream.read(100)) == (206, CONTENT[1:4])

    server = as_server(lab)
    for attempt in (
        lambda: server.list("vm"),
        lambda: server.get("server", "s1"),
        lambda: server.create({"kind": "volume", "name": "v", "spec": {"size": "1G"}}),
        lambda: server.delete("server", "s1"),
        lambda: server.http.stream("GET", "/v1/audit"),
        lambda: server.http.stream("GET", "/v1/traces"),
        lambda: server.http.stream("GET", "/v1/openapi.json"),
        lambda: server.http.stream("POST", "/v1/servers:join"),
        lambda: server.http.stream("POST", "/v1/nodes/n1:report"),
    ):
        with pytest.raises(Forbidden):
            attempt()
    refused = msgspec.json.decode(lab.first.client.http.request("GET", "/v1/audit?outcome=refused").body)["items"]
    assert {(one["actor"]["kind"], one["actor"]["name"]) for one in refused} == {("server", "server:s2")}


def test_a_server_that_was_removed_is_not_answered(lab: TwoServers) -> None:
    (lab.first.settings.blobs / SHA256).write_bytes(CONTENT)
    server, place, key = as_server(lab), f"/v1/blobs/{SHA256}", object_key(SERVER.name, None, "s2")

    def present(uid: str, is_known: bool) -> None:
        presence = encode_presence(Presence(uid=uid, is_known=is_known))
        assert lab.first.run(lab.store.grant(LEASE_PREFIX + "s2", name_holder("s2", "uid-s2"), 60.0, presence))

    assert server.http.request("GET", place).status == 200
    present("uid-of-another", is_known=True)  # which has its name now
    assert server.http.request("GET", place).status == 403
    present("uid-s2", is_known=True)
    assert server.http.request("GET", place).status == 200
    lab.first.run(lab.store.commit([Delete(key)]))
    wait_until(lambda: not lab.first.api.servers.list_others("s1"))
    refused = server.http.request("GET", place)
    assert (refused.status, refused.json()["reason"]) == (403, "serverRemoved")
    present("uid-s2", is_known=False)  # it has joined, and its object is made soon
    assert server.http.request("GET", place).status == 200


def test_a_server_that_is_away_is_named_and_one_that_hangs_is_left_alone_for_a_while(lab: TwoServers) -> None:
    hangs, refuses, connections = take_port(), take_port(), []
    hung = threading.Thread(target=lambda: connections.append(hangs.accept()), daemon=True)
    hung.start()
    place = "https://127.0.0.1:{}"
    gone = place.format(refuses.getsockname()[1])
    refuses.close()
    lab.announce(s3=place.format(hangs.getsockname()[1]), s4="", s5=gone)
    others = lab.first.api.others
    assert others.list_serving() == ["s2", "s3", "s5"]
    for _ in range(2):
        asked = lab.first.run(others.ask_all("GET", f"/v1/blobs/{SHA256}"))
        assert asked.away == ["s3", "s4", "s5"]
        assert {name: answer.status for name, answer in asked.found.items()} == {"s2": 404}
    hung.join(10)
    with pytest.raises(WeftError, match="server s3 is away: it didn't answer just now") as refused:
        lab.first.run(others.ask("s3", "GET", "/v1/whoami"))
    assert (refused.value.token, refused.value.details) == ("serverAway", {"server": "s3"})

    lab.announce(s3=lab.second.url, s4="", s5="")  # it has moved, and another one lies there
    assert lab.first.run(others.ask("s3", "GET", f"/v1/blobs/{SHA256}")).status == 404
    for connection, _ in connections:
        connection.close()
    hangs.close()


def test_without_others_nobody_is_asked(tmp_path: Path) -> None:
    lab = TwoServers(tmp_path)
    try:
        asked = lab.first.run(lab.first.api.others.ask_all("GET", "/v1/whoami"))
        assert asked == ({}, [])
    finally:
        lab.close()
