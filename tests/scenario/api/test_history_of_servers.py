"""The history of metrics of two servers, each with a real database of its own: each gets what it lacks, and until then another one
answers; what may be missing is named. Servers that answer what nobody may are asked for nothing else."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from tests.long import mark_long
from tests.scenario.api_lab import ApiLab
from tests.scenario.metrics_lab import OwnDatabase, fetch
from tests.scenario.people.test_people import wait_until
from tests.scenario.two_servers_lab import TwoServers

from weft.api.servers import history_copies
from weft.api.servers.history_copies import Behind
from weft.client import Client
from weft.client.answer import ClientAnswer
from weft.client.server.endpoints import AWAY_HEADER
from weft.client.server.others import MOST_BYTES
from weft.controllers.metrics.spreader import Spreader
from weft.objects.errors import Throttled, Unavailable
from weft.telemetry.metrics import moments as moments_module
from weft.telemetry.metrics.moments import mark_moment
from weft.telemetry.metrics.sample import HEADERS, Sample
from weft.telemetry.metrics.sender import split_samples

COUNT = 12  # moments, from two minutes ago on


class Servers(TwoServers):
    def __init__(self, folder: Path) -> None:
        self.databases = [OwnDatabase(folder / f"database-{number}") for number in (1, 2)]
        super().__init__(folder, histories=(self.databases[0].find, self.databases[1].find))
        for name in ("a", "b"):
            self.first.client.create({"kind": "project", "name": name, "spec": {}})
        self.limited = self.of_each(self.first.with_token(use="access", role="viewer", project="a"))
        self.admins = self.of_each(self.first.client)
        self.now = int(time.time()) * 1000

    def record(self, number: int) -> list[Sample]:
        """In the database of the server with this number, at each moment of two minutes, one guest in each of two projects."""
        moments = [self.now - 10_000 * back for back in range(5, 5 + COUNT)]
        samples = [
            Sample("weft_guest_cpu_cores", (("project", project), ("name", "vm")), at, at / 1000)
            for at in moments
            for project in ("a", "b")
        ]
        self.databases[number].send([*samples, *(mark_moment(at, 2) for at in moments)])
        return samples

    def ask(self, client: Client, query: str = "count_over_time(weft_guest_cpu_cores[1h])") -> ClientAnswer:
        form = urlencode({"query": query, "time": self.now / 1000})
        return client.http.request("GET", f"/api/v1/query?{form}")

    def flush(self) -> None:
        for database in self.databases:
            fetch(database.find(), "/internal/force_flush")

    def close(self) -> None:
        super().close()
        for database in self.databases:
            database.close()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.setattr(history_copies, "SHOWN_SECONDS", 2.0)  # the databases here were asked nothing before
    made = Servers(tmp_path)
    yield made
    made.close()


def behind(server: ApiLab) -> Behind:
    return server.run(server.api.history_copies.find_behind())


def counts(answer: ClientAnswer) -> dict[str, str]:
    """How many samples each project's guest has."""
    assert answer.status == 200, answer.body
    return {one["metric"]["project"]: one["value"][1] for one in json.loads(answer.body)["data"]["result"]}


def own_counts(lab: Servers, number: int) -> dict[str, str]:
    form = {"query": "count_over_time(weft_guest_cpu_cores[1h])", "time": lab.now / 1000, "nocache": 1}
    found = json.loads(fetch(lab.databases[number].find(), "/api/v1/query", urlencode(form).encode()))
    return {one["metric"]["project"]: one["value"][1] for one in found["data"]["result"]}


def test_a_history_that_lacks_something_is_not_asked_and_gets_it(lab: Servers) -> None:
    lab.record(0)
    both = {"a": str(COUNT), "b": str(COUNT)}
    assert behind(lab.second) == ([], [])
    lab.announce()
    answers = [lab.ask(client) for client in (*lab.admins, *lab.limited)]
    assert [counts(answer) for answer in answers] == [both, both, {"a": str(COUNT)}, {"a": str(COUNT)}]
    assert not any(AWAY_HEADER in answer.headers for answer in answers)
    wait_until(lambda: behind(lab.second) == ([], []))
    lab.flush()
    assert own_counts(lab, 1) == own_counts(lab, 0) == both
    assert [counts(lab.ask(client)) for client in (lab.admins[1], lab.limited[1])] == [both, {"a": str(COUNT)}]


