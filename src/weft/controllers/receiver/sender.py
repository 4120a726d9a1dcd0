"""Makes one attempt to notify a receiver, in a thread of its own that is cut off after ten seconds: whatever a receiver does,
it delays no other, and no project delays another's for long."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from weft.controllers.receiver.destination import Network
from weft.controllers.receiver.line import SECONDS, ReceiverConnection, Way
from weft.controllers.receiver.mail import make_mail, send_mail
from weft.controllers.receiver.message import Message
from weft.controllers.receiver.outcome import DeliveryOutcome, clean, hide
from weft.controllers.receiver.post import post
from weft.controllers.receiver.signature import sign
from weft.kinds.receiver import PASSWORD, SIGNING_KEY, TOKEN, USERNAME, ReceiverSpec
from weft.objects.errors import describe_failure

AT_ONCE, AT_ONCE_IN_PROJECT = 128, 16


class Send(Protocol):
    async def __call__(
        self, project: str, spec: ReceiverSpec, secrets: Mapping[str, str], message: Message, nodes: Collection[str]
    ) -> DeliveryOutcome:
        """Notify a receiver of ``project`` once. ``nodes`` are the addresses of the fabric's nodes. Never raises but to end."""


class Courier:
    """``allowed``: networks of this machine, of its links and private ones that receivers may be in; ``now`` in unix seconds."""

    def __init__(self, allowed: Sequence[Network], now: Callable[[], float], seconds: float = SECONDS) -> None:
        self._allowed, self._now, self._seconds = tuple(allowed), now, seconds
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._turns_of: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE_IN_PROJECT))

    async def __call__(
        self, project: str, spec: ReceiverSpec, secrets: Mapping[str, str], message: Message, nodes: Collection[str]
    ) -> DeliveryOutcome:
        async with self._turns_of[project], self._turns:
            line = ReceiverConnection(Way(self._allowed, nodes))
            attempt = _in_thread(lambda: _try(line, spec, secrets, message, self._now()))
            try:
                async with asyncio.timeout(self._seconds):
                    outcome = await attempt
            except TimeoutError:
                outcome = DeliveryOutcome(False, 0, f"no answer within {self._seconds:g} s")
            finally:
                line.cut()
        return msgspec.structs.replace(outcome, answer=hide(outcome.answer, secrets))


def _in_thread(call: Callable[[], DeliveryOutcome]) -> asyncio.Future[DeliveryOutcome]:
    """A daemon thread for each: a name that can't be resolved holds up neither others nor the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[DeliveryOutcome] = loop.create_future()

    def settle(outcome: DeliveryOutcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def run() -> None:
        outcome = call()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="receiver", daemon=True).start()
    return future


def _try(
    line: ReceiverConnection, spec: ReceiverSpec, secrets: Mapping[str, str], message: Message, now: float
) -> DeliveryOutcome:
    try:
        return _deliver(line, spec, secrets, message, now)
    except ssl.SSLCertVerificationError as problem:
        return DeliveryOutcome(False, 0, f"its certificate is not trusted: {clean(problem.verify_message)}")
    except ssl.SSLError as problem:
        return DeliveryOutcome(False, 0, f"TLS failed: {clean(problem.reason or 'no reason given')}")
    except (OSError, http.client.HTTPException) as problem:
        return DeliveryOutcome(False, 0, clean(describe_failure(problem)))
    except Exception:  # its text may have a secret in it
        return DeliveryOutcome(False, 0, "it can't be notified")
    finally:
        line.release()


def _deliver(
    line: ReceiverConnection, spec: ReceiverSpec, secrets: Mapping[str, str], message: Message, now: float
) -> DeliveryOutcome:
    match spec.type:
        case "webhook":
            body = msgspec.json.encode(message.document)
            return post(line, spec.url, body, sign(secrets.get(SIGNING_KEY, ""), message.id, int(now), body), spec.ca)
        case "alertmanager":
            url = f"{spec.url.rstrip('/')}/api/v2/alerts"
            return post(line, url, msgspec.json.encode(message.alerts), _authorize(secrets), spec.ca)
        case "email":
            mail = make_mail(spec, message.id, message.at, message.subject, message.text)
            return send_mail(line, spec, secrets, mail)


def _authorize(secrets: Mapping[str, str]) -> dict[str, str]:
    if token := secrets.get(TOKEN):
        return {"Authorization": f"Bearer {token}"}
    if name := secrets.get(USERNAME):
        pair = base64.b64encode(f"{name}:{secrets.get(PASSWORD, '')}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}
