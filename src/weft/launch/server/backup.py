"""``weft server backup FILE`` and ``weft server restore FILE``: what a server must keep, in one file and back.

A backup asks the running server's store by its socket, or opens the store if no server runs. A restore wants the server
ended. It changes the store and the state folder, never a guest: a guest that isn't in the backup is an orphan.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from pathlib import Path
from typing import Any

import weft
from weft.cli.command.exit_codes import exit_code
from weft.client.context import FOLDER
from weft.contracts.clock import Clock, SystemClock
from weft.contracts.durable_file import name_replaced, write_durably
from weft.contracts.store import Store
from weft.controllers.failover.restored import check_entries, hold_restored, list_unknown
from weft.gateway.function_events.backup import put_rows
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.kinds.server import SERVER, ServerMarks
from weft.launch.process.amounts import Parser
from weft.launch.server.backup_events import EVENTS, gather_events
from weft.launch.server.backup_repository import ServerBackups, is_repository
from weft.launch.server.lock import FILE as LOCK
from weft.launch.server.lock import hold_server
from weft.launch.server.membership.removal import refuse_removed
from weft.launch.server.unfinished import note_begun, note_finished, read_unfinished, refuse_unfinished
from weft.launch.store.engine import (
    MEMBERS,
    OWN_ETCDS,
    SQLITE,
    is_remembered,
    make_store,
    recall_store,
    refill_store,
    remember_store,
    running,
)
from weft.launch.store.etcd import find_etcd
from weft.launch.store.listening import is_listening
from weft.launch.store.member import Member, begin_member, read_member
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.errors import InUse, InvalidInput, NotFound, Unavailable, WeftError
from weft.objects.identity import kind_prefix
from weft.objects.quantity import format_bytes, parse_period
from weft.store.backup import Backup, read_backup, write_backup
from weft.store.remote import RemoteStore
from weft.trust.seal import read_text, write_keys

FILES = ("ca.crt", "ca.key")  # what can't be recreated, unlike the rest of the state folder
BLOBS = "images"  # of which only functions' code can't be fetched again
MOST_SHOWN = 5  # names
ASK_SECONDS = 1.0
SEAL = "seal.key"  # likewise, where something was sealed


def main(verb: str, argv: Sequence[str]) -> int:
    """Run the verb ``backup`` or ``restore``; its exit code, after a sentence on stderr if it failed."""
    options = _parse(verb, argv)
    try:
        options.state = options.state or find_state(Path.cwd())
        refuse_file(options.state)
        refuse_removed(options.state)
        _refuse_flags(options)
        options.store = recall_store(options.state) if options.store is None else options.store
        return (_back_up if verb == "backup" else _bring_back)(options, SystemClock())
    except WeftError as problem:
        print(f"error: {problem.message}", file=sys.stderr)
        if problem.hint:
            print(problem.hint, file=sys.stderr)
        return exit_code(problem)
    except BrokenPipeError:
        raise
    except OSError as problem:
        print(f"error: {problem.filename or options.file}: {problem.strerror or problem}", file=sys.stderr)
        return 1


def _parse(verb: str, argv: Sequence[str]) -> argparse.Namespace:
    summary = {
        "backup": "Back up a running server to FILE, or to a backup repository like dir:///srv/backups: all objects at one "
        "revision, and the keys of its authority. "
        "Anyone who has FILE can act as this server: keep it safe.",
        "restore": "Replace the data of a stopped server with the backup in FILE, or in a backup repository. Guests keep "
        "running: weft doctor lists those created after the backup as orphans.",
    }
    parser = Parser(prog=f"weft server {verb}", description=summary[verb])
    parser.add_argument("file", metavar="FILE|REPOSITORY")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="of a repository: its key")
    if verb == "backup":
        parser.add_argument(
            "--keep",
            metavar="DURATION",
            help="in a repository: remove the server's backups there that are older, like 30d",
        )
        parser.add_argument(
            "--immutable",
            action="store_true",
            help="in a bucket with Object Lock: nobody can delete it before it has been kept for that time",
        )
    else:
        parser.add_argument("--name", default="", help="in a repository: the backup's name (default: the newest)")
    parser.add_argument("--state", type=Path, help="the server's state folder (default: that of this clone)")
    parser.add_argument(
        "--store", metavar="URL", help="where objects are kept, as for weft server (default: as before)"
    )
    return parser.parse_args(argv)


def _refuse_flags(options: argparse.Namespace) -> None:
    """Raises InvalidInput for a flag of repositories that is given with a file, which would be taken whatever the flag says."""
    for name in () if is_repository(options.file) else ("key_file", "keep", "immutable", "name"):
        if getattr(options, name, None):
            flag = f"--{name.replace('_', '-')}"
            raise InvalidInput(
                f"{flag} is for a repository, and {options.file} is a file",
                field=flag,
                hint="leave it out, or give a repository like dir:///srv/backups",
            )


def find_state(folder: Path) -> Path:
    """The state folder of the local cluster that ``folder`` is in. Raises InvalidInput."""
    for place in (folder, *folder.parents):
        found = [place / FOLDER / "server", *sorted((place / FOLDER / "servers").glob("*"))]
        if there := [one for one in found if one.is_dir()]:
            return next((one for one in there if is_listening(one / "store.sock")), there[0])
    raise InvalidInput("no server given", field="state", hint="give --state DIR, the server's folder")


def refuse_file(state: Path) -> None:
    """Raises InvalidInput for a state folder that is a file."""
    if state.exists() and not state.is_dir():
        raise InvalidInput(f"--state {state} is not a folder", field="state", hint="give the server's folder")


def refuse_no_server(state: Path) -> None:
    """Raises InvalidInput when ``state`` isn't a server's, Unavailable for that of one that was never started, and
    IllegalTransition where another command hasn't finished."""
    refuse_unfinished(state)
    if (state / FILES[0]).exists():
        return
    if is_remembered(state):
        raise Unavailable(
            f"the server in {state} was never started", hint=f"start it first: weft server --state {state}"
        )
    raise InvalidInput(
        f"{state} is not a server's state folder",
        field="state",
        hint="give the folder that weft server has as --state",
    )


