"""People log in at an OIDC provider: the npm package oidc-provider, in a browser and by a code; and providers that misbehave."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab, take_port
from tests.scenario.oidc_provider_lab import SECRET, Browser, run_provider, take_free_port

from weft.api.auth.oidc import make_user_name
from weft.api.state import oidc_provider
from weft.api.state.oidc_provider import ProviderSettings
from weft.cli.app import run
from weft.client.context import Context, read_context
from weft.client.http import Http
from weft.contracts.clock import SystemClock
from weft.objects.errors import NotFound


def make_settings(port: int, **more: Any) -> ProviderSettings:
    issuer = f"http://127.0.0.1:{port}"
    return ProviderSettings(
        **{"issuer": issuer, "client": "weft", "secret": SECRET, "scope": "openid profile groups", **more}
    )


@pytest.fixture(scope="module")
def port() -> int:
    return take_free_port()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("oidc"), provider=make_settings(port))
    lab.client.create({"kind": "project", "name": "lab", "spec": {}})
    claims = {"role": "viewer", "project": "lab", "claims": ["staff"]}
    lab.client.create({"kind": "rolebinding", "name": "staff", "spec": claims})
    yield lab
    lab.close()


class Tee(io.StringIO):
    """What the command prints, while it runs."""

    def until(self, pattern: str) -> str:
        for _ in range(1000):
            if found := re.search(pattern, self.getvalue()):
                return found[1]
            time.sleep(0.02)
        raise AssertionError(self.getvalue())


def weft_login(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch, home: Path, person: str, *flags: str
) -> tuple[int, str, Path]:
    """`weft login` with a person who sees what it prints and does that; its exit code, what it printed, and the new context."""
    monkeypatch.setenv("HOME", str(home))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_CONFIG_HOME", "WEFT_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    err, code = Tee(), []
    before = sys.stderr
    sys.stderr = err
    try:
        saved = home / "saved.json"
        words = ["--context", str(lab.context_path), "login", "--oidc", *flags, "--save-as", str(saved)]
        thread = threading.Thread(target=lambda: code.append(run(words, SystemClock)), daemon=True)
        thread.start()
        Browser(person).visit(err.until(r"to log in: (\S+)"))
        thread.join(60)
    finally:
        sys.stderr = before
    return code[0] if code else -1, err.getvalue(), saved


def ask_who(lab: ApiLab, saved: Path) -> dict[str, Any]:
    answer = lab.connect(read_context(saved)).http.request("GET", "/v1/whoami")
    assert answer.status == 200, answer.body
    return dict(answer.json())


@pytest.mark.parametrize("flags", [(), ("--device",)])
def test_a_person_logs_in_and_has_the_roles_of_the_groups_at_the_provider(
    lab: ApiLab, port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(oidc_provider, "LEAST_SECONDS", 0.0)
    with run_provider(port, f"k1{flags}"):
        code, told, saved = weft_login(lab, monkeypatch, tmp_path, "ann+staff+all", *flags)
        assert code == 0, told
    me = ask_who(lab, saved)
    assert (me["user"], me["claims"]) == ("ann", ["all", "staff"])
    assert me["grants"] == [{"role": "viewer", "project": "lab"}]
    user = lab.client.get("user", "ann")["spec"]
    assert (user["identity"], user["full_name"]) == (f"http://127.0.0.1:{port}#ann", "The person ann")


def test_new_keys_are_fetched_and_a_group_that_vanished_gives_nothing(
    lab: ApiLab, port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(oidc_provider, "LEAST_SECONDS", 0.0)
    for key, person, roles in (("k2", "ben+staff", 1), ("k3", "ben", 0)):
        with run_provider(port, key):
            code, told, saved = weft_login(lab, monkeypatch, tmp_path, person)
        assert code == 0, told
        assert len(ask_who(lab, saved)["grants"]) == roles


def test_nobody_gets_another_user_s_account_by_a_name(
    lab: ApiLab, port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lab.client.create({"kind": "user", "name": "root", "spec": {}})
    monkeypatch.setattr(oidc_provider, "LEAST_SECONDS", 0.0)
    with run_provider(port, "k4"):
        code, told, _ = weft_login(lab, monkeypatch, tmp_path, "root")
        assert code != 0 and "nameTaken" in told
        lab.client.patch("user", "root", {"spec": {"identity": f"http://127.0.0.1:{port}#root"}})
        assert weft_login(lab, monkeypatch, tmp_path, "root")[0] == 0
        lab.client.patch("user", "root", {"spec": {"disabled": True}})
        code, told, _ = weft_login(lab, monkeypatch, tmp_path, "root")
        assert code != 0 and "wrong" in told
        lab.client.create({"kind": "token", "name": "ci", "spec": {"use": "access"}})
        for name in ("admin", "ci"):
            code, told, _ = weft_login(lab, monkeypatch, tmp_path, name)
            assert code != 0 and "nameTaken" in told, name
            with pytest.raises(NotFound):
                lab.client.get("user", name)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("Ann.Example@school.example", "ann-example-school-example"),
        ("bea@elsewhere", "bea-elsewhere"),
        ("bea", "bea"),
        ("@", "user"),
    ],
)
def test_a_user_s_name_keeps_the_domain_of_the_name_at_the_provider(name: str, made: str) -> None:
    assert make_user_name(name) == made


def post(lab: ApiLab, given: dict[str, Any]) -> Any:
    http = Http(Context(server=lab.context.server, ca=lab.context.ca))
    try:
        return http.request("POST", "/v1/login", given)
    finally:
        http.close()


def test_a_login_that_was_not_begun_here_is_refused(lab: ApiLab) -> None:
    answer = post(lab, {"session": "AQ" * 40, "code": "x"})
    assert (answer.status, answer.json()["reason"]) == (401, "loginRefused")
    answer = post(lab, {"oidc": "browser", "redirect": "https://evil.example/callback"})
    assert answer.status == 400 and answer.json()["field"] == "redirect"


def serve(sock: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = sock.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                answer(connection)


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(60):
        connection.sendall(b" ")
        time.sleep(0.1)


def send(text: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + text)


DOCUMENT = b'{"issuer": "http://evil.example", "authorization_endpoint": "a", "token_endpoint": "b", "jwks_uri": "c"}'


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "refused"),
        (drip, "too slow|within 1 s"),
        (send(b"x" * 300_000), "too long"),
        (send(b"[]"), "not a JSON object"),
        (send(b"{}"), "incomplete"),
        (send(DOCUMENT), "is that of 'http://evil.example'"),
        (
            lambda connection: connection.sendall(b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n"),
            "status 302",
        ),
        (lambda connection: connection.close(), "can't be used"),
    ],
    ids=["down", "slow", "endless", "list", "empty", "another", "redirect", "closes"],
)
def test_a_provider_that_misbehaves_is_a_clear_error_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, why: str
) -> None:
    monkeypatch.setattr(oidc_provider, "WHOLE_SECONDS", 1.0)
    sock = take_port()
    lab = ApiLab(tmp_path, provider=make_settings(sock.getsockname()[1]))
    try:
        if answer is None:
            sock.close()
        else:
            threading.Thread(target=serve, args=(sock, answer), daemon=True).start()
        told = post(lab, {"oidc": "browser", "redirect": "http://127.0.0.1:1/callback"})
        assert (told.status, told.json()["reason"]) == (503, "providerUnavailable"), told.body
        assert re.search(why, told.json()["message"]), told.json()["message"]
        assert lab.client.list("project").items  # nobody else is kept waiting
    finally:
        sock.close()
        lab.close()


def test_without_a_provider_the_server_says_so(tmp_path: Path) -> None:
    lab = ApiLab(tmp_path)
    try:
        told = post(lab, {"oidc": "device"})
        assert (told.status, told.json()["reason"]) == (503, "noProvider")
    finally:
        lab.close()
