"""An alert of a rule, evaluated by vmalert, reaches a real Alertmanager and a mail server when it fires and when it is over."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
from tests.scenario.cli_lab import Fabric, start_fabric
from tests.unit.controllers.receiver.far_ends import server_context

from weft.contracts.clock import SystemClock
from weft.trust.ca import Authority

PASSWORD = "the-mail-password"
QUICK = ("--metrics-interval", "1s", "--alert-interval", "1s", "--receivers-allow", "127.0.0.0/8")
ALERTMANAGER = shutil.which("prometheus-alertmanager")
pytestmark = pytest.mark.skipif(ALERTMANAGER is None, reason="make install-tests brings prometheus-alertmanager")


class Mailbox:
    """Keeps what comes; takes mail over TLS only, and with the password."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        assert session.ssl is not None and session.authenticated and envelope.rcpt_tos == ["ops@example.org"]
        mail = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 queued"

    def subjects(self) -> list[str]:
        return [str(mail["subject"]) for mail in self.mails]


class Mail(Controller):
    """An SMTP server with STARTTLS and a password, in a thread."""

    def __init__(self, box: Mailbox, chain: Path, key: Path) -> None:
        self._context = server_context(chain, key)
        super().__init__(box, hostname="127.0.0.1", port=_free_port())

    def factory(self) -> SMTP:
        def check(server: Any, session: Any, envelope: Any, mechanism: str, given: Any) -> AuthResult:
            return AuthResult(success=(given.login, given.password) == (b"weft", PASSWORD.encode()))

        return SMTP(
            self.handler,
            tls_context=self._context,
            require_starttls=True,
            auth_required=True,
            authenticator=check,
        )


@contextlib.contextmanager
def run_alertmanager(folder: Path) -> Iterator[str]:
    """Its URL."""
    assert ALERTMANAGER is not None
    config, port = folder / "alertmanager.json", _free_port()
    config.write_text(json.dumps({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}))
    argv = [ALERTMANAGER, f"--config.file={config}", f"--storage.path={folder / 'kept'}", "--cluster.listen-address="]
    with open(folder / "alertmanager.log", "wb") as log:
        process = subprocess.Popen([*argv, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(f"{url}/-/ready"))
        yield url
    finally:
        process.terminate()
        process.wait(15)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def _answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def list_alerts(url: str, rule: str) -> list[dict[str, Any]]:
    """What the Alertmanager has firing now of a rule."""
    found = json.loads(urllib.request.urlopen(f"{url}/api/v2/alerts", timeout=5).read())
    return [one for one in found if one["labels"]["alertname"] == rule]


def until(find: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
    return found


def do(fabric: Fabric, *words: str, stdin: str = "") -> str:
    said = fabric.weft(*words, stdin=stdin)
    assert said.code == 0, said.err
    return said.out


def test_an_alert_and_its_end_reach_an_alertmanager_and_a_mailbox(tmp_path: Path) -> None:
    authority, box = Authority(tmp_path, SystemClock()), Mailbox()
    mail = Mail(box, *authority.renew_server([]))
    (tmp_path / "mail-ca.pem").write_text(authority.ca)
    mail.start()
    try:
        with run_alertmanager(tmp_path) as url, start_fabric(server_options=QUICK) as fabric:
            do(fabric, "secret", "create", "mail", "--username", "weft", "--password-stdin", stdin=PASSWORD)
            far = ("--smtp", f"localhost:{mail.port}", "--ca", str(tmp_path / "mail-ca.pem"), "--secret", "mail")
            people = ("--sender", "weft@example.org", "--to", "ops@example.org")
            do(fabric, "receiver", "create", "ops", "--type", "email", *far, *people)
            do(fabric, "receiver", "create", "am", "--type", "alertmanager", "--url", url)
            for name in ("am", "ops"):
                do(fabric, "receiver", "test", name)
            made = ("--fabric", "--severity", "critical", "--summary", "node {{ $labels.node }} has a guest")
            do(fabric, "alertrule", "create", "taken", "--expr", "weft_node_allocations > 0", *made)
            do(fabric, "vm", "create", "web", "--image", "tiny", "--memory", "128M", "--node", "n1")

            (firing,) = until(lambda: list_alerts(url, "taken"))
            wanted = {"project": "default", "node": "n1", "severity": "critical"}
            assert wanted.items() <= firing["labels"].items() and firing["status"]["state"] == "active"
            assert firing["annotations"]["summary"] == "node n1 has a guest"
            until(lambda: "[CRITICAL] taken: node n1 has a guest" in box.subjects())

            do(fabric, "vm", "delete", "web", "--yes")
            until(lambda: not list_alerts(url, "taken"))
            until(lambda: "[RESOLVED] taken: node n1 has a guest" in box.subjects())
            assert len([subject for subject in box.subjects() if "taken" in subject]) == 2
            assert PASSWORD not in fabric.logs() + str(fabric.weft("describe", "receiver/ops"))
    finally:
        mail.stop()
