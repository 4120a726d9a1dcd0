"""The gateway's line to the server: follows its objects, keeps them for the time without a server, and reports.

Devices, device models, rules and models are watched, so a desired value, a new limit or another condition comes at once. Which of
them the server shows depends on the devices: all others are listed again after each change, and every 15 seconds.
Whatever the server answers, the gateway goes on with what it has.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.contracts.clock import Clock
from weft.contracts.device import DeviceDriver
from weft.edge.broker.broker import Broker
from weft.edge.broker.config import make_username
from weft.edge.device.model import Device
from weft.edge.device.store import TwinStore
from weft.edge.gateway import DeviceGateway
from weft.edge.server.fetching import FileFetcher
from weft.edge.server.files import ModelFiles
from weft.edge.server.handover import ask_ticket, send_messages
from weft.edge.server.objects import KINDS, GatewayObjects, read_key, read_objects
from weft.edge.server.report import Sent, note_sent, plan_report
from weft.objects.errors import InvalidInput, NotFound, WeftError
from weft.protocol.devices import DevicesAnswer, DevicesReport
from weft.protocol.report import OpenedSecrets

LIST_SECONDS = 15.0
GATHER_SECONDS = 0.1  # changes that come together are applied together
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
SECRET_SECONDS = 600.0  # a password is asked for again after so long
TOLERATED_SECONDS = 2.0  # the server's Date has whole seconds: less is no difference of clocks
ASK_SECONDS = 60.0  # a report goes out at least so often: its answer says whose devices the gateway takes
INVOKE_SECONDS = 0.1  # between two looks at the messages that invoke functions
PASSWORD = "password"
_DEVICES, _MODELS = KINDS[0], KINDS[-1]
_OFFSET, _PROJECT = "offset", "project"
_NO_CREDENTIALS = "it has no credentials, so it can't log in to the broker"
_FLOODS = (
    "it was put out of the broker: it subscribes to topics that aren't its own; mend it, and give it another password"
)

log = logging.getLogger("weft.edge.server")


class ServerLink:
    def __init__(
        self,
        client: Client,
        node: str,
        gateway: DeviceGateway,
        drivers: Mapping[str, DeviceDriver],
        store: TwinStore,
        clock: Clock,
        broker: Broker | None = None,
        files: ModelFiles | None = None,
    ) -> None:
        self._client, self._node, self._gateway, self._drivers = client, node, gateway, drivers
        self._store, self._clock, self._broker = store, clock, broker
        self._files = files
        self._fetcher = None
        if files is not None:
            self._fetcher = FileFetcher(files, client, clock, self._put_models, lambda: gateway.models.list_used())
        self._putting = asyncio.Lock()  # of models: the last that are put are the last that are wanted
        self._objects: dict[str, dict[tuple[str, str], bytes]] = {kind: {} for kind in KINDS}
        self._hashes = store.load_hashes()  # by username
        self._asked: dict[str, tuple[Device, float]] = {}  # by username: for what its password was asked, and when
        self._unopened: dict[str, str] = {}  # by uid: why the password can't be read
        self._wanted = GatewayObjects()
        self._changed = asyncio.Event()
        self._synced = False
        self._sent = Sent()
        self._draw = random.Random()  # noqa: S311 (spreads load)
        self.offset = float(store.load_objects(_OFFSET).get("seconds", b"0"))
        self._project = (
            store.load_objects(_PROJECT).get("name", b"").decode()
        )  # whose devices it takes; "": not known yet
        self._answered_at = float("-inf")
        self._save_problem = ""
        self.problem = "the server hasn't answered yet"
        client.http.on_answer = self._note_date

    async def load(self) -> None:
        """Take up what was kept."""
        for kind in KINDS:
            for body in (await asyncio.to_thread(self._store.load_objects, kind)).values():
                self._objects[kind][read_key(body)] = body
        await self._apply()

    async def keep(self) -> None:
        """Follow and report until this is cancelled."""
        loop = asyncio.get_running_loop()
        for kind in KINDS:
            threading.Thread(target=self._follow, args=(loop, kind), name=f"weft-edge-{kind}", daemon=True).start()
        fetching = [self._fetcher.keep()] if self._fetcher is not None else []
        await asyncio.gather(self._keep_objects(), self._keep_reporting(), self._keep_invoking(), *fetching)

    def find_offset(self) -> float:
        """The seconds by which the server's clock is ahead of this machine's."""
        return self.offset

    # --- what it follows ---------------------------------------------------------------------------------------------

    def _follow(self, loop: asyncio.AbstractEventLoop, kind: str) -> None:
        """Follow, in a thread and for ever, objects as they change."""
        pause = threading.Event()
        while not self._client.http.closed.is_set():
            listed: dict[tuple[str, str], bytes] | None = {}
            try:
                for event in self._client.watch_forever(kind, all_projects=True, on_trouble=self._note_trouble):
                    if event.type == "synced":
                        # Deletions that were missed come as events of their own before this one.
                        loop.call_soon_threadsafe(self._take_listed, kind, listed)
                        listed = None
                    elif event.type == "put":
                        body = bytes(event.raw)
                        key = read_key(body)
                        if listed is not None:
                            listed[key] = body
                        else:
                            loop.call_soon_threadsafe(self._take, kind, key, body)
                    elif event.type == "delete" and listed is None:
                        loop.call_soon_threadsafe(self._take, kind, read_key(bytes(event.raw)), None)
            except (
                WeftError,
                msgspec.DecodeError,
            ) as trouble:  # refused for good, as it seems: asked again later all the same
                self.problem = str(trouble)
                log.warning("%ss can't be followed: %s", kind, trouble)
            except RuntimeError:
                return  # the loop has ended
            pause.wait(LONGEST_PAUSE_SECONDS)

    def _take_listed(self, kind: str, listed: dict[tuple[str, str], bytes] | None) -> None:
        if kind == _DEVICES:
            if listed is not None:
                self._objects[kind] = listed
            self._synced = True
        self._changed.set()  # the others are listed then

    def _take(self, kind: str, key: tuple[str, str], body: bytes | None) -> None:
        before = self._objects[kind].get(key)
        if body is None:
            self._objects[kind].pop(key, None)
        else:
            self._objects[kind][key] = body
        if (
            body is None or before is None or _pick(before) != _pick(body)
        ):  # what the gateway itself reported is no news
            self._changed.set()

    def _note_trouble(self, trouble: WeftError) -> None:
        self.problem = trouble.message

    async def _keep_objects(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LIST_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            else:
                await self._clock.sleep(GATHER_SECONDS)
            self._changed.clear()
            if not self._synced:
                continue
            try:
                for kind in KINDS[1:]:
                    self._objects[kind] = await asyncio.to_thread(self._list, kind)
            except (WeftError, msgspec.DecodeError) as trouble:
                self.problem = str(trouble)
                continue
            await self._apply()
            await self._ask_passwords()

    def _list(self, kind: str) -> dict[tuple[str, str], bytes]:
        """List, in a thread, all of them now. An older server has no models, and its gateway none to run."""
        try:
            listing = self._client.list(kind, all_projects=True)
        except NotFound:
            if kind != _MODELS:
                raise
            return {}
        return {read_key(bytes(raw)): bytes(raw) for raw in listing.raws}

    async def _apply(self) -> None:
        wanted = read_objects(
            self._objects["device"].values(),
            self._objects["devicemodel"].values(),
            self._objects["rule"].values(),
            self._node,
            self._project,
            self._objects["model"].values(),
        )
        if wanted.unread:
            log.warning("%d objects can't be read by this version", wanted.unread)
        await self._gateway.put_devices(wanted.devices, wanted.models, self._find_problems(wanted))
        self._gateway.put_rules(wanted.rules)
        self._wanted = wanted
        await self._put_models()
        if self._fetcher is not None:
            self._fetcher.want(model.file.sha256 for model, _ in wanted.decision_models.values())
        self._admit(wanted)
        rows = {
            kind: {f"{project}/{name}": body for (project, name), body in self._objects[kind].items()} for kind in KINDS
        }
        rows |= {_OFFSET: {"seconds": str(self.offset).encode()}, _PROJECT: {"name": self._project.encode()}}
        for kind, kept in rows.items():
            await self._save(self._store.save_objects, kind, kept)

    async def _put_models(self) -> None:
        """The models, each with its file if that is here."""
        async with self._putting:
            models, problems = {}, {}
            failed = self._fetcher.problems if self._fetcher is not None else {}
            for uid, (model, devices) in self._wanted.decision_models.items():
                file = model.file
                path = await asyncio.to_thread(self._files.find, file.sha256) if self._files is not None else ""
                if not path:
                    problems[uid] = failed.get(file.sha256, "its file is being fetched")
                models[uid] = msgspec.structs.replace(model, file=msgspec.structs.replace(file, path=path)), devices
            self._gateway.put_models(models, problems)

    async def _save(self, save: Callable[..., None], *given: Any) -> None:
        """A full disk keeps no device from being served; what is not saved now is with the next list."""
        try:
            await asyncio.to_thread(save, *given)
            self._save_problem = ""
        except (sqlite3.Error, OSError) as problem:
            if not self._save_problem:
                log.error("what the server wants can't be saved: %s; it is kept in memory", problem)
            self._save_problem = str(problem)

    def _find_problems(self, wanted: GatewayObjects) -> dict[str, str]:
        """Find, by uid, why a device can't log in to the broker."""
        if self._broker is None:
            return {}
        mqtt = {uid: one for uid, one in wanted.devices.items() if one.protocol == "mqtt"}
        flooding = {uid for uid, one in mqtt.items() if self._broker.is_put_out(make_username(one.project, one.name))}
        self._unopened = {uid: why for uid, why in self._unopened.items() if uid in mqtt and mqtt[uid].credentials}
        without = {uid: _NO_CREDENTIALS for uid, one in mqtt.items() if not one.credentials}
        return without | dict.fromkeys(flooding, _FLOODS) | self._unopened

    def _admit(self, wanted: GatewayObjects) -> None:
        """Let the devices with a password use the broker."""
        if self._broker is None:
            return
        mqtt = [one for one in wanted.devices.values() if one.protocol == "mqtt"]
        names = {make_username(one.project, one.name): one for one in mqtt if one.credentials}
        self._hashes = {user: hashed for user, hashed in self._hashes.items() if user in names}
        self._asked = {user: one for user, one in self._asked.items() if user in names}
        self._broker.put_devices([(one.project, one.name) for one in mqtt], self._hashes)

    async def _ask_passwords(self) -> None:
        at, changed = self._clock.elapsed(), False
        for uid, twin in list(self._gateway.twins.items()):
            device = twin.device
            if self._broker is None or device.protocol != "mqtt" or not device.credentials:
                continue
            user = make_username(device.project, device.name)
            asked, when = self._asked.get(user, (None, 0.0))
            if (
                asked is not None
                and asked.credentials == device.credentials
                and asked.uid == uid
                and at - when < SECRET_SECONDS
            ):
                continue
            try:
                password = await asyncio.to_thread(self._open_password, device)
            except NotFound as problem:
                self._unopened[uid] = twin.obstacle = f"its password can't be read: {problem.message}"[:300]
                twin.is_echo_due = True
                changed |= self._hashes.pop(user, None) is not None
                continue
            except WeftError as problem:
                self.problem = problem.message
                return
            self._asked[user] = device, at
            if twin.obstacle and twin.obstacle == self._unopened.pop(uid, ""):
                twin.obstacle, twin.is_echo_due = "", True
            hashed = await asyncio.to_thread(self._broker.renew_hash, self._hashes.get(user, ""), password)
            changed |= self._hashes.get(user) != hashed
            self._hashes[user] = hashed
        if changed and self._broker is not None:
            await self._save(self._store.save_hashes, self._hashes)
            mqtt = [one.device for one in self._gateway.twins.values() if one.device.protocol == "mqtt"]
            self._broker.put_devices([(one.project, one.name) for one in mqtt], self._hashes)

    def _open_password(self, device: Device) -> str:
        """Raises NotFound, and what the server answers."""
        asked = msgspec.json.encode({"device": f"{device.project}/{device.name}"})
        answer = self._client.http.request("POST", f"/v1/nodes/{self._node}:secrets", asked, timeout_seconds=10.0)
        raise_problem(answer)
        opened = msgspec.json.decode(answer.body, type=OpenedSecrets).secrets.get(device.credentials, {})
        password = opened.get(PASSWORD, "").removesuffix("\n").removesuffix("\r")  # as editors end a file
        if not password:
            raise NotFound(f"secret {device.credentials} has no value under the key {PASSWORD}")
        return password

    # --- what it reports ---------------------------------------------------------------------------------------------

    async def _keep_reporting(self) -> None:
        tries = 0
        while True:
            pause = FIRST_PAUSE_SECONDS
            try:
                pause = await self._report_once()
                if tries:
                    log.info("the server takes reports again")
                tries, self.problem = 0, ""
            except (WeftError, msgspec.DecodeError) as trouble:
                tries += 1
                if tries == 1:
                    log.warning("the server doesn't take reports: %s", trouble)
                self.problem = str(trouble)
                pause = max(
                    0.1, self._draw.uniform(0.0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 8)))
                )
            await self._clock.sleep(pause)

    async def _report_once(self) -> float:
        """Tell what is new. Returns the seconds until the next time."""
        found = [one for driver in self._drivers.values() for one in await driver.discover()]
        at, local = self._clock.elapsed(), self._clock.now()
        report = plan_report(
            self._gateway.twins,
            found,
            self._gateway.fired,
            self._gateway.rule_problems,
            self._sent,
            at,
            local + self.offset,
            local,
            self._gateway.models.list_ran(at),
        )
        if (
            not (report.devices or report.found or report.rules or report.models)
            and at - self._answered_at < ASK_SECONDS
        ):
            return 1.0
        answer = await asyncio.to_thread(self._post, report)
        self._answered_at = at
        if answer.project and answer.project != self._project:
            self._project = answer.project
            self._changed.set()
        self._gateway.triggers.put_topics(answer.project, answer.topics)
        note_sent(report, self._gateway.twins, self._sent, at)
        for uid, why in answer.refused.items():
            log.warning("the server refuses what is reported of %s: %s", uid, why)
        return max(FIRST_PAUSE_SECONDS, min(answer.wait_seconds, 60.0))

    async def _keep_invoking(self) -> None:
        """Hand over messages that invoke functions, until this is cancelled. While that fails the queue fills up to its bound."""
        triggers, tries = self._gateway.triggers, 0
        while True:
            batch = triggers.take()
            if batch is None:
                await self._clock.sleep(INVOKE_SECONDS)
                continue
            function, messages, dropped, too_large = batch
            try:
                ticket = await asyncio.to_thread(ask_ticket, self._client, self._node, function, dropped, too_large)
                triggers.settle_dropped(function, dropped, too_large)  # people are told
                if dropped:
                    log.warning(
                        "%d messages for function %s were dropped, %d for their size", dropped, function, too_large
                    )
                dropped = too_large = 0
                if messages:
                    await asyncio.to_thread(send_messages, self._client, ticket, messages)
            except (
                NotFound,
                InvalidInput,
            ) as problem:  # it isn't there any more: the next report brings the topics that are
                log.warning("%d messages for function %s are dropped: %s", len(messages), function, problem.message)
            except (WeftError, msgspec.DecodeError) as trouble:
                tries += 1
                triggers.give_turn(function)
                if tries == 1:
                    log.warning("messages wait for their functions: %s", trouble)
                longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 8))
                await self._clock.sleep(max(0.1, self._draw.uniform(0.0, longest)))
                continue
            tries = 0
            triggers.settle_dropped(function, dropped, too_large)
            triggers.settle(function, messages)

    def _post(self, report: DevicesReport) -> DevicesAnswer:
        body = msgspec.json.encode(report)
        answer = self._client.http.request("POST", f"/v1/nodes/{self._node}:devices", body, timeout_seconds=20.0)
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=DevicesAnswer)

    def _note_date(self, request: Any, status: int, headers: Mapping[str, str], seconds: float) -> None:
        """Note, in a thread, the server's clock, as its answer says."""
        try:
            said = email.utils.parsedate_to_datetime(headers.get("Date") or headers["date"]).timestamp()
        except (KeyError, ValueError, TypeError):
            return
        offset = said + 1.0 - self._clock.now()  # whole seconds, cut off: rather expire early than deliver late
        self.offset = 0.0 if abs(offset) <= TOLERATED_SECONDS else offset


def _pick(body: bytes) -> tuple[Any, ...]:
    """The parts of a device that are people's."""
    given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return tuple(bytes(given.get(word, msgspec.Raw(b""))) for word in ("uid", "labels", "spec", "deleting_since"))
