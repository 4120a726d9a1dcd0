"""The steps by which a running server's objects come into another store, and the former one goes."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import shutil
import sys
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.store import COPY, LEFT, Refill
from weft.launch.server.backup import list_replaced
from weft.launch.server.lock import hold_server
from weft.launch.server.membership.identity import keep_identity
from weft.launch.store.engine import (
    ETCD,
    MEMBERS,
    OWN_ETCDS,
    SQLITE,
    find_endpoints,
    make_refill,
    recall_store,
    remember_store,
    running,
)
from weft.launch.store.etcd import find_etcd
from weft.launch.store.exchange import Exchange, drop_exchange, find_done, write_exchange
from weft.launch.store.listening import is_listening
from weft.launch.store.member import DATA, FILE, FOLDER, begin_member, check_place, is_used
from weft.objects.errors import (
    AlreadyExists,
    IllegalTransition,
    InUse,
    StoreUnavailable,
    Unavailable,
    WeftError,
)
from weft.objects.identity import kind_prefix
from weft.objects.quantity import format_bytes
from weft.store.copy import StoreCopy
from weft.store.remote import RemoteStore
from weft.store.remote.client import LinkLost

COMMAND = "weft server move-store"
ENOUGH_OBJECTS = 500  # that differ: the rest is brought while writes wait
MOST_READINGS = 8
PATIENCE_SECONDS = 20.0  # with an etcd of the server's own that starts, or ends
_LOOKED_SECONDS = 1.5  # until the server has ended an etcd that it doesn't need, and a new one can be seen
_LOOK_SECONDS = 0.2


async def exchange_store(options: argparse.Namespace, clock: Clock) -> None:
    """Copy, and put the copy in force. Raises WeftError; then the store before is in force."""
    state: Path = options.state
    done = find_done(state)  # which this one takes back
    exchange = Exchange(recall_store(state), options.url, clock.now(), done.began_at if done is not None else 0.0)
    if not is_listening(state / "store.sock"):
        raise Unavailable(
            f"no server runs in {state}",
            hint=f"start it; without it: weft server backup FILE, then weft server restore FILE --store {exchange.target};"
            " if the present store is lost: --back --as-it-was",
        )
    _check_urls(exchange)
    source = RemoteStore(state / "store.sock", clock)
    await source.open()
    before = list_replaced(state)
    try:
        await _refuse_shared(source, state)
        if exchange.target in OWN_ETCDS and not options.back:  # which returns to the etcd that still runs
            drop_exchange(state)  # of an attempt that was killed: the server ends what that has started
            await clock.sleep(_LOOKED_SECONDS)
            await _wait_for_end(state, clock)
            if exchange.target == MEMBERS:
                check_place(options.member)
                begin_member(state, keep_identity(state, None).name, options.member)
        target = make_refill(exchange.target, state, clock)
        write_exchange(state, exchange)
        await _exchange(source, target, exchange, options, clock)
    finally:
        await source.close()
    await _retire(state, exchange, clock, keep=True)
    print(f"objects are kept in {exchange.target} now")
    if replaced := sorted(list_replaced(state) - before):
        print(f"  an older store is {', '.join(replaced)} now: remove it when everything works")
    if _has_named_store(state):
        print("warning: the server was started with --store: leave that out from now on", file=sys.stderr)
    print(f"  {exchange.source} is kept as it was: {COMMAND} --confirm removes it, {COMMAND} --back returns to it")


async def ask_confirmed(state: Path, exchange: Exchange, clock: Clock) -> None:
    """Remove the store before. Raises WeftError, and may be done again then."""
    if exchange.source in OWN_ETCDS:
        drop_exchange(state)
        await _wait_for_end(state, clock)
        shutil.rmtree(state / FOLDER / DATA, ignore_errors=True)
        (state / FOLDER / FILE).unlink(missing_ok=True)
    else:
        _check_lasting(exchange, state)
        await _retire(state, exchange, clock, keep=False)
        drop_exchange(state)
    print(f"{exchange.source} was removed; objects are kept in {exchange.target}")


async def return_as_it_was(state: Path, exchange: Exchange, clock: Clock) -> None:
    """Put the store before in force, of a server that is stopped, without what was written since. Raises WeftError."""
    with hold_server(state):
        former = make_refill(exchange.source, state, clock)
        async with running(exchange.source, state, clock):
            try:
                await _refuse_part(former, exchange)
                await former.revive()
            finally:
                await former.close()
        remember_store(state, exchange.source)
        drop_exchange(state)
    began = datetime.datetime.fromtimestamp(exchange.began_at, datetime.UTC)
    print(
        f"objects are kept in {exchange.source} again, as they were at {began:%Y-%m-%d %H:%M:%S} UTC or moments later"
    )
    print("  what was written since is lost; start the server again")


async def _exchange(
    source: RemoteStore, target: Refill, exchange: Exchange, options: argparse.Namespace, clock: Clock
) -> None:
    """Copy and switch. What fails leaves nothing, unless nobody knows whether the API server has switched, or will."""
    mine, began = _name_fabric(options.state), False
    try:
        await _refuse_occupied(target, exchange, mine, clock, overwrites=options.overwrite)
        copy = StoreCopy(source, target)
        await copy.begin(COPY + mine)
        began = True
        await _bring(copy, exchange, clock)
        held_at = clock.elapsed()
        await source.hold_commits(options.pause)
        await _refuse_shared(source, options.state)  # a server may have joined during the copy
        last = await copy.catch_up()
        await copy.finish()
        _check_lasting(exchange, options.state)
    except BaseException:
        await source.close()  # writes go on
        await _give_up(target, exchange, options.state, began=began)
        raise
    try:
        await source.switch(exchange.target)
    except LinkLost as lost:
        await clock.sleep(1.0)
        if recall_store(options.state) != exchange.target:
            raise Unavailable(
                f"the API server ended before {exchange.target} was in force: objects are in {exchange.source}",
                hint=f"once more, with --overwrite: {COMMAND} {exchange.target} --overwrite",
            ) from lost
    except WeftError:
        await _give_up(target, exchange, options.state, began=True)
        raise
    await target.close()
    print(
        f"writes waited {clock.elapsed() - held_at:.1f} s for the last {last} objects;"
        f" both stores held {copy.objects} objects, sha256 {copy.digest[:16]}…"
    )


async def _give_up(target: Refill, exchange: Exchange, state: Path, *, began: bool) -> None:
    with contextlib.suppress(StoreUnavailable):
        if began:
            await target.abandon()
    await target.close()
    if exchange.takes_back:  # it may be tried again
        return
    drop_exchange(state)
    if exchange.target == MEMBERS:
        (state / FOLDER / FILE).unlink(missing_ok=True)


async def _bring(copy: StoreCopy, exchange: Exchange, clock: Clock) -> None:
    """Copy all, then what has changed meanwhile, until little of that is left."""
    print(f"copying from {exchange.source} to {exchange.target}")
    for _ in range(MOST_READINGS):
        began = clock.elapsed()
        differed = await copy.catch_up(_show if sys.stderr.isatty() else lambda _: None)
        print(
            f"  {differed} of {copy.objects} objects ({format_bytes(copy.size_bytes)}) in {clock.elapsed() - began:.1f} s",
            flush=True,
        )
        if differed <= ENOUGH_OBJECTS:
            return


def _show(objects: int) -> None:
    print(f"  {objects} objects\r", end="", file=sys.stderr, flush=True)


def _check_urls(exchange: Exchange) -> None:
    """Raises InvalidInput for a target that isn't a store, and Unavailable without etcd."""
    if exchange.target not in (SQLITE, *OWN_ETCDS):
        find_endpoints(exchange.target)
    if exchange.target in OWN_ETCDS:
        find_etcd()
    if {exchange.source, exchange.target} == {*OWN_ETCDS}:
        raise IllegalTransition(
            f"{ETCD} and {MEMBERS} both lie in the folder {FOLDER} of the state folder",
            hint=f"{COMMAND} {SQLITE}, --confirm, then {COMMAND} {exchange.target}",
        )


