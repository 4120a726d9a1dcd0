"""Receivers are told: of events and alerts, in order, at least once, with ids that stay; and what they never take is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.controllers_lab import Lab

from weft.contracts.journal import Event
from weft.controllers.receiver.alerts import REPEAT_SECONDS
from weft.controllers.receiver.controller import Receivers
from weft.controllers.receiver.message import Message
from weft.controllers.receiver.outcome import DeliveryOutcome
from weft.kinds.alert_rule import AlertRuleStatus
from weft.kinds.fields.alert.notification import Alert, Notification
from weft.kinds.receiver import ReceiverSpec, ReceiverStatus
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.objects.identity import Ref
from weft.telemetry.journal import SqliteJournal

OK = DeliveryOutcome(True, 200, "HTTP 200")
DOWN = DeliveryOutcome(False, 500, "HTTP 500")


class Told:
    """Stands for the network: keeps what each URL was sent, and answers as ``answers`` says."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Message]] = []
        self.secrets: list[dict[str, str]] = []
        self.answers: dict[str, DeliveryOutcome] = {}
        self.hangs: set[str] = set()

    async def __call__(
        self, project: str, spec: ReceiverSpec, secrets: Mapping[str, str], message: Message, nodes: Collection[str]
    ) -> DeliveryOutcome:
        self.messages.append((spec.url, message))
        self.secrets.append(dict(secrets))
        if spec.url in self.hangs:
            await asyncio.Event().wait()
        return self.answers.get(spec.url, OK)

    def types(self, url: str = "http://a/") -> list[str]:
        return [message.type for sent_to, message in self.messages if sent_to == url]

    def ids(self, url: str = "http://a/") -> list[str]:
        return [message.id for sent_to, message in self.messages if sent_to == url]


class TellingLab(Lab):
    told: Told
    events: SqliteJournal

    def start(self, holder: str = "here") -> None:
        self.start_controllers(
            holder,
            more=[
                lambda lease: Receivers(
                    lease, self.events, self.told, lambda sealed, place: f"{sealed} of {place}".encode()
                )
            ],
        )

    async def put_receiver(self, name: str = "hook", url: str = "http://a/", **spec: Any) -> Envelope:
        return await self.put("receiver", name, {"type": "webhook", "url": url, **spec})

    async def receiver(self, name: str = "hook") -> ReceiverStatus:
        envelope = await self.get(f"/receiver/default/{name}")
        assert envelope is not None
        return decode_part(envelope.status, ReceiverStatus)

    def happen(self, kind: str = "vm", reason: str = "Created", name: str = "web", project: str = "default") -> None:
        self.events.append(Event("Normal", reason, "so it is", Ref(kind, name, f"uid-{name}", project), "test"))
        self.events.flush()

    async def until_told(self, count: int, url: str = "http://a/", seconds: float = 60.0) -> None:
        async def there() -> bool:
            return len(self.told.types(url)) >= count

        await self.until(there, seconds)

    async def until_status(self, true: Callable[[ReceiverStatus], bool], seconds: float = 60.0) -> ReceiverStatus:
        async def there() -> bool:
            return true(await self.receiver())

        await self.until(there, seconds)
        return await self.receiver()

    async def put_firing(self, name: str = "busy", project: str = "default", **spec: Any) -> None:
        """A rule as the evaluator leaves it when an alert has begun."""
        rule = await self.put("alertrule", name, {"expr": "up == 0", **spec}, project=project)
        await self.fire(rule.key, "alert.firing", 1)

    async def fire(self, key: str, type_: str, step: int) -> None:
        state = "firing" if type_ == "alert.firing" else "inactive"
        alert = Alert(labels={"vm": "web"}, value=1.0, since=self.clock.now())

        def change(envelope: Envelope) -> None:
            status = decode_part(envelope.status, AlertRuleStatus)
            notice = Notification(
                id=f"{envelope.uid}.1.{step}",
                time=self.clock.now(),
                type=type_,
                project=envelope.project or "",
                rule=envelope.name,
                severity="warning",
                summary="it is",
                labels=alert.labels,
                value=1.0,
                since=alert.since,
                count=1,
                alerts=[alert],
            )
            envelope.status = merge_part(
                envelope.status,
                msgspec.structs.replace(
                    status,
                    state=state,
                    alerts=[alert] if state == "firing" else [],
                    episode=1,
                    step=step,
                    notices=[*status.notices, notice],
                ),
            )

        await self.change(key, change)


@asynccontextmanager
async def telling(folder: Path) -> AsyncGenerator[TellingLab, None]:
    lab = TellingLab(folder)
    lab.told, lab.has_threads = Told(), True
    lab.events = lab.journal = SqliteJournal(folder / "journal.db", lab.clock)  # type: ignore[assignment]
    async with lab:
        await lab.kill_controllers()
        lab.start()
        yield lab
    lab.events.close()


