"""One attempt to tell a receiver, over real sockets: what well-behaved ones get, and that hostile ones reach nothing."""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.unit.controllers.receiver.far_ends import MailServer, WebServer, says, server_context, serving

from weft.contracts.clock import SystemClock
from weft.controllers.receiver.line import MOST_READ
from weft.controllers.receiver.message import Message, render_alerts
from weft.controllers.receiver.outcome import DeliveryOutcome
from weft.controllers.receiver.sender import Courier
from weft.kinds.fields.alert.notification import Alert, Notification
from weft.kinds.receiver import ReceiverSpec
from weft.trust.ca import Authority

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
OK = says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
SECRET = "whsec_" + base64.b64encode(b"a" * 24).decode()


def notification(**changes: Any) -> Notification:
    alert = Alert(labels={"vm": "web"}, value=0.97, since=1_700_000_000.0)
    return Notification(
        **{
            **{"id": "rule.1.1", "time": 1_700_000_060.0, "type": "alert.firing", "project": "shop", "rule": "busy"},
            **{"severity": "critical", "summary": "web is busy", "labels": {"vm": "web"}, "value": 0.97},
            **{"since": 1_700_000_000.0, "count": 1, "alerts": [alert], "more": 0},
            **changes,
        }
    )


MESSAGE = render_alerts(notification(), 1_700_000_061.0)


def send(
    spec: ReceiverSpec,
    *,
    secrets: Mapping[str, str] = {},
    allowed: Any = LOOPBACK,
    seconds: float = 10.0,
    message: Message = MESSAGE,
    nodes: frozenset[str] = frozenset(),
) -> DeliveryOutcome:
    async def once() -> DeliveryOutcome:
        return await Courier(allowed, lambda: 1_700_000_061.0, seconds)("shop", spec, secrets, message, nodes)

    return asyncio.run(once())


def hook(url: str, **more: Any) -> ReceiverSpec:
    return ReceiverSpec(type="webhook", url=url, **more)


def hang(sock: socket.socket, headers: dict[str, str], body: bytes) -> None:
    sock.recv(1)


def test_a_webhook_gets_the_notification_signed_as_standard_webhooks_says() -> None:
    with serving(WebServer(OK)) as server:
        outcome = send(hook(server.url + "?team=a"), secrets={"signing_key": SECRET})
    ((line, headers, body),) = server.requests
    assert (outcome.ok, outcome.code, outcome.answer) == (True, 200, "HTTP 200")
    assert line == "POST /hook?team=a HTTP/1.1" and headers["host"] == f"127.0.0.1:{server.port}"
    assert json.loads(body)["alerts"] == [
        {"labels": {"vm": "web"}, "value": 0.97, "since": "2023-11-14T22:13:20Z", "state": "firing"}
    ]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"a" * 24, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}" and headers["webhook-id"] == "rule.1.1"


@pytest.mark.parametrize(
    ("answer", "says_so", "again"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "it redirects, which is not followed", True),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "HTTP 500", True),
        (b"HTTP/1.1 422 No\r\nContent-Length: 0\r\n\r\n", "HTTP 422", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "something else than HTTP", True),
        (b"", "it hung up without an answer", True),
    ],
)
def test_what_is_no_success_says_why(answer: bytes, says_so: str, again: bool) -> None:
    with serving(WebServer(says(answer))) as server:
        outcome = send(hook(server.url))
    assert not outcome.ok and says_so in outcome.answer and outcome.again is again
    assert len(server.requests) == 1


def test_an_answer_without_end_is_read_up_to_its_bound() -> None:
    sent = 0

    def flood(sock: socket.socket, headers: dict[str, str], body: bytes) -> None:
        nonlocal sent
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        while True:
            sent += sock.send(b"x" * 65536)

    def flood_head(sock: socket.socket, headers: dict[str, str], body: bytes) -> None:
        while True:
            sock.sendall(b"HTTP/1.1 100 Continue\r\n" + b"a: b\r\n" * 50 + b"\r\n")

    with serving(WebServer(flood)) as server:
        assert send(hook(server.url)).ok
    assert sent < 200 * MOST_READ  # the kernel's buffers take what nobody reads
    with serving(WebServer(flood_head)) as server:
        assert send(hook(server.url)).answer == "its answer is too long"


