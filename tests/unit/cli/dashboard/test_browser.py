"""Which browser a relay serves."""

from __future__ import annotations

import pytest

from weft.cli.dashboard.browser import Browser
from weft.cli.dashboard.head import Head, read_head, write_head
from weft.objects.errors import Forbidden, InvalidInput, NotAuthenticated

HOST = {"host": "127.0.0.1:8080"}
WINDOW = {**HOST, "sec-fetch-mode": "navigate"}


def signed_in() -> tuple[Browser, dict[str, str]]:
    browser = Browser(8080)
    cookie = browser.sign_in(Head("GET", browser.link, WINDOW))
    assert cookie
    return browser, {**HOST, "cookie": cookie.partition(";")[0]}


def test_a_link_signs_a_browser_in_once() -> None:
    browser = Browser(8080)
    link = browser.link
    cookie = browser.sign_in(Head("GET", link, WINDOW))
    assert cookie is not None and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    with pytest.raises(Forbidden, match="used already"):
        browser.sign_in(Head("GET", link, WINDOW))
    assert browser.link != link
    browser.check(Head("GET", "/", {**HOST, "cookie": cookie.partition(";")[0]}))


def test_the_browser_that_used_the_link_may_open_it_again() -> None:
    browser = Browser(8080)
    link = browser.link
    cookie = browser.sign_in(Head("GET", link, WINDOW)) or ""
    assert browser.sign_in(Head("GET", link, {**WINDOW, "cookie": cookie.partition(";")[0]})) == ""


@pytest.mark.parametrize("mode", [{}, {"sec-fetch-mode": "cors"}, {"sec-fetch-mode": "no-cors"}])
def test_a_link_isn_t_used_up_by_what_is_no_window(mode: dict[str, str]) -> None:
    browser = Browser(8080)
    link = browser.link
    with pytest.raises(Forbidden, match="for a browser"):
        browser.sign_in(Head("GET", link, {**HOST, **mode}))
    assert browser.link == link and browser.sign_in(Head("GET", link, WINDOW))


@pytest.mark.parametrize("target", ["/?key=", "/?key=x", "/?key=%00", "/?key=é"])
def test_a_guessed_key_signs_nobody_in(target: str) -> None:
    with pytest.raises(Forbidden):
        Browser(8080).sign_in(Head("GET", target, WINDOW))


def test_the_next_link_ends_the_session_before() -> None:
    browser, first = signed_in()
    assert browser.sign_in(Head("GET", browser.link, WINDOW))
    with pytest.raises(NotAuthenticated):
        browser.check(Head("GET", "/", first))


def test_a_session_that_was_ended_doesn_t_count() -> None:
    browser, headers = signed_in()
    browser.sign_out()
    with pytest.raises(NotAuthenticated):
        browser.check(Head("GET", "/v1/whoami", headers))
    with pytest.raises(NotAuthenticated):  # nor does an empty word in its place
        browser.check(Head("GET", "/v1/whoami", {**HOST, "cookie": "weft-dashboard-8080="}))


@pytest.mark.parametrize("host", ["evil.example:8080", "127.0.0.1:8081", "", "127.0.0.1"])
def test_a_request_names_the_relay_as_its_host(host: str) -> None:
    browser, headers = signed_in()
    with pytest.raises(Forbidden) as caught:
        browser.check(Head("GET", "/", {**headers, "host": host}))
    assert caught.value.token == "crossSite"


@pytest.mark.parametrize(
    "more",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:8080"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_of_other_sites_send_nothing(more: dict[str, str], method: str) -> None:
    browser, headers = signed_in()
    with pytest.raises(Forbidden):
        browser.check(Head(method, "/v1/whoami", {**headers, "x-weft-csrf": "1", **more}))


def test_a_write_needs_the_header_that_only_own_pages_add() -> None:
    browser, headers = signed_in()
    with pytest.raises(Forbidden):
        browser.check(Head("POST", "/v1/apply", headers))
    browser.check(Head("POST", "/v1/apply", {**headers, "x-weft-csrf": "1", "origin": "http://127.0.0.1:8080"}))


def test_what_goes_on_has_the_login_and_nothing_of_the_browser_s() -> None:
    head = read_head(
        b"POST /v1/apply?x=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
        b"Cookie: weft-dashboard-8080=secret\r\nAuthorization: Bearer other\r\n"
        b"Content-Length: 2\r\nContent-Type: application/json\r\nConnection: keep-alive\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    )
    written = write_head(head, "server:8443", "weft_token").decode()
    assert written.startswith("POST /v1/apply?x=1 HTTP/1.1\r\nHost: server:8443\r\n")
    assert "Authorization: Bearer weft_token" in written and "Connection: close" in written
    assert all(word not in written for word in ("secret", "other", "1.2.3.4", "keep-alive"))


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nAccept: a\rb\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_heads_that_no_browser_sends_are_refused(head: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_head(head)


@pytest.mark.parametrize("target", ["/v1/whoami\nauthorization:x", "/\x00", "/\t", "/é", "v1/whoami"])
def test_a_target_can_t_begin_a_header_of_the_request_that_goes_on(target: str) -> None:
    with pytest.raises(InvalidInput, match="first line"):
        read_head(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode("latin-1"))