def _back_up(options: argparse.Namespace, clock: Clock) -> int:
    """Back up to a file; or to one that goes into a repository, and is removed."""
    options.shown = options.file
    if not is_repository(options.file):
        options.file = Path(options.file)
        code = asyncio.run(_backup(options, clock))
        print("The file holds the authority's key: anyone who reads it can act as this server.", file=sys.stderr)
        return code
    place = ServerBackups(options.file, options.key_file, clock)
    keep = parse_period(options.keep, "--keep") if options.keep else 0.0
    name = f"server-{datetime.datetime.fromtimestamp(clock.now(), datetime.UTC):%Y%m%d-%H%M%S}"
    with tempfile.TemporaryDirectory() as folder:  # readable by this user only
        options.file = Path(folder) / name
        asyncio.run(_backup(options, clock))
        made = place.put(options.file, name, keep, immutable=options.immutable)
    print(f"stored as {name}, {format_bytes(made.stored_bytes)} more in the repository")
    return 0


def _bring_back(options: argparse.Namespace, clock: Clock) -> int:
    options.shown = options.file
    if not is_repository(options.file):
        options.file = Path(options.file)
        return asyncio.run(_restore(options, clock))
    place = ServerBackups(options.file, options.key_file, clock)
    with tempfile.TemporaryDirectory() as folder:
        options.file = Path(folder) / "server"
        print(f"found {place.get(options.name, options.file).name}")
        return asyncio.run(_restore(options, clock))


async def _backup(options: argparse.Namespace, clock: Clock) -> int:
    refuse_no_server(options.state)
    there = [name for name in (*FILES, SEAL) if (options.state / name).exists()]
    before = {name: (options.state / name).read_text() for name in there}

    def read_files() -> dict[str, str]:
        """The files, with each key that sealed anything at the backup's instant: a rotation may end while it is made."""
        now = dict(before)
        if SEAL in before:
            found = read_text((options.state / SEAL).read_text())
            now[SEAL] = write_keys([*dict.fromkeys([*found, *read_text(before[SEAL])])]).decode()
        return now

    async with (
        _opened(options.state, options.store, clock) as store,
        gather_events(options.state, store, clock) as events,
    ):
        backup = await write_backup(
            options.file,
            store,
            read_files,
            weft=weft.__version__,
            taken_at=clock.now(),
            uploads=options.state / BLOBS / CODE_FOLDER,
            rows=events.read,
        )
    print(f"{_describe(backup)} → {options.shown} ({format_bytes(options.file.stat().st_size)})")
    if events.away:
        names = ", ".join(events.away)
        print(
            f"Away: {names}. Of functions' events that wait there, it has those that others have copies of.",
            file=sys.stderr,
        )
    return 0


@asynccontextmanager
async def _opened(state: Path, url: str, clock: Clock) -> AsyncIterator[Store]:
    """The running server's store, or, when none runs, the store itself."""
    rest: AbstractAsyncContextManager[None] = nullcontext()
    store: Any  # an etcd's may be opened although it is full
    more = {}
    if is_listening(path := state / "store.sock"):
        store = RemoteStore(path, clock)
    elif url == SQLITE and not (state / "store.db").exists():
        raise NotFound(f"{state} holds no store", hint="give the folder that weft server has as --state")
    else:
        rest, store = running(url, state, clock), make_store(url, state, clock)
        more = {"may_be_full": True} if url != SQLITE else {}
    async with rest:
        try:
            await store.open(**more)
            yield store
        finally:
            await store.close()


