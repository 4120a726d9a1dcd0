"""Asks the BMCs of nodes' machines whether these are on, and has them switched as people order.

Reads nodes, their leases (heartbeats) and their Secrets; writes the mark ``power_reading`` of a node. Woken by nodes with a BMC,
and by time: it is asked every five minutes, and of a node that isn't heard every two seconds at first, until it has said off. An
order is carried out once the BMC's own word shows it; one that a process died in is carried out again, but what was off for it
already is only switched on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from msgspec.structs import replace

from weft.contracts.journal import Event
from weft.contracts.machine.power import PowerDriver, PowerState
from weft.controllers.asking import Asking, Later
from weft.controllers.cluster.requests import in_thread
from weft.controllers.image.credentials import Unseal
from weft.informer.commit import Draft
from weft.informer.leader_lease import LeaderLease
from weft.informer.loss.renewals import SUSPECT_SECONDS, Renewals
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.node import NODE, SILENT_PHASES, NodeActions, NodeMarks, NodeReport, NodeSpec, NodeStatus
from weft.kinds.parts.node.power import (
    FINGERPRINT,
    PASSWORD,
    USER,
    BmcAddress,
    PowerReading,
    read_bmc_address,
)
from weft.kinds.secret import SecretSpec, place_of
from weft.objects.errors import InvalidInput, NotFound, TimedOut, WeftError
from weft.objects.identity import object_key

READ_SECONDS = 300.0
READ_SILENT_SECONDS = 2.0  # of a node that isn't heard: its guests start elsewhere once it is known to be off
READ_LATER_SECONDS, SOON_SECONDS = 15.0, 300.0  # of one that hasn't been heard for so long
AT_ONCE = 32  # BMCs that are asked
DOUBT_SECONDS = 10.0  # heard for so long after its BMC said off, a node isn't the BMC's machine
SWITCH_SECONDS = 60.0  # until the BMC's word shows what was ordered
_POLL_SECONDS = _CHECK_SECONDS = 1.0
TICK = ""  # the key that stands for a check of which nodes are heard
SOURCE = "power"
OpenBmc = Callable[[BmcAddress, Mapping[str, str]], PowerDriver]


class Power(Asking):
    """Keys are those of nodes, and TICK."""

    name = "power"
    kinds = (NODE.name,)
    always = (TICK,)

    def __init__(self, leadership: LeaderLease, renewals: Renewals, unseal: Unseal, open_bmc: OpenBmc) -> None:
        self._leadership, self._unseal, self._open = leadership, unseal, open_bmc
        self._clock = leadership.clock
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._renewals = renewals
        self._suspects = set[str]()  # keys of the nodes that weren't heard at the last check

    def route(self, view: View, change: Changed) -> Iterable[str]:
        is_concerned = change.new is not None and bool(change.new.spec(NodeSpec).power)
        return [change.key] if is_concerned and has_changed(change, _read_asked) else ()

    async def take_turn(self, key: str) -> Later:
        if key == TICK:
            return await self._check_silence()
        node = self._leadership.cache.view.get(key)
        if node is None or node.deleting or not node.spec(NodeSpec).power:
            return {}
        actions, known = node.actions(NodeActions), _read_mark(node)
        async with self._turns:
            if actions.power_orders > known.orders:
                reading = await self._carry_out(node, actions, known)
            else:
                reading = await self._read(node, known)
        await self._note(key, node.uid, reading)
        return {key: self._find_pause(node, reading)}

    async def _check_silence(self) -> Later:
        """Have a turn at once of each node that isn't heard any more."""
        nodes = [one for one in self._leadership.cache.view.of_kind(NODE.name).values() if one.spec(NodeSpec).power]
        if nodes:
            await self._renewals.observe()
        suspects = {one.key for one in nodes if self._renewals.is_suspect(self._leadership.cache.view, one)}
        news, self._suspects = suspects - self._suspects, suspects
        return {TICK: _CHECK_SECONDS, **dict.fromkeys(sorted(news), 0.0)}

    def _find_pause(self, node: Item, reading: PowerReading) -> float:
        """Seconds until its BMC is asked again."""
        silence = self._renewals.count_silence(node.uid)
        if not self._renewals.is_suspect(self._leadership.cache.view, node):
            if reading.state == "off" and reading.proved:
                return DOUBT_SECONDS
            return READ_LATER_SECONDS if node.status(NodeStatus).phase in SILENT_PHASES else READ_SECONDS
        return READ_LATER_SECONDS if silence > SOON_SECONDS or reading.state == "off" else READ_SILENT_SECONDS

    async def _read(self, node: Item, known: PowerReading) -> PowerReading:
        at = self._clock.now()
        try:
            return self._note_state(known, await in_thread(self._find_bmc(node).read), at, node)
        except WeftError as problem:
            return _note_problem(known, problem, at)

    async def _carry_out(self, node: Item, actions: NodeActions, known: PowerReading) -> PowerReading:
        steps: dict[str, tuple[PowerState, ...]] = {"off": ("off",), "on": ("on",), "cycle": ("off", "on")}
        known, number = replace(known, reason="", message=""), actions.power_orders
        try:
            bmc = self._find_bmc(node)
            for step in steps.get(actions.power_to, ()):
                if step == "off" and actions.power_to == "cycle" and (known.off_at or 0.0) > actions.power_ordered_at:
                    continue
                known = await self._switch(node, bmc, step, known)
                await self._note(node.key, node.uid, known)  # an end in between doesn't switch it off twice
            if actions.power_to == "status":
                at = self._clock.now()
                known = self._note_state(known, await in_thread(bmc.read), at, node)
        except WeftError as problem:
            known = _note_problem(known, problem, self._clock.now())
        return replace(known, orders=number)

    async def _switch(self, node: Item, bmc: PowerDriver, to: PowerState, known: PowerReading) -> PowerReading:
        """Raises WeftError."""
        ends = self._clock.elapsed() + SWITCH_SECONDS
        at = self._clock.now()
        if (state := await in_thread(bmc.read)) != to:
            await in_thread(partial(bmc.switch, to))
        while state != to:
            if self._clock.elapsed() > ends:
                raise TimedOut(
                    f"the BMC took the order, and still says {state} after {SWITCH_SECONDS:g} s", reason="notSwitched"
                )
            await self._clock.sleep(_POLL_SECONDS)
            at = self._clock.now()
            state = await in_thread(bmc.read)
        return self._note_state(known, state, at, node)

    def _note_state(self, known: PowerReading, state: PowerState, at: float, node: Item) -> PowerReading:
        """``node`` as it was known before the BMC was asked."""
        contact, address = node.report(NodeReport).contact, node.spec(NodeSpec).power
        proved = known.proved if known.proved == address else ""
        if state == "on":
            proved = address if self._renewals.count_since_renewal(node.uid) < SUSPECT_SECONDS else proved
            return replace(known, state=state, at=at, proved=proved, reason="", message="")
        before = known.off_at if known.state == "off" and known.off_contact == contact else None
        if before is not None and at - self._renewals.count_since_renewal(node.uid) > before + DOUBT_SECONDS:
            proved = ""
        off_at = at if before is None or not proved else before
        return replace(
            known, state=state, at=at, off_at=off_at, off_contact=contact, proved=proved, reason="", message=""
        )

    def _find_bmc(self, node: Item) -> PowerDriver:
        """Raises NotFound, InvalidInput, Unavailable."""
        spec = node.spec(NodeSpec)
        project, _, name = spec.power_secret.partition("/")
        item = self._leadership.cache.view.get(object_key("secret", project, name))
        if item is None:
            raise NotFound(f"secret {spec.power_secret} does not exist")
        secret = item.spec(SecretSpec)
        if missing := [key for key in (USER, PASSWORD) if key not in secret.sealed]:
            raise InvalidInput(f"secret {spec.power_secret} has no {' and no '.join(missing)}")
        keys = [key for key in (USER, PASSWORD, FINGERPRINT) if key in secret.sealed]
        values = {
            key: self._unseal(secret.sealed[key], place_of(project, name, key)).decode().rstrip("\r\n") for key in keys
        }
        if strange := [key for key, value in values.items() if not value.isprintable()]:
            raise InvalidInput(f"{strange[0]} in secret {spec.power_secret} is not one line of text")
        return self._open(read_bmc_address(spec.power), values)

    async def _note(self, key: str, uid: str, reading: PowerReading) -> None:
        """Write the mark, which nobody else writes. Raises LeadershipLost."""
        for _ in range(5):
            node = self._leadership.cache.view.get(key)
            if node is None or node.uid != uid or not _is_worth_noting(reading, before := _read_mark(node)):
                return
            draft = Draft()
            draft.change(node, marks=replace(node.marks(NodeMarks), power_reading=reading))
            commit = draft.commit(key, _list_events(node, before, reading))
            if commit is None or not await self._leadership.perform([commit]):
                return


