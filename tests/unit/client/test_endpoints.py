"""The servers that a client may ask: which one first, and what answers teach of them."""

from __future__ import annotations

from weft.client.context import Context
from weft.client.server.endpoints import MOST, Endpoints
from weft.objects.identity import SERVER_NAME

ONE, TWO, THREE = (f"https://10.0.0.{n}:8443" for n in (1, 2, 3))


def urls(endpoints: Endpoints) -> list[str]:
    return [one.url for one in endpoints.in_turn()]


def test_the_given_server_is_asked_first_and_then_the_one_that_answered() -> None:
    endpoints = Endpoints(Context(server=f"{ONE}/", ca="CA", others=[TWO, ONE]))
    assert urls(endpoints) == [ONE, TWO]
    assert [one.name for one in endpoints.in_turn()] == ["10.0.0.1", SERVER_NAME]
    endpoints.prefer(endpoints.in_turn()[1])
    assert urls(endpoints) == [TWO, ONE]


def test_an_answer_names_the_servers_and_the_given_one_stays() -> None:
    endpoints = Endpoints(Context(server=ONE, ca="CA", others=[TWO]))
    endpoints.prefer(endpoints.in_turn()[1])
    assert set(endpoints.learn(f"{TWO},{THREE}") or ()) == {TWO, THREE}
    assert urls(endpoints) == [TWO, ONE, THREE]
    assert endpoints.learn(f"{TWO},{THREE}") is None
    assert endpoints.learn(f"{THREE},{TWO}") is None  # the same, in another order
    assert endpoints.learn(f"ftp://x,{ONE},nonsense,{TWO}") == [TWO]


def test_a_server_that_names_too_many_is_not_believed_further() -> None:
    endpoints = Endpoints(Context(server=ONE))
    endpoints.learn(",".join(f"https://10.1.0.{n}:1" for n in range(200)))
    assert len(urls(endpoints)) == MOST
    assert {one.name for one in endpoints.in_turn()} == {one.host for one in endpoints.in_turn()}  # no CA of a fabric


def test_clients_of_a_server_that_dies_go_on_at_different_ones() -> None:
    named = [Endpoints(Context(server=ONE, ca="CA")) for _ in range(100)]
    for endpoints in named:
        endpoints.learn(f"{ONE},{TWO},{THREE}")
    assert {tuple(urls(endpoints)) for endpoints in named} == {(ONE, TWO, THREE), (ONE, THREE, TWO)}
