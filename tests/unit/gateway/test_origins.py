"""Whose pages may open web sockets: the server's own and those it was told of, and no program is asked."""

from __future__ import annotations

import pytest

from weft.gateway.stream.origins import Origins
from weft.objects.errors import Forbidden, InvalidInput

HOST = "10.0.0.1:8444"
ORIGINS = Origins([8443], ["https://novnc.example:6080", "http://127.0.0.1"])


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "https://10.0.0.1:8444",
        "https://10.0.0.1:8443",
        "https://novnc.example:6080",
        "HTTPS://NOVNC.example:6080",
        "http://127.0.0.1:80",
    ],
)
def test_programs_and_the_servers_own_and_named_pages_may_ask(origin: str | None) -> None:
    ORIGINS.check(origin, HOST)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://10.0.0.1:8445",  # where functions answer with what their authors wrote
        "https://10.0.0.1",
        "http://10.0.0.1:8444",
        "https://10.0.0.2:8444",
        "https://novnc.example",
        "http://novnc.example:6080",
        "https://10.0.0.1:8444@evil.example",
        "https://evil.example@10.0.0.1:8444",
        "https://10.0.0.1:8444/",
        "https://10.0.0.1:8444.evil.example",
        "null",
        "",
        "https://[",
        "https://10.0.0.1:99999",
    ],
)
def test_all_other_pages_are_refused(origin: str) -> None:
    with pytest.raises(Forbidden, match="may not open web sockets"):
        ORIGINS.check(origin, HOST)


def test_a_host_that_is_none_makes_no_page_its_own() -> None:
    for host in ("", "[", "x/y"):
        with pytest.raises(Forbidden):
            ORIGINS.check("https://x", host)


@pytest.mark.parametrize("text", ["novnc.example", "https://a/b", "ftp://a", "https://:1", "https://a:0x", ""])
def test_what_is_named_must_be_an_origin(text: str) -> None:
    with pytest.raises(InvalidInput, match="not an origin of pages"):
        Origins(allowed=[text])