async def _refuse_shared(source: RemoteStore, state: Path) -> None:
    """Raises InUse when other servers keep their objects in the same store: they would stay behind."""
    own = keep_identity(state, None).name
    found = await source.list(kind_prefix("server"))
    others = sorted({entry.key.rpartition("/")[2] for entry in found.entries} - {own})
    if others:
        raise InUse(
            f"other servers keep their objects in the same store: {', '.join(others)}",
            hint="remove them first: weft server delete NAME; they can join again afterwards",
        )


async def _refuse_occupied(target: Refill, exchange: Exchange, mine: str, clock: Clock, *, overwrites: bool) -> None:
    """Raises AlreadyExists when objects are there that this fabric hasn't left there, or a copy that it hasn't begun."""
    deadline = clock.elapsed() + (PATIENCE_SECONDS if exchange.target in OWN_ETCDS else 0.0)
    while True:
        try:
            there = await target.inspect()
            break
        except StoreUnavailable:
            if clock.elapsed() >= deadline:
                raise
            await clock.sleep(_LOOK_SECONDS)
    is_own = there.note in (COPY + mine, LEFT + mine)
    if (there.objects or there.note is not None) and not is_own and not overwrites:
        raise AlreadyExists(
            f"{exchange.target} holds {there.objects} objects already",
            field="url",
            hint="name an empty store; --overwrite removes them, if no server uses them",
        )


