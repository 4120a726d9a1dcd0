"""``weft witness`` as a process, asked over TLS: who gets in, what any of them can make it do, and what kill -9 leaves."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.witness_place import WitnessPlace

from weft.client.answer import ClientAnswer
from weft.client.context import Context
from weft.client.http import Http
from weft.kinds.fields.cluster.link import WitnessToken, read_witness_token
from weft.launch.witness.configuration import read_settings
from weft.objects.errors import AlreadyExists, InvalidInput, NotFound, Unavailable
from weft.objects.identity import SERVER_NAME
from weft.protocol.failover.claim import Claim, ClaimRefused, Generation, Granted, Newer, Promised
from weft.protocol.failover.witness import PATH, WitnessAnswer, WitnessRequest
from weft.serving.rate import MOST_CALLERS, RateBound
from weft.witness import sites as sites_module
from weft.witness.sites import SiteFile

FIRST = Claim(Generation(1, "first"), "east")
PEERS = {"east": "west", "west": "east"}
WEFT = str(Path(sys.executable).with_name("weft"))


class Place(WitnessPlace):
    def send(self, secret: str, body: bytes, path: str = PATH) -> ClientAnswer:
        http = Http(Context(server=self.url, ca=self.ca, token=secret, server_name=SERVER_NAME), timeout_seconds=60.0)
        try:
            return http.request("POST", path, body)
        finally:
            http.close()

    def ask(self, site: str, what: Any = "claim", claim: Claim = FIRST, seconds: float = 0.5) -> WitnessAnswer:
        asked = WitnessRequest(peer=PEERS[site], group="shop", what=what, claim=claim, seconds=seconds)
        answer = self.send(self.tokens[site].secret, msgspec.json.encode(asked))
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body, type=WitnessAnswer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("place"))
    place.start()
    yield place
    place.kill()


def until_granted(place: Place, site: str) -> Claim:
    deadline = time.monotonic() + 60.0
    while not isinstance(answer := place.ask(site, "question").answer, Granted):
        assert isinstance(answer, ClaimRefused) and answer.reason == "promised" and time.monotonic() < deadline
        time.sleep(0.05)
    return answer.claim


def test_a_take_over_goes_over_tls_and_the_claim_outlives_kill_9(place: Place) -> None:
    assert place.ask("east").answer == Promised(FIRST)
    assert place.ask("west").is_armed
    granted = until_granted(place, "west")
    assert granted.holder == "west" and granted.generation.number == 2
    place.kill()
    half = place.folder / ".votes.json.4711"  # what a process leaves that is killed while it writes
    half.write_bytes(b"{")
    place.start()
    assert not half.exists()
    assert place.ask("east").answer == Newer(granted)
    assert place.ask("west", "question").answer == Granted(granted)  # the answer was lost: it is the same one
    assert place.ask("west", claim=granted).answer == Promised(granted)


def test_strangers_and_what_is_no_request_get_an_error_that_says_nothing(place: Place) -> None:
    for secret in ("", "x", "0" * 64, place.tokens["east"].ca_sha256):
        answer = place.send(secret, b"{}")
        assert answer.status == 401 and b"east" not in answer.body, answer.body
    secret = place.tokens["east"].secret
    for status, body in ((400, b"{}"), (400, b"\xff"), (413, b" " * 5000)):
        answer = place.send(secret, body)
        assert answer.status == status and secret.encode() not in answer.body, answer.body
    assert place.send(secret, b"{}", "/v1/vms").status == 404


def test_a_connection_that_says_nothing_takes_little_of_its_memory(place: Place) -> None:
    pages = Path(f"/proc/{place.process and place.process.pid}/statm")
    begun, tls = int(pages.read_text().split()[1]), ssl.create_default_context(cadata=place.ca)
    with ExitStack() as held:
        for _ in range(100):
            plain = held.enter_context(socket.create_connection(("127.0.0.1", place.port), 60.0))
            held.enter_context(tls.wrap_socket(plain, server_hostname=SERVER_NAME))
        assert place.ask("east").epoch
        assert (int(pages.read_text().split()[1]) - begun) * resource.getpagesize() < 100 * (128 << 10)


def test_its_metrics_count_and_name_nobody(place: Place) -> None:
    place.send("wrong", b"{}")
    with socket.create_connection(("127.0.0.1", place.metrics), 60.0) as plain:
        plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: plain.recv(65_536), b"")).decode()
    assert "weft_witness_sites 2" in text and 'answer="notAuthenticated"' in text
    assert "east" not in text and "shop" not in text


def test_a_second_one_may_not_have_its_folder(place: Place) -> None:
    assert place.weft()[0] == 5
    assert place.ask("east").epoch  # the first one goes on


def test_a_site_that_is_removed_is_refused_from_its_next_request_on_and_its_groups_are_forgotten(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    place.start()
    try:
        place.ask("east"), place.ask("west")
        assert b'"east/west/shop"' in (place.folder / "votes.json").read_bytes()
        assert place.weft("remove-site", "west")[0] == 0
        assert place.send(place.tokens["west"].secret, b"{}").status == 401
        assert b"shop" not in (place.folder / "votes.json").read_bytes()
        assert place.weft("remove-site", "west")[0] == 3
        assert place.weft("add-site", "east")[0] == 5
        place.tokens["west"] = place.add("west")
        assert not place.ask("east").is_armed and place.ask("west").is_armed
    finally:
        place.kill()
    kept = b"".join(path.read_bytes() for path in place.folder.iterdir() if path.is_file())
    assert all(token.secret.encode() not in kept for token in place.tokens.values())
    assert all(
        os.stat(path).st_mode & 0o077 == 0 for path in place.folder.iterdir() if path.suffix in (".json", ".key")
    )


def test_a_caller_may_ask_so_often_and_only_so_many_callers_are_remembered() -> None:
    rate = RateBound(10.0)
    assert [rate.take("a", 0.0) for _ in range(20)] == [0.0] * 20
    assert 0.0 < rate.take("a", 0.0) <= 0.1
    assert rate.take("b", 0.0) == 0.0
    assert rate.take("a", 0.11) == 0.0
    for number in range(MOST_CALLERS + 5):
        rate.take(f"c{number}", 1.0)
    assert len(rate) == MOST_CALLERS


def test_a_witness_serves_so_many_sites_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites_module, "MOST_SITES", 2)
    sites = SiteFile(tmp_path)
    assert sites.read() == {} and not sites.has_changed()
    sites.add("east"), sites.add("west")
    assert sites.has_changed() and set(sites.read()) == {"east", "west"} and not sites.has_changed()
    with pytest.raises(InvalidInput, match="at most 2"):
        sites.add("north")
    with pytest.raises(AlreadyExists):
        sites.add("east")
    with pytest.raises(InvalidInput):
        sites.add("../north")
    with pytest.raises(NotFound, match="no site 'south'"):
        sites.remove("south")
    (tmp_path / sites_module.FILE).write_text('{"east": "\u00e4"}')
    with pytest.raises(Unavailable, match="can't be read"):
        sites.read()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listne: 0.0.0.0:1\n", "did you mean listen"),
        ("listen: nowhere\n", "not an address and a port"),
        ("rate: 0\n", "whole number"),
        ("rate: [1]\n", "must be a text or a number"),
        ("- 1\n", "one map"),
        ("names: w.example, w\u00e4rter.example\n", "not a name or an address"),
        ("names: https://w.example\n", "not a name or an address"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "w.yaml").write_text(text)
    with pytest.raises(InvalidInput) as refused:
        read_settings(["--config", str(tmp_path / "w.yaml")])
    assert said in f"{refused.value.message} {refused.value.hint}"


def test_a_flag_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("listen: 0.0.0.0:7443\nrate: 5\nnames: w.example, 10.0.0.9\n")
    found = read_settings(["--config", str(tmp_path / "w.yaml"), "--rate", "7"])
    assert (found.listen, found.rate, found.names) == ("0.0.0.0:7443", 7, ("w.example", "10.0.0.9"))
    with pytest.raises(InvalidInput, match="the name is missing"):
        read_settings(["add-site"])


def test_what_people_carry_is_read_back_and_never_printed() -> None:
    token = WitnessToken("east", "a" * 64, "b" * 64)
    assert "a" * 64 not in repr(token)
    for wrong in ("", "east", f"east.{'a' * 64}", f"east.{'a' * 64}.{'b' * 63}", f"ea/st.{'a' * 64}.{'b' * 64}"):
        assert read_witness_token(wrong) is None
