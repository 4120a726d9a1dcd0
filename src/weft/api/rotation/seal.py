"""Keeps this server's sealing keys as the fabric's rotation has them, and brings the rotation forward. Every server does. The
record is changed only as it was read, so whichever is killed, at any moment, another one or the same goes on."""

from __future__ import annotations

import logging
from typing import NoReturn

import msgspec

from weft.api.auth.oidc import SESSION_SECONDS
from weft.api.context import ApiContext
from weft.api.rotation.reseal import reseal_all
from weft.api.rotation.steps import (
    SETTLE_SECONDS,
    add_keys,
    advance,
    arrange_keys,
    is_orphaned,
    list_waiting,
)
from weft.contracts.store import Absent, AtRevision, Entry, PreconditionFailed, Put
from weft.kinds.server import SERVER
from weft.objects.envelope import decode_envelope
from weft.objects.errors import IllegalTransition, InUse, Unavailable, WeftError
from weft.objects.identity import kind_prefix, object_key
from weft.protocol.server.presence import LEASE_PREFIX, Presence, read_presence
from weft.protocol.server.rotation import (
    KEYS_PATH,
    MOST_UNOPENED,
    SEAL,
    SWITCHED,
    WORDS,
    Rotation,
    RotationAnswer,
    SealKeysAnswer,
    read_rotation,
    rotation_key,
)
from weft.trust.seal import make_seal_key, name_key

EVERY_SECONDS = 1.0
RUNNING_EVERY_SECONDS = 0.5
_log = logging.getLogger("weft.api")