async def _retire(state: Path, exchange: Exchange, clock: Clock, *, keep: bool) -> None:
    former = make_refill(exchange.source, state, clock)
    try:
        await former.retire(LEFT + _name_fabric(state), keep=keep)
    except StoreUnavailable as problem:
        if not keep:
            raise
        print(f"warning: {exchange.source} was not marked as left: {problem.message}", file=sys.stderr)
    finally:
        await former.close()


def _name_fabric(state: Path) -> str:
    return hashlib.sha256((state / "ca.crt").read_bytes()).hexdigest()[:16]


async def _refuse_part(former: Refill, exchange: Exchange) -> None:
    """Raises IllegalTransition for an etcd in which a return to it was begun: it was emptied, to be filled again."""
    if exchange.source == SQLITE:  # a file beside it is filled
        return
    there = await former.inspect()
    if not there.objects or (there.note or "").startswith(COPY):
        raise IllegalTransition(
            f"{exchange.source} isn't as it was: a return to it was begun, and has not finished",
            hint=f"{COMMAND} --back beside the server; if {exchange.target} is lost: weft server restore FILE",
        )


def _has_named_store(state: Path) -> bool:
    """Whether the supervisor's command line or environment names a store, which would be another one than that in force."""
    try:
        process = Path("/proc") / (state / "server.lock").read_text().strip()
        words = (process / "cmdline").read_bytes().split(b"\0")
        variables = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word.partition(b"=")[0] == b"--store" for word in words) or any(
        variable.startswith(b"WEFT_SERVER_STORE=") for variable in variables
    )


async def _wait_for_end(state: Path, clock: Clock) -> None:
    """Wait until no etcd has a folder of data in the state folder, not even one that was put aside."""
    deadline = clock.elapsed() + PATIENCE_SECONDS
    while any(is_used(data) for data in (state / FOLDER).glob(f"{DATA}*")):
        if clock.elapsed() >= deadline:
            raise Unavailable("the server's own etcd has not ended yet", hint="try again")
        await clock.sleep(_LOOK_SECONDS)


def _check_lasting(exchange: Exchange, state: Path) -> None:
    """Raises Unavailable unless the server's own etcd would find the objects again after its restart."""
    data = state / FOLDER / DATA
    if exchange.target in OWN_ETCDS and not is_used(data):
        raise Unavailable(
            f"{data} is not the folder of the etcd that runs, or none runs: {exchange.source} is kept",
            hint=f"see that the server runs, and try again; {COMMAND} --back returns to {exchange.source}",
        )
