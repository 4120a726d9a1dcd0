"""Sessions of browsers: they begin with a new token, only pages of the server's own origin use them, and they end for good."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenario.api_lab import ApiLab, make_image
from tests.scenario.dashboard_lab import COOKIE, PASSWORD, Browser, add_user

from weft.api.auth.login import MOST_BY_TOKEN
from weft.api.state.login_limits import USER_TRIES

FOREIGN = "https://evil.example"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("sessions"))
    lab.client.create({"kind": "project", "name": "red", "spec": {}})
    lab.client.apply([{**make_image(), "project": "red"}])
    add_user(lab, "rita", "admin", "red")
    add_user(lab, "bob", "", None)
    yield lab
    lab.close()


@pytest.fixture
def rita(lab: ApiLab) -> Browser:
    return Browser(lab).login("rita")


def test_a_session_is_a_token_of_the_user_that_only_a_cookie_has(lab: ApiLab) -> None:
    browser = Browser(lab)
    reply = browser.send("POST", "/v1/session", {"user": "rita", "password": PASSWORD})
    assert reply.status == 201 and set(reply.json()) == {"user", "expires_at", "page_key"}
    cookie = reply.headers["set-cookie"]
    assert {"Path=/", "Secure", "HttpOnly", "SameSite=Strict", "Max-Age=43200"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    who = browser.get("/v1/whoami")
    assert who["user"] == "rita" and who["token"].startswith("session-")
    assert "vm:start" in who["permissions"]["projects"]["red"] and "node:drain" not in who["permissions"]["everywhere"]
    assert who["token"] in [one["name"] for one in browser.get("/v1/tokens")["items"]], "it can be seen and revoked"


def test_a_wrong_password_gives_no_cookie(lab: ApiLab) -> None:
    reply = Browser(lab).send("POST", "/v1/session", {"user": "rita", "password": "guess"})
    assert reply.status == 401 and "set-cookie" not in reply.headers


def test_failed_logins_are_throttled_as_any_login_is(lab: ApiLab) -> None:
    for _ in range(USER_TRIES):  # elsewhere
        lab.api.logins.take("mallory", "192.0.2.1", lab.clock.elapsed() + 60)
    assert Browser(lab).send("POST", "/v1/session", {"user": "mallory", "password": "x"}).status == 429
    assert Browser(lab).send("POST", "/v1/session", {"user": "walter", "password": "x"}).status == 401


def test_a_login_makes_a_new_token_whatever_cookie_was_there(lab: ApiLab, rita: Browser) -> None:
    planted = Browser(lab)
    planted.cookie = rita.cookie
    planted.login("bob")
    assert planted.cookie != rita.cookie
    assert planted.get("/v1/whoami")["user"] == "bob" and rita.get("/v1/whoami")["user"] == "rita"
    stale = Browser(lab)
    stale.cookie = "weft_session-00000000_" + "0" * 64
    assert stale.login("rita").get("/v1/whoami")["user"] == "rita", "a dead cookie is in no one's way"


def test_a_stolen_cookie_is_worth_nothing_after_the_logout(lab: ApiLab, rita: Browser) -> None:
    thief = Browser(lab)
    thief.cookie, thief.page_key = rita.cookie, rita.page_key
    assert thief.get("/v1/whoami")["user"] == "rita"
    reply = rita.send("DELETE", "/v1/session")
    assert reply.status == 204 and "Max-Age=0" in reply.headers["set-cookie"]
    assert thief.send("GET", "/v1/whoami").status == 401
    assert thief.send("GET", "/v1/whoami", authorization=f"Bearer {thief.cookie}{thief.page_key}").status == 401


def test_a_session_ends_with_the_user_and_with_its_token(lab: ApiLab) -> None:
    add_user(lab, "gone", "admin", "red")
    first, second = Browser(lab).login("gone"), Browser(lab).login("gone")
    lab.client.delete("token", first.get("/v1/whoami")["token"])
    events = second.stream(table={"kinds": "vm"})
    assert events.next("hello")
    lab.client.delete("user", "gone")
    assert [name for name, _ in events if name != "table"] == [], "the stream ends"
    assert first.send("GET", "/v1/whoami").status == second.send("GET", "/v1/whoami").status == 401


def test_a_stream_ends_when_the_reader_s_rights_change(lab: ApiLab) -> None:
    add_user(lab, "eve", "admin", "red")
    browser = Browser(lab).login("eve")
    events = browser.stream(table={"kinds": "vm", "project": "red"})
    assert events.next("table")["total"] == 0
    lab.client.delete("rolebinding", "eve-admin")
    assert list(events) == []
    assert browser.stream(table={"kinds": "vm", "project": "red"}).status == 403
    browser.close()


WRITES = {  # what a page of this origin sends is allowed, all else is not
    "own page": ({}, True),
    "own page, as an older browser says it": ({"sec_fetch_site": None}, True),
    "behind a proxy that renames the host": ({"origin": "https://weft.example"}, True),
    "another site": ({"sec_fetch_site": "cross-site", "origin": FOREIGN}, False),
    "another port of the host": ({"sec_fetch_site": "same-site", "origin": "https://127.0.0.1:1"}, False),
    "another port, in an older browser": ({"sec_fetch_site": None, "origin": "https://127.0.0.1:1"}, False),
    "plain HTTP of the host": ({"sec_fetch_site": None, "origin": "http://127.0.0.1"}, False),
    "no origin": ({"sec_fetch_site": None, "origin": None}, False),
    "an opaque origin": ({"sec_fetch_site": None, "origin": "null"}, False),
    "typed by the person": ({"sec_fetch_site": "none"}, False),
}


@pytest.mark.parametrize("sender", WRITES)
def test_only_pages_of_this_origin_write_with_a_session(rita: Browser, sender: str) -> None:
    headers, may = WRITES[sender]
    body = {"kind": "securitygroup", "name": "csrf", "spec": {}}
    reply = rita.send("POST", "/v1/projects/red/securitygroups?dry_run=1", body, **headers)
    assert reply.status == (200 if may else 403), reply.body
    assert may or reply.json()["reason"] == "crossSite"
    assert (
        rita.send("POST", "/v1/projects/red/securitygroups?dry_run=1", body, **headers, x_weft_csrf=None).status == 403
    )


@pytest.mark.parametrize("sender", WRITES)
def test_only_pages_of_this_origin_log_in(lab: ApiLab, sender: str) -> None:
    headers, may = WRITES[sender]
    reply = Browser(lab).send("POST", "/v1/session", {"user": "rita", "password": PASSWORD}, **headers)
    assert reply.status == (201 if may else 403) and ("set-cookie" in reply.headers) == may


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_no_method_that_writes_is_left_out(rita: Browser, method: str) -> None:
    reply = rita.send(method, "/v1/projects/red/vms/none", {}, sec_fetch_site="cross-site", origin=FOREIGN)
    assert reply.status == 403 and reply.json()["reason"] == "crossSite"


@pytest.mark.parametrize(
    ("site", "status"), [("same-origin", 200), ("none", 200), (None, 200), ("same-site", 403), ("cross-site", 403)]
)
def test_other_sites_read_nothing_with_a_session(rita: Browser, site: str | None, status: int) -> None:
    assert rita.send("GET", "/v1/dashboard/table?kinds=vm", sec_fetch_site=site).status == status


def test_a_cookie_alone_as_another_port_of_the_host_sees_it_opens_nothing(lab: ApiLab, rita: Browser) -> None:
    bob = Browser(lab).login("bob")
    for key, status in ((None, 403), ("1", 403), ("", 403), (bob.page_key, 401), ("0" * 32, 401)):
        for method, path in (("GET", "/v1/whoami"), ("GET", "/v1/dashboard/table?kinds=vm"), ("DELETE", "/v1/session")):
            assert rita.send(method, path, x_weft_csrf=key).status == status, key
    assert rita.send("GET", "/v1/whoami", cookie=None, authorization=f"Bearer {rita.cookie}").status == 401
    assert rita.get("/v1/whoami")["user"] == "rita"


def test_a_request_with_a_bearer_never_reads_the_cookie(lab: ApiLab, rita: Browser) -> None:
    secret = lab.client.create({"kind": "token", "name": "proxied", "spec": {"use": "access", "role": "viewer"}})[
        "secret"
    ]
    foreign = {"sec_fetch_site": "cross-site", "origin": "http://127.0.0.1:8080", "authorization": f"Bearer {secret}"}
    assert rita.send("GET", "/v1/whoami", **foreign).json()["token"] == "proxied"
    assert rita.send("GET", "/v1/whoami", authorization="Bearer nonsense").status == 401


def test_ending_a_session_leaves_a_token_alone_that_came_as_a_bearer(lab: ApiLab, rita: Browser) -> None:
    bearer = f"Bearer {rita.cookie}{rita.page_key}"  # as weft dashboard adds one to each request of its page
    reply = Browser(lab).send("DELETE", "/v1/session", authorization=bearer)
    assert reply.status == 409 and reply.json()["reason"] == "noSession"
    assert rita.get("/v1/whoami")["user"] == "rita"


def test_two_cookies_of_the_name_are_refused(rita: Browser) -> None:
    assert rita.send("GET", "/v1/whoami", cookie=f"{COOKIE}={rita.cookie}; {COOKIE}={rita.cookie}").status == 401


def test_a_token_of_a_user_begins_a_session_that_may_do_no_more_and_lasts_no_longer(lab: ApiLab) -> None:
    vic = Browser(lab).login(add_user(lab, "vic", "editor", "red"))
    spec = {"use": "access", "role": "viewer", "project": "red", "expires_at": lab.clock.now() + 600}
    made = vic.send("POST", "/v1/tokens", {"kind": "token", "name": "vic-reads", "spec": spec}).json()
    browser = Browser(lab)
    reply = browser.send("POST", "/v1/session", {"token": made["secret"]})
    assert reply.status == 201 and reply.json()["expires_at"] <= spec["expires_at"] + 0.001
    who = browser.get("/v1/whoami")
    assert who["token"] not in ("vic-reads", vic.get("/v1/whoami")["token"])
    assert who["limit"] == {"role": "viewer", "project": "red"}
    assert "vm:delete" not in who["permissions"]["projects"]["red"]


def test_sessions_that_a_limited_token_begins_end_no_login_of_its_user(lab: ApiLab) -> None:
    zoe = Browser(lab).login(add_user(lab, "zoe", "editor", "red"))
    spec = {"use": "access", "role": "viewer", "project": "red", "expires_at": lab.clock.now() + 600}
    secret = zoe.send("POST", "/v1/tokens", {"kind": "token", "name": "zoe-reads", "spec": spec}).json()["secret"]
    begun = []
    for number in range(2 * MOST_BY_TOKEN):
        begun.append(Browser(lab))
        # what one begins by the token, and what a session of it begins, counts under the token
        text = secret if number % 2 == 0 else begun[-2].cookie + begun[-2].page_key
        assert begun[-1].send("POST", "/v1/session", {"token": text}).status == 201
    assert zoe.get("/v1/whoami")["user"] == "zoe"
    alive = [one.send("GET", "/v1/whoami").status == 200 for one in begun]
    assert alive == [False] * MOST_BY_TOKEN + [True] * MOST_BY_TOKEN


def test_a_token_without_a_user_begins_no_session(lab: ApiLab) -> None:
    secret = lab.context.token
    reply = Browser(lab).send("POST", "/v1/session", {"token": secret})
    assert reply.status == 403 and reply.json()["reason"] == "noUser" and secret not in reply.body.decode()
    for wrong in ("weft_none_" + "0" * 64, "x" * 5000):
        reply = Browser(lab).send("POST", "/v1/session", {"token": wrong})
        assert reply.status == 401 and wrong not in reply.body.decode()


def test_logins_and_logouts_are_in_the_audit_log_and_their_secrets_nowhere(
    lab: ApiLab, rita: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    cookie = rita.cookie
    rita.send("DELETE", "/v1/session")
    records = lab.client.http.request("GET", "/v1/audit?limit=1000").json()["items"]
    verbs = [one["verb"] for one in records]
    assert "login" in verbs and "logout" in verbs
    kept = json.dumps(records) + caplog.text + "".join(map(_read, lab.folder.rglob("*")))
    assert cookie and cookie.rpartition("_")[2] not in kept and PASSWORD not in kept


def _read(path: Path) -> str:
    return path.read_bytes().decode("latin-1") if path.is_file() else ""


def test_the_page_may_load_nothing_from_elsewhere_and_stand_in_no_other(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<title>weft</title>")
    (tmp_path / "assets/app-1f2e.js").write_text("1")
    (tmp_path / "assets/app-1f2e.js.gz").write_bytes(b"packed")
    (tmp_path / "secret.js").write_text("no")
    monkeypatch.setattr("weft.api.dashboard.site.SITE", tmp_path)
    browser = Browser(lab)
    page = browser.send("GET", "/?code=c&state=s", sec_fetch_site="cross-site")
    assert page.status == 200 and page.headers["cache-control"] == "no-cache"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script-src 'self';" in policy
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"
    file = browser.send("GET", "/assets/app-1f2e.js", accept_encoding="br;q=0, gzip")
    assert file.headers["content-encoding"] == "gzip" and file.body == b"packed"
    assert "immutable" in file.headers["cache-control"]
    assert browser.send("GET", "/assets/app-1f2e.js").body == b"1"
    for path in ("/assets/..%2fsecret.js", "/assets/../secret.js", "/assets/none.js", "/assets/", "/assets/.htaccess"):
        assert browser.send("GET", path).status == 404


def test_a_server_without_a_built_page_says_how_to_build_it(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("weft.api.dashboard.site.SITE", tmp_path)
    reply = Browser(lab).send("GET", "/")
    assert reply.status == 404 and "make install" in reply.json()["hint"]
