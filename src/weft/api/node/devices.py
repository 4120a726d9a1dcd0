"""A gateway's report on the devices behind it: commits of only what changed, of at most 100 writes each.

Reads and writes the ``report`` parts of devices, rules and models, creates found devices, and writes the record of those that it
made for the node: one that is in it and isn't there any more was deleted by people, and comes back after a day only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from weft.api.admission.commit import read_again, retry
from weft.api.admission.limits import limit_objects
from weft.api.admission.view import View
from weft.api.auth.served_devices import list_devices, read_devices_project
from weft.api.context import ApiContext
from weft.api.node.invocations import find_topics
from weft.api.node.join import require_own
from weft.api.request.call import Call, json_answer
from weft.api.route import Route, Topic
from weft.contracts.store import MAX_COMMIT_BYTES, Absent, AtRevision, Precondition, Put, Write
from weft.kinds.device import DEVICE, CommandResult, DeviceReport, DeviceSpec
from weft.kinds.model import MODEL, ModelReport, NodeRuns
from weft.kinds.record import Kind
from weft.kinds.rule import MOST_NODES, RULE, NodeCount, RuleReport
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope
from weft.objects.errors import Forbidden, InvalidInput
from weft.objects.identity import FABRIC, kind_prefix, object_key
from weft.protocol.devices import (
    BUSY_SECONDS,
    CALM_SECONDS,
    MOST_BEHIND,
    MOST_COMMANDS,
    MOST_DEVICE_BYTES,
    MOST_DEVICES,
    MOST_FACTS,
    MOST_FOUND,
    MOST_KEPT,
    MOST_MODELS,
    MOST_RULES,
    MOST_TEXT,
    MOST_VALUE_BYTES,
    MOST_VALUES,
    REFUSED_SECONDS,
    DevicesAnswer,
    DevicesReport,
    FiredRule,
    FoundDevice,
    RanModel,
    ReportedDevice,
)
from weft.serving.answer import Answer

WRITES = 100  # of one commit
_COMMIT_BYTES = MAX_COMMIT_BYTES * 3 // 4  # of its values; the keys count, too
FRESH_SECONDS = 60.0  # that a device was seen again is written once in so long
_MOST_KEYS = 100_000  # of devices that this process remembers
_OLDEST_SECONDS = 31 * 86400.0
_LONGEST_MS = 1e9
_FOUND_DEVICES = f"/founddevices/{FABRIC}/"  # the store's prefix of ``MadeDevices``, by the node's uid
_NOT_A_NAME = re.compile(r"[^a-z0-9]+")
_BUSY_BEHIND = 50  # as many devices that changed in one report make the server ask for a longer pause


class MadeDevices(msgspec.Struct):
    """The record of found devices that were made for a node: by digest, when it was made, or when it was first missed."""

    made: dict[str, float] = {}
    missed: dict[str, float] = {}


class _Place(NamedTuple):
    """The gateway's node, and the project whose devices it takes."""

    name: str
    uid: str
    project: str


class _ForNode(msgspec.Struct):
    """Node in the spec of a rule or a model."""

    node: str = ""


_Counts = TypeVar("_Counts", FiredRule, RanModel)


class _Gathered:
    """Objects to write, committed before they are more than one commit takes. A retry writes the rest only: what was
    committed is no news any more."""

    def __init__(self) -> None:
        self.count, self._size = 0, 0
        self._writes: list[Write] = []
        self._preconditions: list[Precondition] = []

    async def add(self, context: ApiContext, envelope: Envelope) -> None:
        value = encode_envelope(envelope)
        if self._size + len(value) > _COMMIT_BYTES:
            await self.commit(context)
        self._writes.append(Put(envelope.key, value))
        self._preconditions.append(AtRevision(envelope.key, envelope.revision))
        self._size += len(value)

    async def commit(self, context: ApiContext) -> None:
        if self._writes:
            await context.store.commit(self._writes, self._preconditions)
        self.count += len(self._writes)
        self._writes, self._preconditions, self._size = [], [], 0


