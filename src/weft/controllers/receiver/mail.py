"""Sends an e-mail through a mail server. Blocks."""

from __future__ import annotations

import io
import smtplib
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from weft.contracts.http.connection import Reader
from weft.controllers.receiver.line import MOST_READ, SECONDS, ReceiverConnection, make_context
from weft.controllers.receiver.outcome import DeliveryOutcome, clean
from weft.kinds.receiver import PASSWORD, USERNAME, ReceiverSpec, read_smtp

_NAME = "weft.invalid"  # of this end: looking its own name up may take long


class _Client(smtplib.SMTP):
    """Talks over a connection that is there, and reads a bounded number of bytes from it."""

    def __init__(self, sock: socket.socket, host: str) -> None:
        self._given = sock
        self._reader: io.BufferedReader | None = None
        super().__init__(local_hostname=_NAME, timeout=SECONDS)
        self._host = host  # that its certificate must name

    def _get_socket(self, *_: Any) -> socket.socket:
        return self._given

    @property
    def file(self) -> io.BufferedReader | None:
        if self._reader is None and self.sock is not None:
            self._reader = io.BufferedReader(Reader(self.sock, lambda: SECONDS, MOST_READ))
        return self._reader

    @file.setter
    def file(self, value: io.BufferedReader | None) -> None:
        self._reader = value


def make_mail(spec: ReceiverSpec, id_: str, at: float, subject: str, text: str) -> EmailMessage:
    """Make a mail in plain text. Whatever is in ``subject`` stays in the subject."""
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"] = spec.sender, ", ".join(spec.to)
    mail["Subject"] = clean(subject)
    mail["Date"] = format_datetime(datetime.fromtimestamp(at, UTC))
    mail["Message-ID"] = f"<{id_}@{spec.sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(text)
    return mail


def send_mail(
    line: ReceiverConnection, spec: ReceiverSpec, secrets: Mapping[str, str], mail: EmailMessage
) -> DeliveryOutcome:
    """Raises OSError (SMTPException is one)."""
    host, port = read_smtp(spec)
    sock = line.connect(host, port)
    try:
        if spec.tls == "tls":
            sock = make_context(spec.ca).wrap_socket(sock, server_hostname=host)
        client = _Client(sock, host)
        code, reply = client.connect(host, port)
        if code != 220:
            return _refused(code, reply)
        if spec.tls == "starttls":
            client.starttls(context=make_context(spec.ca))  # refuses to go on without
        if secrets.get(USERNAME):
            client.login(secrets[USERNAME], secrets.get(PASSWORD, ""))
        refused = client.send_message(mail, spec.sender, spec.to)
        if refused:
            address, (code, reply) = next(iter(refused.items()))
            return DeliveryOutcome(
                True, 250, f"accepted, but not for {address}: {code} {clean(reply.decode(errors='replace'))}"
            )
        return DeliveryOutcome(True, 250, "accepted by the mail server")
    except smtplib.SMTPRecipientsRefused as problem:
        return _refused(*next(iter(problem.recipients.values())))
    except smtplib.SMTPResponseException as problem:
        return _refused(problem.smtp_code, problem.smtp_error)
    finally:
        sock.close()


def _refused(code: int, reply: bytes | str) -> DeliveryOutcome:
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply
    return DeliveryOutcome(False, max(code, 0), f"the mail server refused: {code} {clean(text)}")