def test_samples_of_a_moment_go_to_the_other_server_and_nobody_else_may_bring_any(lab: Servers) -> None:
    lab.announce()
    spreader = Spreader(lab.first.api.others)

    async def spread() -> None:
        sending = asyncio.create_task(spreader.run())
        at = lab.now
        ups = [Sample("weft_node_up", (("node", f"n{number}"),), at, 1.0) for number in range(6_000)]
        spreader.put(split_samples([*ups, mark_moment(at, len(ups))]))
        while spreader.is_busy:
            await asyncio.sleep(0.01)
        sending.cancel()

    lab.first.run(spread())
    lab.flush()
    answer = lab.ask(lab.admins[1], "count(weft_node_up) + on() weft_metrics_recorded_samples")
    assert json.loads(answer.body)["data"]["result"][0]["value"][1] == "12000"
    for method, path in (("PUT", "samples"), ("GET", "samples?start=0&end=1"), ("GET", "moments?start=0&end=1")):
        assert lab.admins[0].http.request(method, f"/v1/history/{path}", b"x").status == 403
    for garbage in (b"", b"x", b"\xff" * 999, b"\x05\x10other", b"{}"):
        asking = lab.first.api.others.ask("s2", "PUT", "/v1/history/samples", garbage, headers=HEADERS)
        answer = lab.first.run(asking)
        assert answer.status == 400 and b"these samples can't be read" in answer.body, (garbage, answer.body)


def test_a_server_that_may_have_more_is_named_while_it_is_away(lab: Servers) -> None:
    lab.record(1)
    lab.announce(s1="")
    wait_until(lambda: behind(lab.second) == ([], ["s1"]))
    answer = lab.ask(lab.limited[1])
    assert counts(answer) == {"a": str(COUNT)}
    assert answer.headers[AWAY_HEADER] == "s1"
    assert json.loads(answer.body)["warnings"] == ["the history may have gaps: s1 may have more, and can't be reached"]
    lab.announce()
    wait_until(lambda: behind(lab.second) == ([], []))
    lab.announce(s1="")
    answer = lab.ask(lab.limited[1])
    assert counts(answer) == {"a": str(COUNT)} and AWAY_HEADER not in answer.headers, "it has all that s1 had"


def test_while_its_own_database_is_away_another_server_answers(lab: Servers) -> None:
    lab.record(0)
    lab.announce()
    wait_until(lambda: behind(lab.second) == ([], []))
    lab.databases[1].close()
    assert counts(lab.ask(lab.limited[1])) == {"a": str(COUNT)}
    lab.announce(s1="")
    assert lab.ask(lab.limited[1]).status == 503
    lab.databases[1] = OwnDatabase(lab.databases[1].state)


def test_moments_that_a_killed_database_had_just_taken_are_copied_again(lab: Servers) -> None:
    """Here it lost a guest's sample, and has the moment."""
    samples = lab.record(0)
    lab.databases[1].send([mark_moment(sample.at, 2) for sample in samples])
    lab.databases[1].find = lambda find=lab.databases[1].find: msgspec.structs.replace(  # type: ignore[method-assign,misc]
        find(), started_at=lab.now / 1000 - 45
    )
    lab.second.history.find = lab.databases[1].find  # type: ignore[union-attr]
    lab.announce()
    wait_until(lambda: behind(lab.second) == ([], []))
    lab.flush()
    assert int(own_counts(lab, 1)["a"]) in range(2, COUNT)