async def test_a_webhook_gets_the_events_that_it_names_of_its_own_project(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        lab.happen(name="before")
        lab.clock.advance(1.0)
        await lab.put_receiver(on=["vm.created", "backup.*", "*.failed"])
        await lab.put_receiver("all", "http://all/", on=["vm.created"], all_projects=True)
        for kind, reason in (("vm", "Created"), ("vm", "Started"), ("backup", "Ready"), ("volume", "Failed")):
            lab.happen(kind, reason)
        lab.happen(name="theirs", project="other")
        await lab.until_told(3)
        await lab.until_told(2, "http://all/")
        assert lab.told.types() == ["vm.created", "backup.ready", "volume.failed"]
        sent = {message.document["object"]["name"] for url, message in lab.told.messages if url == "http://a/"}
        assert sent == {"web"}
        status = await lab.until_status(lambda status: status.sent == 3)
        assert status.phase == "Ready" and status.last is not None and status.last.answer == "HTTP 200"


async def test_killed_between_sending_and_noting_it_is_sent_again_with_the_same_id(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        await lab.put_receiver(on=["vm.created", "alerts"])
        lab.told.hangs.add("http://a/")  # it has the request; nobody hears its answer
        lab.happen()
        await lab.until_told(1)
        await lab.kill_controllers()
        lab.happen(name="meanwhile")
        lab.told.hangs.clear()
        lab.start("another")
        await lab.until_told(3)
        assert lab.told.ids()[0] == lab.told.ids()[1] != lab.told.ids()[2]
        await lab.until_status(lambda status: status.sent == 2)
        await lab.kill_controllers()
        lab.start("here")
        await lab.pass_time(30.0)
        assert len(lab.told.messages) == 3  # what is noted isn't told again


async def test_after_an_hour_of_500_it_is_abandoned_and_what_comes_later_is_sent(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        lab.told.answers["http://a/"] = DOWN
        await lab.put_receiver(on=["vm.created", "alerts"])
        lab.happen(name="first")
        await lab.until_told(2)
        failing = await lab.until_status(lambda status: status.attempts >= 2)
        assert (failing.phase, failing.message) == ("Failing", "HTTP 500") and failing.next_attempt_at is not None
        lab.clock.advance(1800.0)
        lab.happen(name="second")
        await lab.pass_time(5.0)
        lab.clock.advance(1801.0)
        abandoned = await lab.until_status(lambda status: status.abandoned == 1, 700.0)
        assert abandoned.sent == 0 and abandoned.position.id > 0
        lab.told.answers.clear()
        done = await lab.until_status(lambda status: status.sent == 1, 700.0)
        assert (done.phase, done.failing_since, done.attempts, done.abandoned) == ("Ready", None, 0, 1)
        assert lab.told.messages[-1][1].document["object"]["name"] == "second"
        lab.events.flush()
        reasons = [record.reason for record in lab.events.read(about="receiver/default/hook")]
        assert reasons == ["Failing", "Abandoned", "Recovered"]
        assert len(lab.told.messages) < 20  # the pauses grow


async def test_what_a_receiver_refuses_for_its_content_is_abandoned_at_once(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        lab.told.answers["http://a/"] = DeliveryOutcome(False, 422, "HTTP 422", again=False)
        await lab.put_receiver(on=["vm.created"])
        lab.happen(name="one")
        lab.happen(name="two")
        status = await lab.until_status(lambda status: status.abandoned == 2)
        assert len(lab.told.messages) == 2 and status.sent == 0


async def test_a_receiver_that_is_deleted_while_it_waits_gets_nothing_more(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        lab.told.answers["http://a/"] = DOWN
        old = await lab.put_receiver(on=["vm.created"])
        await lab.put_receiver("other", "http://b/", on=["vm.created"])
        lab.happen()
        await lab.until_told(1)
        await lab.until_status(lambda status: status.attempts == 1)
        await lab.delete(old.key)
        await lab.until_told(1, "http://b/")
        await lab.pass_time(60.0)
        assert len(lab.told.types()) == 1
        lab.told.answers.clear()
        await lab.put_receiver(on=["vm.created"])  # of the same name, born later: nothing is owed to it
        await lab.pass_time(60.0)
        assert len(lab.told.types()) == 1


async def test_a_paused_receiver_is_notified_later_and_one_that_hangs_delays_no_other(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        lab.told.hangs.add("http://hangs/")
        await lab.put_receiver("hangs", "http://hangs/", on=["vm.created"])
        await lab.put_receiver(on=["vm.created"], paused=True)
        await lab.put_receiver("quick", "http://quick/", on=["vm.created"])
        lab.happen()
        lab.happen(name="two")
        await lab.until_told(2, "http://quick/")
        await lab.until_told(1, "http://hangs/")
        assert lab.told.types() == []
        await lab.change_spec("hook", "receiver", paused=False)
        await lab.until_told(2)


async def test_another_server_s_journal_is_read_from_the_time_that_was_reached(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        await lab.put_receiver(on=["vm.created"])
        lab.happen(name="first")
        await lab.until_status(lambda status: status.sent == 1)
        await lab.kill_controllers()
        lab.events.close()
        (tmp_path / "journal.db").rename(tmp_path / "lost.db")
        lab.events = SqliteJournal(tmp_path / "journal.db", lab.clock)
        lab.clock.advance(5.0)
        lab.happen(name="second")
        lab.start()
        await lab.until_status(lambda status: status.sent == 2)
        assert [message.document["object"]["name"] for _, message in lab.told.messages] == ["first", "second"]
        assert len(set(lab.told.ids())) == 2  # though both are event 1 of their journal


async def test_events_that_are_named_later_are_sent_from_then_on(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        await lab.put_receiver()
        await lab.until_status(lambda status: status.position.journal == "-")
        lab.happen(name="before")
        await lab.change_spec("hook", "receiver", on=["vm.created"])
        await lab.until_status(lambda status: status.position.journal not in ("", "-"))
        lab.happen(name="after")
        await lab.until_told(1)
        assert lab.told.messages[0][1].document["object"]["name"] == "after"


async def test_an_alert_is_sent_once_when_it_fires_and_once_when_it_is_over(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        await lab.put_receiver()
        await lab.put_receiver("named", "http://named/")
        await lab.put_receiver("ops", "http://ops/", all_projects=True)
        lab.clock.advance(1.0)
        await lab.put_firing(receivers=["named"])
        await lab.put_firing("theirs", project="other")
        await lab.until_told(1, "http://named/")
        await lab.until_told(2, "http://ops/")
        await lab.fire("/alertrule/default/busy", "alert.resolved", 2)
        await lab.until_told(2, "http://named/")
        await lab.pass_time(60.0)
        assert lab.told.types("http://named/") == ["alert.firing", "alert.resolved"]
        assert lab.told.types() == []
        rules = [message.document["rule"] for url, message in lab.told.messages if url == "http://ops/"]
        assert sorted(rules) == ["busy", "busy", "theirs"]


async def test_what_a_silence_holds_back_is_sent_once_it_ends(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        await lab.put_receiver()
        await lab.put("silence", "quiet", {"rule": "busy", "until": lab.clock.now() + 600.0})
        await lab.pass_time(1.0)
        await lab.put_firing()
        await lab.pass_time(120.0)
        assert lab.told.types() == []
        await lab.until_told(1, seconds=700.0)


async def test_an_alertmanager_is_notified_again_while_an_alert_fires(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        await lab.put("receiver", "am", {"type": "alertmanager", "url": "http://am/"})
        await lab.put_firing()
        await lab.until_told(3, "http://am/", 3 * REPEAT_SECONDS)
        assert all(message.alerts[0]["labels"]["alertname"] == "busy" for _, message in lab.told.messages)
        await lab.fire("/alertrule/default/busy", "alert.resolved", 2)
        await lab.until_told(4, "http://am/")
        before = len(lab.told.messages)
        await lab.pass_time(2 * REPEAT_SECONDS)
        assert len(lab.told.messages) == before
        assert "startsAt" not in lab.told.messages[-1][1].alerts[0]


@pytest.mark.parametrize("good", [True, False])
async def test_a_test_shows_the_answer_and_a_good_one_ends_the_pause(tmp_path: Path, good: bool) -> None:
    async with telling(tmp_path) as lab:
        lab.told.answers["http://a/"] = DOWN
        await lab.put_receiver(on=["vm.created"])
        lab.happen()
        await lab.until_status(lambda status: status.attempts == 4)
        lab.told.answers["http://a/"] = OK if good else DOWN
        await lab.ask("hook", "receiver", test_generation=1)
        status = await lab.until_status(lambda status: status.test.generation == 1)
        assert status.test.delivery is not None and status.test.delivery.ok is good
        if good:
            await lab.until_status(lambda status: status.sent == 1, 5.0)
        else:
            assert status.attempts == 4 and status.next_attempt_at is not None


async def test_secrets_reach_the_sender_and_what_is_wrong_with_them_is_said_without_them(tmp_path: Path) -> None:
    async with telling(tmp_path) as lab:
        await lab.put_receiver(on=["vm.created"], secret="keys")
        lab.happen()
        missing = await lab.until_status(lambda status: status.phase == "Failing")
        assert missing.message == "secret keys does not exist" and lab.told.messages == []
        await lab.put("secret", "keys", {"sealed": {"signing_key": "abc", "other": "def"}})
        await lab.until_told(1, seconds=30.0)
        assert lab.told.secrets == [{"signing_key": "abc of secret/default/keys/signing_key"}]
        await lab.put_receiver("mirror", "http://b/", on=["vm.created"], secret="registry")
        await lab.put("secret", "registry", {"registry": "r.example.org", "sealed": {"password": "abc"}})
        lab.happen(name="two")
        await lab.until_told(2)

        async def refused() -> bool:
            return "is for registry r.example.org" in (await lab.receiver("mirror")).message

        await lab.until(refused)
        assert lab.told.types("http://b/") == []