def test_a_receiver_that_hangs_is_cut_off_and_so_is_one_that_drips() -> None:
    def drip(sock: socket.socket, headers: dict[str, str], body: bytes) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" * 1000:
            sock.sendall(bytes([byte]))
            time.sleep(0.02)

    for answer in (hang, drip):
        with serving(WebServer(answer)) as server:
            outcome = send(hook(server.url), seconds=0.3)
        assert outcome == DeliveryOutcome(False, 0, "no answer within 0.3 s")


def test_this_machine_links_and_private_addresses_are_refused_unless_allowed() -> None:
    with serving(WebServer(OK)) as server:
        for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"):
            outcome = send(hook(f"http://{host}:{server.port}/"), allowed=[])
            assert "this machine itself: for receivers there" in outcome.answer, host
        for host, what in (
            ("169.254.169.254", "link-local"),
            ("10.0.0.7", "a private address"),
            ("[64:ff9b::a00:1]", "a private address"),
            ("[64:ff9b:1::1]", "a private address"),
            ("[fec0::1]", "link-local"),
            ("[::127.0.0.1]", "this machine itself"),
            ("[::ffff:0:127.0.0.1]", "this machine itself"),
            ("[::ffff:0:10.0.0.7]", "a private address"),
            ("[64:ff9b::808:808]", "a node of this fabric"),
            ("8.8.8.8", "a node of this fabric"),
        ):
            outcome = send(hook(f"http://{host}/"), allowed=[], nodes=frozenset({"8.8.8.8"}))
            assert f"is {what}: for receivers there, start the server with --receivers-allow" in outcome.answer
    assert not server.requests


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    with serving(WebServer(OK)) as server:

        def resolve(host: str, port: int, **_: Any) -> list[Any]:
            asked.append(host)  # the second answer would be another address
            address = "127.0.0.1" if len(asked) == 1 else "127.0.0.99"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        assert send(hook(f"http://hooks.example.org:{server.port}/"), allowed=[ipaddress.ip_network("127.0.0.1")]).ok
    assert asked == ["hooks.example.org"]
    assert server.requests[0][1]["host"] == f"hooks.example.org:{server.port}"


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(WebServer(OK)) as server:
        assert send(hook(server.url)).ok


def test_a_wrong_certificate_is_refused_and_the_right_ca_makes_it_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path, SystemClock())
    context = server_context(*authority.renew_server([]))
    with serving(WebServer(OK, context)) as server:
        untrusted = send(hook(server.url))
        trusted = send(hook(server.url, ca=authority.ca))
        here = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [here])
        other_name = send(hook(server.url.replace("127.0.0.1", "hooks.example.org"), ca=authority.ca))
    assert untrusted.answer.startswith("its certificate is not trusted: ")
    assert trusted.ok
    assert "certificate" in other_name.answer and "'hooks.example.org'" in other_name.answer, other_name
    assert len(server.requests) == 1


def test_an_alertmanager_gets_labels_summary_and_times() -> None:
    with serving(WebServer(OK)) as server:
        spec = ReceiverSpec(type="alertmanager", url=f"http://127.0.0.1:{server.port}/am/")
        assert send(spec, secrets={"username": "weft", "password": "pass"}).ok
        send(spec, message=render_alerts(notification(type="alert.resolved"), 1_700_000_061.0))
    (line, headers, firing), (_, _, resolved) = server.requests
    assert line == "POST /am/api/v2/alerts HTTP/1.1" and headers["authorization"] == "Basic d2VmdDpwYXNz"
    assert json.loads(firing) == [
        {
            "labels": {"vm": "web", "alertname": "busy", "project": "shop", "severity": "critical"},
            "annotations": {"summary": "web is busy", "value": "0.97"},
            "startsAt": "2023-11-14T22:13:20Z",
            "endsAt": "2023-11-14T22:19:21Z",
        }
    ]
    assert json.loads(resolved)[0]["endsAt"] == "2023-11-14T22:14:21Z"