async def _restore(options: argparse.Namespace, clock: Clock) -> int:
    backup = read_backup(options.file)
    if unknown := set(backup.files) - {*FILES, SEAL}:
        raise InvalidInput(f"backup {options.file} holds {', '.join(unknown)}, which this version of weft doesn't know")
    check_entries(backup.entries)
    if options.store in OWN_ETCDS:
        find_etcd()  # before anything is changed
    state: Path = options.state
    with ExitStack() as held:
        with _undone_if_refused(state, begins_member=options.store == MEMBERS):
            held.enter_context(hold_server(state))
            before = list_replaced(state)
            member = await _find_alone(state, _list_members(backup)) if options.store == MEMBERS else None
            note_begun(state, "weft server restore", _name_again(options))
            if member is not None:
                begin_member(state, member.name, member.place)
            backup.put_uploads(state / BLOBS / CODE_FOLDER)  # first: objects never name what isn't there
            entries = hold_restored(backup.entries, clock.now())
            await refill_store(options.store, state, clock, entries, backup.header.revision)
        if backup.row_count:
            put_rows(state / EVENTS, backup.rows())
        for name, text in backup.files.items():
            if not (state / name).exists() or (state / name).read_text() != text:
                if (state / name).exists():  # another server's, maybe: what it sealed can't be read without
                    os.link(state / name, name_replaced(state / name))
                write_durably(state / name, text.encode(), 0o644 if name.endswith(".crt") else 0o600)
        remember_store(state, options.store)
        note_finished(state)
    print(f"{_describe(backup)} ← {options.shown}")
    if kept := sorted(list_replaced(state) - before):
        print(
            f"What was there is kept in {state} as {', '.join(kept)}: remove it when everything works.", file=sys.stderr
        )
    print(
        "Start the server again: guests keep running. weft doctor lists those that are not in the backup.",
        file=sys.stderr,
    )
    joined = _list_members(backup).keys() | set(member.others if member is not None else ())
    again = "remove the --state folder of each; then weft server delete NAME, and weft token create --use server."
    if member is not None and (others := sorted(joined - {member.name})):
        print(
            f"The store has this server's member only. Let {' '.join(others)} join it again: {again}", file=sys.stderr
        )
    elif member is None and joined:
        print(
            f"Objects are in {options.store} now; in the backup {' '.join(sorted(joined))} had a member of the"
            f" store each. For that start this server, then: weft server move-store members --member ADDRESS --state {state}."
            f" To let others join again: {again}",
            file=sys.stderr,
        )
    for link, names in list_unknown(backup.entries).items():
        shown = ", ".join(names[:MOST_SHOWN]) + (
            f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        )
        print(
            f"Not replicated to {link} in this backup: {shown}. If one was since, its copy may run at {link}: look there first "
            "(weft replica list), and stop one of both before the server starts.",
            file=sys.stderr,
        )
    return 0


def _list_members(backup: Backup) -> dict[str, str]:
    """Addresses of the servers' members of the store, HOST:PORT by name."""
    servers = (decode_envelope(value, 0) for key, value in backup.entries() if key.startswith(kind_prefix(SERVER.name)))
    return {one.name: place for one in servers if (place := decode_part(one.marks, ServerMarks).member)}


@contextmanager
def _undone_if_refused(state: Path, *, begins_member: bool) -> Iterator[None]:
    """Make the folder ``state``; if the work fails, remove the uploads that it has put there, and each folder that it has made.
    What is refused has changed no store, unless ``begins_member``: else the mark that it hasn't finished stays."""
    code, was_marked = state / BLOBS / CODE_FOLDER, read_unfinished(state) is not None
    before, made = set(code.glob("*")), [folder for folder in (code, code.parent, state) if not folder.exists()]
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        yield
    except BaseException as problem:
        if isinstance(problem, (WeftError, OSError)) and not was_marked and not begins_member:
            note_finished(state)
        for path in set(code.glob("*")) - before:
            path.unlink()
        if state in made:
            (state / LOCK).unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # a file of the store is in it
                folder.rmdir()
        raise


async def _find_alone(state: Path, backed_up: Mapping[str, str]) -> Member:
    """This server's member of the store, which shall be its only one. Raises InUse while another server's runs, of those that it
    knows or that are in the backup: it would have the former objects."""
    member = read_member(state)
    places = {**backed_up, **{name: place.client for name, place in member.others.items()}}
    for name, place in places.items():
        if place == member.place.client:
            continue  # nothing holds this folder, and no other server may be at its address
        host, _, port = place.rpartition(":")
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(ASK_SECONDS):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            raise InUse(f"server {name} runs: its member of the store answers at {place}", hint="stop it first")
    return member


def _name_again(options: argparse.Namespace) -> str:
    """The command that finishes this restore."""
    file = options.shown if is_repository(str(options.shown)) else Path(options.shown).absolute()
    words = ["weft", "server", "restore", str(file), "--state", str(options.state.absolute())]
    words += ["--store", options.store] if options.store != recall_store(options.state) else []
    words += ["--key-file", str(options.key_file.absolute())] if options.key_file else []
    words += ["--name", options.name] if options.name else []
    return f"run it again: {shlex.join(words)}"


def list_replaced(state: Path) -> set[str]:
    found = [*state.glob("*.replaced*"), *state.glob("etcd/*.replaced*")]
    return {str(path.relative_to(state)) for path in found if not path.name.endswith("-wal")}


def _describe(backup: Backup) -> str:
    taken = datetime.datetime.fromtimestamp(backup.header.taken_at, datetime.UTC)
    return f"{backup.objects} objects at revision {backup.header.revision}, {taken:%Y-%m-%d %H:%M:%S} UTC"
