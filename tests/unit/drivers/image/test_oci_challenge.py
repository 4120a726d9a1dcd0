from __future__ import annotations

import pytest

from weft.drivers.image.oci.fetch.challenge import Challenge, pick, read_challenges, token_url
from weft.drivers.image.oci.fetch.registry import is_loopback


def test_challenges_are_read_as_registries_write_them() -> None:
    header = 'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull"'
    (one,) = read_challenges([header])
    assert one.scheme == "bearer" and one.parameters["service"] == "r.example"
    assert (
        token_url(one, "a/b", plain_http=False)
        == "https://auth.example/token?service=r.example&scope=repository%3Aa%2Fb%3Apull"
    )
    two = read_challenges(['Basic realm="x", Bearer realm="https://y/"'])
    assert [challenge.scheme for challenge in two] == ["basic", "bearer"]
    picked = pick(two)
    assert picked is not None and picked.scheme == "bearer"
    assert pick(read_challenges(["Basic"])) == Challenge("basic")


@pytest.mark.parametrize("header", ["", "   ", "Negotiate", "=,=,=", 'Bearer realm="', "x" * 100_000, 'a="b' * 5000])
def test_what_is_no_challenge_is_none(header: str) -> None:
    challenges = read_challenges([header])
    assert pick(challenges) is None or token_url(challenges[0], "a", plain_http=True) is None


@pytest.mark.parametrize(
    ("realm", "plain_http", "usable"),
    [
        ("https://auth.example/t", False, True),
        ("http://auth.example/t", False, False),  # a password would be shown to everybody on the way
        ("http://auth.example/t", True, True),
        ("https://who@auth.example/t", False, False),
        ("file:///etc/passwd", True, False),
        ("https://", False, False),
        ("https://[::1", False, False),
    ],
)
def test_passwords_are_shown_only_where_it_is_safe(realm: str, plain_http: bool, usable: bool) -> None:
    challenge = Challenge("bearer", {"realm": realm})
    assert (token_url(challenge, "a", plain_http=plain_http) is not None) == usable


@pytest.mark.parametrize(
    ("registry", "own"),
    [("localhost", True), ("localhost:5000", True), ("127.3.2.1:80", True), ("[::1]:5000", True), ("10.0.0.1", False),
     ("localhost.example", False), ("127.0.0.1.example", False)],
)  # fmt: skip
def test_plain_http_is_for_this_machine_alone_unless_it_is_said(registry: str, own: bool) -> None:
    assert is_loopback(registry) == own