@pytest.mark.parametrize("most_bytes", mark_long([20_000, 1_000], 20_000))
def test_a_piece_that_is_too_large_is_halved_and_one_moment_that_is_is_left_out(
    lab: Servers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most_bytes: int
) -> None:
    monkeypatch.setattr(moments_module, "MOST_BYTES", most_bytes)
    drawn, moments = random.Random(1), [lab.now - 10_000 * back for back in range(5, 5 + COUNT)]
    names = [(("project", "a"), ("name", f"vm-{number}")) for number in range(1_000)]
    samples = [Sample("weft_guest_cpu_cores", name, at, round(drawn.random(), 3)) for at in moments for name in names]
    lab.databases[0].send([*samples, *(mark_moment(at, len(names)) for at in moments)])
    lab.announce()
    wait_until(lambda: "s1" in lab.second.api.history_copies.reached)
    lab.flush()
    answer = json.loads(lab.ask(lab.admins[1], "count(count_over_time(weft_guest_cpu_cores[1h]) == 12)").body)
    found = [one["value"][1] for one in answer["data"]["result"]]
    assert found == (["1000"] if most_bytes == 20_000 else [])
    assert ("too many to be copied" in caplog.text) is (not found)


def test_a_server_that_keeps_no_history_lacks_nothing_that_others_want(lab: Servers) -> None:
    lab.record(0)
    lab.second.api.history = None
    lab.announce()
    answer = lab.ask(lab.admins[0])
    assert counts(answer) == {"a": str(COUNT), "b": str(COUNT)} and AWAY_HEADER not in answer.headers
    assert behind(lab.first) == ([], [])


@contextmanager
def peer_that_answers(lab: Servers, body: bytes, head: bytes = b"") -> Iterator[str]:
    """A server of the fabric, by its certificate, that gives this to every request."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*lab.first.authority.renew_server([]))
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve(link: socket.socket) -> None:
            with suppress(OSError), tls.wrap_socket(link, server_side=True) as inside:
                while inside.recv(65_536):
                    inside.sendall(head or b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
                    inside.sendall(body)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"https://127.0.0.1:{door.getsockname()[1]}"
        finally:
            door.shutdown(socket.SHUT_RDWR)


def moments(*at: Any) -> bytes:
    return msgspec.json.encode({"moments": [[one, 1] for one in at], "reached": {}})


@pytest.mark.parametrize(
    "kind", mark_long(["garbage", "deep", "huge", "endless", "no-samples", "of-other-times"], "deep", "no-samples")
)
def test_a_server_that_answers_what_nobody_may_adds_nothing_and_is_named(lab: Servers, kind: str) -> None:
    lab.record(0)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" if kind == "endless" else b""
    body = {
        "garbage": b"\xff\x00 nonsense",
        "deep": b"[" * 100_000,
        "huge": b" " * (MOST_BYTES + 2),
        "endless": b"100000\r\n" + b" " * 0x100000 + b"\r\n",
        "no-samples": moments(lab.now - 65_000),
        "of-other-times": moments(1, lab.now + 10**9, 2**60, -5),
    }[kind]
    with peer_that_answers(lab, body, head) as url:
        lab.announce(s3=url)
        copies = lab.first.api.history_copies
        wanted = None if kind == "of-other-times" else "s3"
        wait_until(lambda: "s2" in copies.reached and lab.ask(lab.admins[0]).headers.get(AWAY_HEADER) == wanted)
        assert counts(lab.ask(lab.admins[0])) == {"a": str(COUNT), "b": str(COUNT)}
        lab.flush()
        form = {"query": "count_over_time(weft_metrics_recorded_samples[1d])", "time": lab.now / 1000 + 60}
        found = json.loads(fetch(lab.databases[0].find(), "/api/v1/query", urlencode(form).encode()))
        assert found["data"]["result"][0]["value"][1] == str(COUNT)
        for ask in (
            lambda: lab.first.run(lab.first.api.others.ask_all("GET", "/v1/audit")),
            lambda: lab.admins[0].http.request("GET", "/v1/audit"),
            lambda: lab.admins[0].http.request("GET", "/v1/traces"),
        ):
            with suppress(Unavailable, Throttled):
                ask()
