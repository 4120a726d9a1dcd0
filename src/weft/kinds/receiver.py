"""Receiver: who is notified of alerts and events: a webhook, people by e-mail, or an Alertmanager."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, joined, note, text
from weft.kinds.record import Access, Admission, Column, Display, Goal, Kind, Lifetime, Object, Reference, Verb
from weft.objects.envelope import take_from_spec
from weft.objects.errors import DriverFailed, InvalidInput, WeftError
from weft.objects.schema import field, words

ALERTS = "alerts"
SIGNING_KEY, USERNAME, PASSWORD, TOKEN = "signing_key", "username", "password", "token"
MOST_TO, MOST_ON = 20, 50
_EVENT = re.compile(r"(\*|[a-z]+)\.(\*|[A-Za-z]+)")
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,190}")
_HOST = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?")
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_FIELDS = {"webhook": {"url"}, "alertmanager": {"url"}, "email": {"smtp", "sender", "to"}}


class ReceiverSpec(msgspec.Struct, kw_only=True):
    type: Annotated[
        Literal["webhook", "email", "alertmanager"],
        field("How it is notified: webhook, email or alertmanager", change="never"),
    ]
    url: Annotated[str, field("Of a webhook, where to POST; of an Alertmanager, where it is", max_length=1000)] = ""
    smtp: Annotated[str, field("Mail server: HOST[:PORT]", max_length=262)] = ""
    tls: Annotated[Literal["starttls", "tls", "none"], field("How the connection to the mail server is encrypted")] = (
        "starttls"
    )
    sender: Annotated[str, field("Sender's e-mail address", max_length=255)] = ""
    to: Annotated[list[str], field("Recipients' e-mail addresses")] = []
    secret: Annotated[
        str,
        field(
            "Secret with the signing_key of a webhook, username and password, or an Alertmanager's token",
            name=True,
        ),
    ] = ""
    ca: Annotated[str, field("Certificates (PEM) that are trusted beside the system's", max_length=65536)] = ""
    on: Annotated[
        list[str], field("What it gets: alerts, or events as KIND.REASON, like vm.created, backup.* or *.failed")
    ] = msgspec.field(default_factory=lambda: [ALERTS])
    all_projects: Annotated[
        bool, field("Notify it of all projects and of the fabric's own; takes rights in all projects")
    ] = False
    paused: Annotated[bool, field("Send it nothing for now; what is held back is sent once this is off again")] = False


class ReceiverActions(msgspec.Struct, kw_only=True):
    test_generation: Annotated[int, field("Number of tests that were asked for")] = 0


class Delivery(msgspec.Struct, kw_only=True, frozen=True):
    """One attempt to notify it."""

    id: str  # of what was sent
    type: str
    at: float  # unix seconds
    ok: bool = False
    code: int = 0  # that the receiver answered with; 0: no answer
    answer: str = ""  # its answer, or what went wrong


class JournalPosition(msgspec.Struct, kw_only=True, frozen=True):
    """Up to where the events of one server's journal were sent."""

    journal: str = ""  # its id
    id: int = 0  # of the last event
    at: float = 0.0  # when that was


class ReceiverTest(msgspec.Struct, kw_only=True, frozen=True):
    generation: int = 0
    delivery: Delivery | None = None


class ReceiverStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Ready", "Failing")] = "Pending"
    sent: int = 0  # notifications that it took
    abandoned: int = 0  # that it never took
    last: Delivery | None = None
    failing_since: float | None = None  # no attempt has succeeded since
    attempts: int = 0  # since then
    next_attempt_at: float | None = None
    position: JournalPosition = JournalPosition()
    test: ReceiverTest = ReceiverTest()
    reason: str = ""
    message: str = ""


def check_receiver(spec: ReceiverSpec) -> None:
    """Raises InvalidInput."""
    for name in ("url", "smtp", "sender", "to"):
        given, wanted = bool(getattr(spec, name)), name in _FIELDS[spec.type]
        if given and not wanted:
            raise _refuse(name, f"spec.{name} means nothing to a receiver of type {spec.type}", f"leave out {name}")
        if wanted and not given:
            raise _refuse(
                name, f"spec.{name} is missing: a receiver of type {spec.type} needs it", _EXAMPLES[spec.type]
            )
    if spec.url:
        _check_url(spec)
    if spec.smtp:
        read_smtp(spec)
        _check_addresses(spec)
    if spec.tls != "starttls" and spec.type != "email":
        raise _refuse("tls", "spec.tls is only for e-mail", "leave out tls; a URL with https:// uses TLS")
    if spec.ca and "-----BEGIN CERTIFICATE-----" not in spec.ca:
        raise _refuse("ca", "spec.ca has no certificate", "give certificates in PEM form")
    if spec.type == "email" and spec.tls == "none" and spec.secret:
        raise _refuse("tls", "spec.tls: none would send the password unencrypted", "set tls to starttls or tls")
    _check_on(spec)


_EXAMPLES = {
    "webhook": "weft receiver create NAME --type webhook --url https://HOST/PATH",
    "email": "weft receiver create NAME --type email --smtp HOST --sender FROM --to ADDRESS",
    "alertmanager": "weft receiver create NAME --type alertmanager --url https://HOST:9093",
}


