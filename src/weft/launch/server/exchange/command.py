"""The command by which a running server takes its objects to another store, and back until that is confirmed.

This process copies; the API server holds writes at the end, and puts the new store in force. Which store that is, ``store.url`` in
the state folder says: whichever process is killed, and when, it names one that has every acknowledged write."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from weft.cli.command.exit_codes import exit_code
from weft.contracts.clock import Clock, SystemClock
from weft.launch.process.amounts import Parser, duration
from weft.launch.server.backup import find_state, refuse_file, refuse_no_server
from weft.launch.server.exchange.procedure import COMMAND, ask_confirmed, exchange_store, return_as_it_was
from weft.launch.server.membership.init import add_member
from weft.launch.server.membership.removal import refuse_removed
from weft.launch.store.engine import MEMBERS, recall_store
from weft.launch.store.exchange import find_done
from weft.objects.errors import IllegalTransition, InUse, InvalidInput, WeftError
from weft.store.switch import LONGEST_HOLD_SECONDS


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code, after a sentence on stderr if it failed."""
    options = parse_exchange(argv)
    clock = SystemClock()
    try:
        options.state = (options.state or find_state(Path.cwd())).absolute()
        refuse_file(options.state)
        refuse_removed(options.state)
        refuse_no_server(options.state)
        with _alone(options.state):
            asyncio.run(_run(options, clock))
    except WeftError as problem:
        print(f"error: {problem.message}" + (f"\n  {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return exit_code(problem)
    except KeyboardInterrupt:
        print(f"interrupted: objects are in {recall_store(options.state)}", file=sys.stderr)
        return 130
    return 0


def parse_exchange(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog=COMMAND,
        description="Take the objects of the running server to another store. It works on; at the end writes wait for a"
        " moment. The store they were in is kept until --confirm.",
    )
    parser.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help="sqlite, etcd, members, or etcd://HOST:PORT[,HOST:PORT…]; etcds:// for TLS, with its files in the state folder",
    )
    parser.add_argument(
        "--back", action="store_true", help="return to the store before, with all that was written since"
    )
    parser.add_argument(
        "--as-it-was",
        action="store_true",
        help="with --back, when the new store is lost and the server is stopped: return without what was written since",
    )
    parser.add_argument("--confirm", action="store_true", help="remove the store before: there is no way back then")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the objects of another fabric that the new store holds"
    )
    parser.add_argument(
        "--pause",
        type=duration(0.1),
        default="5s",
        metavar="DURATION",
        help="how long writes may wait; when that is over they go on in the store before, and nothing has changed (default 5s)",
    )
    add_member(parser, required=False)
    parser.add_argument("--state", type=Path, help="the server's state folder (default: that of this clone)")
    return parser.parse_args(argv)


async def _run(options: argparse.Namespace, clock: Clock) -> None:
    if sum((options.url is not None, options.back, options.confirm)) != 1:
        raise InvalidInput("give one of URL, --back and --confirm", field="url", hint=f"{COMMAND} --help")
    if options.pause > LONGEST_HOLD_SECONDS:
        raise InvalidInput(f"--pause is at most {LONGEST_HOLD_SECONDS:g}s", field="pause", hint="--pause 5s")
    if options.as_it_was and not options.back:
        raise InvalidInput("--as-it-was goes with --back", field="as_it_was", hint=f"{COMMAND} --back --as-it-was")
    done = find_done(options.state)
    if done is None and options.url == recall_store(options.state):
        raise InvalidInput(f"objects are kept in {options.url} already", field="url", hint="name another store")
    if (options.member is not None) is not (options.url == MEMBERS):
        raise InvalidInput(
            "--member goes with members, and only with it",
            field="member",
            hint=f"{COMMAND} members --member ADDRESS: where other servers will reach this machine",
        )
    if options.confirm or options.back:
        if done is None:
            raise IllegalTransition(
                f"no store is kept beside {recall_store(options.state)}",
                hint=f"{COMMAND} URL takes the objects to another",
            )
        if options.confirm:
            await ask_confirmed(options.state, done, clock)
            return
        if options.as_it_was:
            await return_as_it_was(options.state, done, clock)
            return
        options.url = done.source
    elif done is not None:
        raise IllegalTransition(
            f"the store before, {done.source}, is still kept",
            hint=f"{COMMAND} --confirm removes it; {COMMAND} --back returns to it",
        )
    await exchange_store(options, clock)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Raises InUse while the same command runs for this folder."""
    lock = os.open(state / "store.former.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{COMMAND} runs for {state} already", hint="wait until it has ended") from None
        yield
    finally:
        os.close(lock)