class SealRotation:
    """The rotation of the sealing key, as this server takes part in it."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._keys = context.settings.seal_keys
        self._record: Rotation | None = None
        self._said = ""

    async def refresh(self) -> None:
        """Read the record, and change this server's keys by it. Called before the server takes requests: without the fabric's key
        it seals nothing. Raises StoreUnavailable."""
        async with self._context.arranging:
            self._record = record = await self._read()
            self._arrange(record)

    async def run(self) -> NoReturn:
        """Take part for ever."""
        clock = self._context.clock
        while True:
            try:
                await self.turn()
                self._said = ""
            except (WeftError, OSError) as problem:
                if str(problem) != self._said:
                    _log.warning("the rotation of the sealing key waits: %s", problem)
                self._said = str(problem)
            record = self._record
            runs = record is not None and record.step != "done"
            await clock.sleep(RUNNING_EVERY_SECONDS if runs else EVERY_SECONDS)

    async def turn(self) -> None:
        """Do this server's part of the step, and begin the next one if all have done it. Raises WeftError, OSError."""
        async with self._context.arranging:
            entry = await self._find()
            self._record = record = read_rotation(entry.value) if entry is not None else None
            if record is not None and record.key not in self._keys.ids:
                await self._fetch(record)
            self._arrange(record)
        if record is None or entry is None or record.step == "done":
            return
        servers, present = await self._list_servers()
        if list_waiting(record, servers, present):
            return
        if record.step != "reseal":
            await self._write(entry, advance(record, self._context.clock.now()))
        elif self._is_first(present):
            await self._reseal(entry, record)

    async def begin(self, by: str) -> Rotation:
        """Make the new key, and begin. Raises InUse while another rotation runs, IllegalTransition while a server of an earlier
        release serves."""
        entry, now = await self._find(), self._context.clock.now()
        servers, present = await self._list_servers()
        if entry is not None:
            running = read_rotation(entry.value)
            if running.step != "done" and not is_orphaned(running, servers, present, now):
                raise InUse(
                    f"a rotation of the sealing key runs already: {WORDS[running.step]}",
                    reason="rotationRuns",
                    hint="weft fabric rotate status shows what it waits for",
                )
        if elder := sorted(name for name, one in present.items() if not one.seal_keys):
            raise IllegalTransition(
                f"{', '.join(elder)}: an earlier release of weft runs there, which knows one sealing key only",
                hint="upgrade all servers first: weft fabric upgrade --to RELEASE",
            )
        if self._keys.wanted:
            raise Unavailable(
                "this server doesn't have the fabric's sealing key", reason="sealKeyMissing", hint="ask another server"
            )
        key = make_seal_key()
        async with self._context.arranging:
            before = self._keys.keys
            self._keys.keep(add_keys(before, [key]))  # first: a record without a key would wait for ever
            fresh = Rotation(key=name_key(key), former=name_key(before[0]), by=by, begun_at=now, changed_at=now)
            if not await self._write(entry, fresh):
                self._keys.keep(before)
                raise InUse(
                    "somebody else began a rotation in this moment",
                    reason="rotationRuns",
                    hint="weft fabric rotate status shows it",
                )
        await self._report("SealRotationBegun", f"by {by}: a new key seals secrets soon")
        return fresh

    async def describe(self) -> RotationAnswer:
        """How it goes, for people."""
        record = await self._read()
        servers, present = await self._list_servers()
        if record is None:
            return RotationAnswer(part=SEAL, key=self._keys.ids[0])
        lacking = []
        if record.step in SWITCHED[1:]:
            lacking = sorted(name for name, one in present.items() if one.seal_keys[:1] != [record.key])
        return RotationAnswer(
            part=SEAL,
            step=record.step,
            meaning=WORDS[record.step],
            key=record.key,
            by=record.by,
            begun_at=record.begun_at,
            finished_at=record.finished_at,
            resealed=record.resealed,
            unopened=record.unopened,
            waits_for=[f"{name}: {why}" for name, why in list_waiting(record, servers, present).items()],
            lacking=lacking,
        )

    def _arrange(self, record: Rotation | None) -> None:
        if record is not None:
            self._keys.keep(arrange_keys(self._keys.keys, record))
        lacks = record is not None and record.step in SWITCHED and self._keys.ids[0] != record.key
        self._keys.wanted = record.key if record is not None and lacks else ""

    async def _reseal(self, entry: Entry, record: Rotation) -> None:
        """Walk through the store. Once nothing was found for as long as a request may take, or a login that began with the former
        key, the former goes."""
        done = await reseal_all(self._context.store, self._keys, record)
        now = self._context.clock.now()
        unopened = done.unopened[:MOST_UNOPENED]
        settle = SETTLE_SECONDS if self._context.provider is None else SESSION_SECONDS
        if done.written or unopened != record.unopened:
            changed = now if done.written else record.changed_at
            await self._write(
                entry,
                msgspec.structs.replace(
                    record, resealed=record.resealed + done.written, unopened=unopened, changed_at=changed
                ),
            )
        elif now - record.changed_at >= settle:
            await self._write(entry, advance(record, now))
            await self._report("SealKeyRotated", f"{record.resealed} objects were sealed again; the former key goes")
        else:
            await self._context.clock.sleep(min(settle / 10, 5.0))  # a walk reads all that is sealed

    async def _fetch(self, record: Rotation) -> None:
        """Get the new key from another server; it opens here from now on."""
        for name in self._context.others.list_serving():
            try:
                answer = await self._context.others.ask(name, "GET", KEYS_PATH)
                if answer.status != 200:
                    continue
                found = [bytes.fromhex(one) for one in msgspec.json.decode(answer.body, type=SealKeysAnswer).keys]
            except (WeftError, ValueError, msgspec.MsgspecError):
                continue  # the next one
            if key := next((key for key in found if name_key(key) == record.key), None):
                self._keys.keep(add_keys(self._keys.keys, [key]))
                return

    def _is_first(self, present: dict[str, Presence]) -> bool:
        """Whether this server walks through the store: one of them does."""
        own = self._context.own
        return own is None or not present or min(present) == own.name

    async def _list_servers(self) -> tuple[list[str], dict[str, Presence]]:
        """The names of the fabric's servers, and what those that serve say."""
        page = await self._context.store.list(kind_prefix(SERVER.name))
        leases = await self._context.store.leases(LEASE_PREFIX, digests=True)
        found = {one.name.removeprefix(LEASE_PREFIX): read_presence(one.digest) for one in leases}
        names = [decode_envelope(entry.value, entry.revision).name for entry in page.entries]
        return names, {name: one for name, one in found.items() if one is not None}

    async def _find(self) -> Entry | None:
        return await self._context.store.get(rotation_key(SEAL))

    async def _read(self) -> Rotation | None:
        entry = await self._find()
        return None if entry is None else read_rotation(entry.value)

    async def _write(self, entry: Entry | None, fresh: Rotation) -> bool:
        """Write the record; False if another write came first."""
        key = rotation_key(SEAL)
        as_read = Absent(key) if entry is None else AtRevision(key, entry.revision)
        try:
            await self._context.store.commit([Put(key, msgspec.json.encode(fresh))], [as_read])
        except PreconditionFailed:
            return False
        return True

    async def _report(self, reason: str, message: str) -> None:
        own = self._context.own
        entry = await self._context.store.get(object_key(SERVER.name, None, own.name)) if own is not None else None
        if entry is not None:
            self._context.add_event(decode_envelope(entry.value, entry.revision).ref, reason, message)