def _read_asked(node: Item) -> object:
    return node.uid, node.envelope.spec, node.envelope.actions, node.status(NodeStatus).phase in SILENT_PHASES


def _read_mark(node: Item) -> PowerReading:
    return node.marks(NodeMarks).power_reading or PowerReading()


def _note_problem(known: PowerReading, problem: WeftError, at: float) -> PowerReading:
    message = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
    return replace(known, state="unknown", at=at, reason=problem.token, message=message[:500])


def _is_worth_noting(reading: PowerReading, before: PowerReading) -> bool:
    """Whether it is worth a commit: of the same word, heard again, only an order's end is."""
    return reading != replace(before, at=reading.at, off_at=reading.off_at)


def _list_events(node: Item, before: PowerReading, reading: PowerReading) -> list[Event]:
    ref, orders = node.envelope.ref, reading.orders > before.orders
    if reading.message and (orders or reading.message != before.message):
        return [Event("Warning", "PowerUnknown", reading.message, ref, SOURCE)]
    if reading.state == "off" and before.proved and not reading.proved:
        said = "its BMC says off, and the node is heard: the BMC's word doesn't count until it has said on"
        return [Event("Warning", "PowerDoubted", said, ref, SOURCE)]
    if reading.state != before.state and before.at:
        return [Event("Normal", f"Powered{reading.state.title()}", f"its BMC says {reading.state}", ref, SOURCE)]
    return []