async def take_report(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/nodes/{name}:devices``, by the node itself."""
    enrolment = await require_own(context, call, name)
    call.query()
    given = _read(await call.read_body())
    named = enrolment.name if enrolment is not None else name
    node = _Place(named, call.actor.id, await read_devices_project(context, named))
    answer = DevicesAnswer(project=node.project, topics=await find_topics(context, node.project))
    changed = 0
    if given.devices:
        changed = await _write_devices(context, node, given.devices, answer)
    for start in range(0, len(given.found), WRITES // 2):  # a commit has the record, too
        part = given.found[start : start + WRITES // 2]
        answer.not_kept += await retry(context, partial(_take_found, context, node, part))
    if given.rules:
        await _write_rules(context, node, given.rules, answer)
    if given.models:
        await _write_models(context, node, given.models, answer)
    answer.wait_seconds = BUSY_SECONDS if changed > _BUSY_BEHIND else CALM_SECONDS
    return json_answer(msgspec.to_builtins(answer))


def _read(body: bytes) -> DevicesReport:
    try:
        given = msgspec.json.decode(body or b"{}", type=DevicesReport)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise InvalidInput(f"the report can't be read: {problem}") from None
    for word, found, most in (
        ("devices", given.devices, MOST_DEVICES),
        ("found", given.found, MOST_FOUND),
        ("rules", given.rules, MOST_RULES),
        ("models", given.models, MOST_MODELS),
    ):
        if len(found) > most:
            raise InvalidInput(f"{word}: {len(found)} entries", field=word, hint=f"report at most {most} together")
    return given


def bound_report(one: ReportedDevice, node_uid: str, now: float) -> DeviceReport | None:
    """The part of a report that is stored, with times of the server's clock; None if its values are too many or too large."""
    if len(one.reported) > MOST_VALUES or len(msgspec.json.encode(one.reported)) > MOST_DEVICE_BYTES:
        return None
    for name, value in one.reported.items():
        if len(name) > 63 or len(msgspec.json.encode(value)) > MOST_VALUE_BYTES:
            return None
        if isinstance(value, int) and abs(value) >= 2**63:  # what other programs read as an int
            return None
    return DeviceReport(
        phase=one.phase,
        seen_at=_time(one.seen_seconds_ago, now),
        reported=one.reported,
        drift=sorted({name[:63] for name in one.drift[:MOST_VALUES]}),
        problem=one.problem[:MOST_TEXT],
        commands=[
            CommandResult(
                property=each.property[:63],
                outcome=each.outcome,
                at=_time(each.seconds_ago, now) or now,
                message=each.message[:MOST_TEXT],
            )
            for each in one.commands[-MOST_COMMANDS:]
        ],
        node_uid=node_uid,
    )


def _time(seconds_ago: float | None, now: float) -> float | None:
    """Whole seconds since 1970; an age that can't be is taken for none."""
    if seconds_ago is None or not seconds_ago <= _OLDEST_SECONDS:
        return None
    return float(round(now - max(seconds_ago, 0.0)))


def is_news(old: DeviceReport, new: DeviceReport) -> bool:
    """Whether ``new`` is worth a write: something changed but that it was seen again, or that is a while ago."""
    if msgspec.structs.replace(old, seen_at=None, commands=[]) != msgspec.structs.replace(
        new, seen_at=None, commands=[]
    ):
        return True
    if [_describe(one) for one in old.commands] != [_describe(one) for one in new.commands]:
        return True
    if old.seen_at is None or new.seen_at is None:
        return old.seen_at != new.seen_at
    return new.seen_at - old.seen_at >= FRESH_SECONDS


def _describe(one: CommandResult) -> tuple[str, str, str]:
    return one.property, one.outcome, one.message  # not when: an age that is rounded differs by a second


async def _write_devices(
    context: ApiContext, node: _Place, given: Sequence[ReportedDevice], answer: DevicesAnswer
) -> int:
    """Commit what changed; how many devices that were. All devices are read only if the report has one that no report had."""
    keys, known = context.device_keys, {one.uid: one for one in given}  # of two on one device the later
    if known.keys() - keys.keys():
        if len(keys) > _MOST_KEYS:
            keys.clear()
        for entry in await list_devices(context, node.name):
            envelope = decode_envelope(entry.value, entry.revision)
            keys[envelope.uid] = envelope.key
    for uid in known.keys() - keys.keys():
        answer.refused[uid[:64]] = "notYours"
    mine = [(keys[uid], one) for uid, one in known.items() if uid in keys]
    changed = 0
    for start in range(0, len(mine), WRITES):
        chunk = mine[start : start + WRITES]
        changed += await retry(context, partial(_write_chunk, context, node, chunk, answer))
    return changed


async def _write_chunk(
    context: ApiContext, node: _Place, chunk: Sequence[tuple[str, ReportedDevice]], answer: DevicesAnswer
) -> int:
    gathered = _Gathered()
    now = context.clock.now()
    for key, one in chunk:
        envelope = await read_again(context, key)
        if envelope is None or envelope.uid != one.uid:
            answer.refused[one.uid] = "unknown"
            context.device_keys.pop(one.uid, None)
            continue
        spec = decode_part(envelope.spec, DeviceSpec)
        if spec.node != node.name or not spec.approved or envelope.project != node.project:
            answer.refused[one.uid] = "notYours"
            continue
        old, new = decode_part(envelope.report, DeviceReport), bound_report(one, node.uid, now)
        if new is None:
            answer.refused[one.uid] = "tooLarge"
            continue
        new = msgspec.structs.replace(new, found=old.found)
        if is_news(old, new):
            envelope.report = msgspec.Raw(msgspec.json.encode(new))
            await gathered.add(context, envelope)
    await gathered.commit(context)
    return gathered.count


async def _take_found(context: ApiContext, node: _Place, given: Sequence[FoundDevice]) -> int:
    """Create what isn't there yet; how many are not kept. Repeated as a whole if others wrote in between."""
    with View(context.store, context.clock) as view:
        return await _take_within(context, node, given, view)


async def _take_within(context: ApiContext, node: _Place, given: Sequence[FoundDevice], view: View) -> int:
    now, made, not_kept, counted = context.clock.now(), list[Envelope](), 0, ""
    at = f"{_FOUND_DEVICES}{node.uid}"
    entry = await context.store.get(at)
    record = MadeDevices() if entry is None else msgspec.json.decode(entry.value, type=MadeDevices)
    before = msgspec.json.encode(record)
    there, waiting, behind = set[str](), 0, await list_devices(context, node.name)
    for stored in behind:
        spec = decode_part(decode_envelope(stored.value).spec, DeviceSpec)
        there.add(digest_of(spec.protocol, spec.address))
        waiting += not spec.approved
    place = await context.store.get(object_key("project", None, node.project))
    for found in {digest_of(one.protocol, one.address): one for one in given}.items():
        digest, one = found
        if digest in there:
            record.missed.pop(digest, None)
            continue
        # A model that accepts what is found takes it from those that wait, so all have a bound, too.
        is_full = waiting >= MOST_KEPT or len(behind) + len(made) >= MOST_BEHIND
        if not is_sound(one) or place is None or is_full or _is_refused(record, digest, now):
            not_kept += 1
            continue
        draft = await _make(context, node, one, digest, {each.name for each in made})
        try:
            counted = await limit_objects(context, view, DEVICE, draft)
        except Forbidden:  # the project has as many devices as it may
            not_kept, place = not_kept + 1, None
            continue
        made.append(draft)
        record.made[digest] = now
        record.missed.pop(digest, None)
        waiting += 1
    record.made = dict(sorted(record.made.items(), key=lambda item: item[1])[-MOST_KEPT * 2 :])
    record.missed = {digest: since for digest, since in record.missed.items() if digest in record.made}
    after = msgspec.json.encode(record)
    if after != before:
        puts: list[Write] = [Put(at, after), *(Put(one.key, encode_envelope(one)) for one in made)]
        first = Absent(at) if entry is None else AtRevision(at, entry.revision)
        await context.store.commit(puts, [first, *(Absent(one.key) for one in made)])
        for _ in made:
            context.objects.add(counted)
    return not_kept


def digest_of(protocol: str, address: str) -> str:
    """Digest of a device: the same for the same protocol and address."""
    return hashlib.sha256(f"{protocol}\n{address}".encode(errors="replace")).hexdigest()[:16]


def is_sound(one: FoundDevice) -> bool:
    """Whether a found device's protocol and address could be a Device's."""
    named = bool(one.address) and len(one.address) <= 200 and one.address.isprintable()
    return named and len(one.protocol) <= 32 and one.protocol.replace("-", "").isalnum()


def _is_refused(record: MadeDevices, digest: str, now: float) -> bool:
    """Whether people deleted it less than a day ago, counted from when it was missed first."""
    if digest not in record.made:
        return False
    since = record.missed[digest] = min(record.missed.get(digest, now), now)  # the clock may have been set back
    return now - since < REFUSED_SECONDS


async def _make(context: ApiContext, node: _Place, one: FoundDevice, digest: str, taken: set[str]) -> Envelope:
    name = _NOT_A_NAME.sub("-", (one.name or one.address).lower())[:40].strip("-") or "device"
    if not name[0].isalpha():
        name = f"device-{name}"
    if name in taken or await context.store.get(object_key(DEVICE.name, node.project, name)) is not None:
        name = f"{name}-{hashlib.sha256(f'{node.uid}{digest}'.encode()).hexdigest()[:8]}"
    facts = {
        word[:32]: text[:200]
        for word, text in list(one.facts.items())[:MOST_FACTS]
        if word.isprintable() and text.isprintable()
    }
    spec = DeviceSpec(node=node.name, protocol=one.protocol, address=one.address, approved=False)
    first = DeviceReport(found={**facts, "name": one.name[:100]} if one.name.isprintable() and one.name else facts)
    return DEVICE.make(name, spec, context.clock.now(), project=node.project, report=first, creator="")


async def _write_rules(context: ApiContext, node: _Place, given: Sequence[FiredRule], answer: DevicesAnswer) -> None:
    mine = await _pick(context, node, RULE, {one.uid: one for one in given}, answer)
    for start in range(0, len(mine), WRITES):
        await retry(context, partial(_write_counts, context, node, mine[start : start + WRITES]))


async def _write_models(context: ApiContext, node: _Place, given: Sequence[RanModel], answer: DevicesAnswer) -> None:
    mine = await _pick(context, node, MODEL, {one.uid: one for one in given}, answer)
    for start in range(0, len(mine), WRITES):
        await retry(context, partial(_write_runs, context, node, mine[start : start + WRITES]))


async def _pick(
    context: ApiContext, node: _Place, kind: Kind, given: Mapping[str, _Counts], answer: DevicesAnswer
) -> list[tuple[str, _Counts]]:
    """The keys of those rules or models that are this gateway's; the others are refused in ``answer``."""
    page = await context.store.list(kind_prefix(kind.name))
    known = {(envelope := decode_envelope(entry.value)).uid: envelope for entry in page.entries}
    mine = []
    for uid, one in given.items():
        found = known.get(uid)
        if found is None:
            answer.refused[uid[:64]] = "unknown"
        elif found.project != node.project or decode_part(found.spec, _ForNode).node not in ("", node.name):
            answer.refused[uid] = "notYours"
        else:
            mine.append((found.key, one))
    return mine


async def _write_counts(context: ApiContext, node: _Place, chunk: Sequence[tuple[str, FiredRule]]) -> None:
    gathered = _Gathered()
    for key, one in chunk:
        envelope = await read_again(context, key)
        if envelope is None or envelope.uid != one.uid:
            continue
        old = decode_part(envelope.report, RuleReport)
        before = old.nodes.get(node.name, NodeCount())
        fired, problem = min(max(one.fired, 0), 1 << 53), one.problem[:MOST_TEXT]
        if (before.fired, before.problem) == (fired, problem):
            continue
        if node.name not in old.nodes and len(old.nodes) >= MOST_NODES:
            continue
        count = NodeCount(fired=fired, last_fired=_time(one.seconds_ago, context.clock.now()), problem=problem)
        envelope.report = msgspec.Raw(msgspec.json.encode(RuleReport(nodes={**old.nodes, node.name: count})))
        await gathered.add(context, envelope)
    await gathered.commit(context)


async def _write_runs(context: ApiContext, node: _Place, chunk: Sequence[tuple[str, RanModel]]) -> None:
    gathered = _Gathered()
    for key, one in chunk:
        envelope = await read_again(context, key)
        if envelope is None or envelope.uid != one.uid:
            continue
        old = decode_part(envelope.report, ModelReport)
        if node.name not in old.nodes and len(old.nodes) >= MOST_NODES:
            continue
        runs, late, nan, dead = (min(max(number, 0), 1 << 53) for number in (one.runs, one.late, one.nan, one.dead))
        new = NodeRuns(
            file=one.file[:64],
            runs=runs,
            late=late,
            nan=nan,
            dead=dead,
            p99_ms=round(one.p99_ms, 3) if one.p99_ms is not None and 0 <= one.p99_ms <= _LONGEST_MS else None,
            problem=one.problem[:MOST_TEXT],
        )
        if new == old.nodes.get(node.name):
            continue
        envelope.report = msgspec.Raw(msgspec.json.encode(ModelReport(nodes={**old.nodes, node.name: new})))
        await gathered.add(context, envelope)
    await gathered.commit(context)


ROUTES = (
    Route(
        "POST",
        "/v1/nodes/{name}:devices",
        take_report,
        "Take a gateway's report about the devices behind it",
        where="nodes",
        topic=Topic("refused", "report", "node", name="{name}"),
        takes=DevicesReport,
        answers=DevicesAnswer,
    ),
)