def mail_to(server: MailServer, **more: Any) -> ReceiverSpec:
    return ReceiverSpec(
        **{
            **{"type": "email", "smtp": server.where, "tls": "none", "sender": "weft@example.org"},
            **{"to": ["ops@example.org"], **more},
        }
    )


def test_an_e_mail_is_plain_text_that_people_read() -> None:
    many = [Alert(labels={"vm": f"vm{n}"}, value=float(n), since=1_700_000_000.0) for n in range(50)]
    said = render_alerts(notification(count=10_000, alerts=many, more=9_950), 1_700_000_061.0)
    with serving(MailServer()) as server:
        assert send(mail_to(server), message=said) == DeliveryOutcome(True, 250, "accepted by the mail server")
    mail = email.message_from_bytes(server.mails[0], policy=email.policy.default)
    assert mail["subject"] == "[CRITICAL] busy: web is busy (and 9999 more)"
    assert (mail["from"], mail["to"], mail["auto-submitted"]) == (
        "weft@example.org",
        "ops@example.org",
        "auto-generated",
    )
    text = mail.get_content().replace("\r\n", "\n")
    assert "Project:  shop\n" in text and "- vm=vm0  value 0, firing since 2023-11-14" in text
    assert "… and 9980 more" in text and len(text.splitlines()) < 40


def test_labels_and_summaries_add_neither_headers_nor_recipients() -> None:
    evil = "x\r\nBcc: all@example.org\r\n\r\n.\r\nMAIL FROM:<evil@example.org>"
    said = render_alerts(notification(summary=evil, rule=evil, labels={"vm": evil}, alerts=[]), 1_700_000_061.0)
    with serving(MailServer()) as server:
        assert send(mail_to(server), message=said).ok
    mail = email.message_from_bytes(server.mails[0], policy=email.policy.default)
    assert mail["bcc"] is None and len(server.mails) == 1
    assert [command for command in server.commands if command.upper().startswith(("MAIL", "RCPT"))] == [
        "mail FROM:<weft@example.org>",
        "rcpt TO:<ops@example.org>",
    ]


def test_a_mail_server_s_refusals_are_told_without_the_password() -> None:
    with serving(MailServer(password="right")) as server:
        spec, wrong = mail_to(server), {"username": "weft", "password": "not-this-one"}
        outcome = send(spec, secrets=wrong)
        good = send(spec, secrets={"username": "weft", "password": "right"})
    assert outcome.answer == "the mail server refused: 535 wrong password: (hidden)" and good.ok
    with serving(MailServer(rejects="ops@")) as server:
        assert send(mail_to(server)).answer == "the mail server refused: 550 no such person"
        some = send(mail_to(server, to=["ops@example.org", "dev@example.org"]))
        assert some.ok and "not for ops@example.org: 550" in some.answer


def test_a_mail_server_without_tls_gets_nothing_and_an_endless_greeting_ends() -> None:
    with serving(MailServer()) as server:
        outcome = send(mail_to(server, tls="starttls"))
        assert not outcome.ok and "STARTTLS" in outcome.answer
    assert not server.mails and not any(command.startswith("mail") for command in server.commands)
    with serving(MailServer(endless=True)) as server:
        assert send(mail_to(server)).answer.endswith("its answer is too long")


def test_one_that_hangs_delays_no_other() -> None:
    async def both(hanging: str, good: str) -> list[str]:
        courier, ended = Courier(LOOPBACK, time.time, 1.0), list[str]()

        async def tell(name: str, url: str) -> None:
            await courier(name, hook(url), {}, MESSAGE, frozenset())
            ended.append(name)

        # More than a project has turns: its own wait for each other, and another project's waits for none of them.
        await asyncio.gather(*(tell("slow", hanging) for _ in range(20)), tell("quick", good))
        return ended

    with serving(WebServer(hang)) as hanging, serving(WebServer(OK)) as good:
        assert asyncio.run(both(hanging.url, good.url))[0] == "quick"