def _check_url(spec: ReceiverSpec) -> None:
    try:
        url = urlsplit(spec.url)
        port, host = url.port, url.hostname
    except ValueError:
        port, host, url = None, None, urlsplit("")
    if url.scheme not in ("http", "https") or not host or port == 0 or not _is_plain(spec.url):
        raise _refuse("url", "spec.url is not a URL", "write https://HOST[:PORT]/PATH")
    if url.username is not None or url.password is not None or url.fragment:
        raise _refuse("url", "spec.url: credentials and fragments don't belong in it", "keep credentials in a Secret")
    if spec.type == "alertmanager" and url.query:
        raise _refuse("url", "spec.url: an Alertmanager's URL has no query", "write https://HOST:9093")


def read_smtp(spec: ReceiverSpec) -> tuple[str, int]:
    """Host and port of the mail server. Raises InvalidInput."""
    found = _HOST.fullmatch(spec.smtp)
    port = int(found["port"] or _PORTS[spec.tls]) if found else 0
    if found is None or not 0 < port < 65536:
        raise _refuse("smtp", f"spec.smtp: {spec.smtp[:80]!r} is not a mail server", "write HOST or HOST:PORT")
    return found["host"].strip("[]"), port


def _check_addresses(spec: ReceiverSpec) -> None:
    if len(spec.to) > MOST_TO or len(set(spec.to)) < len(spec.to):
        raise _refuse("to", f"spec.to: {len(spec.to)} addresses", f"give 1 to {MOST_TO}, each once")
    for name, address in (("sender", spec.sender), *(("to", one) for one in spec.to)):
        if not _ADDRESS.fullmatch(address):
            raise _refuse(name, f"spec.{name}: {address[:80]!r} is not an e-mail address", "write NAME@HOST")


def _check_on(spec: ReceiverSpec) -> None:
    if not spec.on or len(spec.on) > MOST_ON:
        raise _refuse("on", f"spec.on: {len(spec.on)} entries", f"give 1 to {MOST_ON}: alerts, vm.created, …")
    for one in spec.on:
        if one == ALERTS:
            continue
        if not _EVENT.fullmatch(one):
            raise _refuse(
                "on", f"spec.on: {one[:60]!r} is neither alerts nor an event", "write KIND.REASON: vm.created"
            )
        if spec.type != "webhook":
            raise _refuse("on", f"spec.on: a receiver of type {spec.type} only gets alerts", "use a webhook for events")


def _is_plain(value: str) -> bool:
    """Whether it can be part of a request: neither spaces nor control characters."""
    return value.isascii() and value.isprintable() and " " not in value


def _refuse(name: str, message: str, hint: str) -> InvalidInput:
    return InvalidInput(message, field=f"spec.{name}", hint=hint)


def find_receiver_rights(old: ReceiverSpec | None, new: ReceiverSpec) -> Iterable[tuple[str, str]]:
    """Rights that a receiver of all projects takes: who notifies it must be allowed to see them all. A test shows none of them."""
    return [] if old == new else [("event:list", "notify a receiver of all projects")] if new.all_projects else []


def wants_event(spec: ReceiverSpec, kind: str, reason: str) -> bool:
    """Whether it gets this event of an object of ``kind``."""
    names = {f"{a}.{b}" for a in (kind, "*") for b in (reason.lower(), "*")}
    return any(one.lower() in names for one in spec.on)


def has_events(spec: ReceiverSpec) -> bool:
    return any(one != ALERTS for one in spec.on)


def _ask_test(obj: Object, _: Any) -> dict[str, Any]:
    return {"test_generation": dig(obj, "actions.test_generation", 0) + 1}


def _is_tested(obj: Object | None) -> bool:
    done, asked = dig(obj or {}, "status.test.generation", 0), dig(obj or {}, "actions.test_generation", 0)
    return obj is not None and bool(done >= asked) and bool(dig(obj, "status.test.delivery.ok", False))


def _find_test_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    if goal.words != TESTED.words or dig(obj, "status.test.generation", 0) < dig(obj, "actions.test_generation", 0):
        return None
    if dig(obj, "status.test.delivery.ok", False):
        return None
    answer = dig(obj, "status.test.delivery.answer", "no answer")
    return DriverFailed(f"{what} did not take the test: {answer}", reason="notDelivered", hint=f"weft describe {what}")


TESTED = Goal(_is_tested, "tested", answer=lambda obj: f"took the test: {dig(obj, 'status.test.delivery.answer', '')}")


def _where(obj: Object) -> str:
    return str(dig(obj, "spec.url", "")) or ", ".join(dig(obj, "spec.to", [])) or "–"


def _last(obj: Object) -> str:
    return str(dig(obj, "status.last.answer", "–"))


RECEIVER = Kind(
    name="receiver",
    plural="receivers",
    title="receiver",
    summary="Who is notified of alerts and events: a webhook, e-mail, an Alertmanager",
    spec=ReceiverSpec,
    actions=ReceiverActions,
    status=ReceiverStatus,
    schema=2,
    upgrades=(take_from_spec(actions=ReceiverActions),),
    references=(Reference("secret", "spec.secret", lambda spec: [spec.secret] if spec.secret else [], blocks=False),),
    verbs=(Verb("test", "Send it a test, and show the answer", act=_ask_test, needs="write"),),
    in_backups="kept",
    access=Access(readers="project", status_writer="receivers", further_rights=find_receiver_rights),
    admission=Admission(check=check_receiver),
    display=Display(
        topic="Metrics, logs and alerts",
        columns=(
            NAME,
            Column("TYPE", text("spec.type")),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("WHERE", _where, flexible=True),
            Column("ON", joined("spec.on"), flexible=True),
            Column("SENT", text("status.sent", "0"), align="right"),
            Column("LAST", _last, flexible=True),
            Column("ABANDONED", text("status.abandoned", "0"), align="right", wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(goals={"test": TESTED}, find_failure=_find_test_failure),
)
