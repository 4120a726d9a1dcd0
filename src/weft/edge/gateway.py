"""The gateway's heart: hears devices through drivers, keeps their twins, evaluates rules, asks models, hands over commands, saves.

One event loop. Each message is taken in microseconds: what needs the disk or the server happens once a second, elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.device import DeviceDriver, Thing, Value
from weft.contracts.edge.model_runner import ModelRunner
from weft.edge.device.command import LONGEST_LIFE_SECONDS, Command, Sending, find_next, note_try, plan_sendings
from weft.edge.device.model import Device, Model
from weft.edge.device.store import TwinStore
from weft.edge.device.twin import Twin, plan_desired, refuse_member
from weft.edge.model.engine import Decision, DecisionModel
from weft.edge.model.tracker import ModelTracker
from weft.edge.rule.engine import Fired, Firing, Rule, RuleEngine
from weft.edge.rule.trigger import TriggerQueue
from weft.objects.errors import InvalidInput, WeftError
from weft.objects.identity import new_uid

if TYPE_CHECKING:
    from weft.edge.cache.publisher import TwinPublisher  # most gateways have no cache, and don't load it

TICK_SECONDS = 0.05  # the longest that a rule's time or a command's next try is late
SAVE_SECONDS = 1.0
PHASE_SECONDS = 1.0
MOST_DEVICES = 5000
MOST_RULES = 1000
MOST_WRITING = 200  # commands that are being handed over at once
_NONE: Mapping[str, str] = {}

log = logging.getLogger("weft.edge")


class DeviceGateway:
    """``find_offset`` gives the seconds by which the server's clock is ahead of this machine's. ``publisher`` None: what devices
    are isn't in a cache."""

    def __init__(
        self,
        drivers: Mapping[str, DeviceDriver],
        store: TwinStore,
        clock: Clock,
        *,
        rate: float = 100.0,
        find_offset: Callable[[], float] = lambda: 0.0,
        runner: ModelRunner | None = None,
        publisher: TwinPublisher | None = None,
    ) -> None:
        self._drivers, self._store, self._clock, self._rate = dict(drivers), store, clock, rate
        self._find_offset = find_offset
        self.twins: dict[str, Twin] = {}
        self.rules = RuleEngine()
        self.triggers = TriggerQueue(new_uid)
        self.messages = 0
        self.refused: dict[str, int] = {}
        self.fired: dict[str, Fired] = store.load_fired()
        self._is_fired_dirty = False
        self.rule_problems: dict[str, str] = {}
        self.publisher = publisher
        if publisher is not None:
            publisher.serve(self.twins, self._now)
        note_decision = publisher.note_decision if publisher is not None else None
        self.models = ModelTracker(
            runner, clock, self._read_for_model, self._carry_out, store.load_ran(), note_decision
        )
        self.lines: dict[str, str] = {}  # by protocol: why its devices can't be reached
        self._kept = store.load_twins()
        self._by_name: dict[tuple[str, str], str] = {}
        self._gone: set[str] = set()
        self._writing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._offset = 0.0
        self.saves = 0
        self.save_problem = ""

    # --- what the server wants ---------------------------------------------------------------------------------------

    async def put_devices(
        self,
        devices: Mapping[str, Device],
        models: Mapping[tuple[str, str], Model],
        problems: Mapping[str, str] = _NONE,
    ) -> None:
        """These are all devices of this gateway now, by uid, and the models by project and name; ``problems``: why a device (uid)
        can't be heard."""
        at = self._clock.elapsed()
        for uid in self.twins.keys() - devices.keys():
            twin = self.twins.pop(uid)
            self._gone.add(uid)
            if self.publisher is not None:
                self.publisher.note_gone(twin)
            if (driver := self._drivers.get(twin.device.protocol)) is not None:
                await driver.disconnect(uid)
        for uid, device in list(devices.items())[:MOST_DEVICES]:
            model = models.get((device.project, device.model))
            if uid not in self.twins:
                kept = self._kept.pop(uid, None)
                age = max(0.0, self._clock.now() - kept.heard_at) if kept is not None else 0.0
                self.twins[uid] = Twin(device, model or Model(), self._rate, at, kept, age)
                self._gone.discard(uid)
            twin = self.twins[uid]
            twin.device = device
            twin.is_echo_due = True
            if model is not None and model != twin.model:
                twin.take_model(model)
                if self.publisher is not None:
                    self.publisher.note(uid)
            why = problems.get(uid, "") or twin.unreached
            twin.obstacle = why if model is not None else f"its model {device.model!r} isn't there"
            driver = self._drivers.get(device.protocol)
            if driver is None:
                twin.obstacle = f"this gateway has no driver for {device.protocol[:40]!r}"
            else:
                hrefs = {name: one.href for name, one in twin.model.properties.items() if one.href}
                poll = device.poll_seconds
                await driver.connect(Thing(uid, device.project, device.name, device.address, hrefs, poll))
            for command in plan_desired(twin, new_uid):
                twin.begin(command)
        self._by_name = {(twin.device.project, twin.device.name): uid for uid, twin in self.twins.items()}
        self._gone |= self._kept.keys()  # devices that are this gateway's no more
        self._kept.clear()

    def put_models(
        self, models: Mapping[str, tuple[DecisionModel, list[str]]], problems: Mapping[str, str] = _NONE
    ) -> None:
        """These are all models now: by uid, each with its devices (uids). ``problems``: why a file isn't here, by uid."""
        self.models.put(models, problems)
        if self.publisher is not None:
            names: dict[str, set[str]] = {}
            for model, devices in models.values():
                for device in devices:
                    names.setdefault(device, set()).add(model.name)
            self.publisher.keep_results(names)

    def put_rules(self, rules: Mapping[str, tuple[Rule, list[str]]]) -> None:
        """These are all rules now: by uid, each with the devices (uids) that it watches."""
        for uid in self.rules.list_rules() - rules.keys():
            self.rules.remove(uid)
        for uid in self.fired.keys() - rules.keys():
            del self.fired[uid]
            self._is_fired_dirty = True
        self.rule_problems = {}
        for uid, (rule, devices) in list(rules.items())[:MOST_RULES]:
            try:
                self.rules.put(rule, devices)
            except InvalidInput as problem:
                self.rules.remove(uid)
                self.rule_problems[uid] = problem.message[:300]
                continue
            at = self._clock.elapsed()
            for device in devices:
                if device in self.twins:
                    self._evaluate(self.twins[device], at)

    # --- what devices say (Listener) ---------------------------------------------------------------------------------

    def note_values(self, uid: str, values: Mapping[str, Value]) -> None:
        self.messages += 1
        twin = self.twins.get(uid)
        if twin is None:
            self.note_refused("", "stranger")
            return
        at = self._clock.elapsed()
        before = {name: twin.reported.get(name) for name in values} if self.triggers.watches_values else None
        if twin.take_values(values, at, self._now()):
            if before is not None:
                changed = {
                    name: new
                    for name, old in before.items()
                    if (new := twin.reported.get(name)) is not None and new != old
                }
                self.triggers.note_values(twin.device.project, twin.device.name, changed, self._now())
            self._note_change(twin, at)

    def note_event(self, uid: str, event: Mapping[str, Value]) -> None:
        """An event is a sign of life, and may refuse a command: {"refused": ID, "reason": words}."""
        self.messages += 1
        twin = self.twins.get(uid)
        if twin is None:
            self.note_refused("", "stranger")
            return
        beyond = twin.refused.get("rate", 0)
        twin.take_values({}, self._clock.elapsed(), self._now())
        if twin.refused.get("rate", 0) == beyond:  # within what a device may send
            self.triggers.note_event(twin.device.project, twin.device.name, event, self._now())
        refused = event.get("refused")
        for command in twin.commands.values():
            if command.is_open and command.id == refused:
                command.problem = str(event.get("reason", "the device refuses it"))[:200]
                twin.end(command, "Refused", self._now())

    def note_reach(self, uid: str, problem: str) -> None:
        twin = self.twins.get(uid)
        if twin is not None:
            twin.note_reach(problem[:300])

    def note_refused(self, uid: str, reason: str, name: str = "") -> None:
        twin = self.twins.get(uid)
        if twin is not None and name:  # of a message that counts already
            refuse_member(twin, name, reason)
        elif twin is not None:
            self.messages += 1
            if twin.allowance.takes(self._clock.elapsed()):
                twin.refuse(reason, f"a message is refused: {reason}")
            else:
                twin.refuse("rate", "")
        else:
            self.refused[reason] = self.refused.get(reason, 0) + 1

    # --- time --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until this is cancelled; what is unsaved is saved then."""
        for name, driver in self._drivers.items():
            driver.observe(_Line(self, name))
        saving = asyncio.create_task(self._keep_saving())
        deciding = asyncio.create_task(self.models.keep())
        publishing = [asyncio.create_task(self.publisher.keep())] if self.publisher is not None else []
        try:
            refreshed = 0.0
            while True:
                at = self._clock.elapsed()
                for firing in self.rules.tick(at):
                    self._perform(firing)
                if at - refreshed >= PHASE_SECONDS:
                    refreshed = at
                    self._refresh(at)
                self._hand_over(at)
                await self._clock.sleep(TICK_SECONDS)
        finally:
            saving.cancel()
            deciding.cancel()
            for task in publishing:
                task.cancel()
            for task in list(self._writing.values()):
                task.cancel()
            await asyncio.gather(saving, deciding, *publishing, *self._writing.values(), return_exceptions=True)
            await self.save()

    async def save(self) -> None:
        """Write what changed since the last time."""
        at, now = self._clock.elapsed(), self._clock.now()
        rows = {}
        for uid, twin in self.twins.items():
            if twin.is_dirty:
                twin.is_dirty = False
                rows[uid] = _encoder.encode(twin.keep(at, now))
        gone, self._gone = self._gone, set()
        fired = {uid: msgspec.json.encode(one) for uid, one in self.fired.items()} if self._is_fired_dirty else None
        self._is_fired_dirty = False
        ran = None
        if self.models.take_dirty():
            ran = {uid: msgspec.json.encode(one) for uid, one in self.models.ran.items()}
        if not rows and not gone and fired is None and ran is None:
            return
        try:
            await asyncio.to_thread(self._store.save_twins, rows, gone, fired, ran)
            self.saves += 1
            self.save_problem = ""
        except (sqlite3.Error, OSError) as problem:  # a full disk: again in a second
            if not self.save_problem:
                log.error("twins can't be saved: %s; they are kept in memory", problem)
            self.save_problem = str(problem)
            self._gone |= gone
            self._is_fired_dirty |= fired is not None
            if ran is not None:
                self.models.note_unsaved()
            for uid in rows:
                if uid in self.twins:
                    self.twins[uid].is_dirty = True

    async def _keep_saving(self) -> None:
        while True:
            await self._clock.sleep(SAVE_SECONDS)
            await self.save()

    def _refresh(self, at: float) -> None:
        """Phases and windows, by time alone."""
        self._offset = self._find_offset()
        for twin in self.twins.values():
            phase = twin.find_phase(at)
            changed = twin.close_windows(at) if twin.windows else False
            if phase != twin.told_phase:
                twin.told_phase = phase
                twin.is_echo_due = changed = True
            if changed:
                self._note_change(twin, at)

    def _hand_over(self, at: float) -> None:
        now = self._now()
        for uid, twin in self.twins.items():
            if not twin.commands:
                continue
            due = find_next(twin.commands)
            if due is None:
                continue
            sendings, expired = plan_sendings(twin.commands, now, at)
            for command in expired:
                twin.note_end(command)
            for sending in sendings:
                key = (uid, sending.command.name)
                if key not in self._writing and len(self._writing) < MOST_WRITING:
                    self._begin_writing(twin, sending)

    def _begin_writing(self, twin: Twin, sending: Sending) -> None:
        key = (twin.device.uid, sending.command.name)
        task = self._writing[key] = asyncio.create_task(self._write(twin, sending))
        task.add_done_callback(lambda _: self._writing.pop(key, None))

    async def _write(self, twin: Twin, sending: Sending) -> None:
        command = sending.command
        driver = self._drivers.get(twin.device.protocol)
        problem = "" if driver is not None else f"this gateway has no driver for {twin.device.protocol[:40]!r}"
        try:
            if driver is not None:
                await driver.write(twin.device.uid, command.id, {command.name: command.value}, sending.seconds)
        except WeftError as failure:
            problem = failure.message
        except Exception as failure:  # of a package that met something unexpected: it is tried again with pauses, too
            log.exception("a device's driver failed")
            problem = f"its driver failed: {type(failure).__name__}; the gateway's log has more"
        if command.is_open:
            note_try(command, self._clock.elapsed(), problem)
            twin.is_dirty = twin.is_echo_due = True

    # --- rules and models --------------------------------------------------------------------------------------------

    def _note_change(self, twin: Twin, at: float) -> None:
        """Values of the device, or its phase, changed."""
        uid = twin.device.uid
        if self.publisher is not None:
            self.publisher.note(uid)
        if self.rules.watches(uid):
            self._evaluate(twin, at)
        if self.models.watches(uid):
            self.models.note(uid, at)

    def _evaluate(self, twin: Twin, at: float) -> None:
        is_silent = twin.find_phase(at) != "Online"
        for firing in self.rules.note(twin.device.uid, twin.read_values(at), at, is_silent=is_silent):
            self._perform(firing)

    def _perform(self, firing: Firing) -> None:
        fired = self.fired.setdefault(firing.rule.uid, Fired())
        fired.count += 1
        fired.at = self._clock.now()
        self._is_fired_dirty = True
        fired.problem = ""
        rule = firing.rule
        for effect in rule.then:
            if effect.set:
                uid = self._by_name.get((rule.project, effect.device)) if effect.device else firing.device
                problem = self._set(uid, effect.device, effect.set, effect.expires_seconds, rule.name)
                fired.problem = problem or fired.problem
            if effect.event:
                log.info("rule %s/%s: %s", rule.project, rule.name, effect.event[:200])

    def _read_for_model(self, uid: str) -> Mapping[str, Value] | None:
        twin, at = self.twins.get(uid), self._clock.elapsed()
        return twin.read_values(at) if twin is not None and twin.find_phase(at) == "Online" else None

    def _carry_out(self, decision: Decision) -> str:
        """Do what a model or its fallback decided; why that can't be done."""
        model, result, value = decision.model, decision.model.result, decision.value
        if result.event:
            log.info("model %s/%s: %s", model.project, model.name, result.event[:200])
        if not result.set or value is None:
            return ""
        uid = self._by_name.get((model.project, result.device)) if result.device else decision.device
        twin = self.twins.get(uid or "")
        if twin is not None:
            known = twin.model.properties.get(result.set)
            if known is not None and known.type == "integer" and isinstance(value, float):
                value = round(value)
            if twin.is_becoming(result.set, value):
                return ""
        return self._set(uid, result.device, {result.set: value}, result.expires_seconds, model.name)

    def _set(
        self, uid: str | None, named: str, values: Mapping[str, Value], expires_seconds: float | None, source: str
    ) -> str:
        """Begin commands to the device ``uid``, which ``named`` stands for; why it can't."""
        twin = self.twins.get(uid or "")
        if twin is None:
            return f"device {named[:60]!r} isn't one of this gateway"
        at = self._clock.elapsed()
        problem = ""
        for name, value in values.items():
            until = None if expires_seconds is None else self._now() + expires_seconds
            command = Command(new_uid(), name, value, until, source)
            twin.begin(command)
            if not command.is_open:
                problem = f"{name}: {command.problem}"
                continue
            key = (twin.device.uid, name)
            if key not in self._writing and len(self._writing) < MOST_WRITING:  # now, not at the next tick
                command.next_at = at + TICK_SECONDS
                self._begin_writing(twin, Sending(command, expires_seconds or LONGEST_LIFE_SECONDS))
        return problem

    def _now(self) -> float:
        return self._clock.now() + self._offset


class _Line:
    """A driver's listener: the gateway, which also hears whose line it is."""

    def __init__(self, gateway: DeviceGateway, protocol: str) -> None:
        self.note_values = gateway.note_values
        self.note_event = gateway.note_event
        self.note_refused = gateway.note_refused
        self.note_reach = gateway.note_reach
        self._gateway, self._protocol = gateway, protocol

    def note_line(self, problem: str) -> None:
        self._gateway.lines[self._protocol] = problem
        log.log(
            logging.WARNING if problem else logging.INFO, "%s: %s", self._protocol, problem or "devices can be reached"
        )


_encoder: Any = msgspec.json.Encoder()
